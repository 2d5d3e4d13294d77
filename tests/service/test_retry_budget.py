from hypothesis import given
from hypothesis import strategies as st

from service.retry_budget import RESERVE, SAVED_MAX, TRICKLE_PER_S, RetryBudget

events = st.lists(st.tuples(st.sampled_from(["request", "again"]), st.floats(0, 0.5)), max_size=300)


@given(events, st.floats(0, 1))
def test_further_calls_are_never_more_than_the_budget_promises(steps, share):
    budget, now, requests, further = RetryBudget(share, now_s=0.0), 0.0, 0, 0
    for what, pause in steps:
        now += pause
        if what == "request":
            budget.request()
            requests += 1
        else:
            further += budget.take(now)
    assert further <= share * requests + TRICKLE_PER_S * now + RESERVE + 1e-6


@given(st.integers(200, 2000))
def test_in_an_outage_of_everything_a_tenth_of_the_requests_is_tried_again(requests):
    budget, further = RetryBudget(0.1, now_s=0.0), 0
    for _ in range(requests):
        budget.request()
        further += budget.take(0.0)
    assert abs(further - (RESERVE + requests / 10)) <= RESERVE
    assert budget.denied == requests - further


def test_good_times_save_up_for_the_first_second_of_an_outage():
    budget = RetryBudget(0.1, now_s=0.0)
    for _ in range(10_000):
        budget.request()
    assert sum(budget.take(0.0) for _ in range(1000)) == SAVED_MAX


def test_a_quiet_gateway_may_try_again_after_a_while():
    budget = RetryBudget(0.1, now_s=0.0)
    assert sum(budget.take(0.0) for _ in range(100)) == RESERVE
    assert not budget.take(0.5)
    assert budget.take(1.5)


def test_a_share_of_nothing_allows_nothing():
    budget = RetryBudget(0.0, now_s=0.0)
    assert not budget.take(1000.0)


def test_a_clock_that_stands_still_or_goes_back_gives_nothing_away():
    budget = RetryBudget(0.1, now_s=100.0)
    assert sum(budget.take(100.0 - i) for i in range(50)) == RESERVE
