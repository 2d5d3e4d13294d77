"""Lines in one file for each UTC day, and files of days that are long gone removed.

Whole batches are appended: one that could not be written to its end is taken back, so that it can be written again.
Nobody else may read them: who knows a decision's id may rate it.
"""

import logging
import os
import re
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final

NAME: Final = re.compile(r"decisions-(\d{4}-\d{2}-\d{2})-[0-9a-f]+\.jsonl")
log = logging.getLogger(__name__)


class DayFiles:
    """worker: hex digits that no other process, past or present, has used. days: how long a file is kept."""

    def __init__(self, folder: Path, *, worker: str, days: int) -> None:
        self._folder, self._worker, self._days = folder, worker, days
        self._pruned: date | None = None
        self._torn = False  # the last line of our file may have no end

    def append(self, lines: bytes, now: float) -> None:
        """now: Unix seconds. The file is opened anew each time, so that one that was moved away is made again. OSError."""
        today = datetime.fromtimestamp(now, UTC).date()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / f"decisions-{today}-{self._worker}.jsonl"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._append(file, lines)
        finally:
            os.close(file)
        if self._pruned != today:
            self._pruned = today
            self._prune(today - timedelta(days=self._days))

    def _append(self, file: int, lines: bytes) -> None:
        size = os.fstat(file).st_size
        left = memoryview(b"\n" + lines if self._torn and size else lines)
        self._torn = True
        try:
            while left:
                left = left[os.write(file, left) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(file, size)
                self._torn = False
            raise
        self._torn = False

    def _prune(self, oldest: date) -> None:
        """What cannot be removed stays: the lines are written already, and are not to be written again."""
        try:
            paths = sorted(self._folder.iterdir())
        except OSError as error:
            log.warning("old files of the decision log are not removed today: %s", error)
            return
        for path in paths:
            day = day_of(path)
            if day is not None and day < oldest:
                with suppress(OSError):
                    path.unlink()


def day_of(path: Path) -> date | None:
    """On which a file of this log was written; None for any other file."""
    named = NAME.fullmatch(path.name)
    try:
        return date.fromisoformat(named[1]) if named else None
    except ValueError:
        return None
