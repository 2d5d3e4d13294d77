"""Policies: shares of wins as the joint Gaussian says, an exploration floor, and what ramps and objectives make of them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bandit.arms import Arm
from bandit.decide import decide
from bandit.floor import spread_floor
from bandit.newcomers import Newcomers
from bandit.objective import Balanced, Cost, Quality, QualityUnderBudget
from bandit.policy import (
    RATINGS_TO_SETTLE,
    Fixed,
    Ramped,
    Thompson,
    Uniform,
    aimed,
    objective_of,
)
from bandit.posterior import Posterior
from bandit.prior import QualityPrior
from bandit.quality import DRAWS, SharedBaseline
from bandit.statistics import RatingStatistics
from bandit.types import Context, Needs

PATIENT = settings(deadline=None)  # no test fails for time
D = 4
X = np.array([1.0, 0.5, -1.0, 0.25])
CONTEXT = Context(X, Needs(100))
MANY = 8192  # draws, where shares of wins are compared with what they tend to
POLICIES = (
    Thompson(Quality(), scale=1.0, floor=0.0),
    Thompson(Balanced(0.001), scale=0.5, floor=0.2),
    Thompson(Cost(0.1), floor=1.0),
    Thompson(Cost(0.02)),
    Thompson(Cost(0.05, "arm1", 0.9), floor=0.05),
    Thompson(QualityUnderBudget(1e-4, 0.1, 2e-4), floor=0.05),
    Ramped(Thompson(Quality(), floor=0.1), "arm1", 0.3),
    Uniform(),
    Fixed(),
)


def arms_of(count, price=1.0):
    return tuple(Arm(f"arm{k}", price, price * (k + 1)) for k in range(count))


def posterior(seed, counts, draws=DRAWS):
    """One count of ratings per arm, of the qualities 0.6, 0.62, ..."""
    return Posterior.of(SharedBaseline(draws=draws), ratings_of(counts, seed), {}, d=D, token="0")


def ratings_of(counts, seed=0):
    rng = np.random.default_rng(seed)
    ratings = {}
    for k, count in enumerate(counts):
        s = RatingStatistics.empty(D)
        for _ in range(count):
            x = np.r_[1.0, rng.normal(size=D - 1)]
            s = s.added(x, float(np.clip(rng.normal(0.6 + 0.02 * k, 0.2), 0, 1)), 1.0)
        ratings[f"arm{k}"] = s
    return ratings


def shares_of(policy, believed, arms):
    return policy.weigh(believed.belief(CONTEXT, arms)).probabilities


def at_scale(scale, **rest):
    """Thompson of quality whose spread does not fall with the ratings."""
    objective = rest.pop("objective", Quality())
    return Thompson(objective, scale=scale, first_scale=scale, **rest)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    unheard=st.integers(0, 3),
    draws=st.sampled_from([1, 7, 64]),
)
def test_probabilities_are_a_distribution_with_its_floor(policy, seed, counts, unheard, draws):
    arms = arms_of(len(counts) + unheard)
    belief = posterior(seed, counts, draws).belief(CONTEXT, arms)
    p = policy.weigh(belief).probabilities
    assert p.shape == (len(arms),)
    assert abs(p.sum() - 1) < 1e-12
    assert (p >= 0).all()
    if isinstance(policy, Thompson):
        allowed = policy.objective.allowed(belief)
        floors = spread_floor(policy.floor, policy.weigh(belief).utility, allowed)
        assert (p >= (1 - policy.newcomers.share) * floors).all()
        assert (p[~allowed & ~policy.newcomers.among(belief)] == 0).all()
        assert (floors[allowed] > 0).all() or policy.floor == 0
    assert np.array_equal(p, policy.weigh(belief).probabilities)


def test_fixed_takes_the_first_listed():
    assert shares_of(Fixed(), posterior(0, [3, 3]), arms_of(3)).tolist() == [1, 0, 0]


def test_uniform_takes_all_alike():
    assert shares_of(Uniform(), posterior(0, [3]), arms_of(4)).tolist() == [0.25] * 4


def test_arms_of_which_the_same_is_known_are_chosen_alike():
    """Their normals lie in different places of the table; no place may be luckier than another."""
    same = posterior(1, [5], MANY).quality  # arms that it does not name share one belief
    believed = Posterior(same, posterior(1, []).cost, {}, "0")
    arms = tuple(Arm(name, 1.0, 1.0) for name in ("p", "q", "r", "s"))
    np.testing.assert_allclose(shares_of(Thompson(Quality(), floor=0.0), believed, arms), 0.25, atol=0.01)


@pytest.mark.parametrize("scale", [0.3, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_two_arms_win_as_the_normal_distribution_says(seed, scale):
    """P(arm 0 wins) = Phi((m_0 - m_1) / (scale sd)),  sd^2 = C_00 + C_11 - 2 C_01: the covariance between arms counts."""
    believed, arms = posterior(seed, [6, 3], MANY), arms_of(2)
    prediction = believed.quality.predict(X, ["arm0", "arm1"])
    C = prediction.covariance
    sd = scale * np.sqrt(C[0, 0] + C[1, 1] - 2 * C[0, 1])
    expected = stats.norm.cdf((prediction.mean[0] - prediction.mean[1]) / sd)
    shares = shares_of(at_scale(scale, floor=0.0), believed, arms)
    assert shares[0] == pytest.approx(expected, abs=0.015)  # the table is finite
    if scale == 1:
        assert 0.02 < expected < 0.98  # else there is nothing to see


@pytest.mark.parametrize("objective", [Quality(), Balanced(0.005), Cost(0.05)], ids=repr)
@pytest.mark.parametrize("seed", range(2))
def test_three_arms_win_as_draws_from_the_joint_normal_do(seed, objective):
    believed, arms = posterior(seed, [8, 2, 0], MANY), arms_of(3)
    names = [arm.name for arm in arms]
    prediction = believed.quality.predict(X, names)
    draws = np.random.default_rng(5).multivariate_normal(prediction.mean, prediction.covariance, 100_000)
    utility = objective.utility(
        draws,
        believed.cost.expected_usd(arms, CONTEXT.needs),
        int(np.argmax(believed.quality.typical(names))),
    )
    expected = np.bincount(np.argmax(utility, axis=1), minlength=3) / len(draws)
    shares = shares_of(at_scale(1.0, objective=objective, floor=0.0), believed, arms)
    np.testing.assert_allclose(shares, expected, atol=0.015)
    assert expected.max() < 0.97


@pytest.mark.parametrize("objective", [Quality(), Balanced(0.005), Cost(0.05)], ids=repr)
def test_the_order_of_the_candidates_does_not_matter(objective):
    believed, arms, order = posterior(3, [8, 2, 0, 5]), arms_of(4), [2, 0, 3, 1]
    policy = at_scale(1.0, objective=objective)
    permuted = shares_of(policy, believed, [arms[k] for k in order])
    np.testing.assert_allclose(permuted, shares_of(policy, believed, arms)[order], rtol=1e-12)


def test_the_floor_is_mixed_into_the_shares_of_wins():
    for seed in range(20):
        belief = posterior(seed, [9, 9, 9]).belief(CONTEXT, arms_of(3))
        floors = spread_floor(0.3, belief.quality.mean, EVERY[:3])
        bare = Thompson(Quality(), floor=0.0).weigh(belief).probabilities
        mixed = Thompson(Quality(), floor=0.3).weigh(belief).probabilities
        np.testing.assert_allclose(mixed, 0.7 * bare + floors)
        assert np.array_equal(bare * 64, np.round(bare * 64))  # shares of 64 draws


EVERY = np.ones(12, dtype=bool)


def test_floors_by_hand():
    """Losses 0 and 3, mean 1.5, so 0.075 and 3.075: the good arm gets sqrt(3.075 / 0.075) times the bad one's."""
    bad, good = spread_floor(0.01, np.array([1.0, 4.0]), EVERY[:2])
    assert bad + good == pytest.approx(0.01)
    assert good / bad == pytest.approx(np.sqrt(3.075 / 0.075))
    np.testing.assert_allclose(
        spread_floor(0.01, np.full(4, 0.3), EVERY[:4]), 0.0025
    )  # none better: all alike
    some = spread_floor(0.01, np.array([1.0, 9.0, 4.0]), np.array([True, False, True]))
    assert some.tolist() == [bad, 0.0, good]  # what is not allowed is not even compared with


