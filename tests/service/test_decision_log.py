"""The decision log: what stands in it, what becomes of it where the disk is away, and how long it is kept."""

import asyncio
import json
import logging
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from feedback.events import CHARGED, RATED
from feedback.store import Feedback
from service import decision_log
from service.day_files import DayFiles, day_of
from service.decision_log import DecisionLog
from service.outcomes import Outcome

CONFIG = """
models:
  one: {base_url: "URL", price_usd_per_mtok_in: 1, price_usd_per_mtok_out: 2}
  two: {base_url: "URL", price_usd_per_mtok_in: 3, price_usd_per_mtok_out: 6}
routes:
  auto: {models: [one, two], usd_per_quality: 0.05, exploration_floor: 0.2}
  shadow: {models: [one, two], usd_per_quality: 0.05, ramp: {baseline: two, share: 0}}
decision_log: {days: 3}
"""
NOON = datetime(2026, 3, 5, 12, tzinfo=UTC).timestamp()
DAY_S = 86_400.0
ANSWERED = Outcome("answered", "auto", "one", "one", 0.5, tokens_in=7, tokens_out=11, cost_usd=0.002)


@pytest.fixture
def answering_lab(start_lab, scripts):
    lab = start_lab(CONFIG)
    lab.says(one=scripts.says(200, scripts.completion()), two=scripts.says(200, scripts.completion()))
    return lab


def lines_of(folder):
    return [json.loads(line) for path in sorted(folder.iterdir()) for line in path.read_text().splitlines()]


def folder_of(lab):
    return lab.gateway.settings.decision_log.folder


def rate(lab, decision_id, rating, key):
    body = {"decision_id": decision_id, "rating": rating, "idempotency_key": key}
    return lab.client.post("/feedback", json=body).json()["status"]


def test_a_request_and_its_feedback_stand_in_the_log(answering_lab):
    lab = answering_lab
    reply = lab.ask().json()
    decision_id = reply["id"].removeprefix("chatcmpl-")
    assert not folder_of(lab).exists(), "nothing is written while a request waits"
    lab.tick()
    assert rate(lab, decision_id, 0.25, "first") == "applied"
    assert rate(lab, decision_id, 0.75, "second") == "revised"
    assert rate(lab, decision_id, 0.25, "first") == "duplicate"
    assert lab.client.delete(f"/feedback/{decision_id}").json()["status"] == "withdrawn"
    lab.client.post("/feedback", json={"decision_id": decision_id, "cost_usd": 0.5})
    lab.tick()
    decision, call, *told = lines_of(folder_of(lab))
    shown = lab.client.get(f"/v1/decisions/{decision_id}").json()
    assert decision["kind"] == "decision"
    assert {line["decision_id"] for line in (decision, call, *told)} == {decision_id}
    assert (decision["scope"], decision["route"], decision["attempt"]) == ("default.auto", "auto", 0)
    assert (decision["model"], decision["propensity"]) == (shown["model"], shown["propensity"])
    assert decision["candidates"] == ["one", "two"]
    assert decision["probabilities"] == [c["probability"] for c in shown["candidates"]]
    for column in ("quality_mean", "cost_usd"):
        assert decision[column] == pytest.approx([c[column] for c in shown["candidates"]], rel=1e-5)
    assert "strategy" not in decision
    assert len(bytes.fromhex(decision["policy"])) == len(bytes.fromhex(decision["features"])) == 8
    price = {"one": (1, 2), "two": (3, 6)}[reply["model"]]
    assert call["cost_usd"] == pytest.approx((7 * price[0] + 11 * price[1]) * 1e-6)
    assert (call["status"], call["tokens_in"], call["tokens_out"]) == ("answered", 7, 11)
    given = [(line["kind"], line.get("quality"), line.get("cost_usd")) for line in told]
    assert given == [
        ("rating", 0.25, None),
        ("rating", 0.75, None),
        ("rating", None, None),
        ("charge", None, 0.5),
    ]


