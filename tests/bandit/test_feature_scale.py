"""Features that vary more than usual tell no more of which arm is best than usual ones."""

from dataclasses import replace

import numpy as np
import pytest

from bandit.feature_scale import HELD, LEAST, slope_factor
from bandit.features import DIMENSION, NAMES
from bandit.prior import QualityPrior
from bandit.quality import SharedBaseline
from bandit.statistics import RatingStatistics
from feedback.priors import shipped_prior

D = 5
PRIOR = replace(QualityPrior.flat(D), typical_square=np.array([1.0, 2.0, 0.0, 1.0, 1.0]))
USUAL = np.array([2.0, 0.0, 1.0, 1.0])


def rated(variances, n, mean=0.0):
    """2 n ratings whose features have these variances, one sd above and one below their mean, turn by turn."""
    sd = np.sqrt(variances)
    s = RatingStatistics.empty(1 + len(sd))
    for sign in (1.0, -1.0) * n:
        s = s.added(np.r_[1.0, mean + sign * sd], 0.5, 1.0)
    return s


@pytest.mark.parametrize(
    ("times", "expected"),
    [(0.1, 1.0), (1.0, 1.0), (1.3, 1.0), (4.0, 0.25), (64.0, 1 / 64), (1e9, 2.0**LEAST)],
)
def test_the_factor_is_what_usual_features_are_of_these_as_a_power_of_two(times, expected):
    assert slope_factor(PRIOR, {"a": rated(times * USUAL, 1000)}) == expected


def test_it_is_the_sum_over_features_that_counts_weighted_by_what_their_slopes_may_be():
    uneven = replace(PRIOR, arm_variance=np.array([1.0, 0.1, 0.0001, 0.0001, 0.0001]))
    assert slope_factor(uneven, {"a": rated([2.0, 99.0, 9.0, 9.0], 500)}) == 1.0
    assert slope_factor(uneven, {"a": rated([16.0, 0.0, 0.0, 0.0], 500)}) == 1 / 8


def test_what_never_varied_when_the_prior_was_fitted_and_what_is_always_the_same_are_no_excess():
    assert slope_factor(PRIOR, {"a": rated([2.0, 99.0, 1.0, 1.0], 500)}) == 1.0
    assert slope_factor(PRIOR, {"a": rated(USUAL, 500, mean=9.0)}) == 1.0


def test_before_there_are_ratings_and_after_few_hardly_anything_is_known_of_them():
    assert slope_factor(PRIOR, {}) == 1.0
    assert slope_factor(PRIOR, {"a": RatingStatistics.empty(D)}) == 1.0
    assert slope_factor(PRIOR, {"a": rated(3 * USUAL, 1)}) == 1.0  # (HELD + 2 x 3) / (HELD + 2) is 1.33 ...
    assert slope_factor(PRIOR, {"a": rated(3 * USUAL, int(HELD))}) == 0.5  # ... and 2.33 after 20


def test_all_arms_count_together_in_whatever_order_they_come():
    one, other = rated(2 * USUAL, 500), rated(6 * USUAL, 500)
    assert slope_factor(PRIOR, {"a": one, "b": other}) == slope_factor(PRIOR, {"b": other, "a": one}) == 0.25


def test_one_feature_alone_has_no_slopes():
    assert slope_factor(QualityPrior.flat(1), {"a": rated([], 5)}) == 1.0


def test_system_prompts_tools_and_long_conversations_cost_the_shipped_prior_nothing():
    """No prompt that it was fitted on had any of them."""
    prior, rng = shipped_prior(), np.random.default_rng(0)
    usual = np.sqrt(np.maximum(prior.typical_square - prior.typical_x**2, 0.0))
    X = prior.typical_x + usual * rng.normal(size=(2000, DIMENSION))
    X[:, 0] = 1.0
    for name in ("turns", "system", "tools", "images"):
        X[:, NAMES.index(name)] = rng.uniform(0.0, 3.0, 2000)
    told = {"a": RatingStatistics(X.T @ X, X.T @ np.full(2000, 0.5), 2000.0, 500.0)}
    assert slope_factor(prior, told) == 1.0


@pytest.mark.parametrize("scale", [2.0, 8.0])
def test_larger_features_make_the_spread_of_expectations_no_larger(scale):
    """Without the factor it would grow with the square of the scale."""
    rng = np.random.default_rng(0)
    X = np.c_[np.ones(300), rng.normal(size=(300, D - 1))]
    names = ["a", "b", "c"]

    def spread(by):
        x = X * np.r_[1.0, np.full(D - 1, by)]
        few = {"a": RatingStatistics(x.T @ x, x.T @ np.full(300, 0.5), 300.0, 75.0)}
        model = SharedBaseline(replace(PRIOR, typical_square=np.ones(D)))
        return model.fit(few, D).predict(x[7], names).sd()[1:]

    np.testing.assert_allclose(spread(scale), spread(1.0), rtol=0.35)
