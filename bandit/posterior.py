"""What is believed at one point of the log: quality and cost of every arm. Made from statistics, read by policies."""

from collections.abc import Mapping
from dataclasses import dataclass

from bandit.cost import CostModel
from bandit.quality import QualityModel, QualityPosterior
from bandit.statistics import CallStatistics, RatingStatistics


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """token: the position in the log whose statistics this posterior was made from."""

    quality: QualityPosterior
    cost: CostModel
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
    ) -> "Posterior":
        """ratings, calls: arm name -> its statistics; d: number of features."""
        return cls(model.fit(ratings, d), CostModel.fit(calls), token)
