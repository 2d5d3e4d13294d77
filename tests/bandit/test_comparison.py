"""What is said of a policy beside the logged one, held against worlds whose values are known, and against formulas by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from bandit.comparison import CHOSEN_MIN, difference, difference_sequence, effective_n, on_these_requests
from bandit.evaluation import Log, confidence_sequence, doubly_robust, known_terms

# Three kinds of request, two arms: what a rating's mean is, how the log chose. The target is always the second arm.
TRUTH = np.array([[0.9, 0.5], [0.4, 0.8], [0.6, 0.7]])
LOGGED = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
SECOND = np.array([0.0, 1.0])
RARE = np.array([[0.999, 0.001]] * 3)
RUNS = 300


def logged(n, seed, by=LOGGED, model=TRUTH):
    """(log, outcomes of both arms): what was logged of n requests, and what both arms would have got on them."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, n)
    both = (rng.random((n, 2)) < TRUTH[kind]).astype(float)
    chosen = (rng.random(n) < by[kind, 1]).astype(np.int64)
    target = np.tile(SECOND, (n, 1))
    return Log(by[kind], chosen, both[np.arange(n), chosen], target, model[kind]), both


def value_of(by):
    return float((by * TRUTH).sum(axis=1).mean())


def by_hand(chosen=(0, 1)):
    """Two decisions; the target is always the second arm, which had 0.25 and 0.5. The model says 0.5 everywhere."""
    return Log(
        np.array([[0.75, 0.25], [0.5, 0.5]]),
        np.array(chosen),
        np.array([1.0, 0.9]),
        np.array([[0.0, 1.0], [0.0, 1.0]]),
        np.full((2, 2), 0.5),
    )


def test_effective_n_by_hand():
    """n^2 / sum 1/p of an arm that is always chosen; n for the logged policy itself."""
    log = by_hand()
    assert effective_n(log) == pytest.approx(4 / (4 + 2))
    assert effective_n(replace(log, target=log.probabilities)) == pytest.approx(2.0)
    assert effective_n(replace(log, target=np.full((2, 2), 0.5))) == pytest.approx(
        4 / (0.25 / 0.75 + 0.25 / 0.25 + 0.5 + 0.5)
    )


def test_difference_by_hand():
    """(1.0 - 0.5) and 0.9 - (0.5 + (0.9 - 0.5) / 0.5)."""
    assert difference(by_hand()) == pytest.approx((0.5 - 0.4) / 2)


def test_error_on_these_requests_by_hand():
    """Sum of (1/p - 1) s^2 over n^2, s^2 of the second arm's residuals; inf with too few of them."""
    log = by_hand()
    assert on_these_requests(log).se == math.inf
    many = Log(*(np.concatenate([getattr(log, name)] * CHOSEN_MIN) for name in Log.__slots__))
    s2 = 0.4**2
    expected = CHOSEN_MIN * (3 * s2 + 1 * s2) / (2 * CHOSEN_MIN) ** 2
    assert on_these_requests(many).se == pytest.approx(math.sqrt(expected))
    assert on_these_requests(many).value == pytest.approx(doubly_robust(log).value)
    own = replace(many, target=many.probabilities, predicted=np.zeros_like(many.predicted))
    assert on_these_requests(own).se == 0.0
    assert on_these_requests(own).value == pytest.approx(0.95)


def test_the_difference_is_right_on_average_and_within_its_error_on_the_very_requests():
    off, held = [], []
    for seed in range(RUNS):
        log, both = logged(400, seed)
        found = on_these_requests(log)
        true = float(both[:, 1].mean())
        held.append(abs(found.value - true) <= 1.96 * found.se)
        off.append(difference(log) - (float(log.outcome.mean()) - true))
    assert abs(np.mean(off)) < 3 * np.std(off) / math.sqrt(RUNS)
    assert np.mean(held) >= 0.93


def test_a_realised_error_is_falsely_small_where_the_rare_choices_were_not_made_and_ours_is_not():
    """2,000 decisions that chose the second arm half of the time, then 20,000 at 0.001 that all happened not to."""
    early, _ = logged(2000, 1, by=np.full((3, 2), 0.5))
    late, _ = logged(20_000, 2, by=RARE)
    late = replace(late, chosen=np.zeros_like(late.chosen))
    log = Log(*(np.concatenate([getattr(early, name), getattr(late, name)]) for name in Log.__slots__))
    realised, ours = doubly_robust(log).se, on_these_requests(log).se
    assert realised < 0.003
    assert ours > 30 * realised
    assert effective_n(log) == pytest.approx(22_000**2 / (2000 / 0.5 + 20_000 / 0.001))


@pytest.mark.parametrize("model", [TRUTH, 1.0 - TRUTH, np.zeros((3, 2))], ids=["good", "wrong", "none"])
@pytest.mark.parametrize("by", [LOGGED, RARE], ids=["even", "rare"])
def test_the_sequence_of_the_difference_is_violated_at_any_time_in_at_most_one_run_of_twenty(model, by):
    true = value_of(by) - value_of(SECOND)
    violated = []
    for seed in range(RUNS):
        lower, upper = difference_sequence(logged(1500, seed, by, model)[0])
        violated.append(bool(((lower > true) | (upper < true)).any()))
    assert np.mean(violated) <= 0.05


def test_the_test_of_the_sequence_would_see_one_that_is_too_narrow():
    true = value_of(LOGGED) - value_of(SECOND)
    violated = []
    for seed in range(100):
        lower, upper = difference_sequence(logged(1500, seed)[0], alpha=0.999)
        middle, half = (lower + upper) / 2, (upper - lower) / 6
        violated.append(bool((np.abs(middle - true) > half)[100:].any()))
    assert np.mean(violated) > 0.15


def test_a_sequence_for_the_difference_is_narrower_than_two_set_off_against_each_other():
    log, _ = logged(5000, 4)
    lower, upper = difference_sequence(log)
    own = confidence_sequence(replace(log, target=log.probabilities, predicted=np.zeros_like(log.predicted)))
    other = confidence_sequence(log)
    apart = (own[1][-1] - own[0][-1]) + (other[1][-1] - other[0][-1])
    assert upper[-1] - lower[-1] < 0.75 * apart


def test_what_has_a_small_propensity_is_taken_at_its_worst_and_the_rest_kept():
    """Of two halves one never chose the second arm but by a thousandth: half of the value is not known, half is."""
    seen, _ = logged(4000, 5)
    unseen, _ = logged(4000, 6, by=RARE)
    log = Log(*(np.concatenate([getattr(seen, name), getattr(unseen, name)]) for name in Log.__slots__))
    gain, loss = known_terms(log, 8.0)
    assert not gain[4000:].any()
    assert not loss[4000:].any()
    lower, upper = confidence_sequence(log)
    half = value_of(SECOND) / 2
    assert lower[-1] == pytest.approx(half, abs=0.13)
    assert upper[-1] == pytest.approx(half + 0.5, abs=0.13)


def test_a_bound_depends_on_nothing_that_comes_after_it():
    log, _ = logged(500, 11)
    first = Log(*(getattr(log, name)[:250] for name in Log.__slots__))
    for whole, half in zip(difference_sequence(log), difference_sequence(first), strict=True):
        np.testing.assert_array_equal(whole[:250], half)