@st.composite
def worths(draw, least=1):
    """(utility, allowed) of up to 8 arms."""
    utility = draw(st.lists(st.just(0.0) | st.floats(-10, 10), min_size=least, max_size=8))
    allowed = draw(st.lists(st.booleans(), min_size=len(utility), max_size=len(utility)))
    if sum(allowed) < least:
        allowed = [True] * len(utility)
    return np.round(utility, 6), np.array(allowed)


@PATIENT
@given(worth=worths(), total=st.floats(1e-3, 1))
def test_floors_sum_to_the_total_favour_the_good_and_leave_out_only_what_is_not_allowed(worth, total):
    utility, allowed = worth
    floors = spread_floor(total, utility, allowed)
    assert floors.sum() == pytest.approx(total, rel=1e-12)
    assert (floors[~allowed] == 0).all()
    K = allowed.sum()
    assert floors[allowed].min() >= total / (K * np.sqrt(20 * K + 1)) * (1 - 1e-9)  # one loses all
    assert (np.diff(floors[allowed][np.argsort(utility[allowed])]) >= -1e-15).all()
    np.testing.assert_allclose(
        spread_floor(total, utility * 7 + 3, allowed), floors, rtol=1e-6
    )  # no unit matters


@PATIENT
@given(worth=worths(least=3), seed=st.integers(0, 10**6))
def test_no_other_floors_of_the_same_total_and_loss_have_much_smaller_importance_weights(worth, seed):
    utility, allowed = worth
    utility = utility[allowed]
    floors = spread_floor(0.01, utility, EVERY[: len(utility)])
    loss = utility.max() - utility
    Q, _ = np.linalg.qr(np.stack([np.ones_like(loss), loss / max(loss.max(), 1e-9)], axis=1))
    step = np.random.default_rng(seed).normal(size=len(loss))
    step -= Q @ (Q.T @ step)  # neither total nor expected loss changes along it
    step *= 0.5 * floors.min() / max(np.abs(step).max(), 1e-9)
    for other in (floors + step, floors - step):
        assert np.sum(1 / other) >= np.sum(1 / floors) * (1 - 1e-9)


