import asyncio
import errno
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedback.spool import DEAD_LETTERS, HEADER, REWRITE_ABOVE_BYTES, Entry, Spool, SpoolError, to_disk

NOW = 1_790_000_000.5
APPENDS_UNTIL_KILLED = """
import asyncio, sys
from pathlib import Path
from feedback.spool import Spool

async def main():
    spool = await Spool.open(Path(sys.argv[1]), worker=sys.argv[2], clock=lambda: 0.0)

    async def client(name):
        for number in range(10**9):
            await spool.append({"id": f"{sys.argv[2]}-{name}-{number}"})
            print(f"{sys.argv[2]}-{name}-{number}", flush=True)

    await asyncio.gather(*map(client, range(8)))

asyncio.run(main())
"""


def clock() -> float:
    return NOW


async def opened(folder: Path, worker: str = "w", sync: Callable[[int], None] = to_disk) -> Spool:
    return await Spool.open(folder, worker=worker, clock=clock, sync=sync)


def ids(spool: Spool) -> list[Any]:
    return [entry.payload["id"] for entry in spool.pending()]


async def reopened_ids(folder: Path, worker: str = "w") -> list[Any]:
    spool = await opened(folder, worker)
    found = ids(spool)
    await spool.close()
    return found


async def file_of(folder: Path, payloads: list[Mapping[str, Any]]) -> bytes:
    spool = await opened(folder)
    for payload in payloads:
        await spool.append(payload)
    await spool.close()
    return (folder / "w.spool").read_bytes()


def named(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern))


def frame_starts(data: bytes) -> list[int]:
    starts = [0]
    while starts[-1] < len(data):
        starts.append(starts[-1] + HEADER.size + HEADER.unpack_from(data, starts[-1])[0])
    return starts


