"""A circuit breaker: a store that failed several times in a row is left alone for a while, so that nobody waits for it.

closed --`limit` failures in a row--> open --after a pause--> one call is let through --> closed, or open for longer
"""

from collections.abc import Callable
from typing import Final

LIMIT: Final = 5
PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 2.0


class Breaker:
    """clock: monotonic seconds. jitter: a draw from 0.75 to 1.25, so that processes do not come back in step."""

    def __init__(self, clock: Callable[[], float], jitter: Callable[[], float]) -> None:
        self.opened = 0  # how often, for operators
        self._clock, self._jitter = clock, jitter
        self._failures, self._pause_s, self._again_at = 0, PAUSE_S, float("-inf")

    @property
    def open(self) -> bool:
        return self._failures >= LIMIT

    def allows(self) -> bool:
        """May this call be made? While open, one call per pause may: its outcome decides."""
        if not self.open:
            return True
        if self._clock() < self._again_at:
            return False
        self._again_at = self._clock() + self._pause_s * self._jitter()
        return True

    def succeeded(self) -> None:
        self._failures, self._pause_s = 0, PAUSE_S

    def failed(self) -> None:
        was_open, self._failures = self.open, self._failures + 1
        if not self.open:
            return
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S) if was_open else PAUSE_S
        self._again_at = self._clock() + self._pause_s * self._jitter()
        self.opened += not was_open
