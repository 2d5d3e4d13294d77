"""Newcomers: arms with few ratings beside arms with enough of them. They are tried at a price that is bounded.

    p = (1 - sum f) x p_policy + f        f_a = min(share, usd_per_request / c_a) / m for a newcomer with a chance, else 0

m newcomers, c_a expected cost. An arm has a chance while in one of the posterior's draws it is the best for this request, or
would be if it were MARGIN better; an arm that is clearly worse keeps only the policy's own exploration floor. What follows:

    - newcomers together take at most `share` of the requests beyond the policy's own choice, and their floors cost at most
      `usd_per_request` per request in expectation, be they one or fifty;
    - a newcomer with a chance and a price within the allowance is called `ratings` times in expectation within
      m x ratings / share requests, whatever the policy thinks of it and whatever credit a budget has left;
    - from `ratings` ratings on nothing is forced. An arm of which most was forgotten (a drift reset) is a newcomer again.

While no arm has so many ratings nothing is new beside anything, and a cold start is the policy's alone.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from bandit.belief import Belief
from bandit.objective import Cost, Mask, Objective, QualityUnderBudget
from bandit.types import Matrix, Vector

MARGIN: Final = 0.01  # of quality


@dataclass(frozen=True, slots=True)
class Newcomers:
    """ratings: from how many on an arm is new no more. share: of requests. usd_per_request: expected cost of the floors.

    Under a budget per request they cost at most `share` of it too; its credit does not count: this is an allowance of its own.
    """

    ratings: float = 8.0
    share: float = 0.01
    usd_per_request: float = np.inf

    def __post_init__(self) -> None:
        if not (self.ratings >= 0 and 0 <= self.share < 1 and self.usd_per_request >= 0):
            raise ValueError(
                f"newcomers need ratings >= 0, 0 <= share < 1 and usd_per_request >= 0, not {self}"
            )

    def among(self, belief: Belief) -> Mask:
        """(K,) which candidates are new beside others that are not."""
        new: Mask = belief.ratings < self.ratings
        nobody = self.share == 0 or np.count_nonzero(new) == len(new)
        return np.zeros_like(new) if nobody else new

    def welcomed(self, shares: Vector, belief: Belief, objective: Objective) -> Vector:
        """(K,) the policy's probabilities mixed with the newcomers' floors."""
        new = self.among(belief)
        newcomers = np.count_nonzero(new)
        if not newcomers:
            return shares
        chance = new & with_a_chance(belief, objective, belief.quality.deviations + belief.quality.mean)
        allowance_usd = self.usd_per_request
        if isinstance(objective, QualityUnderBudget):
            allowance_usd = min(allowance_usd, self.share * objective.usd_per_request)
        most = np.minimum(self.share, allowance_usd / np.maximum(belief.cost_usd, 1e-300))
        floors = np.where(chance, most / newcomers, 0.0)
        mixed: Vector = (1.0 - np.add.reduce(floors)) * shares + floors
        return mixed


def with_a_chance(belief: Belief, objective: Objective, quality: Matrix) -> Mask:
    """(K,) which arms are best in one of the draws (M, K), or would be if they were MARGIN better than their draw."""
    if isinstance(objective, QualityUnderBudget):
        objective = replace(objective, allowance_usd=np.inf)
    reference = objective.reference(belief)
    utility = objective.utility(quality, belief.cost_usd, reference)
    best = np.maximum.reduce(utility, axis=1, keepdims=True)
    if isinstance(objective, Cost):
        better = quality + MARGIN
        better[:, reference] = quality[:, reference]  # others are measured by it
        utility = objective.utility(better, belief.cost_usd, reference)
    else:
        utility = utility + MARGIN  # quality counts as it is
    hopeful: Mask = np.logical_or.reduce(utility >= best, axis=0)
    return hopeful
