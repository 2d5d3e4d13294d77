"""Expected cost of a call: tokens are learned, prices are read from the registry when deciding.

    E[cost] = correction x (price_in x E[tokens_in] + price_out x E[tokens_out])

    E[tokens_in]  = estimate x (billed + k t) / (estimated + k t)     t = the pooled mean estimate of a prompt
    E[tokens_out] = shape(x) x (k T + tokens_out) / (k + calls)       T = the pooled mean answer over all arms
    correction    = (reported + k c) / (listed + k c)                 c = the mean listed cost of the reported calls

Each is a sample mean shrunk by k pseudo-calls to what is known without the arm, so a new arm starts at the pool's mean;
shape(x) is how much longer than usual the arm's answer is for this request (bandit.lengths). A price change acts on the
next decision and spoils nothing that was learned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from types import MappingProxyType
from typing import Final

import numpy as np

from bandit.arms import Arm
from bandit.lengths import Lengths, LengthSums
from bandit.statistics import CallStatistics
from bandit.types import Matrix, Needs, Vector

PSEUDO_CALLS: Final = 5.0  # k
TYPICAL_TOKENS_OUT: Final = 300.0  # an answer's length before any was seen
PARTS_KEPT: Final = 32  # choices of arms for which a model keeps its rows gathered
NO_CALLS: Final = CallStatistics()
NO_LENGTHS: Final[LengthSums] = MappingProxyType({})
_IN_RATIO, _OUT, _CORRECTION, _UNPRICED = range(4)  # columns of `CostModel.usual`


@dataclass(frozen=True, slots=True, eq=False)
class CostModel:
    """What calls are expected to take. rows: arm -> its row; the last row is any other arm's.

    usual: (K + 1, 4) ratio of billed to estimated tokens in, tokens out, correction of the listed cost, and USD of a call
    that has no price.
    """

    rows: Mapping[str, int]
    usual: Matrix
    lengths: Lengths
    calls: Mapping[str, CallStatistics]
    _parts: "dict[tuple[str, ...], _Part]" = field(default_factory=dict, repr=False)

    @classmethod
    def fit(cls, calls: Mapping[str, CallStatistics], lengths: LengthSums = NO_LENGTHS) -> "CostModel":
        """lengths: see bandit.lengths; of arms that have calls."""
        pooled = sum(calls.values(), start=NO_CALLS)
        usual = np.array([_usual(seen, pooled) for seen in (*calls.values(), NO_CALLS)])
        return cls({arm: k for k, arm in enumerate(calls)}, usual, Lengths.fit(lengths, tuple(calls)), calls)

    def expected_usd(self, arms: Sequence[Arm], needs: Needs, x: Vector | None = None) -> Vector:
        """(K,) expected cost of each arm's answer to this request in USD. x: its features; None: a usual request's."""
        part = self._part(arms)
        tokens_out = part.tokens_out
        if x is not None:
            tokens_out = tokens_out * part.lengths.shapes(x)
        if needs.max_tokens_out is not None:
            tokens_out = np.minimum(tokens_out, needs.max_tokens_out)
        expected: Vector = needs.tokens_in * part.usd_in + tokens_out * part.usd_out
        return expected if part.priced else np.where(expected > 0, expected, part.unpriced)

    def latency_s(self, arms: Sequence[Arm]) -> Vector:
        """(K,) mean of each arm's calls that were timed; NaN before the first."""
        return self._part(arms).latency_s

    def _part(self, arms: Sequence[Arm]) -> "_Part":
        """What concerns these arms, gathered once for as long as they and their prices stay."""
        key = tuple([arm.name for arm in arms])
        part = self._parts.get(key)
        if part is None or not all(map(is_, part.arms, arms)):
            if len(self._parts) >= PARTS_KEPT:
                self._parts.clear()
            part = self._parts[key] = self._gathered(tuple(arms))
        return part

    def _gathered(self, arms: tuple[Arm, ...]) -> "_Part":
        last = len(self.usual) - 1
        rows = [self.rows.get(arm.name, last) for arm in arms]
        usual = self.usual[rows]
        price_in = np.array([arm.price_usd_per_mtok_in for arm in arms])
        price_out = np.array([arm.price_usd_per_mtok_out for arm in arms])
        correction = 1e-6 * usual[:, _CORRECTION]
        return _Part(
            arms=arms,
            tokens_out=usual[:, _OUT].copy(),
            usd_in=correction * usual[:, _IN_RATIO] * price_in,
            usd_out=correction * price_out,
            unpriced=usual[:, _UNPRICED].copy(),
            priced=bool(price_in.min(initial=np.inf) > 0),
            lengths=self.lengths.of(rows),
            latency_s=np.array([_latency_s(self.calls.get(arm.name, NO_CALLS)) for arm in arms]),
        )

    def tokens_out(self, arm: str) -> float:
        """Usual length of the arm's answer in tokens."""
        return float(self.usual[self.rows.get(arm, len(self.usual) - 1), _OUT])


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Of K arms, each (K,): usual tokens of an answer, corrected USD of an estimated token in and of a token out, and USD of
    a call without a price. priced: every prompt costs something with each of them, however short its answer.
    """

    arms: tuple[Arm, ...]
    tokens_out: Vector
    usd_in: Vector
    usd_out: Vector
    unpriced: Vector
    priced: bool
    lengths: Lengths
    latency_s: Vector


def _latency_s(seen: CallStatistics) -> float:
    return 1e-6 * seen.latency_us / seen.timed if seen.timed else np.nan


def _usual(seen: CallStatistics, pooled: CallStatistics) -> tuple[float, float, float, float]:
    tokens_out = _tokens_out(seen, pooled)
    unpriced_usd = 1e-9 * seen.unpriced_nano_usd / (PSEUDO_CALLS + seen.unpriced_calls)
    return _tokens_in_ratio(seen, pooled), tokens_out, _correction(seen, tokens_out), unpriced_usd


def _tokens_out(seen: CallStatistics, pooled: CallStatistics) -> float:
    pool_mean = (PSEUDO_CALLS * TYPICAL_TOKENS_OUT + pooled.tokens_out) / (PSEUDO_CALLS + pooled.calls)
    return (PSEUDO_CALLS * pool_mean + seen.tokens_out) / (PSEUDO_CALLS + seen.calls)


def _tokens_in_ratio(seen: CallStatistics, pooled: CallStatistics) -> float:
    estimate = pooled.tokens_in_estimated / pooled.calls if pooled.calls else 0.0
    prior = PSEUDO_CALLS * (estimate or 1.0)  # where all prompts were empty the ratio is still one of numbers
    return (seen.tokens_in + prior) / (seen.tokens_in_estimated + prior)


def _correction(seen: CallStatistics, tokens_out: float) -> float:
    listed = seen.listed_in_nano_usd + seen.listed_out_nano_usd_per_token * tokens_out
    if listed == 0 or not seen.reported_calls:
        return 1.0
    prior = PSEUDO_CALLS * listed / seen.reported_calls
    return (seen.reported_nano_usd + prior) / (listed + prior)
