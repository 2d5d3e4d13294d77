"""The detector: its martingale by exact expectation, its run length and its delay by simulation with fixed seeds."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit.drift import (
    MEMORY_LABELS,
    SHIFTS,
    STAKE_MAX,
    THRESHOLD,
    WARM_UP_LABELS,
    Detector,
    source_drifted,
)

PATIENT = settings(deadline=None)  # no test fails for time
SHARE = st.floats(0, 1)


def watched(ratings, mean, sd, detector=None):
    """The detector after these ratings, and the number of the one that raised an alarm, if any."""
    detector = detector or Detector()
    for number, rating in enumerate(ratings, 1):
        detector = detector.after(float(rating), mean, sd)
        if detector.alarm:
            return detector, number
    return detector, None


def binary(mean, n, seed):
    return (np.random.default_rng(seed).random(n) < mean).astype(float)


detectors = st.builds(
    Detector,
    n=st.floats(0, MEMORY_LABELS),
    offset=st.floats(-0.3, 0.3),
    scatter=st.floats(0, 200),
    rises=st.tuples(st.floats(0, THRESHOLD), st.floats(0, THRESHOLD)),
    drops=st.tuples(st.floats(0, THRESHOLD), st.floats(0, THRESHOLD)),
)


@PATIENT
@given(
    detector=detectors,
    sd=st.floats(0, 0.1),
    ratings=st.lists(SHARE, min_size=2, max_size=5),
    weights=st.data(),
)
def test_without_a_change_the_evidence_grows_by_at_most_one_a_label_whatever_the_distribution(
    detector, sd, ratings, weights
):
    """E[R'] = w + R, exactly: any distribution over some ratings whose mean is what the detector expects."""
    p = np.array([weights.draw(st.floats(0.01, 1)) for _ in ratings])
    p /= p.sum()
    true_mean = float(p @ ratings)
    predicted = true_mean - detector.offset  # so that mean + offset is the truth
    after = [detector.after(r, predicted, sd) for r in ratings]
    for name in ("rises", "drops"):
        for k in range(len(SHIFTS)):
            expected = float(p @ [getattr(d, name)[k] for d in after])
            assert expected == pytest.approx(detector._weight() + getattr(detector, name)[k], rel=1e-9)
    assert 0 <= detector._weight() <= 1


@PATIENT
@given(detector=detectors, mean=st.floats(-1, 2), sd=st.floats(0, 3), rating=SHARE)
def test_one_rating_takes_away_a_bounded_share_of_the_evidence_and_breaks_nothing(detector, mean, sd, rating):
    after = detector.after(rating, mean, sd)
    assert all(math.isfinite(v) for v in (after.n, after.offset, after.scatter, *after.rises, *after.drops))
    for before, now in zip(detector.rises + detector.drops, after.rises + after.drops, strict=True):
        assert now >= before * (1 - STAKE_MAX) * (1 - 1e-12)
    assert after.n <= MEMORY_LABELS


def test_by_hand():
    """Expected 0.5, and wrong: u = -0.5; the variance is (10 x 0.05 + 12) / (10 + 40), so the stakes are 0.05 / 0.25 and
    0.15 / 0.25, and the drops gain 1.1 and 1.3.
    """
    before = Detector(n=40, scatter=12, rises=(1, 3), drops=(1, 3))
    after = before.after(0.0, 0.5, 0.05)
    assert after.drops == pytest.approx((2 * 1.1, 4 * 1.3))
    assert after.rises == pytest.approx((2 * 0.9, 4 * 0.7))
    assert (after.n, after.scatter) == (41, 12.25)
    assert after.offset == pytest.approx(-0.5 / 51)


def test_the_first_ratings_are_learned_from_and_prove_nothing():
    detector, _ = watched(np.zeros(int(WARM_UP_LABELS)), 0.9, 0.05)
    assert detector.rises == detector.drops == (0, 0)
    assert detector.offset < -0.6


@pytest.mark.parametrize(("after", "direction"), [(0.5, "drop"), (1.0, None)])
def test_ratings_that_never_vary_prove_nothing_until_they_do(after, direction):
    steady, alarm = watched(np.ones(100_000), 1.0, 0.02)
    assert alarm is None
    assert steady.leaning is None
    changed, _ = watched(np.full(60, after), 1.0, 0.02, steady)
    assert changed.alarm == direction


@PATIENT
@given(ratings=st.lists(SHARE, min_size=1, max_size=60), mean=SHARE, sd=st.floats(0, 0.1))
def test_rises_are_drops_seen_in_a_mirror(ratings, mean, sd):
    one, _ = watched(ratings, mean, sd)
    other, _ = watched([1 - r for r in ratings], 1 - mean, sd)
    np.testing.assert_allclose(one.rises, other.drops, rtol=1e-6)
    np.testing.assert_allclose(one.drops, other.rises, rtol=1e-6)


@pytest.mark.parametrize("mean", [0.1, 0.5, 0.95])
def test_false_alarms_are_rarer_than_promised_for_skewed_ratings_too(mean):
    """60,000 ratings of 0 or 1, mean known: at most the 6 that one in 10,000 would be."""
    alarms, detector = 0, Detector()
    for rating in binary(mean, 60_000, seed=1):
        detector = detector.after(float(rating), mean, 0.02)
        if detector.alarm:
            alarms, detector = alarms + 1, Detector()
    assert alarms <= 6


@pytest.mark.parametrize(
    ("change", "within", "direction"), [(-0.2, 80, "drop"), (-0.1, 300, "drop"), (0.15, 150, "rise")]
)
def test_a_change_is_found_soon_and_by_its_direction(change, within, direction):
    """Graded ratings, sd 0.2, 500 of them before the change: the slowest of twenty streams."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        before, alarm = watched(rng.normal(0.6, 0.2, 500).clip(0, 1), 0.6, 0.05)
        assert alarm is None
        after, delay = watched(rng.normal(0.6 + change, 0.2, within).clip(0, 1), 0.6, 0.05, before)
        assert delay is not None
        assert after.alarm == direction


def test_a_strict_judge_is_no_drift():
    """It rates 0.15 below what the pool of sources predicts, always: its offset is learned and nothing is raised."""
    rng = np.random.default_rng(5)
    detector, alarm = watched(rng.normal(0.6, 0.15, 5000).clip(0, 1), 0.75, 0.05)
    assert alarm is None
    assert detector.offset == pytest.approx(-0.15, abs=0.02)


def test_a_predictor_that_is_still_learning_is_no_drift():
    """It starts at 0.7 while the arm is at 0.2, and says itself how unsure it is."""
    alarms = 0
    for seed in range(100):
        total, n, detector = 0.7, 1.0, Detector()
        for rating in binary(0.2, 400, seed):
            if detector.alarm:
                break
            mean = total / n
            sd = math.sqrt(0.16 / n)
            detector = detector.after(float(rating), mean, sd)
            total, n = total + float(rating), n + 1
        alarms += detector.alarm is not None
    assert alarms <= 4


def test_predictions_outside_the_scale_are_taken_to_its_ends():
    detector, alarm = watched(np.ones(3000), 1.2, 0.02)
    assert alarm is None
    assert detector.leaning is None


def lean(direction, n=100.0):
    """Spread 0.3, so that the stake on a shift of 0.15 is 0.75 and R / 40 its likelihood ratio."""
    strong = (0.0, 2100.0)
    return Detector(n=n, scatter=9.0, **{"drops" if direction == "drop" else "rises": strong})


QUIET = Detector(n=100.0, scatter=9.0, drops=(200.0, 200.0), rises=(200.0, 200.0))
FEW = Detector(n=WARM_UP_LABELS - 1)


def test_a_detector_leans_where_a_change_is_likely():
    assert (lean("drop").leaning, lean("rise").leaning) == ("drop", "rise")
    assert lean("drop", n=10.0).leaning is None
    assert QUIET.leaning is None


def test_leaning_without_a_change_is_rare():
    """At any label of streams without a change, by ratings of 0 or 1 and by graded ones."""
    rng = np.random.default_rng(8)
    for ratings, mean, sd in (
        (binary(0.6, 20_000, seed=2), 0.6, 0.0),
        (rng.normal(0.5, 0.2, 20_000).clip(0, 1), 0.5, 0.0),
    ):
        leans, detector = 0, Detector()
        for rating in ratings:
            detector = detector.after(float(rating), mean, sd)
            leans += detector.leaning is not None
            detector = Detector() if detector.alarm else detector
        assert leans / len(ratings) < 1 / 20


@pytest.mark.parametrize(
    ("detectors", "alarmed", "drifted"),
    [
        ({"a": lean("drop"), "b": lean("drop"), "c": QUIET}, {}, True),
        ({"a": lean("drop"), "b": QUIET, "c": QUIET}, {"a": "drop"}, False),
        ({"a": lean("drop"), "b": lean("rise"), "c": QUIET}, {}, False),  # not the same way
        ({"a": lean("drop")}, {"a": "drop"}, False),  # one arm is no majority of arms
        ({"a": lean("drop"), "b": FEW, "c": FEW}, {}, False),
        ({"a": QUIET, "b": lean("drop"), "c": FEW}, {"a": "drop"}, True),  # a was reset not long ago
        ({"a": lean("drop"), "b": lean("drop"), "c": QUIET, "d": QUIET}, {}, False),  # half are not most
        ({"a": lean("drop"), "b": QUIET}, {"a": "rise"}, False),
    ],
)
def test_the_source_drifted_where_most_arms_that_it_rates_move_the_same_way(detectors, alarmed, drifted):
    assert source_drifted("drop", detectors, alarmed) is drifted


def test_what_other_sources_say_too_is_not_the_sources_doing():
    detectors = {"a": lean("drop"), "b": lean("drop"), "c": QUIET}
    assert source_drifted("drop", detectors, {})
    assert not source_drifted("drop", detectors, {}, {"a"})


@pytest.mark.parametrize("n", [0.0, 100.0])
def test_a_rating_whose_expectation_was_unsure_says_nothing(n):
    """Above half of the ratings' own spread (here 0.5) the expectation is none to hold them to."""
    before = Detector(n=n, scatter=n / 4, drops=(1.0, 2.0))
    limit = 0.5 * math.sqrt(max((0.5 + before.scatter) / (10 + n), 0.05))
    assert before.after(0.0, 0.9, 1.01 * limit) is before
    assert before.after(0.0, 0.9, 0.99 * limit).n == n + 1


def test_ratings_that_come_a_hundred_late_are_no_drift():
    """The first hundred decisions share one belief, which is far off; then all that is known comes at once."""
    alarms = 0
    for seed in range(50):
        ratings, detector = binary(0.3, 400, seed), Detector()
        for number, rating in enumerate(ratings):
            n = 1.0 + max(number - 100, 0)
            mean = (0.8 + float(ratings[: max(number - 100, 0)].sum())) / n
            detector = detector if detector.alarm else detector.after(float(rating), mean, math.sqrt(0.2 / n))
        alarms += detector.alarm is not None
    assert alarms <= 5  # of 50 streams; were unsure expectations not passed over, it would be all of them