@pytest.mark.parametrize("factor", [10.0, 2.0**-7, 130.0])
@pytest.mark.parametrize(
    "objective",
    [
        lambda f: Quality(),  # noqa: ARG005
        lambda f: Balanced(0.001 * f),
        lambda f: Cost(0.05),  # noqa: ARG005
        lambda f: Cost(0.05, "arm1", 0.9),  # noqa: ARG005
        lambda f: QualityUnderBudget(3e-4 * f, 0.1, 6.5e-4 * f),
    ],
    ids=["quality", "balanced", "cost", "cost with confidence", "budget"],
)
def test_in_another_currency_the_same_is_chosen(objective, factor):
    """All prices, the budget and the worth of a point times the same factor; newcomers' allowance too."""
    prior = replace(QualityPrior.flat(D), price_slope=np.array([0.1, 0.02, 0.0, 0.0]))
    arms = arms_of(4, 1.5)
    dear = tuple(
        replace(
            a, price_usd_per_mtok_in=1.5 * factor, price_usd_per_mtok_out=factor * a.price_usd_per_mtok_out
        )
        for a in arms
    )
    worlds = []
    for of, f in ((arms, 1.0), (dear, factor)):
        policy = Thompson(objective(f), floor=0.1, newcomers=Newcomers(usd_per_request=2e-5 * f))
        believed = (
            Posterior.of(SharedBaseline(prior, of), ratings_of([6, 30, 1, 0], seed), {}, d=D, token="0")
            for seed in range(100)
        )
        worlds.append(np.array([shares_of(policy, each, of) for each in believed]))
    # a draw on the very edge may fall to the other side of it; no more than one in thousands does
    assert np.abs(worlds[1] - worlds[0]).mean() < 1e-5
    assert (worlds[0] > 0).sum() > 200


