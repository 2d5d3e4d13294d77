"""Newcomers: what is promised to them, what they may cost, and who is none."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit.arms import Arm
from bandit.belief import Belief
from bandit.newcomers import MARGIN, Newcomers
from bandit.noise import normals_of
from bandit.objective import Balanced, Cost, Quality, QualityUnderBudget
from bandit.policy import Thompson
from bandit.prediction import Draws, Prediction


def belief_of(ratings, means, sds=0.1, usd=0.001, seed="a posterior"):
    K = len(ratings)
    sds = np.broadcast_to(sds, K).astype(float)
    mean = np.array(means, dtype=float)
    return Belief(
        arms=[Arm(f"arm{k}", 1.0, 1.0) for k in range(K)],
        quality=Draws(mean, normals_of(seed.encode(), 64 * K).reshape(64, K) * sds),
        exactly=lambda: Prediction(mean, np.diag(sds**2)),
        cost_usd=np.broadcast_to(usd, K).astype(float),
        typical=mean,
        noise_variance=0.05,
        ratings=np.array(ratings, dtype=float),
    )


def shares(newcomers, belief, objective=None):
    return Thompson(objective or Quality(), newcomers=newcomers).weigh(belief).probabilities


@settings(deadline=None)
@given(
    ratings=st.lists(st.floats(0, 60), min_size=1, max_size=20),
    share=st.floats(0, 0.5),
    usd=st.floats(0, 0.01),
    seed=st.integers(0, 10**6),
)
def test_the_floors_keep_within_share_and_dollars_and_the_probabilities_sum_to_one(ratings, share, usd, seed):
    rng = np.random.default_rng(seed)
    K = len(ratings)
    belief = belief_of(ratings, rng.uniform(0, 1, K), rng.uniform(0.01, 0.3, K), rng.uniform(1e-6, 0.1, K))
    without = shares(Newcomers(share=0.0), belief)
    with_floors = shares(Newcomers(share=share, usd_per_request=usd), belief)
    assert with_floors.sum() == pytest.approx(1.0, abs=1e-12)
    kept = (with_floors / without).min()  # 1 - sum of the floors, unless every arm has one
    assert 1 - share - 1e-12 <= kept <= 1 + 1e-12
    floors = with_floors - kept * without
    assert (floors * belief.cost_usd).sum() <= usd + 1e-12


def test_a_newcomer_with_a_chance_is_called_as_often_as_promised_whatever_the_policy_thinks():
    """ratings / share requests call it `ratings` times in expectation, though its utility is not the best in most draws."""
    newcomers = Newcomers(ratings=15, share=0.02)
    requests = int(newcomers.ratings / newcomers.share)
    beliefs = [
        belief_of([500, 500, 0], [0.9, 0.5, 0.75], sds=[0.01, 0.01, 0.2], seed=f"r{n}")
        for n in range(requests)
    ]
    calls = [shares(newcomers, belief)[2] for belief in beliefs]
    assert sum(calls) >= newcomers.ratings


def test_a_bad_newcomer_is_called_at_most_as_often_as_an_arm_is_new_and_hardly_once_that_shows():
    """Its ratings tell of it: called by the floor alone, it ends with no more than `ratings` calls beyond the policy's."""
    newcomers, noise_sd, calls = Newcomers(ratings=15, share=0.5), 0.3, 0
    rng = np.random.default_rng(0)
    for n in range(2000):
        sd = 1 / np.sqrt(1 / 0.3**2 + calls / noise_sd**2)
        mean = 0.6 * sd**2 / 0.3**2 + 0.2 * (1 - sd**2 / 0.3**2)
        belief = belief_of([500, calls], [0.9, mean], sds=[0.01, sd], seed=f"b{n}")
        p = shares(newcomers, belief)[1]
        floor = p - Thompson(Quality()).weigh(belief).probabilities[1]
        calls += int(rng.random() < max(floor, 0.0))
    assert 1 <= calls < newcomers.ratings


def test_an_arm_that_is_clearly_worse_gets_nothing_beyond_the_policys_own_floor():
    worse = belief_of([500, 5], [0.9, 0.5], sds=[0.01, 0.02])
    assert np.array_equal(shares(Newcomers(), worse), shares(Newcomers(share=0.0), worse))


