"""A rate limit as one number: the time at which the allowance would be full again (GCRA, ITU-T I.371).

each request moves it on by 60 s / requests per minute; it may lie at most one minute ahead of now
"""

from dataclasses import dataclass
from typing import Final

MINUTE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a request found. remaining: requests that may follow at once; reset_s: until all of them may again.

    retry_after_s: 0 if the request was allowed, else until it would be.
    """

    limit: int
    remaining: int
    reset_s: float
    retry_after_s: float = 0.0

    @property
    def allowed(self) -> bool:
        return self.retry_after_s == 0.0

    def headers(self) -> dict[str, str]:
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": f"{self.reset_s:.3f}s",
        }


class RateLimit:
    """per_minute: at least 1. now_s: monotonic seconds."""

    __slots__ = ("_full_at_s", "_per_minute")

    def __init__(self, per_minute: int) -> None:
        self._per_minute, self._full_at_s = per_minute, float("-inf")

    def request(self, now_s: float) -> Allowance:
        """Counts the request unless it is refused."""
        step_s = MINUTE_S / self._per_minute
        full_at_s = max(self._full_at_s, now_s)
        excess_s = full_at_s + step_s - (now_s + MINUTE_S)
        if excess_s > 1e-6 * step_s:  # rounding alone refuses nobody
            return Allowance(self._per_minute, 0, full_at_s - now_s, excess_s)
        self._full_at_s = full_at_s + step_s
        used = round((self._full_at_s - now_s) / step_s + 0.499999)  # rounded up
        return Allowance(self._per_minute, max(0, self._per_minute - used), self._full_at_s - now_s)
