"""How long an arm's answers are for which requests: log tokens, linear in a few facts about the prompt.

    log t = phi' (theta + delta_a) + e        phi = the first FACTS features of x: the bias, how long, digits, choices, ...

the model of bandit.quality over again, for another number. Its additive statistics are kept as integers, in units of
2^-20, so that sums of calls are exact in whatever order they are added. What is taken from it is only the shape:

    shape_a(x) = exp((phi - c_a)' w_a - w_a' C_a w_a / 2)         w_a its expected weights; c_a, C_a mean and covariance of
                                                                  phi over the arm's own calls

which averages about 1 over the calls that the arm has had, and is multiplied by their mean length (bandit.cost): the mean of
a heavy tail is safer counted than modelled. Slopes are shrunk: on recorded outcomes they pay where budgets are small.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from bandit.prior import QualityPrior
from bandit.quality import AS_THE_PRIOR_SAYS, SharedBaseline
from bandit.statistics import LENGTH_SUMS, CallStatistics, RatingStatistics
from bandit.types import Matrix, Vector

FACTS: Final = 6
UNIT: Final = 2.0**20
TYPICAL_TOKENS: Final = 300.0
SLOPE_VARIANCES: Final = (0.5, 0.05)  # shared and arm, in units of the noise: beliefs worth 2 and 20 calls
LOG_SHAPE_MAX: Final = math.log(
    8.0
)  # nobody's answer is expected to be so many times longer or shorter than usual
PSEUDO_CALLS: Final = 20.0  # that an arm borrows from all arms to say which requests it has had
_UPPER: Final = np.triu_indices(FACTS)
assert len(_UPPER[0]) + FACTS + 1 == LENGTH_SUMS
_PRIOR: Final = QualityPrior(
    mean=math.log(TYPICAL_TOKENS) * np.eye(1, FACTS)[0],
    price_slope=np.zeros(FACTS),
    shared_variance=np.r_[4.0, np.full(FACTS - 1, SLOPE_VARIANCES[0])],
    arm_variance=np.r_[1.0, np.full(FACTS - 1, SLOPE_VARIANCES[1])],
    typical_x=np.eye(1, FACTS)[0],
    typical_square=np.ones(FACTS),
    noise_variance=0.5,
    noise_weight=10.0,
)


def facts_of(x: Vector) -> Vector:
    """(FACTS,) phi of a feature vector; zeros where it has fewer."""
    if len(x) >= FACTS:
        return x[:FACTS]
    facts: Vector = np.r_[x, np.zeros(FACTS - len(x))]
    return facts


def length_sums(x: Vector, tokens_out: int) -> tuple[int, ...]:
    """One call's part in the sums of phi phi', phi log t and log^2 t, in units of 1 / UNIT."""
    return lengths_of(x[None], (tokens_out,))


def lengths_of(X: Matrix, tokens_out: Sequence[int]) -> tuple[int, ...]:
    """Those sums over calls with features X (n, d): integers, so they are the same however calls are grouped."""
    phi = X[:, :FACTS]
    if phi.shape[1] < FACTS:
        phi = np.pad(phi, ((0, 0), (0, FACTS - phi.shape[1])))
    log_t = np.array([math.log(max(tokens, 1)) for tokens in tokens_out])[:, None]
    parts = np.concatenate([phi[:, _UPPER[0]] * phi[:, _UPPER[1]], log_t * phi, log_t * log_t], axis=1)
    return tuple(np.rint(parts * UNIT).astype(np.int64).sum(axis=0).tolist())


@dataclass(frozen=True, slots=True, eq=False)
class Lengths:
    """weights (K + 1, FACTS): w_a, the bias left out; offsets (K + 1,): c_a' w_a + w_a' C_a w_a / 2. The last row is any
    other arm's.
    """

    weights: Matrix
    offsets: Vector

    @classmethod
    def fit(cls, calls: Mapping[str, CallStatistics]) -> "Lengths":
        """One row for each arm of `calls`, in its order."""
        sums = {arm: _statistics(c.lengths) for arm, c in calls.items() if c.lengths}
        if not sums:
            rows = len(calls) + 1
            return cls(np.zeros((rows, FACTS)), np.zeros(rows))
        posterior = SharedBaseline(_PRIOR, slopes=AS_THE_PRIOR_SAYS).fit(sums, FACTS)
        weights = np.array([posterior.weights[posterior.rows.get(arm, len(sums))] for arm in [*calls, ""]])
        weights[:, 0] = 0.0
        pooled = sum((s.xx for s in sums.values()), start=np.zeros((FACTS, FACTS)))
        share = PSEUDO_CALLS / pooled[0, 0]
        seen = np.stack([share * pooled + (sums[arm].xx if arm in sums else 0.0) for arm in [*calls, ""]])
        moments = seen / seen[:, :1, :1]
        centres = moments[:, 0]
        spread = np.einsum("ki,kij,kj->k", weights, moments, weights) - (centres * weights).sum(axis=1) ** 2
        return cls(weights, (centres * weights).sum(axis=1) + 0.5 * spread)

    def of(self, rows: Sequence[int]) -> "Lengths":
        """Of these rows alone."""
        return Lengths(self.weights[rows], self.offsets[rows])

    def shapes(self, x: Vector) -> Vector:
        """How much longer than usual each row's answer is expected to be for this request."""
        logs = self.weights @ facts_of(x) - self.offsets
        shapes: Vector = np.exp(np.minimum(np.maximum(logs, -LOG_SHAPE_MAX), LOG_SHAPE_MAX))
        return shapes


def _statistics(sums: tuple[int, ...]) -> RatingStatistics:
    numbers = np.array([float(v) for v in sums]) / UNIT
    upper = len(_UPPER[0])
    xx = np.zeros((FACTS, FACTS))
    xx[_UPPER] = numbers[:upper]
    xx.T[_UPPER] = numbers[:upper]
    return RatingStatistics(xx, numbers[upper : upper + FACTS], float(xx[0, 0]), float(numbers[-1]))
