"""The quality model: one shared baseline and a small deviation per arm, as one joint Gaussian posterior.

    r = x' theta + x' delta_a + e        e ~ N(0, s2)          arm a, features x (d,), quality r in [0, 1]
    theta   ~ N(m0, s2 P^-1)             how hard is this request, learned from every arm
    delta_a ~ N(0,  s2 D^-1)             what is particular to arm a; D is large: deviations start small
    s2      ~ IG(nu/2, nu s0 / 2)        learned noise

A choice needs only differences between arms, so the shared part takes the bulk of what prompts have in common and each
arm is left with little to learn. The joint precision is an arrow (one shared block, one block per arm): with the arms'
statistics A_a = sum w x x', b_a = sum w r x it is eliminated arm by arm (block Cholesky; Murphy, Machine Learning: a
Probabilistic Perspective, 4.3.1, and 7.6.3 for the noise):

    B_a     = A_a + D                                    arm block (d, d)
    S       = P + sum_a D B_a^-1 A_a                     shared block after elimination
    theta^  = S^-1 (P m0 + sum_a D B_a^-1 b_a)           delta_a^ = B_a^-1 (b_a - A_a theta^)

    quality of arm a at x  =  x'(theta^ + delta_a^) + s (W_a x)' e_0 + s (R_a' x)' e_a        e_0, e_a ~ N(0, I)
    W_a = L^-1 D B_a^-1,  S = L L'       R_a R_a' = B_a^-1

e_0 is common to all arms: that is what makes the draws joint. The second term needs one normal per arm, because
(R_a' x)' e_a ~ N(0, |R_a' x|^2).

A quality model is anything with `fit`; what it returns is anything with `predict`. The prior is read from a small file
(`prior_from_json`) or the defaults below, which know nothing of any model.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from bandit.statistics import RatingStatistics
from bandit.types import Matrix, Vector


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Joint Gaussian belief in the quality of K arms at one x: q = mean + shared e_0 + own * e, e_0 and e normal.

    mean (K,) expected quality; shared (K, r) loadings on r common normals; own (K,) spread of each arm's own normal.
    """

    mean: Vector
    shared: Matrix
    own: Vector

    def covariance(self) -> Matrix:
        """(K, K)."""
        return self.shared @ self.shared.T + np.diag(self.own**2)

    def sd(self) -> Vector:
        """(K,) standard deviation of each arm's expected quality."""
        sd: Vector = np.sqrt((self.shared**2).sum(axis=1) + self.own**2)
        return sd

    def draws(self, normals: Vector, count: int, *, scale: float = 1.0) -> Matrix:
        """(count, K) joint draws; scale multiplies the spread. normals: at least count x (r + K) of them."""
        K, r = self.shared.shape
        common = normals[: count * r].reshape(count, r)
        own = normals[count * r : count * (r + K)].reshape(count, K)
        drawn: Matrix = self.mean + scale * (common @ self.shared.T + own * self.own)
        return drawn

    def normals_needed(self, count: int) -> int:
        return count * sum(map(int, self.shared.shape))


class QualityPosterior(Protocol):
    @property
    def noise_variance(self) -> float:
        """Variance of a rating about its expectation."""
        ...

    def predict(self, x: Vector, arms: Sequence[str]) -> Prediction: ...

    def typical(self, arms: Sequence[str]) -> Vector:
        """(K,) expected quality of each arm over the traffic seen so far."""
        ...


class QualityModel(Protocol):
    def fit(self, ratings: Mapping[str, RatingStatistics], d: int) -> QualityPosterior: ...


@dataclass(frozen=True, slots=True)
class QualityPrior:
    """How strongly each part of the model starts where it starts, in pseudo-observations (weight of ratings).

    A value of n means: after n ratings (of a feature of size one) data and prior weigh alike.
    """

    mean: float = 0.7  # expected quality of any arm, in [0, 1]
    shared_level: float = 1.0
    shared_slope: float = 4.0
    arm_level: float = 1.0
    arm_slope: float = 40.0
    noise_variance: float = 0.05  # s0
    noise_weight: float = 10.0  # nu


