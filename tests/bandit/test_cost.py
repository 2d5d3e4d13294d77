"""Expected cost: the docstring's formulas by hand, their limits, and that prices act at once."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit.arms import Arm
from bandit.cost import PSEUDO_CALLS, TYPICAL_TOKENS_OUT, CostModel
from bandit.statistics import CallStatistics
from bandit.types import Needs

PATIENT = settings(deadline=None)  # no test fails for time
ARM = Arm("a", 1.0, 10.0)
OTHER = Arm("b", 1.0, 10.0)
FREE = Arm("free", 0.0, 0.0)
NEEDS = Needs(tokens_in=100)

prices = st.floats(0, 200)
counts = st.integers(0, 10**6)


@st.composite
def call_statistics(draw):
    """Any history that real calls can leave."""
    calls = draw(st.integers(0, 1000))
    reported = draw(st.integers(0, 1000))
    per_call = [draw(st.integers(1, 5000)) for _ in range(3)]
    return CallStatistics(
        calls=calls,
        tokens_in=calls * per_call[0],
        tokens_in_estimated=calls * per_call[1],
        tokens_out=calls * per_call[2],
        reported_calls=reported,
        reported_nano_usd=reported * draw(counts),
        listed_in_nano_usd=reported * draw(counts),
        listed_out_nano_usd_per_token=reported * draw(st.integers(0, 10**5)),
    )


histories = st.dictionaries(st.sampled_from("abc"), call_statistics())


def expected(arm, calls, needs=NEEDS):
    return float(CostModel.fit(calls).expected_usd([arm], needs)[0])


def reports(count, *, usd_each, price_in=1.0, price_out=10.0, tokens_in=100, tokens_out=300):
    """`count` calls whose cost the application told, of an arm with these list prices."""
    return CallStatistics(
        calls=count,
        tokens_in=count * tokens_in,
        tokens_in_estimated=count * tokens_in,
        tokens_out=count * tokens_out,
        reported_calls=count,
        reported_nano_usd=count * round(usd_each * 1e9),
        listed_in_nano_usd=count * round(tokens_in * price_in * 1000),
        listed_out_nano_usd_per_token=count * round(price_out * 1000),
    )


def test_an_unknown_arm_costs_its_prices_times_the_estimate_and_a_typical_answer():
    assert expected(ARM, {}) == pytest.approx((100 * 1.0 + TYPICAL_TOKENS_OUT * 10.0) * 1e-6)


def test_the_formulas_by_hand():
    """k = 5; a: 10 calls, b: 20 calls, 30 in the pool.

    T = (5 x 300 + 9000) / (5 + 30) = 300                  E[out a] = (5 x 300 + 2000) / (5 + 10) = 700/3
    t = (1000 + 3000) / 30 = 400/3                         ratio a  = (1500 + 5t) / (1000 + 5t) = 13/10
    """
    calls = {
        "a": CallStatistics(calls=10, tokens_in=1500, tokens_in_estimated=1000, tokens_out=2000),
        "b": CallStatistics(calls=20, tokens_in=3000, tokens_in_estimated=3000, tokens_out=7000),
    }
    assert CostModel.fit(calls).tokens_out("a") == pytest.approx(700 / 3)
    assert expected(ARM, calls) == pytest.approx((100 * 1.3 * 1.0 + 700 / 3 * 10.0) * 1e-6)


def test_the_correction_by_hand():
    """10 reports of 0.002 USD; listed 0.001 each, so c = 0.001: (0.02 + 5c) / (0.01 + 5c) = 5/3."""
    calls = {"a": reports(10, usd_each=0.002, price_in=0.0, price_out=1e3 / 300, tokens_out=300)}
    arm = Arm("a", 0.0, 1e3 / 300)
    assert expected(arm, calls) == pytest.approx(0.001 * 5 / 3, rel=1e-3)


@pytest.mark.parametrize(("count", "within"), [(0, 0.0), (10**7, 1e-5)])
def test_shrinkage_runs_from_the_pool_to_the_arms_own_mean(count, within):
    pool = CallStatistics(calls=95, tokens_in=95 * 50, tokens_in_estimated=95 * 50, tokens_out=95 * 800)
    own = CallStatistics(count, tokens_in=count * 120, tokens_in_estimated=count * 60, tokens_out=count * 40)
    model = CostModel.fit({"a": own, "b": pool})
    pool_mean = (PSEUDO_CALLS * TYPICAL_TOKENS_OUT + 95 * 800) / (PSEUDO_CALLS + 95)
    tokens_out, ratio = (40, 2) if count else (pool_mean, 1)
    assert model.tokens_out("a") == pytest.approx(tokens_out, rel=within)
    assert model.expected_usd([ARM], NEEDS)[0] == pytest.approx(
        (100 * ratio + tokens_out * 10) * 1e-6, rel=max(within, 1e-12)
    )


def test_a_new_arm_starts_at_the_mean_of_the_pool():
    calls = {
        "b": CallStatistics(calls=10**6, tokens_in=10**8, tokens_in_estimated=10**8, tokens_out=10**6 * 50)
    }
    assert CostModel.fit(calls).tokens_out("new") == pytest.approx(50, rel=1e-4)


@PATIENT
@given(calls=histories, price_in=prices, price_out=prices, factor=st.floats(0, 100))
def test_a_price_change_acts_at_once_and_in_full(calls, price_in, price_out, factor):
    """But for an arm that was free when its costs were reported: it has no list price to correct."""
    calls = {name: s for name, s in calls.items() if s.listed_in_nano_usd or not s.reported_calls}
    model = CostModel.fit(calls)
    before, after = model.expected_usd(
        [Arm("a", price_in, price_out), Arm("a", price_in * factor, price_out * factor)], NEEDS
    )
    assert after == pytest.approx(before * factor, rel=1e-9)


@PATIENT
@given(
    calls=histories,
    low=st.tuples(prices, prices),
    more=st.tuples(prices, prices),
    needs=st.integers(1, 10**5),
)
def test_dearer_prices_never_make_an_arm_cheaper(calls, low, more, needs):
    high = (low[0] + more[0], low[1] + more[1])
    cheap, dear = CostModel.fit(calls).expected_usd([Arm("a", *low), Arm("a", *high)], Needs(needs))
    assert 0 <= cheap <= dear * (1 + 1e-12)


@PATIENT
@given(
    calls=histories, tokens_in=st.integers(1, 10**5), more=st.integers(0, 10**5), limit=st.integers(1, 5000)
)
def test_a_longer_prompt_or_a_higher_limit_never_costs_less(calls, tokens_in, more, limit):
    model = CostModel.fit(calls)

    def cost_usd(*needs):
        return float(model.expected_usd([ARM], Needs(*needs))[0])

    assert cost_usd(tokens_in, limit) <= cost_usd(tokens_in + more, limit) * (1 + 1e-12)
    assert cost_usd(tokens_in, limit) <= cost_usd(tokens_in, limit + more) * (1 + 1e-12)
    assert cost_usd(tokens_in, limit + more) <= cost_usd(tokens_in) * (1 + 1e-12)


def test_the_callers_limit_caps_the_answer_and_only_caps_it():
    assert expected(ARM, {}, Needs(100, max_tokens_out=10)) == pytest.approx((100 + 10 * 10) * 1e-6)
    assert expected(ARM, {}, Needs(100, max_tokens_out=100_000)) == expected(ARM, {}, Needs(100))


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0, 2.0])
def test_reported_costs_at_a_multiple_of_the_list_price_end_at_that_multiple(ratio):
    listed_usd = (100 * 1.0 + 300 * 10.0) * 1e-6
    costs_usd = [
        expected(ARM, {"a": reports(n, usd_each=ratio * listed_usd)}) for n in (0, 1, 10, 100, 10**6)
    ]
    distances = [abs(cost_usd - ratio * listed_usd) for cost_usd in costs_usd]
    assert distances == sorted(distances, reverse=True)
    assert costs_usd[0] == pytest.approx(listed_usd)
    assert costs_usd[-1] == pytest.approx(ratio * listed_usd, rel=1e-4, abs=1e-7)


def test_the_correction_holds_for_other_prompts_and_a_new_price():
    calls = {"a": reports(10**6, usd_each=2 * 3100e-6)}
    listed = {"long": Needs(5000), "short": Needs(10, max_tokens_out=5)}
    for needs in listed.values():
        plain = replace(calls["a"], reported_calls=0, reported_nano_usd=0)
        assert expected(ARM, calls, needs) == pytest.approx(2 * expected(ARM, {"a": plain}, needs), rel=1e-4)
    halved = Arm("a", 0.5, 5.0)
    assert expected(halved, calls) == pytest.approx(expected(ARM, calls) / 2)


def test_one_arms_reports_correct_no_other_arm():
    calls = {"a": reports(1000, usd_each=1.0)}
    assert expected(OTHER, calls) == pytest.approx((100 + 300 * 10) * 1e-6)


def test_a_model_without_a_price_costs_what_was_reported():
    assert expected(FREE, {}) == 0
    for count in (1, 10, 10**6):
        calls = {"free": CallStatistics(unpriced_calls=count, unpriced_nano_usd=count * 4_000_000)}
        assert expected(FREE, calls) == pytest.approx(0.004 * count / (PSEUDO_CALLS + count))


@pytest.mark.parametrize("odd", [CallStatistics(reported_calls=1), CallStatistics(listed_in_nano_usd=5)])
def test_sums_that_no_log_holds_divide_by_nothing(odd):
    assert expected(ARM, {"a": odd}) >= 0


def test_a_model_that_gets_a_price_costs_that_price_whatever_it_cost_before():
    before = CallStatistics(unpriced_calls=1000, unpriced_nano_usd=1000 * 4_000_000)
    assert expected(ARM, {"a": before}) == expected(ARM, {})


def test_costs_come_in_the_order_of_the_arms():
    model = CostModel.fit({})
    there, back = model.expected_usd([ARM, FREE], NEEDS), model.expected_usd([FREE, ARM], NEEDS)
    assert there.tolist() == back[::-1].tolist()
    assert there[1] == 0 < there[0]


def test_calls_whose_prompts_were_all_estimated_as_empty_still_have_a_cost():
    empty = {"a": CallStatistics(calls=4, tokens_out=900)}
    assert expected(ARM, empty) > 0
