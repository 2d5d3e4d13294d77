"""Features that are larger than usual tell no more of which arm is best than usual ones."""

from dataclasses import replace

import numpy as np
import pytest

from bandit.feature_scale import HELD, slope_factor
from bandit.prior import QualityPrior
from bandit.quality import SharedBaseline
from bandit.statistics import RatingStatistics

D = 5
PRIOR = replace(QualityPrior.flat(D), typical_square=np.array([1.0, 2.0, 0.0, 1.0, 1.0]))


def rated(squares, n):
    """n ratings whose features have these mean squares."""
    x = np.sqrt(np.r_[1.0, squares])
    s = RatingStatistics.empty(D)
    for _ in range(n):
        s = s.added(x, 0.5, 1.0)
    return s


@pytest.mark.parametrize(
    ("times", "expected"), [(0.1, 1.0), (1.0, 1.0), (1.3, 1.0), (4.0, 0.25), (64.0, 1 / 64)]
)
def test_the_factor_is_what_usual_features_are_of_these_as_a_power_of_two(times, expected):
    assert slope_factor(PRIOR, [rated(times * np.array([2.0, 0.0, 1.0, 1.0]), 2000)]) == expected


def test_it_is_the_sum_over_features_that_counts_weighted_by_what_their_slopes_may_be():
    uneven = replace(PRIOR, arm_variance=np.array([1.0, 0.1, 0.0001, 0.0001, 0.0001]))
    assert slope_factor(uneven, [rated([2.0, 99.0, 9.0, 9.0], 900)]) == 1.0
    assert slope_factor(uneven, [rated([16.0, 0.0, 0.0, 0.0], 900)]) == 1 / 8


def test_before_there_are_ratings_and_after_one_hardly_anything_is_known_of_them():
    once, often = rated([8.0, 0.0, 4.0, 4.0], 1), rated([8.0, 0.0, 4.0, 4.0], int(HELD))
    assert slope_factor(PRIOR, []) == 1.0
    assert slope_factor(PRIOR, [once]) == 1.0  # (HELD + 4) / (HELD + 1) lies below the root of 2
    assert slope_factor(PRIOR, [often]) == 0.5  # and (HELD + 4 HELD) / 2 HELD above


def test_all_arms_count_together():
    one, other = rated([4.0, 0.0, 2.0, 2.0], 500), rated([12.0, 0.0, 6.0, 6.0], 500)
    assert slope_factor(PRIOR, [one, other]) == 0.25


@pytest.mark.parametrize("scale", [2.0, 8.0])
def test_larger_features_make_the_spread_of_expectations_no_larger(scale):
    """Without the factor it would grow with the square of the scale."""
    rng = np.random.default_rng(0)
    X = np.c_[np.ones(300), rng.normal(size=(300, D - 1))]
    names = ["a", "b", "c"]

    def spread(by):
        x = X * np.r_[1.0, np.full(D - 1, by)]
        few = {"a": RatingStatistics(x.T @ x, x.T @ np.full(300, 0.5), 300.0, 75.0)}
        return SharedBaseline(PRIOR).fit(few, D).predict(x[7], names).sd()[1:]

    np.testing.assert_allclose(spread(scale), spread(1.0), rtol=0.35)
