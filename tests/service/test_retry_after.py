from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.retry_after import LONGEST_S, retry_after_s

NOW = 1_790_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "7", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": format_datetime(datetime.fromtimestamp(NOW + 30, UTC), usegmt=True)}, 30.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after": "1000000000"}, LONGEST_S),
        ({"retry-after": "inf"}, LONGEST_S),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "1e999"}, LONGEST_S),
        ({"retry-after": "Thu, 99 Jan 99999 99:00:00 GMT"}, None),
    ],
)
def test_seconds_milliseconds_and_dates_are_read_and_nonsense_is_nothing(headers, seconds):
    assert retry_after_s(headers, now=NOW) == seconds


@given(st.text(max_size=60))
def test_no_header_raises_or_asks_for_the_impossible(text):
    for name in ("retry-after", "retry-after-ms"):
        wait = retry_after_s({name: text}, now=NOW)
        assert wait is None or 0 <= wait <= LONGEST_S