def test_without_spread_the_best_expected_utility_wins():
    believed, arms = posterior(2, [9, 9, 9]), arms_of(3)
    mean = believed.quality.predict(X, [arm.name for arm in arms]).mean
    greedy = shares_of(at_scale(0.0, floor=0.0), believed, arms)
    assert greedy.tolist() == (np.arange(3) == np.argmax(mean)).tolist()


def test_a_larger_scale_explores_more():
    believed, arms = posterior(2, [9, 9, 9], MANY), arms_of(3)
    entropies = [stats.entropy(shares_of(at_scale(scale), believed, arms)) for scale in (0.1, 0.3, 1.0)]
    assert entropies == sorted(entropies)
    assert entropies[0] < entropies[2] - 0.1


def test_a_new_arm_is_tried():
    """No rating yet, among arms with many: its uncertainty alone must bring it requests."""
    believed = posterior(4, [60, 60])
    shares = shares_of(Thompson(Quality(), floor=0.0), believed, arms_of(3))
    assert shares[2] > 0.05


def test_the_objective_says_what_the_draws_are_worth():
    """The same belief, three objectives: the dear good arm, and the cheap one where a point is worth little."""
    rng = np.random.default_rng(0)
    ratings = {}
    for name, quality in (("cheap", 0.60), ("dear", 0.70)):
        s = RatingStatistics.empty(D)
        for _ in range(300):
            s = s.added(np.r_[1.0, rng.normal(size=D - 1)], quality, 1.0)
        ratings[name] = s
    believed = Posterior.of(SharedBaseline(), ratings, {}, d=D, token="0")
    arms = (Arm("cheap", 0.1, 0.1), Arm("dear", 10.0, 10.0))
    chosen = [
        arms[int(np.argmax(shares_of(Thompson(objective), believed, arms)))].name
        for objective in (Quality(), Balanced(1.0), Balanced(0.001), Cost(0.2), Cost(0.02))
    ]
    assert chosen == ["dear", "dear", "cheap", "cheap", "dear"]


def test_hundreds_of_arms_are_chosen_among_as_few_are():
    chances = shares_of(Thompson(Quality()), posterior(0, [1]), arms_of(1500))
    assert chances.sum() == pytest.approx(1.0, abs=1e-12)
    assert chances.min() > 0


def test_the_spread_falls_with_the_ratings_as_stated():
    policy, arms = Thompson(Quality(), scale=0.2, first_scale=0.8), arms_of(2)
    belief = posterior(0, [0, 0]).belief(CONTEXT, arms)
    for n, expected in ((0.0, 0.8), (RATINGS_TO_SETTLE, 0.2 + 0.6 / np.sqrt(2)), (1e12, 0.2)):
        assert policy.spread(replace(belief, ratings=np.array([0.0, n]))) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_ramped_policy_is_the_exact_mixture(share):
    inner, arms = Thompson(Balanced(0.001)), arms_of(3)
    for seed in range(50):
        believed = posterior(seed, [5, 2, 3])
        expected = share * shares_of(inner, believed, arms) + (1 - share) * np.array([0.0, 0.0, 1.0])
        assert np.array_equal(shares_of(Ramped(inner, "arm2", share), believed, arms), expected)


def test_in_shadow_the_baseline_always_answers_and_what_it_would_do_is_told():
    inner, arms, believed = Thompson(Quality(), floor=0.5), arms_of(3), posterior(1, [5, 2, 3])
    shadow = Ramped(inner, "arm1", 0.0)
    for i in range(300):
        decision = decide(shadow, believed, CONTEXT, arms, f"id-{i}")
        assert (decision.arm.name, decision.propensity) == ("arm1", 1.0)
    assert np.array_equal(decision.utility, inner.weigh(believed.belief(CONTEXT, arms)).utility)


def test_where_the_baseline_cannot_serve_the_policy_chooses_alone():
    inner, believed = Thompson(Quality()), posterior(1, [5, 2])
    ramped = shares_of(Ramped(inner, "elsewhere", 0.0), believed, arms_of(2))
    assert np.array_equal(ramped, shares_of(inner, believed, arms_of(2)))


