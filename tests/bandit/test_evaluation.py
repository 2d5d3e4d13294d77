"""Off-policy estimates, held against values that are known exactly because the worlds are small."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit.arms import Arm
from bandit.decide import decide
from bandit.evaluation import (
    Log,
    confidence_sequence,
    doubly_robust,
    doubly_robust_terms,
    ips,
    snips,
    switch,
)
from bandit.objective import Quality
from bandit.policy import Thompson
from bandit.posterior import Posterior
from bandit.quality import SharedBaseline
from bandit.statistics import RatingStatistics
from bandit.types import Context, Needs

PATIENT = settings(deadline=None)  # no test fails for time

# Four kinds of request, three arms: what a rating's mean is, how the log chose, how the other policy chooses.
TRUTH = np.array([[0.9, 0.5, 0.2], [0.3, 0.8, 0.6], [0.5, 0.5, 0.7], [0.95, 0.9, 0.4]])
LOGGED = np.array([[0.8, 0.15, 0.05], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.05, 0.05, 0.9]])
TARGET = np.array([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.2, 0.2, 0.6], [0.9, 0.1, 0.0]])
VALUE = float((TARGET * TRUTH).sum(axis=1).mean())
WRONG = np.array([[0.2, 0.9, 0.9], [0.9, 0.1, 0.3], [0.9, 0.9, 0.0], [0.1, 0.2, 1.0]])
LOGS = 2000


def logged(n, seed, model=TRUTH, *, logged_by=LOGGED):
    """A log of n decisions; ratings are 0 or 1."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 4, n)
    chosen = (rng.random(n)[:, None] > np.cumsum(logged_by[kind], axis=1)).sum(axis=1)
    outcome = (rng.random(n) < TRUTH[kind, chosen]).astype(float)
    return Log(logged_by[kind], chosen, outcome, TARGET[kind], model[kind])


@cache
def estimates(name):
    """2,000 estimates of one value, each from a log of 50 decisions."""
    ways = {
        "ips": lambda seed: ips(logged(50, seed)),
        "dr": lambda seed: doubly_robust(logged(50, seed)),
        "dr, wrong model": lambda seed: doubly_robust(logged(50, seed, WRONG)),
        "switch above all": lambda seed: switch(logged(50, seed, WRONG), above=21.0),
        "switch, wrong model": lambda seed: switch(logged(50, seed, WRONG), above=10.0),
    }
    return [ways[name](seed) for seed in range(LOGS)]


def values(name):
    return np.array([estimate.value for estimate in estimates(name)])


@pytest.mark.parametrize("name", ["ips", "dr", "dr, wrong model", "switch above all"])
def test_estimates_are_right_on_average_whatever_the_model_says(name):
    found = values(name)
    assert abs(found.mean() - VALUE) < 3 * found.std(ddof=1) / math.sqrt(LOGS)


def test_the_test_of_bias_would_see_one():
    """With a wrong model and a limit below 1 / 0.05 the switch is biased, and it shows."""
    found = values("switch, wrong model")
    assert abs(found.mean() - VALUE) > 10 * found.std(ddof=1) / math.sqrt(LOGS)


def test_a_good_model_calms_the_estimate_and_a_wrong_one_does_not():
    spread = {name: values(name).std() for name in ("ips", "dr", "dr, wrong model")}
    assert spread["dr"] < 0.8 * spread["ips"]
    assert spread["dr, wrong model"] > spread["dr"]


@pytest.mark.parametrize("name", ["ips", "dr", "dr, wrong model"])
def test_standard_errors_are_those_of_repeated_logs(name):
    mean_square = math.sqrt(np.mean([estimate.se**2 for estimate in estimates(name)]))
    assert mean_square == pytest.approx(values(name).std(ddof=1), rel=0.06)


def test_snips_converges_and_knows_its_error():
    found = [snips(logged(2000, seed)) for seed in range(300)]
    value = np.array([estimate.value for estimate in found])
    assert abs(value.mean() - VALUE) < 0.003
    assert np.mean([estimate.se for estimate in found]) == pytest.approx(value.std(ddof=1), rel=0.1)


