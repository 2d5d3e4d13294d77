"""The spool: feedback is on this machine's disk before it is acknowledged, and stays there until it is settled.

    frame = length (u32) | CRC32 (u32) | JSON: {"sequence", "payload"} or {"finished": sequence}       little-endian

One append-only file per worker process. Appends that arrive while the disk is busy share the next fdatasync (group commit).
A worker locks its file for as long as it lives: a file that nobody locks was left by a dead one, and the next worker to
open the folder adopts what is unfinished in it. A frame cut short at the end was never acknowledged and is cut off;
anything else that cannot be read is moved aside, and said loudly.
"""

import asyncio
import fcntl
import logging
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from struct import Struct
from typing import Any, Final, TypeVar

import orjson

HEADER: Final = Struct("<II")  # length and CRC32 of the JSON that follows
REWRITE_ABOVE_BYTES: Final = 1 << 20
DEAD_LETTERS: Final = "dead-letter.jsonl"

T = TypeVar("T")
log = logging.getLogger(__name__)


class SpoolError(Exception):
    """The disk did not take it; nothing was acknowledged, and the spool goes on as soon as the disk does."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One accepted feedback. sequence: its number within this process. frame: the bytes that stand for it in the file."""

    sequence: int
    frame: bytes

    @classmethod
    def of(cls, sequence: int, payload: Mapping[str, Any]) -> "Entry":
        """payload: a flat dict of what JSON can hold."""
        return cls(sequence, _frame({"sequence": sequence, "payload": payload}))

    @property
    def payload(self) -> dict[str, Any]:
        """Parsed anew each time."""
        payload: dict[str, Any] = orjson.loads(self.frame[HEADER.size :])["payload"]
        return payload


