"""A decision: sampled from the very probabilities it logs, and made again from its record."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit.arms import Arm, eligible
from bandit.decide import _sample, decide
from bandit.objective import Balanced, Cost, Quality
from bandit.policy import Fixed, Thompson, Uniform
from bandit.posterior import Posterior
from bandit.quality import SharedBaseline
from bandit.statistics import CallStatistics, RatingStatistics
from bandit.types import Context, Needs

PATIENT = settings(deadline=None)  # no test fails for time
D = 5
ARMS = (Arm("small", 0.1, 0.4, 4000), Arm("middle", 0.5, 1.5), Arm("large", 3.0, 15.0))
POLICIES = (
    Thompson(Balanced(0.02), scale=1.0, floor=0.06),
    Thompson(Cost(0.05), scale=0.7, floor=0.0),
    Uniform(),
    Fixed(),
)


def context_of_seed(seed):
    x = np.r_[1.0, np.random.default_rng(seed).normal(0, 3, size=D - 1)].astype(np.float16).astype(np.float64)
    return Context(x, Needs(200))


def statistics(seed, count=6):
    rng = np.random.default_rng(seed)
    ratings = {}
    for k, arm in enumerate(ARMS):
        s = RatingStatistics.empty(D)
        for _ in range(count):
            x = np.r_[1.0, rng.normal(size=D - 1)]
            s = s.added(x, float(np.clip(rng.normal(0.5 + 0.1 * k, 0.2), 0, 1)), 1.0)
        ratings[arm.name] = s
    calls = {"small": CallStatistics(calls=10, tokens_in=900, tokens_in_estimated=1000, tokens_out=5000)}
    return ratings, calls


def posterior(seed=0, token="17-0"):
    return Posterior.of(SharedBaseline(), *statistics(seed), d=D, token=token)


def many(policy, count, *, candidates=ARMS):
    """Decisions of many requests, each with its own context and id."""
    believed = posterior()
    return [decide(policy, believed, context_of_seed(i % 200), candidates, f"id-{i}") for i in range(count)]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_decision_holds_what_learning_and_evaluation_need(policy):
    context = context_of_seed(3)
    decision = decide(policy, posterior(token="41-2"), context, list(ARMS), "id-3")
    assert decision.decision_id == "id-3"
    assert decision.token == "41-2"
    assert decision.context is context
    assert decision.candidates == ARMS
    assert decision.propensity == decision.probabilities[ARMS.index(decision.arm)] > 0


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_decision_is_made_again_from_its_record_and_the_statistics(policy):
    for i in range(20):
        first = decide(policy, posterior(), context_of_seed(i), ARMS, f"id-{i}")
        logged_x = np.frombuffer(first.context.x.astype(np.float16).tobytes(), np.float16).astype(np.float64)
        again = decide(
            policy,
            posterior(token=first.token),
            Context(logged_x, first.context.needs),
            first.candidates,
            first.decision_id,
        )
        assert again.arm == first.arm
        assert again.propensity == first.propensity
        assert np.array_equal(again.probabilities, first.probabilities)


def test_the_id_decides_where_the_policy_is_unsure():
    believed, context = posterior(), context_of_seed(0)
    chosen = {decide(Uniform(), believed, context, ARMS, f"id-{i}").arm for i in range(50)}
    assert chosen == set(ARMS)


@pytest.mark.parametrize("policy", POLICIES[:3], ids=repr)
def test_arms_are_chosen_as_often_as_their_logged_probabilities_say(policy):
    decisions = many(policy, 5000)
    p = np.array([d.probabilities for d in decisions])
    chosen = np.array([[d.arm is arm for arm in ARMS] for d in decisions])
    assert p.std(axis=0).max() > 0.05 or policy == Uniform()  # they do vary from request to request
    z = (chosen - p).sum(axis=0) / np.sqrt((p * (1 - p)).sum(axis=0))
    assert np.abs(z).max() < 3.5


def test_a_logged_probability_of_any_size_is_calibrated():
    """Among all (decision, arm) pairs logged near p, a share p was chosen: what inverse propensity weights rest on."""
    decisions = many(Thompson(Balanced(0.02), scale=0.15, first_scale=0.15, floor=0.06), 5000)
    p = np.concatenate([d.probabilities for d in decisions])
    chosen = np.concatenate([[d.arm is arm for arm in ARMS] for d in decisions])
    bins = np.digitize(p, [0.05, 0.1, 0.3, 0.5, 0.7, 0.9])
    assert len(set(bins)) == 7
    for b in set(bins):
        within = bins == b
        z = (chosen[within] - p[within]).sum() / np.sqrt((p[within] * (1 - p[within])).sum())
        assert abs(z) < 3.5


def test_inverse_propensity_weights_recover_another_policys_value():
    """The end the log serves: what always the middle arm would have earned, told from Thompson's decisions."""
    reward = {"small": 0.2, "middle": 0.5, "large": 0.8}
    decisions = many(Thompson(Quality(), scale=1.0, floor=0.3), 5000)
    weighted = np.array([reward[d.arm.name] * (d.arm.name == "middle") / d.propensity for d in decisions])
    assert weighted.mean() == pytest.approx(0.5, abs=3.5 * weighted.std() / np.sqrt(len(weighted)))
    assert weighted.std() / np.sqrt(len(weighted)) < 0.02


