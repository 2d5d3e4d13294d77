"""Which models can serve a request, and what a person is told about those that cannot."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.arms import Arm, Exclusion, eligible
from bandit.types import Needs

SMALL = Arm("small", 0.5, 1.5, context_window_tokens=1000, tools=False)
LARGE = Arm("large", 2.0, 8.0, context_window_tokens=10_000)

arms = st.builds(
    Arm,
    name=st.text(min_size=1, max_size=8),
    price_usd_per_mtok_in=st.floats(0, 100),
    price_usd_per_mtok_out=st.floats(0, 100),
    context_window_tokens=st.integers(1, 2000),
    tools=st.booleans(),
)
needs = st.builds(
    Needs,
    tokens_in=st.integers(1, 3000),
    max_tokens_out=st.none() | st.integers(1, 3000),
    tools=st.booleans(),
)


def test_cost_is_tokens_times_the_price_of_a_million():
    assert LARGE.cost_usd(1_000_000, 0) == pytest.approx(2.0)
    assert LARGE.cost_usd(0, 1_000_000) == pytest.approx(8.0)
    assert LARGE.cost_usd(500, 250) == pytest.approx((500 * 2 + 250 * 8) / 1e6)


def test_every_arm_can_serve_a_plain_request():
    assert eligible((SMALL, LARGE), Needs(100)) == ((SMALL, LARGE), ())


def test_no_arms_are_no_error():
    assert eligible((), Needs(100)) == ((), ())


def test_a_model_that_cannot_call_tools_is_left_out_when_the_request_offers_some():
    able, unable = eligible((SMALL, LARGE), Needs(100, tools=True))
    assert able == (LARGE,)
    assert unable == (
        Exclusion("small", "tools", "the request offers tools and this model cannot call them"),
    )


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers():
    able, unable = eligible((SMALL, LARGE), Needs(1001))
    assert able == (LARGE,)
    assert unable == (Exclusion("small", "context_window", "needs about 1001 tokens, the window holds 1000"),)


@pytest.mark.parametrize(("tokens_in", "max_tokens_out", "fits"), [(600, 400, True), (600, 401, False)])
def test_the_window_holds_prompt_and_answer_together(tokens_in, max_tokens_out, fits):
    able, _ = eligible((SMALL,), Needs(tokens_in, max_tokens_out))
    assert bool(able) == fits


def test_a_prompt_that_fills_the_window_fits_when_the_answer_has_no_limit():
    assert eligible((SMALL,), Needs(1000))[0] == (SMALL,)


def test_an_unavailable_arm_carries_the_reason_it_was_given():
    _, unable = eligible((SMALL, LARGE), Needs(100), {"large": "no key is set"})
    assert unable == (Exclusion("large", "unavailable", "no key is set"),)


def test_a_reason_is_given_even_where_it_is_empty():
    assert eligible((SMALL,), Needs(100), {"small": ""}) == ((), (Exclusion("small", "unavailable", ""),))


def test_what_an_operator_can_mend_is_told_before_what_the_request_demands():
    _, unable = eligible((SMALL,), Needs(5000, tools=True), {"small": "cooling down"})
    assert [e.code for e in unable] == ["unavailable"]


@given(arms=st.lists(arms, max_size=6), needs=needs, down=st.lists(st.integers(0, 5), max_size=3))
def test_each_arm_is_either_eligible_or_excluded_once_in_the_order_given(arms, needs, down):
    unavailable = {arms[i].name: "down" for i in down if i < len(arms)}
    able, unable = eligible(arms, needs, unavailable)
    remaining, excluded = list(able), list(unable)
    for arm in arms:
        if remaining and remaining[0] is arm:
            remaining.pop(0)
            assert arm.name not in unavailable
            assert arm.tools or not needs.tools
            assert needs.tokens_in + (needs.max_tokens_out or 0) <= arm.context_window_tokens
        else:
            exclusion = excluded.pop(0)
            assert exclusion.arm == arm.name
            assert re.fullmatch("context_window|tools|unavailable", exclusion.code)
            assert exclusion.reason
    assert not remaining
    assert not excluded