def test_in_shadow_the_log_says_what_the_strategy_would_have_done(answering_lab):
    lab = answering_lab
    lab.ask(model="shadow")
    lab.tick()
    decision = next(line for line in lines_of(folder_of(lab)) if line["kind"] == "decision")
    assert decision["probabilities"] == [0.0, 1.0]
    assert sum(decision["strategy"]) == pytest.approx(1.0)
    assert min(decision["strategy"]) > 0
    shown = lab.client.get(f"/v1/decisions/{decision['decision_id']}").json()
    assert list(shown["strategy"].values()) == decision["strategy"]


def test_without_the_section_no_log_is_kept(start_lab):
    lab = start_lab()
    assert lab.gateway.decision_log is None
    assert "decision_log" not in lab.client.get("/readyz").json()


def test_where_the_disk_is_away_requests_go_on_and_operators_are_told(answering_lab, caplog):
    lab = answering_lab
    folder_of(lab).write_text("a file, where the folder should be")
    for _ in range(3):
        assert lab.ask().status_code == 200
        lab.tick()
    told = lab.client.get("/readyz").json()
    assert told["decision_log"]["lines_waiting"] == 6
    assert "exists" in told["decision_log"]["disk"]
    assert told["status"] == "ready"
    assert "router_decision_log_away 1.0" in lab.client.get("/metrics").text
    said = [r for r in caplog.records if "decision log" in r.message and r.levelno == logging.WARNING]
    assert len(said) == 1, "once, not at every tick"
    folder_of(lab).unlink()
    lab.tick()
    assert [line["kind"] for line in lines_of(folder_of(lab))] == ["decision", "call"] * 3
    assert lab.client.get("/readyz").json()["decision_log"] == {
        "disk": "ok",
        "lines_waiting": 0,
        "lines_dropped": 0,
    }
    assert "router_decision_log_away 0.0" in lab.client.get("/metrics").text


class Disk:
    """Files that take nothing while they are away."""

    def __init__(self):
        self.is_away, self.lines = True, b""

    def append(self, lines, now):
        if self.is_away:
            raise OSError(5, "away")
        self.lines += lines


async def test_memory_is_bounded_and_the_oldest_lines_are_dropped_and_counted(monkeypatch):
    monkeypatch.setattr(decision_log, "HELD_MAX_BYTES", 100 * decision_log.SMALL_BYTES)
    disk = Disk()
    kept = DecisionLog(disk, lambda: NOON)
    for n in range(250):
        kept.called(f"rt-{n}", ANSWERED)
        if n % 50 == 0:
            assert not await kept.tick()
    assert (kept.waiting, kept.dropped) == (100, 150)
    disk.is_away = False
    assert await kept.tick()
    ids = [json.loads(line)["decision_id"] for line in disk.lines.splitlines()]
    assert ids == [f"rt-{n}" for n in range(150, 250)]
    for n in range(150):
        kept.called(f"rt-{n}", ANSWERED)
    assert kept.waiting == 100, "room is counted right after failures, too"
    await kept.close()


async def test_a_batch_that_is_being_written_does_not_hold_up_what_comes():
    files = Disk()
    files.is_away = False
    kept = DecisionLog(files, lambda: NOON)
    kept.given(Feedback("rt-1", RATED, "user", 0.5, b"k", at=1.0))
    kept.given(Feedback("rt-1", CHARGED, "application", 0.5, b"k", at=1.0))
    writing = asyncio.create_task(kept.tick())
    await asyncio.sleep(0)
    kept.called("rt-1", ANSWERED)
    assert await writing
    assert files.lines.count(b"\n") == 3
    await kept.close()


async def test_a_batch_that_is_being_written_when_the_loop_is_cancelled_is_not_lost():
    class Slow(Disk):
        def append(self, lines, now):
            started.set()
            assert free.wait(10)
            super().append(lines, now)

    started, free, files = threading.Event(), threading.Event(), Slow()
    kept = DecisionLog(files, lambda: NOON)
    for n in range(3):
        kept.called(f"rt-{n}", ANSWERED)
    writing = asyncio.create_task(kept.tick())
    assert await asyncio.to_thread(started.wait, 10)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert (kept.waiting, kept.dropped, kept._held_bytes) == (3, 0, 3 * decision_log.SMALL_BYTES)
    free.set()  # and the disk was away for what was being written
    await asyncio.to_thread(kept._disk.submit(lambda: None).result)
    files.is_away = False
    await kept.close()
    assert [json.loads(line)["decision_id"] for line in files.lines.splitlines()] == ["rt-0", "rt-1", "rt-2"]