def test_snips_is_not_moved_by_a_lift_of_all_outcomes_and_ips_is():
    log = logged(200, 1)
    lifted = replace(log, outcome=log.outcome / 2 + 0.5)
    assert snips(lifted).value == pytest.approx(snips(log).value / 2 + 0.5)
    assert ips(lifted).value != pytest.approx(ips(log).value / 2 + 0.5, abs=1e-3)


def test_by_hand():
    """Two decisions: weights 0.9 / 0.5 and 0.2 / 0.1; outcomes 1 and 0; the model says 0.5 everywhere."""
    log = Log(
        probabilities=np.array([[0.5, 0.5], [0.9, 0.1]]),
        chosen=np.array([0, 1]),
        outcome=np.array([1.0, 0.0]),
        target=np.array([[0.9, 0.1], [0.8, 0.2]]),
        predicted=np.full((2, 2), 0.5),
    )
    assert log.weight.tolist() == pytest.approx([1.8, 2.0])
    assert ips(log).value == pytest.approx(0.9)
    assert snips(log).value == pytest.approx(1.8 / 3.8)
    assert doubly_robust_terms(log, log.predicted).tolist() == pytest.approx([0.5 + 0.9, 0.5 - 1.0])
    assert doubly_robust(log).value == pytest.approx(0.45)
    assert switch(log, above=5.0).value == pytest.approx((1.4 + 0.5) / 2)  # 1 / 0.1 is above it
    assert switch(log).value == pytest.approx(0.45)


@PATIENT
@given(st.integers(0, 10**6), st.integers(1, 40))
def test_a_policy_evaluated_on_its_own_log_earns_what_it_earned(seed, n):
    log = logged(n, seed)
    own = replace(log, target=log.probabilities, predicted=np.zeros_like(log.predicted))
    for estimate in (ips(own), snips(own), doubly_robust(own)):
        assert estimate.value == pytest.approx(log.outcome.mean())


def test_what_a_log_cannot_tell_is_refused():
    log = logged(20, 3)
    with pytest.raises(ValueError, match="never chosen there"):
        replace(log, probabilities=log.probabilities * [1.0, 0.0, 1.0], chosen=np.zeros(20, dtype=np.int64))
    with pytest.raises(ValueError, match="no propensity"):
        replace(log, probabilities=log.probabilities * 0)
    with pytest.raises(ValueError, match="from 0 to 1"):
        replace(log, outcome=log.outcome * 2)
    with pytest.raises(ValueError, match="from 0 to 1"):
        replace(log, outcome=log.outcome * math.nan)
    with pytest.raises(ValueError, match="sum to 1"):
        replace(log, target=log.target / 2)
    with pytest.raises(ValueError, match=r"are \(n, K\)"):
        replace(log, predicted=log.predicted[:, :2])
    never = Log(np.array([[0.5, 0.5]]), np.array([0]), np.ones(1), np.array([[0.0, 1.0]]), np.ones((1, 2)))
    with pytest.raises(ValueError, match="otherwise every time"):
        snips(never)


# ---- at every n at once

RUNS, LONG = 400, 2000


def monitored(model):
    """For each run the bounds (n,) of the confidence sequence."""
    return [confidence_sequence(logged(LONG, seed, model)) for seed in range(RUNS)]


@pytest.mark.parametrize("model", [TRUTH, WRONG, np.zeros((4, 3))], ids=["good", "wrong", "none"])
def test_the_confidence_sequence_is_violated_at_any_time_in_at_most_one_run_of_twenty(model):
    violated = [((lower > VALUE) | (upper < VALUE)).any() for lower, upper in monitored(model)]
    assert np.mean(violated) <= 0.05


def test_a_t_interval_that_is_watched_fails_on_the_same_data():
    failed = []
    for seed in range(RUNS):
        log = logged(LONG, seed)
        terms = doubly_robust_terms(log, log.predicted)
        n = np.arange(1, LONG + 1)
        mean = np.cumsum(terms) / n
        variance = (np.cumsum(terms**2) - n * mean**2) / np.maximum(n - 1, 1)
        half = 1.96 * np.sqrt(np.maximum(variance, 0) / n)
        outside = np.abs(mean - VALUE) > half
        failed.append(outside[100:].any())  # nobody looks before a hundred decisions
        assert half[-1] > 0
    assert np.mean(failed) > 0.15


