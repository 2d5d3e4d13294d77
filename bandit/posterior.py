"""What is believed at one point of the log: quality and cost of every arm. Made from statistics, read when deciding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from bandit.arms import Arm
from bandit.belief import Belief
from bandit.cost import CostModel
from bandit.prediction import QualityModel, QualityPosterior
from bandit.quality_posterior import PARTS_KEPT
from bandit.statistics import CallStatistics, RatingStatistics
from bandit.types import Context, Vector


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """ratings: how many each arm has, old ones counting less. token: the position in the log whose statistics made this."""

    quality: QualityPosterior
    cost: CostModel
    ratings: Mapping[str, float]
    token: str
    _counts: dict[tuple[str, ...], Vector] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        model: QualityModel,
        ratings: Mapping[str, RatingStatistics],
        calls: Mapping[str, CallStatistics],
        *,
        d: int,
        token: str,
        entry_prices: Mapping[str, float] | None = None,
    ) -> "Posterior":
        """ratings, calls: arm name -> its statistics; d: number of features; entry_prices: see QualityModel."""
        quality = model.fit(ratings, d, entry_prices or {})
        return cls(quality, CostModel.fit(calls), {arm: s.weight for arm, s in ratings.items()}, token)

    def belief(self, context: Context, candidates: Sequence[Arm]) -> Belief:
        """About these candidates (at least one), for this request."""
        names = tuple([arm.name for arm in candidates])
        return Belief(
            arms=candidates,
            quality=self.quality.draws(context.x, names),
            exactly=partial(self.quality.predict, context.x, names),
            cost_usd=self.cost.expected_usd(candidates, context.needs, context.x),
            typical=self.quality.typical(names),
            noise_variance=self.quality.noise_variance,
            ratings=self._ratings_of(names),
        )

    def _ratings_of(self, names: tuple[str, ...]) -> Vector:
        """(K,), kept for the next request: most have the same candidates."""
        counts = self._counts.get(names)
        if counts is None:
            if len(self._counts) >= PARTS_KEPT:
                self._counts.clear()
            counts = self._counts[names] = np.array([self.ratings.get(name, 0.0) for name in names])
        return counts
