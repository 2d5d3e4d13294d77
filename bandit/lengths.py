"""How long an arm's answers are for which requests: log tokens, linear in the features.

    log t = x' (theta + delta_a) + e

the model of bandit.quality over again, for another number. What it is told of an answer is rounded to 1 / GRID, so that
products are multiples of 1 / GRID^2 and sums of them are exact up to 2^33, which is some 10^8 answers: the same in whatever
order answers are added, and on whatever machine. What is taken from it is only the shape:

    shape_a(x) = exp((x - c_a)' w_a - w_a' C_a w_a / 2)         w_a its expected weights, c_a and C_a mean and covariance of x
                                                                over its own answers that were told of

which averages about 1 over those answers, and is multiplied by the mean length of all (bandit.cost): the mean of a heavy tail
is safer counted than modelled. Slopes are shrunk. They pay where budgets are small: what a call will cost differs more
between requests than how good its answer will be, and is easier to foretell.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np

from bandit.features import FACTS, TASKS
from bandit.prior import QualityPrior
from bandit.quality import AS_THE_PRIOR_SAYS, SharedBaseline
from bandit.statistics import RatingStatistics
from bandit.types import Matrix, Vector
from bandit.words import DIRECTIONS

GRID: Final = 2.0**10
LARGEST: Final = 64.0  # no feature is beyond it: sums stay exact
TYPICAL_TOKENS: Final = 300.0
# What all arms share and an arm's own may vary by, in units of the noise: 1/n is a belief worth n calls. What is asked for
# tells most of how long an answer will be, words the least beyond it.
LEVEL_VARIANCES: Final = (4.0, 1.0)
FACT_VARIANCES: Final = (0.1, 0.02)
WORD_VARIANCES: Final = (0.03, 0.01)
TASK_VARIANCES: Final = (0.5, 0.2)
# Nobody's answer is expected to be so many times longer or shorter than usual.
LOG_SHAPE_MAX: Final = math.log(8.0)
_LOWEST, _HIGHEST = np.array(-LOG_SHAPE_MAX), np.array(LOG_SHAPE_MAX)
PSEUDO_CALLS: Final = 20.0  # that an arm borrows from all arms to say which requests it has had

LengthSums = Mapping[str, RatingStatistics]  # arm -> sums over its answers, of log tokens in a rating's place


@dataclass(frozen=True, slots=True)
class LengthSample:
    """Some of an arm's answers as an event tells of them. rows: their features as float16, one after the other (n d of them,
    little-endian); tokens_out: n of them, as billed.
    """

    rows: bytes
    tokens_out: tuple[int, ...]

    @classmethod
    def of(cls, xs: Sequence[Vector], tokens_out: Sequence[int]) -> "LengthSample":
        return cls(b"".join([x.astype("<f2").tobytes() for x in xs]), tuple(tokens_out))

    def __len__(self) -> int:
        return len(self.tokens_out)

    def __add__(self, other: "LengthSample") -> "LengthSample":
        return LengthSample(self.rows + other.rows, self.tokens_out + other.tokens_out)

    def first(self, n: int) -> "LengthSample":
        if n >= len(self):
            return self
        return LengthSample(self.rows[: len(self.rows) // len(self) * n], self.tokens_out[:n])

    def sums(self, d: int) -> RatingStatistics | None:
        """Of at least one answer with d features each, a bias and others within LARGEST; None where these are not such."""
        n = len(self.tokens_out)
        if not n or len(self.rows) != 2 * n * d:
            return None
        X = np.frombuffer(self.rows, "<f2").astype(np.float64).reshape(n, d)
        if not ((X[:, 0] == 1.0).all() and (np.abs(X) <= LARGEST).all()):
            return None
        X = np.rint(X * GRID) / GRID
        logs = [math.log(max(tokens, 1)) for tokens in self.tokens_out]
        log_t = np.rint(np.array(logs) * GRID) / GRID
        return RatingStatistics(X.T @ X, log_t @ X, float(n), float(log_t @ log_t))


@dataclass(frozen=True, slots=True, eq=False)
class Lengths:
    """weights (K + 1, d): w_a, the bias left out; offsets (K + 1,): c_a' w_a + w_a' C_a w_a / 2. The last row is any other
    arm's. d is 0 where no answer was told of.
    """

    weights: Matrix
    offsets: Vector

    @classmethod
    def fit(cls, sums: LengthSums, arms: Sequence[str]) -> "Lengths":
        """One row for each of the arms, in their order."""
        if not sums:
            return cls(np.zeros((len(arms) + 1, 0)), np.zeros(len(arms) + 1))
        pooled = np.add.reduce([s.xx for s in sums.values()])
        d = len(pooled)
        posterior = _model(d).fit(sums, d)  # nobody asks for its draws, so none are made
        rows = [posterior.rows.get(arm, len(sums)) for arm in [*arms, ""]]
        weights = posterior.weights[rows]
        weights[:, 0] = 0.0
        share = PSEUDO_CALLS / pooled[0, 0]
        seen = np.stack([share * pooled + (sums[arm].xx if arm in sums else 0.0) for arm in [*arms, ""]])
        moments = seen / seen[:, :1, :1]
        centres = moments[:, 0]
        squares = (np.matmul(weights[:, None], moments)[:, 0] * weights).sum(axis=1)
        mean = (centres * weights).sum(axis=1)
        return cls(weights, mean + 0.5 * (squares - mean**2))

    def of(self, rows: Sequence[int]) -> "Lengths":
        """Of these rows alone."""
        return Lengths(self.weights[rows], self.offsets[rows])

    def shapes(self, x: Vector) -> Vector:
        """How much longer than usual each row's answer is expected to be for this request."""
        logs = self.weights @ x[: self.weights.shape[1]] - self.offsets
        shapes: Vector = np.exp(np.minimum(np.maximum(logs, _LOWEST), _HIGHEST))
        return shapes


def steps(sums: LengthSums) -> Iterator[None]:
    """Before `Lengths.fit`, which then has little left to do: arm by arm."""
    some = next(iter(sums.values()), None)
    if some is not None:
        d = len(some.xr)
        yield from _model(d).steps(sums, d, {})


def variances(d: int) -> tuple[Vector, Vector]:
    """(d,) before any call: of what all arms share, and of an arm's own. Features beyond ours count as words do."""
    kinds = [
        LEVEL_VARIANCES,
        *[FACT_VARIANCES] * len(FACTS),
        *[WORD_VARIANCES] * DIRECTIONS,
        *[TASK_VARIANCES] * TASKS,
    ]
    shared, own = zip(*(kinds[:d] + [WORD_VARIANCES] * (d - len(kinds))), strict=True)
    return np.array(shared), np.array(own)


@cache
def _model(d: int) -> SharedBaseline:
    bias = np.eye(1, d)[0]
    shared, own = variances(d)
    prior = QualityPrior(
        mean=math.log(TYPICAL_TOKENS) * bias,
        price_slope=np.zeros(d),
        shared_variance=shared,
        arm_variance=own,
        typical_x=bias,
        typical_square=np.ones(d),
        noise_variance=0.5,
        noise_weight=10.0,
    )
    return SharedBaseline(prior, slopes=AS_THE_PRIOR_SAYS)