def to_disk(descriptor: int) -> None:
    """Return when what was written to the file is on the disk."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # there, fsync stops at the drive's own cache
    else:
        os.fdatasync(descriptor)


class Spool:
    """Used from one event loop; every write runs in one thread of its own, so writes never overlap."""

    def __init__(self, file: "_File", entries: Iterable[Entry], disk: Executor) -> None:
        """Use `open`."""
        self._file, self._disk = file, disk
        self._dead_letters = _DeadLetters(file.path.parent / DEAD_LETTERS, file.clock)
        self._pending = {entry.sequence: _held(entry) for entry in entries}
        self._sequence = max(self._pending, default=0)
        self._entries_in_file = len(self._pending)  # at least
        self._waiting: list[tuple[Entry, asyncio.Future[None]]] = []
        self._marks: list[bytes] = []
        self._amended: list[asyncio.Future[None]] = []
        self._flusher: asyncio.Task[None] | None = None
        self._rewrite_above_bytes = REWRITE_ABOVE_BYTES
        self._closed = False

    @classmethod
    async def open(
        cls,
        folder: Path,
        *,
        worker: str,
        clock: Callable[[], float],
        sync: Callable[[int], None] = to_disk,
        disk: Executor | None = None,
    ) -> "Spool":
        """Take up this worker's file and adopt those of dead workers. worker: unique among living processes.

        clock: Unix seconds. sync: what makes a written descriptor durable. disk: what runs every write, one at a time;
        default: a thread.
        """
        if not worker or Path(worker).name != worker:
            raise ValueError(
                f"a worker's name becomes a file's name, {worker!r} cannot; try letters and digits"
            )
        disk = disk or ThreadPoolExecutor(1, thread_name_prefix="spool")
        what = f"the spool in {folder} cannot be opened"
        try:
            file, entries = await _in_thread(disk, what, _open, folder / f"{worker}.spool", clock, sync)
        except SpoolError:
            disk.shutdown(wait=False)
            raise
        return cls(file, entries, disk)

    def pending(self) -> list[Entry]:
        """What is on disk and not finished, oldest first."""
        return [self.entry(sequence) for sequence in self._pending]

    def entry(self, sequence: int) -> Entry:
        """One that is pending, with what was said of it last."""
        return Entry(sequence, zlib.decompress(self._pending[sequence]))

    def dead_letters(self) -> int:
        """How many entries were buried in this folder, by any worker."""
        return self._dead_letters.count()

    async def append(self, payload: Mapping[str, Any]) -> Entry:
        """Returns once the payload is on disk; SpoolError where the disk does not take it.

        A caller that is cancelled meanwhile gets no answer, but its entry is pending all the same.
        """
        if self._closed:
            raise SpoolError("the spool is closed: it takes nothing more")
        entry = Entry.of(self._sequence + 1, payload)
        self._sequence = entry.sequence
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, written))
        self._wake()
        await written
        return entry

    async def amend(self, sequence: int, payload: Mapping[str, Any]) -> None:
        """Say more about a pending entry. Returns once it is written, so that it outlives this process, though maybe not
        the machine; where the disk does not take it the entry stays as it was acknowledged.
        """
        if sequence in self._pending and not self._closed:
            entry = Entry.of(sequence, payload)
            self._pending[sequence] = _held(entry)
            written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._marks.append(entry.frame)
            self._amended.append(written)
            self._wake()
            await written

    async def finish(self, sequence: int) -> None:
        """The entry is settled. The mark is written soon and not waited for: losing it costs one more harmless send."""
        if self._pending.pop(sequence, None) is not None and not self._closed:
            self._marks.append(_frame({"finished": sequence}))
            self._wake()

    async def bury(self, entry: Entry, reason: str) -> None:
        """Move the entry to the dead-letter file, for people to read; SpoolError (and still pending) if that fails."""
        what = "the dead-letter file cannot be written"
        await _in_thread(self._disk, what, self._dead_letters.add, entry.payload, reason)
        await self.finish(entry.sequence)

    async def close(self) -> None:
        """Write what waits and let go of the file, so that another worker may adopt what is unfinished."""
        if self._closed:
            return
        self._closed = True
        if self._flusher is not None:
            await self._flusher
        what = "the spool cannot be closed"
        await _in_thread(self._disk, what, self._file.close, not self._pending)
        self._disk.shutdown()

    def abandon(self) -> None:
        """What the end of the process does: the file is let go of, and nothing more is written."""
        if not self._closed:
            self._closed = True
            self._waiting, self._marks = [], []
            self._file.close(remove=False)

    def _wake(self) -> None:
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.get_running_loop().create_task(self._flush())

    async def _flush(self) -> None:
        while self._waiting or self._marks:
            await self._write_batch()
            if self._is_crowded():
                await self._rewrite()

    async def _write_batch(self) -> None:
        batch, self._waiting = self._waiting, []
        marks, self._marks = self._marks, []
        amended, self._amended = self._amended, []
        frames = b"".join([*(entry.frame for entry, _ in batch), *marks])
        what = f"the spool {self._file.path} cannot be written"
        try:
            await _in_thread(self._disk, what, self._file.append, frames, bool(batch))
        except SpoolError as error:
            log.warning("%s", error)
            for _, written in batch:
                if not written.cancelled():
                    written.set_exception(SpoolError(str(error)))
            return
        finally:
            for done in amended:
                if not done.cancelled():
                    done.set_result(None)
        self._entries_in_file += len(batch)
        for entry, written in batch:
            self._pending[entry.sequence] = _held(entry)
            if not written.cancelled():
                written.set_result(None)

    def _is_crowded(self) -> bool:
        """The file is large, and at least half of its entries are finished."""
        large = self._file.length > self._rewrite_above_bytes
        return large and self._entries_in_file >= 2 * len(self._pending)

    async def _rewrite(self) -> None:
        held = list(self._pending.values())
        what = f"the spool {self._file.path} cannot be made smaller"
        try:
            await _in_thread(self._disk, what, self._file.rewrite, map(zlib.decompress, held))
        except SpoolError as error:
            log.warning("%s", error)
            self._rewrite_above_bytes = self._file.length + REWRITE_ABOVE_BYTES
        else:
            self._rewrite_above_bytes = REWRITE_ABOVE_BYTES
            self._entries_in_file = len(held)


async def _in_thread(disk: Executor, what: str, work: Callable[..., T], *arguments: Any) -> T:
    """What the work returns; SpoolError saying what failed where the disk refuses."""
    try:
        return await asyncio.get_running_loop().run_in_executor(disk, work, *arguments)
    except OSError as error:
        raise SpoolError(f"{what}: {error}") from error


class _File:
    """One worker's file, locked by this process. Every method blocks; none may run beside another."""

    def __init__(self, path: Path, clock: Callable[[], float], sync: Callable[[int], None]) -> None:
        self.path, self.clock, self._sync = path, clock, sync
        self.length = 0  # bytes that are known to be good: what stands beyond them was refused
        locked = _lock(path, os.O_CREAT)
        if locked is None:
            raise SpoolError(f"{path} belongs to a living process; every worker needs a name of its own")
        self._descriptor = locked

    def append(self, frames: bytes, durable: bool) -> None:
        """All of the frames or, with OSError, none of them."""
        self.cut()
        try:
            _write(self._descriptor, frames, self.length)
            if durable:
                self._sync(self._descriptor)
        except OSError:
            with suppress(OSError):  # at once, since a full disk needs the room
                self.cut()
            raise
        self.length += len(frames)

    def cut(self) -> None:
        """Take away what stands beyond the good bytes."""
        if os.fstat(self._descriptor).st_size > self.length:
            os.ftruncate(self._descriptor, self.length)

    def rewrite(self, frames: Iterable[bytes]) -> None:
        """Put a file that holds these frames alone in the place of the present one, which stays whole if that fails."""
        data = b"".join(frames)
        draft = self.path.with_suffix(".draft")
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            # Locked before it has the name: there is no moment at which the file looks abandoned.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write(descriptor, data, 0)
            self._sync(descriptor)
            draft.replace(self.path)
        except OSError:
            os.close(descriptor)
            raise
        os.close(self._descriptor)
        self._descriptor, self.length = descriptor, len(data)
        _sync_folder(self.path.parent)

    def close(self, remove: bool) -> None:
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)