def test_an_arm_that_is_surely_a_little_worse_than_the_best_still_has_a_chance():
    near = belief_of([500, 5], [0.9, 0.9 - MARGIN / 2], sds=1e-9)
    assert shares(Newcomers(share=0.1), near)[1] >= 0.1
    far = belief_of([500, 5], [0.9, 0.9 - MARGIN * 2], sds=1e-9)
    assert np.array_equal(shares(Newcomers(share=0.1), far), shares(Newcomers(share=0.0), far))


@pytest.mark.parametrize("ratings", [[0, 0, 0], [7, 3, 0], [8, 200, 16]])
def test_where_all_are_new_or_none_is_the_policy_chooses_alone(ratings):
    belief = belief_of(ratings, [0.5, 0.6, 0.7])
    assert np.array_equal(shares(Newcomers(), belief), shares(Newcomers(share=0.0), belief))


def test_fifty_newcomers_at_once_share_the_allowance_of_one():
    belief = belief_of([500] + [0] * 50, [0.9] + [0.6] * 50, sds=[0.01] + [0.3] * 50)
    without, together = shares(Newcomers(share=0.0), belief), shares(Newcomers(share=0.02), belief)
    assert together[0] >= 0.98 * without[0] - 1e-12


def test_an_arm_of_which_most_was_forgotten_is_a_newcomer_again():
    before = belief_of([500, 100], [0.9, 0.7], sds=[0.01, 0.15])
    after = replace(before, ratings=np.array([500.0, 5.0]))
    assert not Newcomers().among(before).any()
    assert Newcomers().among(after).tolist() == [False, True]


def test_a_dear_newcomer_is_tried_as_often_as_its_dollars_allow_and_a_cheap_one_is_not_held_back_by_it():
    belief = belief_of([500, 0, 0], [0.5, 0.6, 0.6], sds=[0.01, 0.2, 0.2], usd=[0.001, 1.0, 0.001])
    newcomers = Newcomers(share=0.02, usd_per_request=0.001)
    floors = shares(newcomers, belief) - (1 - 0.01 - 0.0005) * shares(Newcomers(share=0.0), belief)
    np.testing.assert_allclose(floors, [0, 0.0005, 0.01], atol=1e-9)


def test_a_budget_without_credit_keeps_no_newcomer_out():
    belief = belief_of([500, 0], [0.5, 0.9], sds=[0.01, 0.2], usd=[0.001, 0.002])
    spent = QualityUnderBudget(usd_per_request=0.001, dual=0.0, allowance_usd=0.0)
    assert shares(Newcomers(share=0.0), belief, spent)[1] == 0
    assert shares(Newcomers(share=0.02), belief, spent)[1] == pytest.approx(0.02 * 0.001 / 0.002)


def test_under_a_budget_newcomers_cost_no_more_than_their_share_of_it():
    """ParetoBandit's smallest budget: a model at 500 times the budget was tried all the same, and spent 14 % too much."""
    budget = QualityUnderBudget(usd_per_request=3e-5, dual=0.0, allowance_usd=1e-4)
    belief = belief_of([500, 0], [0.5, 0.9], sds=[0.01, 0.2], usd=[3e-5, 0.015])
    without, floors = (shares(Newcomers(share=share), belief, budget) for share in (0.0, 0.01))
    assert floors[1] * 0.015 == pytest.approx(0.01 * 3e-5)
    assert without[1] == 0


@pytest.mark.parametrize("objective", [Balanced(0.01), Cost(0.05), Cost(0.05, confidence=0.9)], ids=repr)
def test_every_objective_welcomes_a_newcomer_that_may_be_the_best(objective):
    belief = belief_of([500, 0], [0.7, 0.7], sds=[0.01, 0.2], usd=[0.002, 0.001])
    assert shares(Newcomers(share=0.3), belief, objective)[1] >= 0.3


@pytest.mark.parametrize("wrong", [{"ratings": -1}, {"share": 1.0}, {"share": -0.1}, {"usd_per_request": -1}])
def test_bounds_that_bound_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="newcomers need"):
        Newcomers(**wrong)
