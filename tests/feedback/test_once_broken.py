"""The six bugs that the first versions of this protocol had, each held down by a test of its own.

They are listed with the research that the protocol comes from: found by its simulator, by crash tests and by failovers of
real servers. (Schedules of failures and their mutants stand in tests/simulations/test_schedules.py.)
"""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from redis.asyncio import Redis

from bandit.features import DIMENSION, TAG
from bandit.quality import SharedBaseline
from feedback.events import RATED
from feedback.ids import new_id
from feedback.intake import Intake, Route, Value
from feedback.memory_store import MemoryLog
from feedback.recorder import Recorder
from feedback.records import DecisionPrefix, encode_record
from feedback.redis_store import RedisStore
from feedback.replica import SNAPSHOT_S, Replica, catch_up
from feedback.spool import Spool
from feedback.state import START
from feedback.store import Answer, Feedback, Log, position

SCOPE = "tenant.route"
SECRET = b"a secret of thirty-two bytes, at least"
PREFIX = DecisionPrefix("small", np.eye(1, DIMENSION)[0], 1.79e9, 0.5, TAG, b"policy!!")
RECORD = encode_record(PREFIX)


def rating(n: int) -> Feedback:
    return Feedback(f"d{n}", RATED, "user", 0.5, n.to_bytes(8, "little"), RECORD)


def fork(log: MemoryLog, entries: int) -> MemoryLog:
    """The server that takes over with only the first entries of the log."""
    other = log.copy()
    del other._entries[entries:]
    other._last = other._entries[-1].token if other._entries else other._seed
    other._given.clear()
    return other


class Switch:
    """One log after the other, as a name leads to one server after the other."""

    def __init__(self, log: MemoryLog) -> None:
        self.log = log

    def __getattr__(self, name: str):
        return getattr(self.log, name)


async def test_1_the_spool_tells_each_caller_its_own_number(tmp_path: Path) -> None:
    """It returned the newest number to all whose writes shared one fsync, so the wrong entries were finished."""
    spool = await Spool.open(tmp_path, worker="w", clock=lambda: 0.0)
    entries = await asyncio.gather(*(spool.append({"n": n}) for n in range(50)))
    assert [entry.payload["n"] for entry in entries] == list(range(50))
    assert len({entry.sequence for entry in entries}) == 50
    for entry in entries[::2]:
        await spool.finish(entry.sequence)
    assert [entry.payload["n"] for entry in spool.pending()] == list(range(1, 50, 2))
    await spool.close()


async def test_2_an_entry_that_arrives_between_two_reads_is_no_fork(store_url: str) -> None:
    """The end of the log was read after its entries, so one that came in between looked like a fork."""
    store = RedisStore(store_url, decision_ttl_ms=60_000, timeout_s=10.0)
    log = store.log("tenant.order-of-reads")
    replica = Replica(log, SharedBaseline())
    await replica.poll()
    async with Redis.from_url(store_url) as client, client.monitor() as monitor:
        await log.read(START, 10)
        commands = [(await monitor.next_command())["command"].split()[0] for _ in range(2)]
    assert commands == ["HMGET", "XRANGE"], "the end first: it may be older than the entries, never newer"
    await store.close()


async def test_3_a_stream_id_that_a_failover_gives_again_is_another_entry() -> None:
    """A promoted server gave an id again, and the replica took the other entry for the one it had."""
    log = MemoryLog()
    await log.seed(Replica(log, SharedBaseline()).state.to_bytes(), START)
    switch = Switch(log)
    replica = Replica(switch, SharedBaseline())
    await log.give_feedback(rating(1))
    await log.give_feedback(rating(2))
    await replica.poll()
    lost = replica.state.cursor
    switch.log = fork(log, 1)
    await switch.log.give_feedback(rating(3))
    (again,) = (await switch.log.read(lost.split(":")[0].replace("-2", "-1") + ":", 1)).entries
    assert position(again.token) == position(lost)
    assert again.token != lost
    await replica.poll()
    await replica.poll()
    assert replica.state.cursor == again.token


