import math
import struct
from dataclasses import fields as fields_of

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.statistics import CallStatistics
from feedback.events import (
    CALLED,
    CHARGED,
    COST_MAX_USD,
    RATED,
    Called,
    Charged,
    Rated,
    decode,
    encode_called,
    feedback_tail,
)
from feedback.records import DecisionPrefix, MalformedError

PREFIX = DecisionPrefix("small", np.array([1.0, -0.5]), 1.79e9, 0.25, b"features", b"policy!!").encode()
COUNTS = st.integers(0, 2**53 - 1)


def entry(kind: int, value: float, old: float | None = None, *, source: str = "user") -> bytes:
    """What a store puts together when feedback arrives."""
    return bytes([kind, old is not None]) + PREFIX + feedback_tail(value, old, source)


def test_an_entry_is_laid_out_as_the_docstring_says() -> None:
    assert entry(RATED, 0.75) == b"\x01\x00" + PREFIX + struct.pack("<dd", 0.75, 0.0) + b"user"
    assert entry(CHARGED, 0.5, 0.25) == b"\x02\x01" + PREFIX + struct.pack("<dd", 0.5, 0.25) + b"user"


@given(st.floats(0, 1), st.none() | st.floats(0, 1), st.text(min_size=1, max_size=80))
def test_a_rating_survives_its_bytes(value: float, old: float | None, source: str) -> None:
    event = decode(entry(RATED, value, old, source=source))
    assert isinstance(event, Rated)
    assert (event.quality, event.old, event.source) == (value, old, source)
    assert event.decision.encode() == PREFIX


@given(st.floats(0, COST_MAX_USD), st.none() | st.floats(0, COST_MAX_USD))
def test_a_cost_survives_its_bytes(value: float, old: float | None) -> None:
    event = decode(entry(CHARGED, value, old, source="application"))
    assert isinstance(event, Charged)
    assert (event.cost_usd, event.old, event.source) == (value, old, "application")
    assert event.decision.encode() == PREFIX


@given(
    worker=st.text(max_size=40),
    sequence=COUNTS,
    calls=st.dictionaries(
        st.text(max_size=20),
        st.builds(CallStatistics, *[COUNTS for _ in fields_of(CallStatistics)]),
        max_size=4,
    ),
)
def test_a_workers_sums_survive_their_bytes(
    worker: str, sequence: int, calls: dict[str, CallStatistics]
) -> None:
    event = Called(worker, sequence, calls)
    assert decode(encode_called(event)) == event


@pytest.mark.parametrize("kind", [RATED, CHARGED])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.001, -5e-324])
def test_values_that_cannot_be_are_refused_new_or_old(kind: int, value: float) -> None:
    for bad in (entry(kind, value), entry(kind, value, 0.5), entry(kind, 0.5, value)):
        with pytest.raises(MalformedError, match="between 0 and"):
            decode(bad)


def test_each_kind_has_its_own_upper_bound() -> None:
    decode(entry(RATED, 1.0))
    decode(entry(CHARGED, COST_MAX_USD))
    for bad in (entry(RATED, math.nextafter(1.0, 2.0)), entry(CHARGED, math.nextafter(COST_MAX_USD, 1e9))):
        with pytest.raises(MalformedError, match="between 0 and"):
            decode(bad)


def test_the_old_value_of_a_first_rating_is_not_looked_at() -> None:
    data = bytearray(entry(RATED, 0.5))
    data[-12:-4] = struct.pack("<d", math.nan)
    event = decode(bytes(data))
    assert isinstance(event, Rated)
    assert event.old is None


@pytest.mark.parametrize("whole", [entry(RATED, 0.5, source="u"), entry(CHARGED, 0.5, 0.25, source="u")])
def test_an_entry_cut_short_anywhere_is_refused(whole: bytes) -> None:
    decode(whole)
    for length in range(len(whole)):
        with pytest.raises(MalformedError):
            decode(whole[:length])


def test_a_workers_sums_cut_short_anywhere_are_refused() -> None:
    whole = encode_called(Called("w", 3, {"small": CallStatistics(calls=2, tokens_out=600)}))
    for length in range(len(whole)):
        with pytest.raises(MalformedError):
            decode(whole[:length])


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        "abc",
        None,
        ["w", 1],
        ["w", 1, {}, 0],
        ["w", -1, {}],
        ["w", 1.0, {}],
        ["w", True, {}],
        ["w", None, {}],
        ["w", 2**53, {}],
        ["w", 1, []],
        ["w", 1, {"small": 1}],
        ["w", 1, {"small": None}],
        ["w", 1, {"small": [-1]}],
        ["w", 1, {"small": [1.5]}],
        ["w", 1, {"small": [True]}],
        ["w", 1, {"small": ["1"]}],
        ["w", 1, {"small": [2**53]}],
        ["w", 1, {"small": [0] * (len(CallStatistics.__slots__) + 1)}],
    ],
)
def test_sums_of_another_form_are_refused(content: object) -> None:
    with pytest.raises(MalformedError, match="not of the form"):
        decode(bytes([CALLED]) + orjson.dumps(content))


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"\x04" + entry(RATED, 0.5)[1:], b"\xff" * 200, bytes([CALLED])]
)
def test_kinds_to_come_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        decode(data)


def test_a_source_that_is_no_text_is_refused() -> None:
    with pytest.raises(MalformedError, match="UTF-8"):
        decode(entry(RATED, 0.5)[:-1] + b"\xff")


@given(
    st.binary(max_size=300), st.sampled_from([b"", b"\x01\x00", b"\x02\x01", b"\x03", b"\x01\x00\x01\x00"])
)
def test_arbitrary_bytes_are_an_event_or_malformed_and_nothing_else(data: bytes, start: bytes) -> None:
    try:
        decode(start + data)
    except MalformedError:
        return


@given(st.data())
def test_a_damaged_entry_is_an_event_in_range_or_malformed_and_nothing_else(data: st.DataObject) -> None:
    whole = bytearray(entry(RATED, 0.5, 0.25))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        event = decode(bytes(whole))
    except MalformedError:
        return
    if isinstance(event, Rated):
        assert 0.0 <= event.quality <= 1.0
        assert np.isfinite(event.decision.x).all()
