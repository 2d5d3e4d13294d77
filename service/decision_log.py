"""The decision log: decisions, calls and ratings of this process as JSON lines in a folder, for whoever wants to check them.

Requests and feedback only put down what is to be told; a loop of its own, at learning's pace, makes lines of it and has them
written in a thread. It is a log for reading, not for learning: nothing is synced to disk, and where the disk is away what
cannot be held any more is dropped, the oldest first, and counted.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from secrets import token_hex
from typing import Final

from feedback.learning import TICK_S, Learning
from feedback.store import Feedback
from service.day_files import DayFiles
from service.decision_lines import call_line, decision_line, feedback_line
from service.outcomes import Outcome, Outcomes
from service.settings import Settings

HELD_MAX_BYTES: Final = 8 * 1024 * 1024
SMALL_BYTES: Final = 512  # what a line to be made takes beside a record
LINES_AT_ONCE: Final = 16  # made between two turns of the loop that answers requests: half a millisecond
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Held:
    """A line to be made."""

    line: Callable[[], bytes]
    size_bytes: int


class DecisionLog:
    """clock: Unix seconds. dropped: lines that were never written. error: why the disk took nothing last time, or None."""

    def __init__(self, files: DayFiles, clock: Callable[[], float]) -> None:
        self.dropped = 0
        self.error: str | None = None
        self._files, self._clock = files, clock
        self._held: deque[_Held] = deque()
        self._held_bytes = 0
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="decision-log")

    @property
    def waiting(self) -> int:
        """Lines that are not written yet."""
        return len(self._held)

    def told(self) -> dict[str, str | int]:
        """For operators."""
        return {"disk": self.error or "ok", "lines_waiting": self.waiting, "lines_dropped": self.dropped}

    def listen(self, learning: Learning, outcomes: Outcomes) -> None:
        """From now on hear of every decision and feedback of this process, and of what calls took."""
        for scope, route in learning.routes.items():
            route.recorder.watchers.append(partial(self.decided, scope))
        learning.intake.watchers.append(self.given)
        outcomes.watchers.append(self.called)

    def decided(self, scope: str, decision_id: str, record: bytes) -> None:
        self._hold(partial(decision_line, scope, decision_id, record), len(record))

    def called(self, decision_id: str, outcome: Outcome) -> None:
        if outcome.stage_of is None:  # a cascade is told of as a whole
            self._hold(partial(call_line, decision_id, outcome))

    def given(self, feedback: Feedback) -> None:
        self._hold(partial(feedback_line, feedback), len(feedback.record or b""))

    def _hold(self, line: Callable[[], bytes], size_bytes: int = 0) -> None:
        self._held.append(_Held(line, size_bytes + SMALL_BYTES))
        self._held_bytes += size_bytes + SMALL_BYTES
        self._shorten()

    def _shorten(self) -> None:
        while self._held_bytes > HELD_MAX_BYTES:
            self._take()
            self.dropped += 1

    def _take(self) -> _Held:
        held = self._held.popleft()
        self._held_bytes -= held.size_bytes
        return held

    async def tick(self) -> bool:
        """Write what waits; False where the disk does not take it, and then it waits on."""
        while self._held:
            batch = self._batch()
            lines = b"".join(line for _, line in batch)
            loop = asyncio.get_running_loop()
            try:
                await loop.run_in_executor(self._disk, self._files.append, lines, self._clock())
            except asyncio.CancelledError:  # written or not: a line that stands twice counts once
                self._put_back([held for held, _ in batch])
                raise
            except OSError as error:
                self._put_back([held for held, _ in batch])
                self._disk_away(error)
                return False
        if self.error is not None:
            log.warning("the decision log is written again; %d lines were dropped so far", self.dropped)
            self.error = None
        return True

    def _batch(self) -> list[tuple[_Held, bytes]]:
        """The next lines, made. One that cannot be made is dropped, alone."""
        batch = []
        for _ in range(min(LINES_AT_ONCE, len(self._held))):
            held = self._take()
            try:
                batch.append((held, held.line()))
            except Exception:  # whatever it is, the others are written
                self.dropped += 1
                log.exception("a line of the decision log cannot be made")
        return batch

    def _put_back(self, batch: list[_Held]) -> None:
        self._held.extendleft(reversed(batch))
        self._held_bytes += sum(held.size_bytes for held in batch)
        self._shorten()

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                await self.tick()
            except Exception:  # whatever it is, later lines are written, and operators see it
                log.exception("lines of the decision log are lost")

    async def close(self) -> None:
        """Write what waits, if the disk takes it."""
        if not await self.tick():
            log.warning("the decision log ends without its last %d lines: %s", self.waiting, self.error)
        self._disk.shutdown()

    def _disk_away(self, error: OSError) -> None:
        if self.error is None:
            log.warning("the decision log cannot be written (%s): lines wait, the oldest are dropped", error)
        self.error = error.strerror or str(error)  # without the path, which is not for whoever asks /readyz


def decision_log_of(settings: Settings, learning: Learning, outcomes: Outcomes) -> DecisionLog | None:
    """Listening, where the settings want one; its owner runs it."""
    if settings.decision_log is None:
        return None
    wanted = settings.decision_log
    kept = DecisionLog(DayFiles(wanted.folder, worker=token_hex(8), days=wanted.days), time.time)
    kept.listen(learning, outcomes)
    return kept