@contextmanager
def appending_process(folder: Path, worker: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", APPENDS_UNTIL_KILLED, str(folder), worker]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def kill_after(child: "subprocess.Popen[str]", lines: int) -> set[str]:
    """What the process said was accepted, up to the moment it was killed."""
    assert child.stdout is not None
    said = [child.stdout.readline() for _ in range(lines)]
    child.send_signal(signal.SIGKILL)
    said += child.stdout.readlines()
    child.wait()
    return {line.strip() for line in said if line.endswith("\n")}


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """The system refuses to let files grow beyond size, after writing what fits: as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class HeldSync:
    """A real fdatasync that counts, and that waits where the test says so."""

    def __init__(self) -> None:
        self.calls = 0
        self.entered, self.go = threading.Event(), threading.Event()
        self.go.set()

    def __call__(self, descriptor: int) -> None:
        self.calls += 1
        self.entered.set()
        assert self.go.wait(30)
        to_disk(descriptor)


async def test_what_was_appended_is_pending_until_it_is_finished(tmp_path: Path) -> None:
    spool = await opened(tmp_path / "spool")
    first = await spool.append({"id": "a", "value": 0.1})
    second = await spool.append({"id": "b", "value": None})
    assert spool.pending() == [first, second] == [Entry.of(1, {"id": "a", "value": 0.1}), second]
    await spool.finish(first.sequence)
    await spool.finish(first.sequence)
    await spool.finish(999)
    assert spool.pending() == [second]
    await spool.close()
    assert await reopened_ids(tmp_path / "spool") == ["b"]
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "spool" / "w.spool").stat().st_mode & 0o777 == 0o600


def noise(seed: int) -> str:
    return b64encode(Random(seed).randbytes(200)).decode()


async def test_what_is_pending_takes_little_more_memory_than_room_in_the_file(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    await spool.append({"id": "first"})
    tracemalloc.start()
    try:
        for number in range(300):
            await spool.append({"id": f"rt-{number:040d}", "value": number / 300, "record": noise(number)})
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1.5 * (tmp_path / "w.spool").stat().st_size
    await spool.close()


async def test_payloads_come_back_as_they_were(tmp_path: Path) -> None:
    payload = {"text": 'é "\n\0', "share": 0.1 + 0.2, "none": None, "kind": 2**53, "yes": True}
    spool = await opened(tmp_path)
    await spool.append(payload)
    await spool.close()
    spool = await opened(tmp_path)
    assert [entry.payload for entry in spool.pending()] == [payload]
    await spool.close()


steps = st.lists(st.one_of(st.just("append"), st.just("reopen"), st.integers(0, 30)), max_size=40)


@settings(max_examples=40, deadline=None)
@given(steps=steps)
def test_any_history_of_appends_finishes_and_restarts_keeps_the_unfinished(steps: list[str | int]) -> None:
    async def replay(folder: Path) -> None:
        spool, expected = await opened(folder), list[str]()
        for number, step in enumerate(steps):
            if step == "append":
                await spool.append({"id": str(number)})
                expected.append(str(number))
            elif step == "reopen":
                await spool.close()
                spool = await opened(folder)
            elif int(step) < len(expected):
                await spool.finish(spool.pending()[int(step)].sequence)
                del expected[int(step)]
            assert ids(spool) == expected
        await spool.close()
        assert await reopened_ids(folder) == expected

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(replay(Path(folder)))


@pytest.mark.parametrize(
    ("lines", "tail"),
    [(1, b""), (40, b"\x07"), (400, bytes(range(40))), (90, bytes(4096))],
    ids=["nothing torn", "one byte", "rubbish", "zeros, as a power cut leaves them"],
)
async def test_nothing_acknowledged_is_missing_after_kill_9_and_a_torn_tail(
    tmp_path: Path, lines: int, tail: bytes
) -> None:
    with appending_process(tmp_path, "w") as child:
        accepted = await asyncio.to_thread(kill_after, child, lines)
    assert len(accepted) >= lines
    with (tmp_path / "w.spool").open("ab") as file:
        file.write(tail)
    assert accepted <= set(await reopened_ids(tmp_path))
    assert accepted <= set(await reopened_ids(tmp_path))  # and opening it did not spoil it
    assert not named(tmp_path, "*.corrupt-*")


async def test_a_file_cut_anywhere_in_its_last_frame_keeps_all_before_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = await file_of(tmp_path / "whole", [{"id": "a"}, {"id": "b"}, {"id": "c"}])
    *_, last, end = frame_starts(data)
    for cut in range(last, end):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "w.spool").write_bytes(data[:cut])
        caplog.clear()
        assert await reopened_ids(folder) == ["a", "b"]
        assert not named(folder, "*.corrupt-*")
        assert (folder / "w.spool").stat().st_size == last
        assert bool(caplog.records) == (cut > last)


async def test_after_a_torn_tail_new_entries_are_readable(tmp_path: Path) -> None:
    data = await file_of(tmp_path, [{"id": "a"}, {"id": "b"}])
    (tmp_path / "w.spool").write_bytes(data[:-3])
    spool = await opened(tmp_path)
    await spool.append({"id": "c"})
    await spool.close()
    assert await reopened_ids(tmp_path) == ["a", "c"]


async def test_damage_in_the_middle_moves_what_follows_aside_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = await file_of(tmp_path, [{"id": str(number)} for number in range(5)])
    starts = frame_starts(data)
    damaged = bytearray(data)
    damaged[starts[2] + HEADER.size + 3] ^= 0x10
    (tmp_path / "w.spool").write_bytes(damaged)
    assert await reopened_ids(tmp_path) == ["0", "1"]
    (aside,) = named(tmp_path, "*.corrupt-*")
    assert aside.name == "w.spool.corrupt-1790000000500"
    assert aside.read_bytes() == damaged[starts[2] :]
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert "is damaged" in warning.message
    assert str(aside) in warning.message
    assert await reopened_ids(tmp_path) == ["0", "1"]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_anywhere_loses_nothing_unseen(data: st.DataObject) -> None:
    """Before the damage all is kept; from its frame on, all bytes are in the file moved aside."""

    async def check(folder: Path) -> None:
        whole = await file_of(folder, [{"id": str(number)} for number in range(6)])
        starts = frame_starts(whole)
        bit = data.draw(st.integers(0, 8 * starts[-2] - 1))
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (folder / "w.spool").write_bytes(damaged)
        frame = max(index for index, start in enumerate(starts) if start <= bit // 8)
        assert await reopened_ids(folder) == [str(number) for number in range(frame)]
        (aside,) = named(folder, "*.corrupt-*")
        assert aside.read_bytes() == damaged[starts[frame] :]

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(check(Path(folder)))


async def test_a_dead_workers_file_is_adopted_and_a_living_ones_left_alone(tmp_path: Path) -> None:
    with appending_process(tmp_path, "living") as living:
        assert living.stdout is not None
        await asyncio.to_thread(living.stdout.readline)  # it has opened its file before the other one dies
        with appending_process(tmp_path, "dead") as dead:
            accepted = await asyncio.to_thread(kill_after, dead, 50)
        spool = await opened(tmp_path, "heir")
        await spool.append({"id": "own"})
        assert accepted <= set(ids(spool))
        assert not any(name.startswith("living") for name in ids(spool))
        assert not (tmp_path / "dead.spool").exists()
        assert (tmp_path / "living.spool").stat().st_size > 0
        first_after = living.stdout.readline()  # it goes on undisturbed
        assert first_after.startswith("living-")
        await spool.close()
    assert accepted | {"own"} <= set(await reopened_ids(tmp_path, "heir"))


async def test_a_full_disk_leaves_a_dead_workers_file_for_later(tmp_path: Path) -> None:
    await file_of(tmp_path, [{"id": "a"}, {"id": "b"}])
    with files_end_at(10):
        spool = await opened(tmp_path, "heir")
        assert spool.pending() == []
        await spool.close()
    assert await reopened_ids(tmp_path, "heir") == ["a", "b"]


async def test_numbers_used_before_a_restart_finish_nothing_after_it(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    for name in "abc":
        await spool.append({"id": name})
    await spool.finish(3)
    await spool.finish(1)
    await spool.close()
    spool = await opened(tmp_path)
    assert ids(spool) == ["b"]
    await spool.append({"id": "d"})
    await spool.finish(spool.pending()[0].sequence)
    await spool.close()
    assert await reopened_ids(tmp_path) == ["d"]


async def test_an_heir_that_dies_is_itself_inherited(tmp_path: Path) -> None:
    with appending_process(tmp_path, "first") as child:
        accepted = await asyncio.to_thread(kill_after, child, 20)
    with appending_process(tmp_path, "second") as child:
        accepted |= await asyncio.to_thread(kill_after, child, 20)
    assert accepted <= set(await reopened_ids(tmp_path, "third"))
    assert named(tmp_path, "*.spool") == [tmp_path / "third.spool"]


async def test_a_living_workers_name_is_refused(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    with pytest.raises(SpoolError, match="belongs to a living process"):
        await opened(tmp_path)
    await spool.append({"id": "a"})
    await spool.close()
    assert await reopened_ids(tmp_path) == ["a"]


@pytest.mark.parametrize("worker", ["", "a/b", "../w"])
async def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path, worker: str) -> None:
    with pytest.raises(ValueError, match="worker's name"):
        await opened(tmp_path, worker)


async def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SpoolError, match="cannot be opened"):
        await opened(tmp_path / "file" / "spool")


async def test_appends_that_arrive_while_the_disk_is_busy_share_one_sync(tmp_path: Path) -> None:
    sync = HeldSync()
    spool = await opened(tmp_path, sync=sync)
    at_start = sync.calls
    sync.entered.clear()
    sync.go.clear()
    first = asyncio.create_task(spool.append({"id": "first"}))
    assert await asyncio.to_thread(sync.entered.wait, 30)
    others = [asyncio.create_task(spool.append({"id": str(number)})) for number in range(50)]
    await asyncio.sleep(0)  # every one of them has begun
    assert not first.done()
    sync.go.set()
    await asyncio.gather(first, *others)
    assert sync.calls - at_start == 2
    await spool.close()
    assert await reopened_ids(tmp_path) == ["first", *map(str, range(50))]


async def test_nothing_is_acknowledged_or_pending_before_the_sync_returns(tmp_path: Path) -> None:
    sync = HeldSync()
    spool = await opened(tmp_path, sync=sync)
    sync.entered.clear()
    sync.go.clear()
    append = asyncio.create_task(spool.append({"id": "a"}))
    assert await asyncio.to_thread(sync.entered.wait, 30)
    assert not append.done()
    assert spool.pending() == []
    sync.go.set()
    assert await append in spool.pending()
    await spool.close()


async def test_finishing_needs_no_sync(tmp_path: Path) -> None:
    sync = HeldSync()
    spool = await opened(tmp_path, sync=sync)
    await spool.append({"id": "kept"})
    entry = await spool.append({"id": "a"})
    calls = sync.calls
    await spool.finish(entry.sequence)
    await spool.close()
    assert sync.calls == calls
    assert await reopened_ids(tmp_path) == ["kept"]


async def test_a_caller_who_leaves_leaves_the_entry_pending(tmp_path: Path) -> None:
    sync = HeldSync()
    spool = await opened(tmp_path, sync=sync)
    sync.entered.clear()
    sync.go.clear()
    append = asyncio.create_task(spool.append({"id": "a"}))
    assert await asyncio.to_thread(sync.entered.wait, 30)
    append.cancel()
    with pytest.raises(asyncio.CancelledError):
        await append
    sync.go.set()
    await spool.append({"id": "b"})
    assert ids(spool) == ["a", "b"]
    await spool.close()


async def test_a_caller_who_leaves_before_the_disk_refuses_holds_up_nobody(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    with files_end_at(10):
        appends = [asyncio.create_task(spool.append({"id": name})) for name in "ab"]
        await asyncio.sleep(0)  # both are waiting for the disk
        appends[0].cancel()
        first, second = await asyncio.gather(*appends, return_exceptions=True)
    assert isinstance(first, asyncio.CancelledError)
    assert isinstance(second, SpoolError)
    await spool.append({"id": "c"})
    assert ids(spool) == ["c"]
    await spool.close()


async def test_a_full_disk_refuses_and_the_spool_goes_on_when_there_is_room(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    await spool.append({"id": "before"})
    length = (tmp_path / "w.spool").stat().st_size
    with files_end_at(length + 20):  # room for a part of a frame
        refused = await asyncio.gather(
            *(spool.append({"id": f"refused-{number}"}) for number in range(3)), return_exceptions=True
        )
        assert all(isinstance(error, SpoolError) for error in refused)
        assert (tmp_path / "w.spool").stat().st_size == length
        assert ids(spool) == ["before"]
    await spool.append({"id": "after"})
    await spool.close()
    assert await reopened_ids(tmp_path) == ["before", "after"]


async def test_a_mark_that_a_full_disk_refuses_costs_a_repeat_and_nothing_else(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    entry = await spool.append({"id": "a"})
    await spool.append({"id": "b"})
    with files_end_at((tmp_path / "w.spool").stat().st_size):
        await spool.finish(entry.sequence)
        with pytest.raises(SpoolError, match="File too large"):
            await spool.append({"id": "c"})
    assert ids(spool) == ["b"]
    await spool.close()
    assert await reopened_ids(tmp_path) == ["a", "b"]


async def test_what_a_failed_sync_may_not_have_kept_is_not_acknowledged(tmp_path: Path) -> None:
    failures = 0

    def sync(descriptor: int) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        to_disk(descriptor)

    spool = await opened(tmp_path, sync=sync)
    failures = 1
    with pytest.raises(SpoolError, match="Input/output error"):
        await spool.append({"id": "refused, and longer than what comes after it"})
    await spool.append({"id": "a"})
    await spool.close()
    assert await reopened_ids(tmp_path) == ["a"]


async def test_a_payload_that_json_cannot_hold_disturbs_nobody(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    with pytest.raises(TypeError, match="not JSON serializable"):
        await spool.append({"id": b"bytes"})
    entry = await spool.append({"id": "a"})
    assert entry.sequence == 1
    await spool.close()


async def test_a_large_file_of_finished_entries_becomes_small(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    filling = "x" * 10_000
    count = REWRITE_ABOVE_BYTES // 10_000 + 2
    entries = await asyncio.gather(
        *(spool.append({"id": str(number), "filling": filling}) for number in range(count))
    )
    assert (tmp_path / "w.spool").stat().st_size > REWRITE_ABOVE_BYTES
    for entry in entries[:-3]:
        await spool.finish(entry.sequence)
    kept = [str(number) for number in range(count - 3, count)]
    await spool.append({"id": "next"})
    await spool.append({"id": "after the rewrite"})
    assert (tmp_path / "w.spool").stat().st_size < 50_000
    with pytest.raises(SpoolError, match="living process"):  # the new file is as locked as the old one was
        await opened(tmp_path)
    await spool.close()
    assert await reopened_ids(tmp_path) == [*kept, "next", "after the rewrite"]


async def test_a_large_file_of_unfinished_entries_is_left_alone(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    inode = (tmp_path / "w.spool").stat().st_ino
    for number in range(4):
        await spool.append({"id": str(number), "filling": "x" * REWRITE_ABOVE_BYTES})
    await spool.finish(1)
    await spool.append({"id": "next"})
    assert (tmp_path / "w.spool").stat().st_ino == inode
    await spool.close()


async def test_buried_entries_can_be_read_by_people_and_are_finished(tmp_path: Path) -> None:
    one, two = await opened(tmp_path, "one"), await opened(tmp_path, "two")
    assert one.dead_letters() == 0
    first, second = await one.append({"id": "ä"}), await two.append({"id": "b"})
    await one.bury(first, "its decision never became visible")
    assert (one.dead_letters(), two.dead_letters()) == (1, 1)
    await two.bury(second, "why not")
    assert (one.dead_letters(), two.dead_letters()) == (2, 2)
    assert (one.pending(), two.pending()) == ([], [])
    path = tmp_path / DEAD_LETTERS
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {
        "time": "2026-09-21T14:13:20.500000+00:00",
        "reason": "its decision never became visible",
        "payload": {"id": "ä"},
    }
    assert [line["reason"] for line in lines] == ["its decision never became visible", "why not"]
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()  # someone dealt with them
    assert one.dead_letters() == 0
    await one.close()
    await two.close()
    assert await reopened_ids(tmp_path, "one") == []


async def test_what_cannot_be_buried_stays_pending(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    entry = await spool.append({"id": "a"})
    (tmp_path / DEAD_LETTERS).mkdir()
    with pytest.raises(SpoolError, match="dead-letter file"):
        await spool.bury(entry, "no reason")
    assert spool.pending() == [entry]
    await spool.close()


async def test_a_half_written_dead_letter_is_taken_back(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    entries = [await spool.append({"id": name}) for name in "ab"]
    await spool.bury(entries[0], "a reason")
    with files_end_at((tmp_path / DEAD_LETTERS).stat().st_size + 10), pytest.raises(SpoolError):
        await spool.bury(entries[1], "a reason")
    assert spool.dead_letters() == 1
    await spool.bury(entries[1], "a reason")
    lines = (tmp_path / DEAD_LETTERS).read_text().splitlines()
    assert [json.loads(line)["payload"]["id"] for line in lines] == ["a", "b"]
    await spool.close()


async def test_a_closed_spool_takes_nothing_and_leaves_no_empty_file(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    entry = await spool.append({"id": "a"})
    await spool.finish(entry.sequence)
    await spool.close()
    await spool.close()
    with pytest.raises(SpoolError, match="closed"):
        await spool.append({"id": "b"})
    assert not named(tmp_path, "*.spool")


async def test_closing_waits_for_what_is_being_written(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    appends = [asyncio.create_task(spool.append({"id": str(number)})) for number in range(20)]
    await asyncio.sleep(0)
    await spool.close()
    assert [entry.sequence for entry in await asyncio.gather(*appends)] == list(range(1, 21))
    assert await reopened_ids(tmp_path) == list(map(str, range(20)))


async def test_what_is_said_later_of_an_entry_outlives_the_process(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path, worker="one", clock=lambda: 0.0)
    first, second = await spool.append({"n": 1}), await spool.append({"n": 2})
    await spool.amend(first.sequence, {"n": 1, "record": "known by now"})
    await spool.amend(99, {"n": "nobody's"})
    spool.abandon()
    heir = await Spool.open(tmp_path, worker="two", clock=lambda: 0.0)
    payloads = [dict(entry.payload) for entry in heir.pending()]
    assert payloads == [{"n": 1, "record": "known by now"}, {"n": 2}], "in the order in which they came"
    assert second.sequence == 2
    await heir.close()


async def test_an_abandoned_spool_writes_nothing_more(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path, worker="one", clock=lambda: 0.0)
    entry = await spool.append({"n": 1})
    size = (tmp_path / "one.spool").stat().st_size
    spool.abandon()
    await spool.finish(entry.sequence)
    with pytest.raises(SpoolError, match="closed"):
        await spool.append({"n": 2})
    await spool.close()
    assert (tmp_path / "one.spool").stat().st_size == size
