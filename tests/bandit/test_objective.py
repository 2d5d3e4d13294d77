"""What an answer is worth, by hand and by property."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bandit.arms import Arm
from bandit.belief import Belief
from bandit.objective import Balanced, Cost, Quality, QualityUnderBudget
from bandit.prediction import Draws, Prediction

PATIENT = settings(deadline=None)  # no test fails for time
QUALITY = np.array([[0.5, 0.8, 0.9], [0.7, 0.6, 0.9]])  # (M=2, K=3)
COST_USD = np.array([0.001, 0.002, 0.010])

cases = st.integers(1, 6).flatmap(
    lambda k: st.tuples(
        st.lists(st.floats(-0.5, 1.5), min_size=k, max_size=k).map(np.array),
        st.lists(st.floats(0, 10), min_size=k, max_size=k).map(np.array),
        st.integers(0, k - 1),
    )
)


def test_quality_ignores_cost():
    np.testing.assert_array_equal(Quality().utility(QUALITY, COST_USD, 0), QUALITY)


def test_balanced_by_hand():
    """A point of quality is worth 1 cent: the dear arm loses 1.0, the others 0.1 and 0.2."""
    utility = Balanced(usd_per_quality=0.01).utility(QUALITY, COST_USD, 0)
    np.testing.assert_allclose(utility, [[0.4, 0.6, -0.1], [0.6, 0.4, -0.1]])


def test_balanced_turns_from_the_dear_arm_to_the_cheap_one_at_the_stated_exchange_rate():
    quality, cost_usd = (
        np.array([[0.6, 0.8]]),
        np.array([0.0, 0.002]),
    )  # 0.2 quality for 0.002 USD: even at 0.01

    def chosen(usd_per_quality):
        return int(np.argmax(Balanced(usd_per_quality).utility(quality, cost_usd, 0)))

    assert (chosen(0.0099), chosen(0.0101)) == (0, 1)


def test_cost_by_hand():
    """Floor 0.15 below the reference (arm 2, at 0.9): in the first draw arm 1 is within, in the second none but it."""
    utility = Cost(quality_floor=0.15).utility(QUALITY, COST_USD, 2)
    assert np.argmax(utility, axis=1).tolist() == [1, 2]
    np.testing.assert_allclose(utility[0, 1:], -COST_USD[1:])


@PATIENT
@given(case=cases, floor=st.floats(0, 0.5))
def test_cost_takes_the_cheapest_arm_within_the_floor(case, floor):
    quality, cost_usd, reference = case
    utility = Cost(floor).utility(quality[None], cost_usd, reference)
    chosen = int(np.argmax(utility))
    lacking = quality[reference] - floor - quality
    within = lacking <= 0
    assert within[reference]  # the reference is always one, so there is always an arm to take
    assert lacking[chosen] <= cost_usd.max() / 1e6 + 1e-12  # what 1e6 USD a point forgives
    assert cost_usd[chosen] <= cost_usd[within].min()


@PATIENT
@given(case=cases, lift=st.floats(-1, 1), usd_per_quality=st.floats(1e-4, 1))
def test_a_lift_of_all_arms_alike_changes_no_choice(case, lift, usd_per_quality):
    """What is common to all arms (how hard the request is) must not matter."""
    quality, cost_usd, reference = case
    quality = quality.round(3)
    for objective in (Quality(), Balanced(usd_per_quality)):
        before = objective.utility(quality[None], cost_usd, reference)[0]
        after = objective.utility(quality[None] + lift, cost_usd, reference)[0]
        assert before[np.argmax(after)] >= before.max() - 1e-9 * (1 + np.abs(before).max())


@PATIENT
@given(case=cases, floor=st.floats(0, 0.5), usd_per_quality=st.floats(1e-4, 1))
def test_each_draw_is_weighed_by_itself(case, floor, usd_per_quality):
    """(M, K) in, (M, K) out: a batch of draws is worth what its rows are worth."""
    quality, cost_usd, reference = case
    draws = np.stack([quality, quality[::-1], quality * 0.5])
    for objective in (Quality(), Balanced(usd_per_quality), Cost(floor)):
        rows = [objective.utility(row[None], cost_usd, reference)[0] for row in draws]
        np.testing.assert_array_equal(objective.utility(draws, cost_usd, reference), rows)


def test_quality_under_a_budget_by_hand():
    """B = 2 tenths of a cent and a dual of 0.1: 0.05, 0.1 and 0.5 of quality; the allowance rules the dear arm out."""
    objective = QualityUnderBudget(usd_per_request=0.002, dual=0.1, allowance_usd=0.002)
    np.testing.assert_allclose(
        objective.utility(QUALITY, COST_USD, 0), [[0.45, 0.7, -np.inf], [0.65, 0.5, -np.inf]]
    )
    covered = QualityUnderBudget(0.002, 0.1, 0.01).utility(QUALITY, COST_USD, 0)
    np.testing.assert_allclose(covered[:, 2], [0.4, 0.4])


@PATIENT
@given(case=cases, allowance=st.floats(0, 10))
def test_under_any_allowance_there_is_an_arm_to_call(case, allowance):
    quality, cost_usd, reference = case
    utility = QualityUnderBudget(1.0, 0.5, allowance).utility(quality[None], cost_usd, reference)[0]
    chosen = int(np.argmax(utility))
    assert np.isfinite(utility[chosen])
    assert cost_usd[chosen] <= max(allowance, cost_usd.min())


def belief_of(mean, covariance, *, cost_usd=None, typical=None):
    """In arms a, b, c ..."""
    mean = np.array(mean)
    K = len(mean)
    return Belief(
        arms=[Arm(name, 1.0, 1.0) for name in "abcdefgh"[:K]],
        quality=Draws(mean, np.zeros((1, K))),
        exactly=lambda: Prediction(mean, np.array(covariance)),
        cost_usd=np.arange(1.0, K + 1) if cost_usd is None else np.array(cost_usd),
        typical=mean if typical is None else np.array(typical),
        noise_variance=0.1,
        ratings=np.ones(K),
    )


def test_the_baseline_is_the_reference_and_without_it_the_best_over_all_traffic():
    belief = belief_of([0.9, 0.5, 0.6], np.eye(3), typical=[0.2, 0.3, 0.8])
    assert Cost(0.1, "b").reference(belief) == 1
    assert Cost(0.1).reference(belief) == 2
    assert Cost(0.1, "gone").reference(belief) == 2
    assert Quality().reference(belief) == Balanced(1.0).reference(belief) == 0


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
def test_with_confidence_those_are_preferred_of_which_the_normal_distribution_is_so_sure(confidence):
    mean, C = np.array([0.7, 0.72, 0.5, 0.69]), np.full((4, 4), 0.02) + np.diag([0.001, 0.01, 0.001, 1e-6])
    preferred = Cost(0.1, "b", confidence).preferred(belief_of(mean, C))
    for k in range(4):
        sd = np.sqrt(C[k, k] + C[1, 1] - 2 * C[k, 1])
        sure = k == 1 or stats.norm.sf(mean[1] - 0.1, mean[k], sd) >= confidence
        assert preferred[k] == sure
    assert preferred.tolist()[1:3] == [True, False]


@PATIENT
@given(seed=st.integers(0, 10**6), K=st.integers(1, 8), confidence=st.floats(0.01, 0.999))
def test_the_baseline_is_always_preferred_and_more_confidence_prefers_no_more(seed, K, confidence):
    rng = np.random.default_rng(seed)
    A = rng.normal(0, 0.1, (K, K))
    belief = belief_of(rng.uniform(size=K), A @ A.T)
    objective = Cost(0.05, "a", confidence)
    preferred, surer = objective.preferred(belief), Cost(0.05, "a", (1 + confidence) / 2).preferred(belief)
    assert preferred[0]
    assert (surer <= preferred).all()
    assert objective.allowed(belief).all()
    assert Cost(0.05, "a").preferred(belief).all()


def test_with_confidence_the_cheapest_of_the_preferred_wins():
    utility = Cost(0.1, "a", 0.9).utility(QUALITY, COST_USD, 0)
    np.testing.assert_array_equal(utility, [-COST_USD, -COST_USD])


def test_under_a_budget_what_is_not_affordable_is_not_allowed_even_to_explore():
    belief = belief_of([0.5, 0.6, 0.7], np.eye(3), cost_usd=[0.3, 0.1, 0.5])
    for allowance, affordable in ((0.3, [1, 1, 0]), (0.0, [0, 1, 0]), (1.0, [1, 1, 1])):
        objective = QualityUnderBudget(0.2, 0.1, allowance)
        assert objective.allowed(belief).tolist() == objective.preferred(belief).tolist() == affordable
