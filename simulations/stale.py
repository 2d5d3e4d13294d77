"""ParetoBandit's policy (arXiv 2604.00136, as in its wheel 0.1.1) on our features: a disjoint LinUCB that forgets by arm.

    score = theta_a'x + alpha sqrt(x' A_a^-1 x / max(g^dt, 1/200))         dt: requests since the arm was last used
    A_a <- g^dt A_a + x x'       b_a <- g^dt b_a + r x                      dt: requests since its last reward

The ridge decays with the rest and is put back in full when less than a tenth of it is left. What is left out here is its
pacer: there is no budget to keep, and the reward holds the price. Its wheel itself, with its own vectors, its warm priors
and its pacer, plays in its own experiments.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from bandit.types import Matrix, Vector
from simulations.baselines import EXPECTED_REWARD

DISCOUNT: Final = 0.997  # g, published
STALE_MAX: Final = 1000  # requests
INFLATION_MAX: Final = 200.0
RIDGE_MIN: Final = 0.1  # of the ridge of 1


class ParetoBanditPolicy:
    def __init__(self, alpha: float, d: int) -> None:
        self._alpha, self._d = alpha, d
        self._t = 0
        self._arms: dict[str, _Arm] = {}

    def scores(self, x: Vector, arms: Sequence[str]) -> Vector:
        scores = np.array([self._score(self._arm(name), x) for name in arms])
        self._t += 1  # its clock ticks when it chooses, so that late rewards do not age each other
        self._arm(arms[int(np.argmax(scores))]).played = self._t
        return scores

    def update(self, arm: str, x: Vector, reward: float) -> None:
        self._arm(arm).add(x, reward - EXPECTED_REWARD, self._t)

    def _score(self, arm: "_Arm", x: Vector) -> float:
        idle = self._t - max(arm.updated, arm.played)
        variance = float(x @ arm.A_inverse @ x) / max(DISCOUNT ** min(idle, STALE_MAX), 1.0 / INFLATION_MAX)
        return float(arm.theta @ x) + self._alpha * float(np.sqrt(variance))

    def _arm(self, name: str) -> "_Arm":
        if name not in self._arms:
            self._arms[name] = _Arm(self._d)
        return self._arms[name]


class _Arm:
    """updated, played: when, on the policy's clock; ridge: what is left of the identity in A."""

    def __init__(self, d: int) -> None:
        self._A: Matrix = np.eye(d)
        self._b: Vector = np.zeros(d)
        self._ridge = 1.0
        self.A_inverse: Matrix = np.eye(d)
        self.theta: Vector = np.zeros(d)
        self.updated = self.played = 0

    def add(self, x: Vector, reward: float, now: int) -> None:
        decay = DISCOUNT ** min(now - self.updated, STALE_MAX)
        self._A *= decay
        self._b *= decay
        self._ridge *= decay
        if self._ridge < RIDGE_MIN:
            self._A += (1.0 - self._ridge) * np.eye(len(x))
            self._ridge = 1.0
        self._A += np.outer(x, x)
        self._b += reward * x
        self.A_inverse = np.linalg.inv(self._A).astype(np.float64)
        self.theta = self.A_inverse @ self._b
        self.updated = now