async def test_a_record_that_cannot_be_read_is_dropped_alone_and_counted_once(caplog):
    files = Disk()
    kept = DecisionLog(files, lambda: NOON)
    kept.called("rt-1", ANSWERED)
    kept.decided("default.auto", "rt-2", b"no record")
    kept.called("rt-3", ANSWERED)
    for _ in range(2):
        assert not await kept.tick()
    assert (kept.waiting, kept.dropped) == (2, 1)
    files.is_away = False
    kept.decided("default.auto", "rt-4", b"no record")
    await kept.close()
    assert [json.loads(line)["decision_id"] for line in files.lines.splitlines()] == ["rt-1", "rt-3"]
    assert (kept.waiting, kept.dropped, kept._held_bytes) == (0, 2, 0)
    assert sum("cannot be made" in r.message for r in caplog.records) == 2


def test_a_file_for_each_day_and_process_and_old_ones_removed(tmp_path):
    foreign = tmp_path / "decisions-2020-01-01-notes.jsonl"
    foreign.write_text("of somebody else")
    for worker in ("a1", "b2"):
        DayFiles(tmp_path, worker=worker, days=3).append(b"{}\n", NOON)
    files = DayFiles(tmp_path, worker="a1", days=3)
    for day in range(5):
        files.append(b"{}\n", NOON + day * DAY_S)
    days = sorted((str(day_of(path)), path.read_text()) for path in tmp_path.iterdir() if day_of(path))
    assert days == [(f"2026-03-0{day}", "{}\n") for day in (6, 7, 8, 9)]
    assert foreign.exists()


def test_nobody_else_may_read_the_files_whose_ids_allow_rating(tmp_path):
    folder = tmp_path / "log"
    DayFiles(folder, worker="a1", days=3).append(b"{}\n", NOON)
    (path,) = folder.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600


def test_where_old_files_cannot_be_found_lines_are_written_once_and_it_is_said_once_a_day(
    tmp_path, monkeypatch, caplog
):
    def unreadable(_):
        raise PermissionError(13, "Permission denied")

    old = tmp_path / "decisions-2026-01-01-b2.jsonl"
    old.touch()
    files = DayFiles(tmp_path, worker="a1", days=3)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", unreadable)
        for n in range(3):
            files.append(b'{"n": %d}\n' % n, NOON)
    (own,) = (path for path in tmp_path.iterdir() if path != old)
    assert own.read_text() == '{"n": 0}\n{"n": 1}\n{"n": 2}\n'
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    files.append(b"{}\n", NOON + DAY_S)
    assert not old.exists()


def test_a_batch_that_was_written_in_part_is_taken_back(tmp_path, monkeypatch):
    import os

    files = DayFiles(tmp_path, worker="a1", days=3)
    files.append(b'{"n": 1}\n', NOON)
    write, calls = os.write, []

    def full(file, data):
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return write(file, bytes(data)[:5])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        files.append(b'{"n": 2}\n', NOON)
    monkeypatch.undo()
    files.append(b'{"n": 2}\n', NOON)
    (path,) = tmp_path.iterdir()
    assert path.read_text() == '{"n": 1}\n{"n": 2}\n'


def test_what_cannot_be_taken_back_spoils_no_line_after_it(tmp_path, monkeypatch):
    import os

    files = DayFiles(tmp_path, worker="a1", days=3)
    write = os.write

    def full(file, data):
        if len(data) < 9:
            raise OSError(5, "gone")
        return write(file, bytes(data)[:5])

    monkeypatch.setattr(os, "write", full)
    monkeypatch.setattr(os, "ftruncate", lambda *_: (_ for _ in ()).throw(OSError(5, "gone")))
    with pytest.raises(OSError, match="gone"):
        files.append(b'{"n": 1}\n', NOON)
    monkeypatch.undo()
    files.append(b'{"n": 2}\n', NOON)
    (path,) = tmp_path.iterdir()
    assert path.read_text().splitlines() == ['{"n":', '{"n": 2}']
