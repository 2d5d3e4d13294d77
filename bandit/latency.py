"""Latency: how long an arm's answer takes, and which arms are too likely to be late for this request.

    l = f + t s        f to the first byte, s seconds per token of the answer, t its expected tokens: log f and log s normal

Their means and variances are learned per arm with forgetting: a call that lies HALF_LIFE_S back counts half. A sum of two
lognormals is taken as one with the sum's mean and variance (Fenton and Wilkinson):

    P(l > limit) = 1 - Phi((log limit - mu) / sigma)        sigma^2 = log(1 + V / E^2), mu = log E - sigma^2 / 2

Each arm starts from a belief worth PSEUDO_CALLS: what all arms together do, and before any call what is usual. So an arm that
was not called for long is trusted no more than a new one, and is tried again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import reduce
from operator import add
from typing import Final

import numpy as np

from bandit.arms import Arm, Exclusion
from bandit.types import Matrix, Vector

HALF_LIFE_S: Final = 600.0
PSEUDO_CALLS: Final = 5.0
USUAL_FIRST_BYTE_S: Final = 1.0
USUAL_S_PER_TOKEN: Final = 0.02
USUAL_VARIANCE: Final = 0.5  # of either logarithm
SHORTEST_S: Final = 1e-6  # what no clock tells apart from nothing


@dataclass(frozen=True, slots=True)
class LogTimes:
    """Sums over calls of weight 2^-(age / HALF_LIFE_S): n of them, of log seconds, and of their squares."""

    n: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, seconds: float) -> "LogTimes":
        log_s = math.log(max(seconds, SHORTEST_S))
        return cls(1.0, log_s, log_s * log_s)

    @classmethod
    def of_all(cls, seconds: Sequence[float], weights: Vector) -> "LogTimes":
        """NaN counts for nothing."""
        logs = np.log(np.maximum(np.array(seconds), SHORTEST_S))
        weights, logs = weights[known := ~np.isnan(logs)], logs[known]
        return cls(float(weights.sum()), float(weights @ logs), float(weights @ (logs * logs)))

    def __add__(self, other: "LogTimes") -> "LogTimes":
        return LogTimes(self.n + other.n, self.total + other.total, self.squares + other.squares)

    def times(self, factor: float) -> "LogTimes":
        return LogTimes(self.n * factor, self.total * factor, self.squares * factor)

    def normal(self, prior: "LogTimes") -> tuple[float, float]:
        """Mean and variance of log seconds; prior: sums that count as calls."""
        sums = self + prior
        mean = sums.total / sums.n
        return mean, max(sums.squares / sums.n - mean * mean, 0.0)


@dataclass(frozen=True, slots=True)
class LatencyStatistics:
    """first_byte, per_token: of one arm's calls, weighted as of `at` (Unix seconds)."""

    first_byte: LogTimes = field(default_factory=LogTimes)
    per_token: LogTimes = field(default_factory=LogTimes)
    at: float = 0.0

    @classmethod
    def of_call(
        cls, *, first_byte_s: float, latency_s: float, tokens_out: int | None, at: float
    ) -> "LatencyStatistics":
        """One answer, to its first and to its last byte. An answer that came whole, or with no known tokens, tells of
        its pace nothing apart from the rest.
        """
        paced = bool(tokens_out) and latency_s > first_byte_s
        pace = LogTimes.of((latency_s - first_byte_s) / tokens_out) if paced and tokens_out else LogTimes()
        return cls(LogTimes.of(first_byte_s), pace, at)

    @classmethod
    def of_calls(
        cls,
        *,
        first_byte_s: Sequence[float],
        s_per_token: Sequence[float],
        ages_s: Sequence[float],
        at: float,
    ) -> "LatencyStatistics":
        """Answers (at least one) of these ages, as of `at`. s_per_token: NaN for one that tells nothing of its pace."""
        weights = 2.0 ** (-np.array(ages_s) / HALF_LIFE_S)
        return cls(LogTimes.of_all(first_byte_s, weights), LogTimes.of_all(s_per_token, weights), at)

    def __add__(self, other: "LatencyStatistics") -> "LatencyStatistics":
        """Both as of the later time. In whatever order calls are added, the weights are of their ages."""
        at = max(self.at, other.at)
        one, two = self.as_of(at), other.as_of(at)
        return LatencyStatistics(one.first_byte + two.first_byte, one.per_token + two.per_token, at)

    def numbers(self) -> list[float]:
        """All of it, as `of_numbers` takes it."""
        return [*astuple(self.first_byte), *astuple(self.per_token), self.at]

    @classmethod
    def of_numbers(cls, numbers: Sequence[float]) -> "LatencyStatistics":
        """Raises ValueError unless they are seven finite numbers, with counts and time no less than 0."""
        if (
            len(numbers) != 7
            or not all(map(math.isfinite, numbers))
            or min(numbers[0], numbers[3], numbers[6]) < 0
        ):
            raise ValueError(f"an arm's latency is seven finite numbers, not {numbers!r}")
        values = [float(number) for number in numbers]
        return cls(LogTimes(*values[:3]), LogTimes(*values[3:6]), values[6])

    def as_of(self, at: float) -> "LatencyStatistics":
        """The same calls as they count at a time that is no earlier."""
        factor = 2.0 ** (-max(at - self.at, 0.0) / HALF_LIFE_S)
        return LatencyStatistics(self.first_byte.times(factor), self.per_token.times(factor), at)


