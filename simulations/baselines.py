"""Whom the router is compared with while it learns: bandits of one number per arm, on the same streams and candidates.

A rival maximises the utility that the goal gives to what it was told: its reward is quality, or quality - cost / X. It is
made of a `Scorer`, which knows rewards and nothing else, and of the one player `Rival`, which takes the candidate with the
highest score. Linear rivals are in simulations.linear, those from published packages in simulations.packages; what may
look at everything beforehand is in simulations.hindsight.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from bandit.arms import Arm
from bandit.noise import normals_of
from bandit.objective import Objective
from bandit.policy import Thompson, Uniform
from bandit.prediction import Draws, Prediction, QualityPosterior
from bandit.prior import QualityPrior
from bandit.quality import DRAWS, SharedBaseline
from bandit.sources import ANCHOR
from bandit.statistics import RatingStatistics
from bandit.types import Vector
from simulations.learner import Contestant
from simulations.metrics import Goal
from simulations.player import Choice, Lesson, Request

EXPECTED_REWARD: Final = (
    0.7  # of an arm that was never tried: what the router's own prior expects of its quality
)


def router(objective: Objective, prior: QualityPrior | None, arms: tuple[Arm, ...]) -> Contestant:
    """The policy that the gateway runs."""
    return Contestant("router", Thompson(objective), SharedBaseline(prior, arms))


def random() -> Contestant:
    return Contestant("random", Uniform(), ContextFree(), learns=False)


def context_free_thompson(objective: Objective, scale: float = 0.3) -> Contestant:
    """Gaussian Thompson sampling on each arm's mean; contexts ignored."""
    return Contestant(
        "thompson-context-free", Thompson(objective, scale=scale, first_scale=scale), ContextFree()
    )


class Scorer(Protocol):
    """A bandit that sees rewards, whatever they are made of."""

    def scores(self, x: Vector, arms: Sequence[str]) -> Vector:
        """(K,) the highest is chosen. Called once a request, with those on offer."""
        ...

    def update(self, arm: str, x: Vector, reward: float) -> None: ...


class Rival:
    """Plays a scorer: its reward is the goal's utility of what the chosen arm was rated and cost."""

    def __init__(self, scorer: Scorer, goal: Goal) -> None:
        if goal.name == "cost":
            raise ValueError(
                "under the objective cost there is no reward of one number; rivals play quality or balanced"
            )
        self._scorer, self._goal = scorer, goal
        self._seen: dict[int, Vector] = {}

    def choose(self, request: Request) -> Choice:
        self._seen[request.n] = request.context.x
        names = [arm.name for arm in request.candidates]
        return Choice(names[int(np.argmax(self._scorer.scores(request.context.x, names)))])

    def learn(self, lesson: Lesson) -> None:
        if lesson.quality is not None:
            reward = self._goal.utility(np.array([lesson.quality]), np.array([lesson.cost_usd]))
            self._scorer.update(lesson.arm, self._seen[lesson.n], float(reward[0]))


class Means:
    """Count and mean reward of each arm; contexts ignored."""

    def __init__(self) -> None:
        self.count: dict[str, int] = {}
        self.mean: dict[str, float] = {}

    def update(self, arm: str, x: Vector, reward: float) -> None:
        n = self.count.get(arm, 0) + 1
        self.count[arm] = n
        self.mean[arm] = self.mean.get(arm, 0.0) + (reward - self.mean.get(arm, 0.0)) / n


class EpsilonGreedy(Means):
    """The best mean, after every arm was tried once; with probability epsilon any arm."""

    def __init__(self, epsilon: float, rng: np.random.Generator) -> None:
        super().__init__()
        self._epsilon, self._rng = epsilon, rng

    def scores(self, x: Vector, arms: Sequence[str]) -> Vector:
        if self._rng.random() < self._epsilon:
            return self._rng.random(len(arms))
        return np.array([self.mean.get(arm, math.inf) for arm in arms])


class UCB1(Means):
    """mean + alpha sqrt(2 ln t / n_a), Auer et al. 2002 with alpha = 1; t counts rewards."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self._alpha = alpha

    def scores(self, x: Vector, arms: Sequence[str]) -> Vector:
        log_t = 2.0 * math.log(max(sum(self.count.values()), 1))
        return np.array([self._bound(arm, log_t) for arm in arms])

    def _bound(self, arm: str, log_t: float) -> float:
        n = self.count.get(arm, 0)
        return self.mean[arm] + self._alpha * math.sqrt(log_t / n) if n else math.inf


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
    anchor: str = ANCHOR

    def fit(
        self, ratings: Mapping[str, RatingStatistics], d: int, entry_prices: Mapping[str, float]
    ) -> QualityPosterior:
        means, counts, scatter = {}, {}, self.variance_weight * self.prior_variance
        for arm, s in ratings.items():
            counts[arm] = s.weight + self.prior_ratings
            means[arm] = (s.xr[0] + self.prior_ratings * self.prior_mean) / counts[arm]  # x[0] is the bias, 1
            scatter += max(s.rr - s.xr[0] ** 2 / s.weight, 0.0) if s.weight > 0 else 0.0
        total = sum(s.n for s in ratings.values())
        return _ContextFreePosterior(self, means, counts, scatter / (self.variance_weight + total))

    def steps(
        self, ratings: Mapping[str, RatingStatistics], d: int, entry_prices: Mapping[str, float]
    ) -> Iterator[None]:
        """None: it is quickly done."""
        return iter(())


@dataclass(frozen=True, slots=True, eq=False)
class _ContextFreePosterior:
    model: ContextFree
    means: Mapping[str, float]
    counts: Mapping[str, float]
    noise_variance: float

    def draws(self, x: Vector, arms: Sequence[str]) -> Draws:
        normals = np.stack(
            [normals_of(f"{arm}:{self.noise_variance}".encode(), DRAWS) for arm in arms], axis=1
        )
        return Draws(self.typical(arms), normals * np.sqrt(self._variances(arms)))

    def predict(self, x: Vector, arms: Sequence[str]) -> Prediction:
        return Prediction(self.typical(arms), np.diag(self._variances(arms)))

    def _variances(self, arms: Sequence[str]) -> Vector:
        counts = np.array([self.counts.get(arm, self.model.prior_ratings) for arm in arms])
        variances: Vector = self.noise_variance / counts
        return variances

    def steps(self) -> Iterator[None]:
        """None: it is quickly drawn."""
        return iter(())

    def typical(self, arms: Sequence[str]) -> Vector:
        return np.array([self.means.get(arm, self.model.prior_mean) for arm in arms])
