"""Disjoint linear bandits: every arm a ridge regression of its own, the usual recipe of contextual routing.

    A_a = lambda I + sum g^age x x'     b_a = sum g^age (r - r0) x     theta_a = A_a^-1 b_a     g: discount, 1 for none

    LinUCB   theta_a'x + alpha sqrt(x' A_a^-1 x)            Li et al. 2010, algorithm 1; discounted: Russac et al. 2019
    LinTS    theta_a'x + v sqrt(x' A_a^-1 x) e_a            Agrawal and Goyal 2013: e_a ~ N(0, 1), one draw of theta'x

r0 is what an untried arm is expected to be worth, so that these rivals start from the same belief as the router.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bandit.types import Vector
from simulations.baselines import EXPECTED_REWARD

RIDGE: Final = 1.0  # lambda


class DisjointRidges:
    """The regressions. Ages count requests; an arm's sums are brought up to date when it is read."""

    def __init__(self, d: int, discount: float = 1.0) -> None:
        self._d, self._discount = d, discount
        self._rows: dict[str, int] = {}
        self._A = np.zeros((0, d, d))  # without lambda I
        self._b = np.zeros((0, d))
        self._A_inverse: NDArray[np.float64] = np.zeros((0, d, d))

    def update(self, arm: str, x: Vector, reward: float) -> None:
        row = self._row(arm)
        self._A[row] += np.outer(x, x)
        self._b[row] += (reward - EXPECTED_REWARD) * x
        if self._discount == 1.0:  # Sherman and Morrison; a discounted inverse is made when it is read
            y = self._A_inverse[row] @ x
            self._A_inverse[row] -= np.outer(y, y) / (1.0 + x @ y)

    def mean_and_width(self, x: Vector, arms: Sequence[str]) -> tuple[Vector, Vector]:
        """theta_a'x and sqrt(x' A_a^-1 x), (K,) each. One request goes by."""
        rows = [self._row(arm) for arm in arms]
        if self._discount < 1.0:
            self._A *= self._discount
            self._b *= self._discount
            self._A_inverse = np.linalg.inv(self._A + RIDGE * np.eye(self._d)).astype(np.float64)
        y = self._A_inverse[rows] @ x  # (K, d)
        return np.einsum("kd,kd->k", y, self._b[rows]), np.sqrt(np.maximum(y @ x, 0.0))

    def _row(self, arm: str) -> int:
        if arm not in self._rows:
            self._rows[arm] = len(self._rows)
            nothing = np.zeros((1, self._d, self._d))
            self._A = np.concatenate([self._A, nothing])
            self._b = np.concatenate([self._b, nothing[:, 0]])
            self._A_inverse = np.concatenate([self._A_inverse, np.eye(self._d)[None] / RIDGE])
        return self._rows[arm]


class LinUCB:
    def __init__(self, alpha: float, d: int, discount: float = 1.0) -> None:
        self._alpha, self._ridges = alpha, DisjointRidges(d, discount)

    def scores(self, x: Vector, arms: Sequence[str]) -> Vector:
        mean, width = self._ridges.mean_and_width(x, arms)
        return mean + self._alpha * width

    def update(self, arm: str, x: Vector, reward: float) -> None:
        self._ridges.update(arm, x, reward)


class LinTS:
    def __init__(self, v: float, d: int, rng: np.random.Generator) -> None:
        self._v, self._ridges, self._rng = v, DisjointRidges(d), rng

    def scores(self, x: Vector, arms: Sequence[str]) -> Vector:
        mean, width = self._ridges.mean_and_width(x, arms)
        return mean + self._v * width * self._rng.normal(size=len(arms))

    def update(self, arm: str, x: Vector, reward: float) -> None:
        self._ridges.update(arm, x, reward)
