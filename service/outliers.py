"""Outliers: a place that fails much oftener than the others is left out for a while, though some of its calls succeed.

    outlier  <=>  failures / calls >= max(SHARE_MIN, FACTOR x that of all other places together, the broken ones aside)

Calls are counted over a window of WINDOW_S to 2 WINDOW_S, or of WINDOW_CALLS to twice as many where that is sooner, so that
a long good record does not hide what fails now; fewer than CALLS_MIN say nothing. Where everybody fails alike
nobody is an outlier, and at most half of the places are left out at once. Pure: the clock comes in as an argument.
"""

from dataclasses import dataclass
from typing import Final

WINDOW_S: Final = 15.0
WINDOW_CALLS: Final = 40
CALLS_MIN: Final = 10
SHARE_MIN: Final = 0.15
FACTOR: Final = 3.0
FIRST_PAUSE_S: Final = 5.0
LONGEST_PAUSE_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Tally:
    calls: int = 0
    failures: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.calls + other.calls, self.failures + other.failures)


NOTHING: Final = Tally()


def is_outlier(place: Tally, others: Tally) -> bool:
    if place.calls < CALLS_MIN or others.calls < CALLS_MIN:
        return False
    share = place.failures / place.calls
    return share >= max(SHARE_MIN, FACTOR * others.failures / others.calls)


class Record:
    """What one place's recent calls came to, and until when it is left out. now_s: monotonic seconds."""

    __slots__ = ("_before", "_current", "_out_until_s", "_pause_s", "_window_ends_s")

    def __init__(self) -> None:
        self._before = self._current = NOTHING
        self._window_ends_s = float("-inf")
        self._out_until_s = float("-inf")
        self._pause_s = FIRST_PAUSE_S

    def add(self, now_s: float, *, failed: bool) -> None:
        self._turn(now_s)
        self._current += Tally(1, int(failed))

    def tally(self, now_s: float) -> Tally:
        self._turn(now_s)
        return self._before + self._current

    def is_out(self, now_s: float) -> bool:
        return now_s < self._out_until_s

    def leave_out(self, now_s: float) -> None:
        """For a pause that doubles each time, unless the last one is long past; then what was counted is forgotten."""
        recently = now_s < self._out_until_s + 2 * LONGEST_PAUSE_S
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S) if recently else FIRST_PAUSE_S
        self._out_until_s = now_s + self._pause_s
        self._before = self._current = NOTHING

    def _turn(self, now_s: float) -> None:
        if now_s < self._window_ends_s and self._current.calls < WINDOW_CALLS:
            return
        idle = now_s >= self._window_ends_s + WINDOW_S
        self._before, self._current = (NOTHING if idle else self._current), NOTHING
        self._window_ends_s = now_s + WINDOW_S
