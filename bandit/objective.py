"""Objectives: what an answer's quality and cost are worth together. They act when deciding and change nothing learned."""

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from bandit.types import Matrix, Vector

BELOW_FLOOR: Final = 1e6  # utility lost per point of quality below the floor: any cost is better than that


class Objective(Protocol):
    def utility(self, quality: Matrix, cost_usd: Vector, reference: int) -> Matrix:
        """(M, K) utility of M draws of K arms' quality (M, K) at their expected cost (K,).

        reference: index of the arm that is best over all traffic, for objectives that compare with it.
        """
        ...


@dataclass(frozen=True, slots=True)
class Quality:
    """The best expected quality, whatever it costs."""

    def utility(self, quality: Matrix, cost_usd: Vector, reference: int) -> Matrix:
        return quality


@dataclass(frozen=True, slots=True)
class Balanced:
    """quality - cost / X, where X USD is what one full point of quality (0 to 1) is worth."""

    usd_per_quality: float

    def utility(self, quality: Matrix, cost_usd: Vector, reference: int) -> Matrix:
        return quality - cost_usd / self.usd_per_quality


@dataclass(frozen=True, slots=True)
class Cost:
    """The cheapest arm whose quality is at most `quality_floor` below that of the best model."""

    quality_floor: float

    def utility(self, quality: Matrix, cost_usd: Vector, reference: int) -> Matrix:
        lacking = quality[:, [reference]] - self.quality_floor - quality
        return -cost_usd - BELOW_FLOOR * np.maximum(lacking, 0.0)
