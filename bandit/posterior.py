"""What is believed at one point of the log: quality and cost of every arm. Made from statistics, read when deciding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bandit.arms import Arm
from bandit.belief import Belief
from bandit.cost import CostModel
from bandit.quality import QualityModel, QualityPosterior
from bandit.statistics import CallStatistics, RatingStatistics
from bandit.types import Context


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """ratings: how many each arm has, old ones counting less. token: the position in the log whose statistics made this."""

    quality: QualityPosterior
    cost: CostModel
    ratings: Mapping[str, float]
    token: str

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
        return cls(quality, CostModel.fit(calls), {arm: s.n for arm, s in ratings.items()}, token)

    def belief(self, context: Context, candidates: Sequence[Arm]) -> Belief:
        """About these candidates (at least one), for this request."""
        names = [arm.name for arm in candidates]
        return Belief(
            arms=candidates,
            quality=self.quality.predict(context.x, names),
            cost_usd=self.cost.expected_usd(candidates, context.needs),
            typical=self.quality.typical(names),
            noise_variance=self.quality.noise_variance,
            ratings=np.array([self.ratings.get(name, 0.0) for name in names]),
        )