@dataclass(frozen=True, slots=True, eq=False)
class LatencyModel:
    """logs (K + 1, 4): mean and variance of log f, of log s. rows: arm -> its row; the last row is any other arm's."""

    rows: Mapping[str, int]
    logs: Matrix

    @classmethod
    def fit(cls, calls: Mapping[str, LatencyStatistics], *, now: float) -> "LatencyModel":
        """calls: arm -> its statistics; now: Unix seconds."""
        seen = [statistics.as_of(max(now, statistics.at)) for statistics in calls.values()]
        first = _prior([s.first_byte for s in seen], USUAL_FIRST_BYTE_S)
        pace = _prior([s.per_token for s in seen], USUAL_S_PER_TOKEN)
        every = [*seen, LatencyStatistics()]
        logs = np.array([(*s.first_byte.normal(first), *s.per_token.normal(pace)) for s in every])
        return cls({arm: k for k, arm in enumerate(calls)}, logs)

    def late(self, arms: Sequence[str], tokens_out: Vector, limit_s: float) -> Vector:
        """(K,) probability that an answer of so many tokens (K,) takes each arm longer than the limit."""
        last = len(self.logs) - 1
        logs = self.logs[[self.rows.get(arm, last) for arm in arms]]
        tokens = np.maximum(tokens_out, 0.0)
        first, pace = np.exp(logs[:, 0] + logs[:, 1] / 2), tokens * np.exp(logs[:, 2] + logs[:, 3] / 2)
        mean = first + pace
        variance = first**2 * np.expm1(logs[:, 1]) + pace**2 * np.expm1(logs[:, 3])
        sigma2 = np.log1p(variance / mean**2)
        sigma = np.sqrt(np.maximum(sigma2, 1e-18))
        z = (np.log(mean) - sigma2 / 2 - math.log(limit_s)) / sigma
        return np.array([0.5 * math.erfc(-v / math.sqrt(2.0)) for v in z])


def in_time(
    arms: Sequence[Arm], late: Vector, *, limit_s: float, confidence: float
) -> tuple[tuple[Arm, ...], tuple[Exclusion, ...]]:
    """Split arms into those that are in time with at least that confidence and the others, each with its reason.

    late (K,): P(later than the limit). Never none: where all are too likely to be late, the likeliest to be in time stays.
    """
    if not arms:
        return (), ()
    best = int(np.argmin(late))
    able = [k == best or 1.0 - p >= confidence for k, p in enumerate(late)]
    out = tuple(
        Exclusion(
            arm.name,
            "latency",
            f"takes longer than {limit_s:g} s with probability {p:.2f}; at most {1.0 - confidence:.2f} is allowed",
        )
        for arm, p, ok in zip(arms, late, able, strict=True)
        if not ok
    )
    return tuple(arm for arm, ok in zip(arms, able, strict=True) if ok), out


def _prior(sums: Sequence[LogTimes], usual_s: float) -> LogTimes:
    """PSEUDO_CALLS of what all arms together do, who start from as many calls of what is usual."""
    log_s = math.log(usual_s)
    usual = LogTimes(1.0, log_s, log_s * log_s + USUAL_VARIANCE).times(PSEUDO_CALLS)
    pooled = reduce(add, sums, usual)
    return pooled.times(PSEUDO_CALLS / pooled.n)
