"""Whom the router is compared with, as contestants on the same streams.

Fixed models and the oracle need no play: their outcomes are columns of the recorded matrix (simulations.metrics).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bandit.objective import Objective
from bandit.policy import Thompson, Uniform
from bandit.quality import Prediction, QualityPosterior, QualityPrior, SharedBaseline
from bandit.statistics import RatingStatistics
from bandit.types import Vector
from simulations.stream import Contestant


def router(objective: Objective, prior: QualityPrior) -> Contestant:
    """The policy that the gateway runs."""
    return Contestant("router", Thompson(objective), SharedBaseline(prior))


def random() -> Contestant:
    return Contestant("random", Uniform(), ContextFree(), learns=False)


def context_free_thompson(objective: Objective) -> Contestant:
    """Gaussian Thompson sampling on each arm's mean; contexts ignored."""
    return Contestant("thompson-context-free", Thompson(objective), ContextFree())


@dataclass(frozen=True, slots=True)
class ContextFree:
    """Independent arms, no features: quality of an arm ~ N(mean, s2 / (n + prior_ratings)).

    prior_mean is the belief in an arm without ratings, worth prior_ratings of them; s2 is the pooled variance of
    ratings about their arm's mean, started at prior_variance.
    """

    prior_mean: float = 0.7
    prior_ratings: float = 1.0
    prior_variance: float = 0.05
    variance_weight: float = 10.0

    def fit(self, ratings: Mapping[str, RatingStatistics], d: int) -> QualityPosterior:
        means, counts, scatter = {}, {}, self.variance_weight * self.prior_variance
        for arm, s in ratings.items():
            counts[arm] = s.n + self.prior_ratings
            means[arm] = (s.xr[0] + self.prior_ratings * self.prior_mean) / counts[arm]  # x[0] is the bias, 1
            scatter += max(s.rr - s.xr[0] ** 2 / s.n, 0.0) if s.n > 0 else 0.0
        total = sum(s.n for s in ratings.values())
        return _ContextFreePosterior(self, means, counts, scatter / (self.variance_weight + total))


@dataclass(frozen=True, slots=True, eq=False)
class _ContextFreePosterior:
    model: ContextFree
    means: Mapping[str, float]
    counts: Mapping[str, float]
    noise_variance: float

    def predict(self, x: Vector, arms: Sequence[str]) -> Prediction:
        counts = np.array([self.counts.get(arm, self.model.prior_ratings) for arm in arms])
        return Prediction(
            mean=self.typical(arms),
            shared=np.zeros((len(arms), 0)),
            own=np.sqrt(self.noise_variance / counts),
        )

    def typical(self, arms: Sequence[str]) -> Vector:
        return np.array([self.means.get(arm, self.model.prior_mean) for arm in arms])
