import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.rate_limit import MINUTE_S, RateLimit


def test_a_minutes_worth_may_come_at_once_and_then_one_per_step():
    limit = RateLimit(60)
    assert [limit.request(0.0).remaining for _ in range(60)] == list(range(59, -1, -1))
    refused = limit.request(0.0)
    assert (refused.allowed, refused.retry_after_s) == (False, pytest.approx(1.0))
    assert not limit.request(0.9).allowed
    assert limit.request(1.0).allowed
    assert not limit.request(1.0).allowed


def test_the_headers_are_those_that_sdks_read():
    limit = RateLimit(2)
    assert limit.request(5.0).headers() == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "30.000s",
    }


@given(st.integers(1, 100), st.lists(st.floats(0, 20), max_size=200))
def test_no_span_of_time_holds_more_than_its_share_and_one_minutes_worth(per_minute, pauses):
    limit, now, allowed = RateLimit(per_minute), 0.0, 0
    for pause in pauses:
        now += pause
        answer = limit.request(now)
        allowed += answer.allowed
        assert 0 <= answer.remaining < per_minute
        assert answer.allowed or answer.retry_after_s > 0
    assert allowed <= per_minute * (1 + now / MINUTE_S) + 1e-3


@given(st.integers(1, 1000), st.floats(0, 1e6))
def test_who_waits_as_long_as_told_is_let_in(per_minute, now):
    limit = RateLimit(per_minute)
    for _ in range(per_minute):
        assert limit.request(now).allowed
    refused = limit.request(now)
    assert not refused.allowed
    assert limit.request(now + refused.retry_after_s + 1e-6).allowed


@given(st.integers(1, 1000))
def test_an_even_pace_at_the_limit_is_never_refused(per_minute):
    limit = RateLimit(per_minute)
    assert all(limit.request(i * MINUTE_S / per_minute).allowed for i in range(3 * per_minute))