async def test_4_a_restart_does_not_trust_what_was_settled_in_another_life(tmp_path: Path) -> None:
    """It forgot which history it had seen: what a failover then took back was never sent again."""
    log = MemoryLog()
    switch = Switch(log)
    intake, replica, spool = await gateway(switch, tmp_path, "one")
    await give(intake)
    await replica.poll()
    await intake.settle(SCOPE, await replica.poll())
    assert intake.unsettled == 0
    await spool.close()
    switch.log = fork(log, 0)  # while nobody runs
    intake, replica, spool = await gateway(switch, tmp_path, "two")
    await intake.resend(SCOPE)
    await replica.poll()
    assert replica.state.rated == 1
    await spool.close()


async def test_5_a_duplicate_is_settled_only_when_it_is_read_back(tmp_path: Path) -> None:
    """`duplicate` was taken for the end of it, though the entry that it repeats may be lost a moment later."""
    log = MemoryLog()
    switch = Switch(log)
    intake, replica, spool = await gateway(switch, tmp_path, "one")
    decision = await give(intake)
    assert await give(intake, decision) == decision  # answered `duplicate`
    assert intake.unsettled == 2
    switch.log = fork(log, 0)
    await intake.settle(SCOPE, await replica.poll(), intake.sent(SCOPE))
    await intake.resend(SCOPE)
    await intake.settle(SCOPE, await replica.poll(), intake.sent(SCOPE))
    assert replica.state.rated == 1
    assert intake.unsettled == 0
    await spool.close()


async def test_6_a_snapshot_of_one_who_lags_trims_nothing_that_it_does_not_hold() -> None:
    """It trimmed the log past its own position, and nobody could follow any more."""
    now = [2_000_000.0]
    log = MemoryLog(clock=lambda: now[0], kept_s=10.0)
    lagging = Replica(log, SharedBaseline(), clock=lambda: now[0])
    await lagging.poll()
    await log.give_feedback(rating(1))
    now[0] += SNAPSHOT_S
    await lagging.poll()
    for n in range(2, 12):
        now[0] += 5.0
        await log.give_feedback(rating(n))
    assert await log.save_snapshot(lagging.state.to_bytes(), lagging.state.cursor, base=START) is False
    now[0] += SNAPSHOT_S
    fresh = Replica(log, SharedBaseline(), clock=lambda: now[0])
    await catch_up(fresh)
    assert fresh.state.rated == 11


async def gateway(log: Log, folder: Path, worker: str) -> tuple[Intake, Replica, Spool]:
    spool = await Spool.open(folder, worker=worker, clock=lambda: 1.79e9)
    replica = Replica(log, SharedBaseline())
    route = Route(SCOPE, log, replica, Recorder(log, worker=worker, features=TAG))
    intake = Intake({SCOPE: route}, spool, secrets=[SECRET], clock=lambda: 1.79e9, window_s=3600.0)
    await replica.poll()
    return intake, replica, spool


async def give(intake: Intake, decision: str | None = None) -> str:
    decision = decision or new_id(SECRET, SCOPE, now_s=1.79e9, entropy=bytes(8))
    intake._routes[SCOPE].recorder.decided(decision, RECORD)
    (answer,) = await intake.give(decision, [Value("rating", RATED, "user", 0.5)])
    assert answer in (Answer.APPLIED, Answer.DUPLICATE)
    return decision


@pytest.mark.soak
async def test_a_hundred_thousand_events_are_ready_in_five_seconds_of_work(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Folding alone, by this process's own clock, so that a busy machine does not tell lies."""
    import time

    log = MemoryLog()
    await Replica(log, SharedBaseline()).poll()
    for n in range(100_000):
        await log.give_feedback(rating(n))
    begun = time.process_time()
    replica = Replica(log, SharedBaseline(), clock=lambda: 0.0)
    await catch_up(replica)
    seconds = time.process_time() - begun
    with capsys.disabled():
        print(f"\n100,000 events folded in {seconds:.1f} s of CPU")
    assert replica.state.rated == 100_000
