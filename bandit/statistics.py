"""Additive statistics of one arm: everything that is remembered of its ratings, as sums.

Symbols    x (d,) features, r quality in [0, 1], w > 0 weight

    xx   (d, d)  sum w x x'        n    sum w
    xr   (d,)    sum w r x         rr   sum w r^2

Sums commute and can be subtracted, so a late, revised or withdrawn rating is exact, and merging two sets of ratings is
adding their statistics. The prior is no part of them: it is added when a posterior is read (bandit.quality).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import add, attrgetter
from typing import Final

import numpy as np

from bandit.types import Matrix, Vector


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class RatingStatistics:
    """See the module's symbols. Instances are never changed in place: a reader may keep one as long as it likes."""

    xx: Matrix
    xr: Vector
    n: float
    rr: float

    @property
    def weight(self) -> float:
        """What these ratings weigh together: n, but where a source's ratings count for more or less than others'."""
        return float(self.xx[0, 0])

    @classmethod
    def empty(cls, d: int) -> "RatingStatistics":
        return cls(np.zeros((d, d)), np.zeros(d), 0.0, 0.0)

    def added(self, x: Vector, r: float, weight: float) -> "RatingStatistics":
        xx = weight * np.dot(x[:, None], x[None])  # symmetric to the last bit: a snapshot holds one triangle
        return RatingStatistics(
            self.xx + xx, self.xr + (weight * r) * x, self.n + weight, self.rr + weight * r * r
        )

    def revised(self, x: Vector, r: float, *, old: float, weight: float) -> "RatingStatistics":
        """The same rating with value r instead of old: what depends on x alone stays."""
        return RatingStatistics(
            self.xx, self.xr + (weight * (r - old)) * x, self.n, self.rr + weight * (r * r - old * old)
        )

    def scaled(self, exponent: int) -> "RatingStatistics":
        """Times 2^exponent, which is exact in floating point."""
        return RatingStatistics(
            np.ldexp(self.xx, exponent),
            np.ldexp(self.xr, exponent),
            float(np.ldexp(self.n, exponent)),
            float(np.ldexp(self.rr, exponent)),
        )

    def times(self, factor: float) -> "RatingStatistics":
        return RatingStatistics(self.xx * factor, self.xr * factor, self.n * factor, self.rr * factor)

    def __add__(self, other: "RatingStatistics") -> "RatingStatistics":
        return RatingStatistics(self.xx + other.xx, self.xr + other.xr, self.n + other.n, self.rr + other.rr)


@dataclass(frozen=True, slots=True)
class CallStatistics:
    """What an arm's calls took: counts are integers, so sums are exact in any order.

    calls: answered calls with known usage. tokens_in, tokens_out: as billed by the upstream; tokens_in_estimated: what
    was estimated for the same calls before they were made. failures: calls that failed before an answer.
    latency_us, first_byte_us: microseconds, summed over `timed` calls.
    reported_calls, reported_nano_usd: costs told by the application, or summed over a cascade's calls, in 10^-9 USD, and what the registry says of the
    same calls: listed_in_nano_usd for their prompts, listed_out for their price per token of answer (10^-9 USD each).
    unpriced_calls, unpriced_nano_usd: the same of calls made while the registry knew no price for the arm.
    """

    calls: int = 0
    tokens_in: int = 0
    tokens_in_estimated: int = 0
    tokens_out: int = 0
    failures: int = 0
    timed: int = 0
    latency_us: int = 0
    first_byte_us: int = 0
    reported_calls: int = 0
    reported_nano_usd: int = 0
    listed_in_nano_usd: int = 0
    listed_out_nano_usd_per_token: int = 0
    unpriced_calls: int = 0
    unpriced_nano_usd: int = 0

    @classmethod
    def charged(
        cls, nano_usd: int, *, listed_in_nano_usd: int, listed_out_nano_usd_per_token: int, calls: int = 1
    ) -> "CallStatistics":
        """One call's reported cost beside its listed one; calls: 0 where only the amount is revised, by nano_usd."""
        if listed_in_nano_usd == listed_out_nano_usd_per_token == 0:
            return cls(unpriced_calls=calls, unpriced_nano_usd=nano_usd)
        return cls(
            reported_calls=calls,
            reported_nano_usd=nano_usd,
            listed_in_nano_usd=calls * listed_in_nano_usd,
            listed_out_nano_usd_per_token=calls * listed_out_nano_usd_per_token,
        )

    def __add__(self, other: "CallStatistics") -> "CallStatistics":
        return CallStatistics(*map(add, _NUMBERS(self), _NUMBERS(other)))

    def numbers(self) -> list[int]:
        """All of it, as `of_numbers` takes it."""
        return list(_NUMBERS(self))

    @classmethod
    def of_numbers(cls, numbers: Sequence[int]) -> "CallStatistics":
        """Raises ValueError where there are too few or too many."""
        if len(numbers) != len(cls.__slots__):
            raise ValueError(f"an arm's calls are {len(cls.__slots__)} numbers, not {len(numbers)}")
        return cls(*numbers)


_NUMBERS: Final = attrgetter(*CallStatistics.__slots__)