class _DeadLetters:
    """One JSON line per buried entry, in a file that the workers of the folder share."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._path, self._clock = path, clock
        self._counted_bytes = self._lines = 0

    def add(self, payload: Mapping[str, Any], reason: str) -> None:
        time = datetime.fromtimestamp(self._clock(), UTC).isoformat()
        line = orjson.dumps({"time": time, "reason": reason, "payload": payload}) + b"\n"
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            end = os.lseek(descriptor, 0, os.SEEK_END)
            try:
                _write(descriptor, line, end)
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, end)
                raise
        finally:
            os.close(descriptor)

    def count(self) -> int:
        """Reads only what was added since the last time."""
        size = self._path.stat().st_size if self._path.exists() else 0
        if size < self._counted_bytes:  # someone has dealt with them and emptied the file
            self._counted_bytes = self._lines = 0
        if size > self._counted_bytes:
            with self._path.open("rb") as file:
                file.seek(self._counted_bytes)
                added = file.read()
            self._counted_bytes += len(added)
            self._lines += added.count(b"\n")
        return self._lines


def _open(path: Path, clock: Callable[[], float], sync: Callable[[int], None]) -> tuple[_File, list[Entry]]:
    """The worker's file, with every unfinished entry that no living worker answers for."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone_in(path.parent):
        file = _File(path, clock, sync)
        try:
            entries, file.length = _salvage(path, clock)
            file.cut()
            for other in sorted(path.parent.glob("*.spool")):
                entries += _adopt(other, file, after=entries[-1].sequence if entries else 0)
            _sync_folder(path.parent)
        except BaseException:
            file.close(remove=False)
            raise
    return file, entries


