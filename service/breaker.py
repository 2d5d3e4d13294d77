"""A circuit breaker: a place that keeps failing is left alone for a while, then tried with one call at a time.

    closed --FAILURES in a row--> open --pause over--> half-open --success--> closed
                                   ^----the pause doubles---- failure ----'

A timeout weighs more than a quick error: it costs the client its whole length. Pure: the clock comes in as an argument.
"""

from typing import Final

FAILURES: Final = 5
TIMEOUT_WEIGHT: Final = 3  # two timeouts in a row open the breaker
FIRST_PAUSE_S: Final = 2.0
LONGEST_PAUSE_S: Final = 20.0  # a place that has recovered has its share back within a minute


class Breaker:
    """now_s: monotonic seconds. A call that `begin` names a probe says so when it reports back."""

    __slots__ = ("_in_a_row", "_open_until_s", "_pause_s", "_probe_out")

    def __init__(self) -> None:
        self._in_a_row = 0
        self._open_until_s: float | None = None  # None: closed
        self._pause_s = FIRST_PAUSE_S
        self._probe_out = False

    @property
    def is_open(self) -> bool:
        """Open or half-open."""
        return self._open_until_s is not None

    def allows(self, now_s: float) -> bool:
        if self._open_until_s is None:
            return True
        return now_s >= self._open_until_s and not self._probe_out

    def begin(self, now_s: float) -> bool:
        """A call begins; True if it is the probe that decides whether the breaker closes."""
        probe = self._open_until_s is not None and now_s >= self._open_until_s and not self._probe_out
        self._probe_out = self._probe_out or probe
        return probe

    def succeeded(self, *, probe: bool) -> None:
        self._in_a_row = 0
        if probe:
            self._open_until_s, self._probe_out, self._pause_s = None, False, FIRST_PAUSE_S

    def failed(self, now_s: float, *, probe: bool, timeout: bool = False) -> None:
        """While open, failures of calls that began before count no more: the pause grows by probes only."""
        if probe:
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            self._open_until_s, self._probe_out = now_s + self._pause_s, False
        elif self._open_until_s is None:
            self._in_a_row += TIMEOUT_WEIGHT if timeout else 1
            if self._in_a_row >= FAILURES:
                self._in_a_row, self._open_until_s = 0, now_s + self._pause_s

    def abandoned(self, *, probe: bool) -> None:
        """A call ended that proved nothing: its client left. The next one is the probe."""
        if probe:
            self._probe_out = False
