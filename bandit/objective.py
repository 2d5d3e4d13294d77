"""Objectives: what an answer's quality and cost are worth together. They act when deciding and change nothing learned."""

from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from bandit.belief import Belief
from bandit.types import Matrix, Vector

Mask = NDArray[np.bool_]
_NORMAL: Final = NormalDist()
BELOW_FLOOR: Final = 1e6  # utility lost per point of quality below the floor: any cost is better than that


class Objective(Protocol):
    def reference(self, belief: Belief) -> int:
        """Index of the arm that others are compared with; 0 where none is."""
        ...

    def allowed(self, belief: Belief) -> Mask:
        """(K,) which candidates may be called at all, be it to explore; always at least one."""
        ...

    def preferred(self, belief: Belief) -> Mask:
        """(K,) which candidates may be chosen on their merits; the others are left to the exploration floor."""
        ...

    def utility(self, quality: Matrix, cost_usd: Vector, reference: int) -> Matrix:
        """(M, K) utility of M draws of K arms' quality (M, K) at their expected cost (K,)."""
        ...


class _Free:
    """Compares with no arm and forbids none."""

    __slots__ = ()

    def reference(self, belief: Belief) -> int:
        return 0

    def allowed(self, belief: Belief) -> Mask:
        return _every(belief)

    def preferred(self, belief: Belief) -> Mask:
        return _every(belief)


def _every(belief: Belief) -> Mask:
    return everybody(len(belief.arms))


@cache
def everybody(K: int) -> Mask:
    """(K,) all of them: always the same array, so that it can be told by its identity."""
    mask = np.ones(K, dtype=np.bool_)
    mask.flags.writeable = False
    return mask


@dataclass(frozen=True, slots=True)
class Quality(_Free):
    """The best expected quality, whatever it costs."""

    def utility(self, quality: Matrix, cost_usd: Vector, reference: int) -> Matrix:
        return quality


@dataclass(frozen=True, slots=True)
class Balanced(_Free):
    """quality - cost / X, where X USD is what one full point of quality (0 to 1) is worth."""

    usd_per_quality: float

    def utility(self, quality: Matrix, cost_usd: Vector, reference: int) -> Matrix:
        return quality - cost_usd / self.usd_per_quality


@dataclass(frozen=True, slots=True)
class Cost:
    """The cheapest arm whose quality is at most `quality_floor` below that of the baseline.

    baseline: a model by name; "", or one that is no candidate: the candidate that is best over all traffic. confidence:
    None lets posterior draws decide who is above the floor, which explores; a probability, such as 0.9, lets only those be
    chosen of which that is so sure (and the baseline), which is safe and learns from the exploration floor alone:

        P(q_a >= q_b - quality_floor) >= confidence
    """

    quality_floor: float
    baseline: str = ""
    confidence: float | None = None

    def reference(self, belief: Belief) -> int:
        named = belief.index(self.baseline) if self.baseline else None
        return int(np.argmax(belief.typical)) if named is None else named

    def allowed(self, belief: Belief) -> Mask:
        return _every(belief)

    def preferred(self, belief: Belief) -> Mask:
        if self.confidence is None:
            return _every(belief)
        b = self.reference(belief)
        exact = belief.exactly()
        mean, covariance = exact.mean, exact.covariance
        variances = covariance.diagonal()
        sd = np.sqrt(np.maximum(variances + variances[b] - 2.0 * covariance[b], 0.0))
        surely: Mask = mean - mean[b] + self.quality_floor >= _NORMAL.inv_cdf(self.confidence) * sd
        surely[b] = True
        return surely

    def utility(self, quality: Matrix, cost_usd: Vector, reference: int) -> Matrix:
        if self.confidence is not None:
            return np.broadcast_to(-cost_usd, quality.shape)
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

    def reference(self, belief: Belief) -> int:
        return 0

    def allowed(self, belief: Belief) -> Mask:
        return self.affordable(belief.cost_usd)

    def preferred(self, belief: Belief) -> Mask:
        return self.affordable(belief.cost_usd)

    def utility(self, quality: Matrix, cost_usd: Vector, reference: int) -> Matrix:
        worth: Matrix = quality - self.dual * cost_usd / self.usd_per_request
        return np.where(self.affordable(cost_usd), worth, -np.inf)

    def affordable(self, cost_usd: Vector) -> Mask:
        """(K,) which arms the allowance covers."""
        affordable: Mask = cost_usd <= self.allowance_usd
        affordable[np.argmin(cost_usd)] = True
        return affordable