def test_no_candidates_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="at least one candidate"):
        decide(Uniform(), posterior(), context_of_seed(0), (), "id")


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_single_candidate_is_certain(policy):
    decision = decide(policy, posterior(), context_of_seed(0), ARMS[1:2], "id")
    assert (decision.arm, decision.propensity) == (ARMS[1], 1.0)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_an_excluded_arm_is_never_chosen(policy):
    """The prompt is too long for the small arm and the large one is down."""
    believed, chosen = posterior(), Counter()
    context = replace(context_of_seed(1), needs=Needs(5000))
    for i in range(300):
        candidates, _ = eligible((*ARMS, Arm("new", 1, 1)), context.needs, {"large": "down"})
        chosen[decide(policy, believed, context, candidates, f"id-{i}").arm.name] += 1
    assert set(chosen) <= {"middle", "new"}
    assert chosen["new"] > 0 or policy == Fixed()


def test_a_price_cut_moves_choices_and_leaves_what_was_learned():
    believed, policy = posterior(), Thompson(Balanced(0.02), scale=0.3)
    dear = ARMS[2]
    cut = (*ARMS[:2], replace(dear, price_usd_per_mtok_in=0.01, price_usd_per_mtok_out=0.04))

    def state():
        return (
            believed.quality.predict(context_of_seed(0).x, [a.name for a in ARMS]).mean.tobytes(),
            believed.quality.weights.tobytes(),
            [factor.tobytes() for factor in believed.quality.factors],
            believed.quality.shared_factor.tobytes(),
        )

    before = state()
    contexts = [context_of_seed(i) for i in range(200)]
    at_list = np.mean(
        [decide(policy, believed, c, ARMS, f"{i}").probabilities for i, c in enumerate(contexts)], 0
    )
    at_cut = np.mean(
        [decide(policy, believed, c, cut, f"{i}").probabilities for i, c in enumerate(contexts)], 0
    )
    assert at_cut[2] > at_list[2] + 0.1
    assert state() == before


@PATIENT
@given(weights=st.lists(st.just(0.0) | st.floats(1e-9, 1), min_size=1, max_size=12), data=st.data())
def test_an_arm_of_probability_zero_is_never_sampled(weights, data):
    p = np.array(weights)
    if not p.any():
        p[data.draw(st.integers(0, len(p) - 1))] = 1.0
    p /= p.sum()
    edges = st.sampled_from([0.0, 5e-324, 2.0**-53, 0.5, 1 - 2.0**-53, *np.cumsum(p)])
    uniform = data.draw(st.floats(0, 1, exclude_max=True) | edges)
    assert p[_sample(p, min(float(uniform), 1 - 2.0**-53))] > 0


@pytest.mark.parametrize(
    ("probabilities", "uniform", "chosen"),
    [
        ([0.25, 0.5, 0.25], 0.0, 0),
        ([0.25, 0.5, 0.25], np.nextafter(0.25, 0), 0),
        ([0.25, 0.5, 0.25], 0.25, 1),
        ([0.25, 0.5, 0.25], 0.75, 2),
        ([0.0, 1.0, 0.0], 0.0, 1),
        ([0.0, 1.0, 0.0], 1 - 2.0**-53, 1),
        ([0.5, 0.0, 0.5], 0.5, 2),
        ([0.1] * 10, 1 - 2.0**-53, 9),  # ten times 0.1 sums to a little less than 1
    ],
)
def test_sampling_at_the_edges(probabilities, uniform, chosen):
    assert _sample(np.array(probabilities), float(uniform)) == chosen


@PATIENT
@given(weights=st.lists(st.floats(0, 1), min_size=2, max_size=6).filter(any))
def test_evenly_spread_uniforms_sample_each_arm_in_its_share(weights):
    p = np.array(weights) / sum(weights)
    grid = (np.arange(500) + 0.5) / 500
    counts = np.bincount([_sample(p, float(u)) for u in grid], minlength=len(p))
    assert np.abs(counts / 500 - p).max() <= 1 / 500 + 1e-9