def test_another_aim_changes_the_objective_and_nothing_else():
    policy = Ramped(Thompson(Quality(), scale=0.4, floor=0.03), "arm0", 0.5)
    changed = aimed(policy, Cost(0.1))
    assert changed == Ramped(Thompson(Cost(0.1), scale=0.4, floor=0.03), "arm0", 0.5)
    assert (objective_of(policy), objective_of(changed)) == (Quality(), Cost(0.1))
    for blind in (Uniform(), Fixed()):
        assert aimed(blind, Cost(0.1)) is blind
        assert objective_of(blind) is None


@pytest.mark.parametrize(
    "policy",
    [
        Thompson(Balanced(0.001), floor=0.1),
        Thompson(Cost(0.05, "arm1", 0.9), floor=0.2),
        Thompson(QualityUnderBudget(1e-4, 0.1, 1e-3), floor=0.2),
        Ramped(Thompson(Quality(), floor=0.2), "arm0", 0.5),
    ],
    ids=repr,
)
def test_arms_are_picked_as_often_as_their_propensities_say(policy):
    """Chi square over 4000 decisions for one request; an arm of propensity 0 is picked never."""
    believed, arms, n = posterior(5, [6, 3, 1, 0]), arms_of(4), 4000
    decisions = [decide(policy, believed, CONTEXT, arms, f"pick-{i}") for i in range(n)]
    expected = np.sum([d.probabilities for d in decisions], axis=0)
    picked = np.bincount([arms.index(d.arm) for d in decisions], minlength=4)
    assert (picked[expected == 0] == 0).all()
    some = expected > 0
    statistic = ((picked - expected)[some] ** 2 / expected[some]).sum()
    assert stats.chi2.sf(statistic, some.sum() - 1) > 1e-3


def test_an_arm_below_the_floor_is_chosen_on_its_merits_no_oftener_than_the_confidence_allows():
    """Worlds drawn from the prior, ratings from the world; the cheap arm is truly below the floor in some of them.

    Among all the worlds in which it is chosen, at most a share 1 - confidence has it below the floor.
    """
    rng, chosen, below = np.random.default_rng(0), 0, 0
    prior = replace(QualityPrior.flat(1), noise_weight=1e9, arm_variance=np.array([0.3]))
    model, arms = SharedBaseline(prior), (Arm("cheap", 0.1, 0.1), Arm("dear", 9.0, 9.0))
    policy, x = Thompson(Cost(0.05, "dear", 0.9), floor=0.0), Context(np.ones(1), Needs(100))
    for _ in range(1500):
        truth = 0.7 + np.sqrt(0.1) * rng.normal() + np.sqrt(0.03) * rng.normal(size=2)
        ratings = {}
        for k, arm in enumerate(arms):
            r = truth[k] + np.sqrt(0.1) * rng.normal(size=8)
            ratings[arm.name] = RatingStatistics(np.array([[8.0]]), np.array([r.sum()]), 8.0, float(r @ r))
        belief = Posterior.of(model, ratings, {}, d=1, token="0").belief(x, arms)
        p = policy.weigh(belief).probabilities
        assert p.max() == 1.0
        chosen += p[0] == 1
        below += p[0] == 1 and truth[0] < truth[1] - 0.05
    assert chosen > 200
    assert below / chosen <= 0.1
    assert below > 0  # else there is nothing to see


def test_another_objective_leaves_every_statistic_untouched():
    believed, arms = posterior(5, [6, 3, 1]), arms_of(3)
    names = ("weights", "precisions", "shared_factor", "typical_x")
    before = [getattr(believed.quality, name).tobytes() for name in names]
    usual, cost = dict(believed.ratings), believed.cost.usual.tobytes()
    for policy in POLICIES:
        decide(policy, believed, CONTEXT, arms, "id")
    assert [getattr(believed.quality, name).tobytes() for name in names] == before
    assert (dict(believed.ratings), believed.cost.usual.tobytes()) == (usual, cost)