def test_the_confidence_sequence_is_of_use():
    """It closes in on the value, sooner with a good model than with none, and is within [0, 1]."""
    widths = {}
    for name, model in {"good": TRUTH, "none": np.zeros((4, 3))}.items():
        bounds = [confidence_sequence(logged(20_000, seed, model)) for seed in range(3)]
        assert all((lower >= 0).all() and (upper <= 1).all() for lower, upper in bounds)
        widths[name] = np.mean([upper[-1] - lower[-1] for lower, upper in bounds])
    assert widths["good"] < 0.05
    assert widths["good"] < 0.75 * widths["none"]


def test_a_bound_depends_on_nothing_that_comes_after_it():
    log = logged(500, 11)
    half = Log(*(getattr(log, name)[:250] for name in Log.__slots__))
    for whole, first in zip(confidence_sequence(log), confidence_sequence(half), strict=True):
        np.testing.assert_array_equal(whole[:250], first)


def test_a_smaller_alpha_gives_a_wider_sequence():
    log = logged(1000, 5)
    (lower, upper), (far_lower, far_upper) = confidence_sequence(log), confidence_sequence(log, alpha=0.001)
    assert (far_lower <= lower).all()
    assert (far_upper >= upper).all()
    assert far_upper[-1] - far_lower[-1] > upper[-1] - lower[-1]


# ---- on what the router itself logs

ARMS = (Arm("small", 0.1, 0.4), Arm("middle", 0.5, 1.5), Arm("large", 3.0, 15.0))
MEANS = {"small": 0.2, "middle": 0.5, "large": 0.8}


def routed(n, seed):
    """Decisions of the router and their ratings, learning as it goes, so that every decision hangs on those before it.

    Of every third request the large arm is no candidate.
    """
    rng, decisions, ratings = np.random.default_rng(seed), [], []
    sums = {arm.name: RatingStatistics.empty(2) for arm in ARMS}
    policy = Thompson(Quality(), scale=1.0, floor=0.3)
    for i in range(n):
        x = np.array([1.0, rng.normal()]).astype(np.float16).astype(np.float64)
        believed = Posterior.of(SharedBaseline(), sums, {}, d=2, token=str(i))
        candidates = ARMS if i % 3 else ARMS[:2]
        decision = decide(policy, believed, Context(x, Needs(100)), candidates, f"{seed}:{i}")
        name = decision.arm.name
        rating = float(rng.random() < MEANS[name])
        sums[name] = sums[name].added(x, rating, 1.0)
        decisions.append(decision)
        ratings.append(rating)
    return decisions, ratings


def always_middle(decision):
    return np.array([float(arm.name == "middle") for arm in decision.candidates])


def test_the_value_of_another_policy_is_told_from_the_routers_own_decisions():
    names = [arm.name for arm in ARMS]
    found = []
    for seed in range(40):
        log = Log.of(*routed(150, seed), always_middle, names)
        assert (log.target == [0.0, 1.0, 0.0]).all()
        assert (log.probabilities[::3, 2] == 0).all()
        found.append((ips(log).value, doubly_robust(log).value))
        lower, upper = confidence_sequence(log)
        assert lower[-1] <= 0.5 <= upper[-1]
    for value in np.array(found).T:
        assert abs(value.mean() - 0.5) < 3 * value.std(ddof=1) / math.sqrt(len(value))


def test_a_sequence_holds_the_plain_mean_of_what_changes_over_time():
    """As a router that learns does: poor at first, good for long. Bets that fall with time would weigh the start more."""
    means = np.r_[np.full(1500, 0.6), np.full(28_500, 0.9)]
    so_far = np.cumsum(means) / np.arange(1, len(means) + 1)
    for seed in range(6):
        outcome = (np.random.default_rng(seed).random(len(means)) < means).astype(float)
        ones = np.ones((len(means), 1))
        log = Log(ones, np.zeros(len(means), dtype=np.int64), outcome, ones, np.zeros_like(ones))
        lower, upper = confidence_sequence(log)
        assert ((lower <= so_far) & (so_far <= upper)).all()
        assert upper[-1] - lower[-1] < 0.15
