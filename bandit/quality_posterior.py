"""What the quality model believes of a request: a joint Gaussian over the arms, and draws of it that are made once.

With B_a^-1 = R_a' R_a, S^-1 = R' R and the rest as in bandit.quality, quality of the arms at x has

    mean x' weights_a        covariance  s2 (V V' + diag(x' B_a^-1 x))        row a of V = (B_a^-1 x)' D_a R'

V is common to all arms: that is what makes the draws joint. A posterior decides many requests before the next rating
replaces it, so it draws weights, not qualities: M joint draws of all arms' weights, each less its mean,

    W_am = s R_a' (z_am + R_a D_a R' z_m)        z ~ N(0, I), hashed from what was learned and the arm's name

and at a request one product x' W gives M joint draws of K qualities. (Drawing anew at each request takes a product with
every B_a^-1 and a factorisation, 15 times as long; what is lost is chance between two ratings, not within the draws.)
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bandit.noise import normals_of
from bandit.prediction import Draws, Prediction
from bandit.products import product
from bandit.types import Matrix, Vector

Singles = NDArray[np.float32]
PARTS_KEPT: Final = 16  # choices of arms whose rows a posterior keeps gathered


@dataclass(frozen=True, eq=False)
class SharedBaselinePosterior:
    """weights, precisions = D (K + 1, d), factors = R_a, K + 1 of (d, d): one row or block per arm, the last for any arm of
    which nothing is known; shared_factor = R (d, d). typical_x (d,): mean features of all ratings. log_evidence: see
    bandit.quality; up to a constant. count: M. seed: what the draws' normals are hashed from.
    """

    rows: Mapping[str, int]
    weights: Matrix
    factors: Sequence[Matrix]
    precisions: Matrix
    shared_factor: Matrix
    noise_variance: float
    typical_x: Vector
    log_evidence: float
    count: int
    seed: bytes
    _parts: "dict[tuple[str, ...], _Part]" = field(default_factory=dict, repr=False)
    _drawn: dict[str, Singles] = field(default_factory=dict, repr=False)

    def draws(self, x: Vector, arms: Sequence[str]) -> Draws:
        part = self._part(arms)
        deviations = product(x.astype(np.float32), part.deviations)  # features have 11 significant bits
        return Draws(part.weights @ x, deviations.reshape(self.count, -1))

    def predict(self, x: Vector, arms: Sequence[str]) -> Prediction:
        part = self._part(arms)
        Y = product(x, part.inverses).reshape(part.weights.shape)  # (K, d): B_a^-1 x
        V = (Y * part.precisions) @ self.shared_factor.T
        covariance = self.noise_variance * (V @ V.T + np.diag(Y @ x))
        return Prediction(part.weights @ x, covariance)

    def typical(self, arms: Sequence[str]) -> Vector:
        return self._part(arms).typical

    def steps(self) -> Iterator[None]:
        """Arm by arm; see QualityPosterior."""
        for name, row in self.rows.items():
            self._weights_of(name, row)
            yield

    def _part(self, arms: Sequence[str]) -> "_Part":
        """These arms' rows and draws, gathered once: requests ask for the same arms over and over."""
        key = tuple(arms)
        part = self._parts.get(key)
        if part is None:
            if len(self._parts) >= PARTS_KEPT:
                self._parts.clear()
            part = self._parts[key] = self._gathered(key)
        return part

    def _gathered(self, arms: tuple[str, ...]) -> "_Part":
        d, K, last = len(self.typical_x), len(arms), len(self.weights) - 1
        rows = [self.rows.get(arm, last) for arm in arms]
        drawn = np.empty((d, self.count, K), dtype=np.float32)
        for k, (name, row) in enumerate(zip(arms, rows, strict=True)):
            drawn[:, :, k] = self._weights_of(name, row)
        drawn *= np.float32(math.sqrt(self.noise_variance))
        weights = self.weights[rows]
        factors = [self.factors[row] for row in rows]
        typical = weights @ self.typical_x
        return _Part(weights, self.precisions[rows], factors, drawn.reshape(d, -1), typical)

    def _weights_of(self, name: str, row: int) -> Singles:
        """(d, M): W_a / s."""
        drawn = self._drawn.get(name)
        if drawn is None:
            R, D = self.factors[row], self.precisions[row]
            own = self._normals("arm:" + name)
            drawn = self._drawn[name] = (R.T @ (own + R @ (D[:, None] * self._shared))).astype(np.float32)
        return drawn

    @cached_property
    def _shared(self) -> Matrix:
        """(d, M): R' z."""
        shared: Matrix = self.shared_factor.T @ self._normals("shared")
        return shared

    def _normals(self, of: str) -> Singles:
        d = len(self.typical_x)
        return normals_of(self.seed + of.encode(), d * self.count).reshape(d, self.count)


@dataclass(frozen=True, eq=False)
class _Part:
    """Of K arms: weights, precisions (K, d), factors, deviations (d, M K), typical (K,) quality over the traffic so far."""

    weights: Matrix
    precisions: Matrix
    factors: Sequence[Matrix]
    deviations: Singles
    typical: Vector

    @cached_property
    def inverses(self) -> Matrix:
        """(d, K d): B_a^-1 side by side, for an objective that asks how sure it may be of each request."""
        return np.concatenate([R.T @ R for R in self.factors], axis=1)