def _adopt(orphan: Path, file: _File, *, after: int) -> list[Entry]:
    """Make the unfinished entries of a dead worker this file's own, numbered on; none if its worker lives."""
    try:
        if not _is_abandoned(orphan):
            return []
        theirs, _ = _salvage(orphan, file.clock)
        entries = [Entry.of(number, entry.payload) for number, entry in enumerate(theirs, after + 1)]
        file.append(b"".join(entry.frame for entry in entries), durable=True)
        orphan.with_suffix(".draft").unlink(missing_ok=True)
        orphan.unlink()
    except OSError as error:  # a full disk, another user's file: ours is usable all the same
        log.warning("what a dead worker left in %s cannot be adopted now: %s", orphan, error)
        return []
    log.warning("adopted %d unfinished entries that a dead worker left in %s", len(entries), orphan)
    return entries


def _is_abandoned(path: Path) -> bool:
    descriptor = _lock(path)
    if descriptor is None:
        return False
    os.close(descriptor)  # and abandoned it stays: nobody takes up a file while we are alone in the folder
    return True


def _salvage(path: Path, clock: Callable[[], float]) -> tuple[list[Entry], int]:
    """The unfinished entries of a file and the length of its readable part. What is not readable is copied aside, unless
    it is only a torn tail.
    """
    data = path.read_bytes()
    entries, end = _unfinished(data)
    rest = data[end:]
    if rest and _is_torn(rest):
        log.warning("%s ends with %d bytes of a write that never completed: cut off", path, len(rest))
    elif rest:
        aside = path.with_name(f"{path.name}.corrupt-{int(clock() * 1000)}")
        with aside.open("ab") as file:
            file.write(rest)
            file.flush()
            os.fsync(file.fileno())
        log.warning(
            "%s is damaged at byte %d: it and all %d bytes after it are in %s", path, end, len(rest), aside
        )
    return entries, end


def _unfinished(data: bytes) -> tuple[list[Entry], int]:
    """The entries that no mark finishes, and where the first unreadable frame begins."""
    entries: dict[int, Entry] = {}
    offset = 0
    while (body := _body_at(data, offset)) is not None:
        record, end = orjson.loads(body), offset + HEADER.size + len(body)
        if "finished" in record:
            entries.pop(record["finished"], None)
        else:
            entries[record["sequence"]] = Entry(record["sequence"], data[offset:end])
        offset = end
    return list(entries.values()), offset


def _is_torn(rest: bytes) -> bool:
    """An interrupted write left this: zeros, or one frame's beginning. Anything more may have been acknowledged."""
    if not rest.strip(b"\0"):
        return True
    runs_past_end = len(rest) < HEADER.size or HEADER.size + HEADER.unpack_from(rest)[0] > len(rest)
    return runs_past_end and all(_body_at(rest, offset) is None for offset in range(len(rest)))


def _body_at(data: bytes, offset: int) -> bytes | None:
    """The JSON of the intact frame that begins there, or None. (No frame is empty, so zeros are no frame.)"""
    start = offset + HEADER.size
    if start > len(data):
        return None
    length, crc = HEADER.unpack_from(data, offset)
    if not 0 < length <= len(data) - start:
        return None
    body = data[start : start + length]
    return body if zlib.crc32(body) == crc else None


def _held(entry: Entry) -> bytes:
    """Its frame as it is kept in memory: thousands are, for ten minutes each, and are hardly ever asked for again."""
    return zlib.compress(entry.frame, 1)


def _frame(record: Mapping[str, Any]) -> bytes:
    body = orjson.dumps(record)
    return HEADER.pack(len(body), zlib.crc32(body)) + body


def _write(descriptor: int, data: bytes, offset: int) -> None:
    """All of data at that offset; the system may take it in pieces."""
    rest = memoryview(data)
    while rest:
        count = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[count:], offset + count


def _lock(path: Path, flags: int = 0) -> int | None:
    """A descriptor that holds the file's lock until it is closed; None where a living process holds it."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | flags, 0o600)
        except FileNotFoundError:  # its worker has just finished everything
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if _is_at(path, descriptor):
            return descriptor
        os.close(descriptor)  # its worker has just put another in its place


def _is_at(path: Path, descriptor: int) -> bool:
    """The path still leads to the opened file."""
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Opening and adopting take turns."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