def prior_from_json(text: str) -> QualityPrior:
    """A prior file's content: one JSON object with any of QualityPrior's fields. Raises ValueError naming the field."""
    given = json.loads(text)
    if not isinstance(given, dict):
        raise ValueError("a prior file holds one JSON object")  # noqa: TRY004 - the caller reports values, not types
    known = {field.name for field in fields(QualityPrior)}
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"prior: unknown field {name!r}; known are {', '.join(sorted(known))}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ValueError(f"prior: {name} must be a number above 0, not {value!r}")
        if name == "mean" and value > 1:
            raise ValueError(f"prior: mean is a quality from 0 to 1, not {value!r}")
    return replace(QualityPrior(), **given)


@dataclass(frozen=True, slots=True)
class SharedBaseline:
    """The model above. See the module's docstring."""

    prior: QualityPrior = QualityPrior()

    def fit(self, ratings: Mapping[str, RatingStatistics], d: int) -> "SharedBaselinePosterior":
        """The posterior given each arm's statistics; an arm that is not in `ratings` has none."""
        p = self.prior
        P = np.diag(np.r_[p.shared_level, np.full(d - 1, p.shared_slope)])
        D = np.diag(np.r_[p.arm_level, np.full(d - 1, p.arm_slope)])
        m0 = np.r_[p.mean, np.zeros(d - 1)]

        seen = tuple(ratings.values())
        unseen = RatingStatistics.empty(d)
        A = np.stack(
            [s.xx for s in (*seen, unseen)]
        )  # (K + 1, d, d): the last row is any arm without ratings
        b = np.stack([s.xr for s in (*seen, unseen)])  # (K + 1, d)

        B_inv = _inverse(A + D)
        DB_inv = D @ B_inv
        S = P + (DB_inv @ A).sum(axis=0)
        h = P @ m0 + np.einsum("kij,kj->i", DB_inv, b)
        L = np.linalg.cholesky((S + S.T) / 2)
        theta = np.linalg.solve(S, h)
        delta = np.einsum("kij,kj->ki", B_inv, b - A @ theta)

        explained = (P @ m0 + b.sum(axis=0)) @ theta + np.einsum("ki,ki->", b, delta)
        scatter = sum(s.rr for s in seen) + m0 @ P @ m0 - explained
        n = sum(s.n for s in seen)
        s2 = (p.noise_weight * p.noise_variance + max(scatter, 0.0)) / (p.noise_weight + n)
        return SharedBaselinePosterior(
            rows={name: k for k, name in enumerate(ratings)},
            means=theta + delta,
            shared=np.sqrt(s2) * (_triangular_inverse(L) @ DB_inv),
            own=np.sqrt(s2) * np.linalg.cholesky(B_inv).transpose(0, 2, 1),
            noise_variance=float(s2),
            typical_x=_typical_x(seen, d),
        )


@dataclass(frozen=True, slots=True, eq=False)
class SharedBaselinePosterior:
    """means (K + 1, d), shared = s W_a (K + 1, d, d), own = s R_a' (K + 1, d, d): one row per arm, the last for any arm
    without ratings; typical_x (d,) the mean feature vector of all ratings.
    """

    rows: Mapping[str, int]
    means: Matrix
    shared: NDArray[np.float64]
    own: NDArray[np.float64]
    noise_variance: float
    typical_x: Vector

    def predict(self, x: Vector, arms: Sequence[str]) -> Prediction:
        rows = self._rows(arms)
        own = self.own[rows] @ x
        return Prediction(
            mean=self.means[rows] @ x,
            shared=self.shared[rows] @ x,
            own=np.sqrt(np.einsum("ki,ki->k", own, own)),
        )

    def typical(self, arms: Sequence[str]) -> Vector:
        typical: Vector = self.means[self._rows(arms)] @ self.typical_x
        return typical

    def _rows(self, arms: Sequence[str]) -> list[int]:
        last = len(self.means) - 1
        return [self.rows.get(arm, last) for arm in arms]


def _inverse(B: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverses of symmetric positive definite matrices (K, d, d), symmetric to the last bit."""
    inverse = np.linalg.inv(B)
    symmetric: NDArray[np.float64] = (inverse + inverse.transpose(0, 2, 1)) / 2
    return symmetric


def _triangular_inverse(L: Matrix) -> Matrix:
    inverse: Matrix = solve_triangular(L, np.eye(len(L)), lower=True)
    return inverse


def _typical_x(seen: Sequence[RatingStatistics], d: int) -> Vector:
    """The bias feature is 1, so the first row of sum w x x' is sum w x."""
    total: Vector = sum((s.xx[0] for s in seen), start=np.zeros(d))
    mean: Vector = total / total[0] if total[0] > 0 else np.eye(1, d)[0]
    return mean
