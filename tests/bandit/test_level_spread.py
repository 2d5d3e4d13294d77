"""The factor on levels' spread, beside the density written out with scipy, and what it does to a belief."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from bandit.arms import Arm
from bandit.level_spread import FACTORS, PENALTY, level_factor
from bandit.prior import QualityPrior
from bandit.quality import SharedBaseline
from bandit.statistics import RatingStatistics

PRIOR = replace(
    QualityPrior.flat(1),
    mean=np.array([0.6]),
    shared_variance=np.array([1.5]),
    arm_variance=np.array([0.05]),
    noise_variance=0.2,
    noise_weight=20.0,
)


def arms_of(K):
    return tuple(Arm(f"arm{k}", 1.0, 1.0) for k in range(K))


def statistics(n, mean, variance=0.2):
    """n ratings with this mean and this variance about it."""
    return RatingStatistics(np.array([[float(n)]]), np.array([n * mean]), float(n), n * (mean**2 + variance))


def factor(levels, counts, prior=PRIOR, variance=0.2):
    ratings = [statistics(n, level, variance) if n else None for n, level in zip(counts, levels, strict=True)]
    return level_factor(prior, prior.of(arms_of(len(levels))), ratings)


@pytest.mark.parametrize("seed", range(8))
def test_it_is_the_most_probable_factor_by_the_density_written_out(seed):
    rng = np.random.default_rng(seed)
    K = int(rng.integers(2, 9))
    levels, counts = 0.6 + rng.normal(0, 0.05 + 0.1 * seed, K), rng.integers(1, 60, K)
    scatter = counts.sum() * 0.2
    noise = (20.0 * 0.2 + scatter) / (20.0 + counts.sum())
    densities = [
        multivariate_normal.logpdf(levels - 0.6, cov=noise * (np.diag(t * 0.05 + 1 / counts) + 1.5))
        - PENALTY * np.log2(t)
        for t in FACTORS
    ]
    assert factor(levels, counts) == FACTORS[int(np.argmax(densities))]


def test_nothing_and_one_arm_alone_leave_the_prior_as_it_is():
    assert factor([0.6, 0.6, 0.6], [0, 0, 0]) == 1.0
    assert factor([0.0, 0.6, 0.6], [500, 0, 0]) == 1.0


def test_a_route_that_is_harder_for_every_arm_contradicts_no_prior_of_an_arm():
    assert factor([0.1, 0.11, 0.09, 0.1], [200] * 4) == 1.0


def test_arms_far_from_where_they_should_be_loosen_the_prior_of_all():
    assert factor([0.9, 0.2, 0.6, 0.1], [200] * 4) >= 4.0


def test_levels_that_lie_as_the_prior_says_leave_it_in_most_routes():
    rng, sd = np.random.default_rng(5), np.sqrt(0.2 * 0.05)
    factors = [factor(0.6 + rng.normal(0, sd, 8) + rng.normal(0, 0.02, 8), [500] * 8) for _ in range(300)]
    assert np.mean(np.array(factors) == 1.0) > 0.7
    assert np.mean(np.array(factors) > 2.0) < 0.05


def test_with_more_to_contradict_it_the_belief_in_an_arm_never_rated_widens():
    arms = arms_of(5)
    model = SharedBaseline(PRIOR, arms)
    agreeing = {a.name: statistics(100, 0.6) for a in arms[:4]}
    contradicting = {a.name: statistics(100, m) for a, m in zip(arms[:4], (0.95, 0.2, 0.9, 0.3), strict=True)}
    widths = [
        model.fit(ratings, 1).predict(np.ones(1), ["arm4"]).sd()[0] for ratings in (agreeing, contradicting)
    ]
    assert widths[1] > 1.5 * widths[0]


def test_tiny_weights_and_quiet_raters_give_a_factor_all_the_same():
    assert factor([0.6, 0.7], [1e-12, 1e-12]) == 1.0
    assert factor([0.6, 0.6], [1e6, 1e6], variance=0.0) == 1.0
