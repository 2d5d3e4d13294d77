"""Objectives: what an answer's quality and cost are worth together. They act when deciding and change nothing learned."""

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

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


@dataclass(frozen=True, slots=True)
class QualityUnderBudget:
    """The best quality that a budget per request can pay for: quality - dual x c / B, and no arm beyond the allowance.

    usd_per_request: B. dual: quality that spending B more is worth, kept up to date by bandit.pacing. allowance_usd: what
    this request may cost at most; the cheapest arm may always be called.
    """

    usd_per_request: float
    dual: float
    allowance_usd: float

    def utility(self, quality: Matrix, cost_usd: Vector, reference: int) -> Matrix:
        worth: Matrix = quality - self.dual * cost_usd / self.usd_per_request
        return np.where(self.affordable(cost_usd), worth, -np.inf)

    def affordable(self, cost_usd: Vector) -> NDArray[np.bool_]:
        """(K,) which arms the allowance covers. A policy with an exploration floor should leave the others out of it."""
        affordable: NDArray[np.bool_] = cost_usd <= self.allowance_usd
        affordable[np.argmin(cost_usd)] = True
        return affordable
