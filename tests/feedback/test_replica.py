"""Replicas of one log on the embedded server: they agree to the last bit, and they outlive what a store may lose."""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from redis.asyncio import Redis

from bandit.arms import Arm
from bandit.decide import decide
from bandit.features import DIMENSION, TAG
from bandit.lengths import LengthSample
from bandit.objective import Balanced
from bandit.policy import Thompson
from bandit.quality import SharedBaseline
from bandit.quality_posterior import SharedBaselinePosterior
from bandit.statistics import CallStatistics
from bandit.types import Context, Needs
from feedback.alarms import RATINGS_LEFT, answers
from feedback.cuts import Alarm
from feedback.events import RATED, Called, JudgeDrift, Reset, decode, encode_called, encode_reset
from feedback.learn import fold, fold_all
from feedback.memory_store import MemoryLog
from feedback.records import DecisionPrefix, encode_record
from feedback.redis_store import RedisStore
from feedback.replica import (
    ANSWERS_PER_MINUTE,
    BATCH,
    BATCH_BYTES,
    PAGE,
    SNAPSHOT_EVENTS,
    SNAPSHOT_S,
    History,
    Replica,
    _parts,
    catch_up,
)
from feedback.state import START, State
from feedback.store import Feedback, Log, StoreError, position

Faulty = Callable[[Log], Any]
NOW = 1.79e9
ARMS = (Arm("small", 0.1, 0.4), Arm("medium", 0.5, 1.5), Arm("large", 2.5, 10.0))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Route:
    """One route's log in a server, and what can befall it."""

    def __init__(self, log: Log, client: Any, base: str) -> None:
        self.log, self.client, self.base = log, client, base
        self.given = self.told = 0
        self.clock = Clock()

    def replica(self) -> Replica:
        return Replica(self.log, SharedBaseline(), clock=self.clock)

    async def running(self) -> Replica:
        replica = self.replica()
        await catch_up(replica)
        return replica

    async def rate(self, count: int = 1) -> None:
        """Ratings of all arms, of all qualities, of requests of all kinds; the same ones for the same numbers."""
        for n in range(self.given, self.given + count):
            rng = np.random.default_rng(n)
            x = np.concatenate([[1.0], rng.normal(size=DIMENSION - 1)]).astype(np.float16).astype(np.float64)
            prefix = DecisionPrefix(ARMS[n % 3].name, x, NOW + 7e5 * rng.random(), 0.5, TAG, b"policy!!")
            feedback = Feedback(f"d-{n}", RATED, "user", rng.random(), bytes(8), encode_record(prefix))
            await self.log.give_feedback(feedback)
        self.given += count

    async def call(self, count: int = 1) -> None:
        """Events of two workers in turn: what calls of all arms took, and how long some answers were."""
        for n in range(self.told, self.told + count):
            rng = np.random.default_rng([n, 1])
            calls = {arm.name: CallStatistics(calls=3, tokens_out=int(rng.integers(9000))) for arm in ARMS}
            rows = np.column_stack([np.ones(12), rng.normal(size=(12, DIMENSION - 1))])
            lengths = {
                arm.name: LengthSample.of(rows[k::4], rng.integers(1, 3000, 3).tolist())
                for k, arm in enumerate(ARMS)
            }
            event = Called(f"w-{n % 2}", n // 2, calls, lengths=lengths, features=TAG)
            await self.log.append(encode_called(event))
        self.told += count

    async def snapshot(self) -> bytes:
        stored = await self.log.load_snapshot()
        assert stored is not None
        return stored

    async def snapshot_position(self) -> tuple[int, int]:
        token = (await self.log.read(START, 1)).snapshot
        assert token is not None
        return position(token)

    async def replayed(self) -> State:
        """The state after every entry from the first one on, without any replica."""
        state = State(TAG, DIMENSION)
        while entries := (await self.log.read(state.cursor, 500)).entries:
            for entry in entries:
                state = fold(state, entry.token, entry.data)
        return state

    async def saved(self) -> dict[bytes, bytes]:
        keys = [key async for key in self.client.scan_iter(match=f"{self.base}:*")]
        return {key: await self.client.dump(key) for key in keys}

    async def back_to(self, saved: dict[bytes, bytes]) -> None:
        """What a failover does: everything since then is gone."""
        await self.client.delete(*[key async for key in self.client.scan_iter(match=f"{self.base}:*")])
        for key, value in saved.items():
            await self.client.restore(key, 0, value)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[RedisStore]:
    store = RedisStore(url, decision_ttl_ms=3_600_000, timeout_s=10.0)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def route(store_url: str) -> AsyncIterator[Route]:
    scope = f"tenant.{uuid.uuid4().hex}"
    async with connected(store_url) as store, Redis.from_url(store_url) as client:
        yield Route(store.log(scope), client, f"lr:{{{scope}}}")


# ---- agreement


async def test_the_first_replica_begins_the_log_and_the_next_finds_it(route: Route) -> None:
    first, second = await route.running(), await route.running()
    assert (first.counters.seeds, second.counters.seeds) == (1, 0)
    assert first.state.digest() == second.state.digest()


async def test_replicas_that_read_in_other_pieces_hold_the_same_bits(route: Route) -> None:
    eager, lazy = await route.running(), await route.running()
    for _ in range(6):
        await route.rate(3)
        assert await eager.poll() is History.CONTINUED
    await route.rate(2 * BATCH + 5)
    await eager.poll()
    assert await lazy.poll() is History.CONTINUED
    assert eager.state.digest() == lazy.state.digest() == (await route.replayed()).digest()
    assert eager.state.events == 2 * BATCH + 23


async def test_however_much_there_is_to_fold_the_loop_has_its_turn_after_every_batch(
    route: Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stretches are bounded in events, and between two of them others run."""
    replica = await route.running()
    await route.rate(3 * BATCH + 1)
    done: list[int | str] = []

    def counted(state: State, entries: list[tuple[str, bytes]]) -> State:
        done.append(len(entries))
        return fold_all(state, entries)

    async def others() -> None:
        while True:
            done.append("others")
            await asyncio.sleep(0)

    monkeypatch.setattr("feedback.replica.fold_all", counted)
    running = asyncio.create_task(others())
    await replica.poll()
    running.cancel()
    folded = [n for n in done if isinstance(n, int)]
    assert sum(folded) == 3 * BATCH + 1
    assert max(folded) <= BATCH
    first, last = done.index(folded[0]), len(done) - 1 - done[::-1].index(folded[-1])
    between = done[first : last + 1]
    assert not any(isinstance(a, int) and isinstance(b, int) for a, b in pairwise(between))


async def test_replicas_make_the_same_decision_for_the_same_id(route: Route) -> None:
    one, other = await route.running(), await route.running()
    policy = Thompson(Balanced(usd_per_quality=0.01))
    for round_ in range(4):
        await route.rate(5)
        await one.poll()
        await other.poll()
        for n in range(40):
            x = np.random.default_rng(n).normal(size=DIMENSION).astype(np.float16).astype(np.float64)
            context, decision_id = Context(x, Needs(tokens_in=200)), f"rt-{round_}-{n}"
            first, second = (decide(policy, r.posterior, context, ARMS, decision_id) for r in (one, other))
            assert first.arm == second.arm
            assert first.probabilities.tobytes() == second.probabilities.tobytes()
            assert first.token == second.token == one.state.cursor


@pytest.mark.parametrize("tail", [0, 1, BATCH, BATCH + 1, PAGE, PAGE + 1])
async def test_a_restart_holds_the_same_bits_as_one_that_read_it_all(route: Route, tail: int) -> None:
    running = await route.running()
    await route.rate(20)
    route.clock.now += SNAPSHOT_S
    await running.poll()
    assert running.counters.snapshots == 1
    await route.rate(tail)
    restarted = await route.running()
    await running.poll()
    assert restarted.state.events == 20 + tail
    assert restarted.state.digest() == running.state.digest() == (await route.replayed()).digest()


async def test_lengths_of_answers_are_the_same_bits_in_other_pieces_and_after_a_restart(route: Route) -> None:
    running, lazy = await route.running(), await route.running()
    for _ in range(5):
        await route.call(3)
        await route.rate()
        await running.poll()
    route.clock.now += SNAPSHOT_S
    await running.poll()
    assert running.counters.snapshots == 1
    await route.call(100)  # more than one stretch of bytes, far from one of events
    await running.poll()
    await lazy.poll()
    restarted = await route.running()
    replayed = await route.replayed()
    assert replayed.lengths["small"].n == 115 * 3
    digests = {r.state.digest() for r in (running, lazy, restarted)}
    assert digests == {replayed.digest()}
    costs = [
        r.posterior.cost.expected_usd(ARMS, Needs(100), np.ones(DIMENSION)).tobytes()
        for r in (running, lazy, restarted)
    ]
    assert len(set(costs)) == 1


async def test_a_stretch_of_workers_sums_is_bounded_in_bytes(route: Route) -> None:
    await route.running()
    await route.call(100)
    tail = await route.log.read(START, PAGE)
    parts = list(_parts(tail))
    assert [entry for part in parts for entry in part] == tail.entries
    assert len(parts) > 2
    for part in parts:
        assert sum(len(entry.data) for entry in part[:-1]) < BATCH_BYTES


async def test_an_entry_that_is_no_event_stops_nobody(route: Route) -> None:
    one, other = await route.running(), await route.running()
    await route.rate(2)
    for poison in (b"", b"\0", b"\xff" * 300, b"\x03[]"):
        await route.log.append(poison)
        await one.poll()
    await route.rate(2)
    await one.poll()
    await other.poll()
    assert (one.state.events, one.state.skipped) == (4, 4)
    assert one.state.digest() == other.state.digest()


# ---- snapshots


async def test_a_snapshot_is_saved_after_so_many_events(route: Route) -> None:
    replica = await route.running()
    for _ in range(SNAPSHOT_EVENTS - 1):
        await route.log.append(b"entry")
    await replica.poll()
    assert replica.counters.snapshots == 0
    await route.log.append(b"entry")
    await replica.poll()
    assert replica.counters.snapshots == 1
    assert State.from_bytes(await route.snapshot()).digest() == replica.state.digest()


async def test_a_snapshot_is_saved_after_a_while_and_only_if_there_is_news(route: Route) -> None:
    replica = await route.running()
    route.clock.now += 10 * SNAPSHOT_S
    await replica.poll()
    assert replica.counters.snapshots == 0
    await route.rate()
    await replica.poll()
    assert replica.counters.snapshots == 1
    await route.rate()
    route.clock.now += SNAPSHOT_S - 1
    await replica.poll()
    assert replica.counters.snapshots == 1
    route.clock.now += 1
    await replica.poll()
    assert replica.counters.snapshots == 2


async def test_replicas_save_by_turns_and_never_over_a_later_snapshot(route: Route) -> None:
    replicas = [await route.running() for _ in range(3)]
    for _ in range(5):
        await route.rate()
        route.clock.now += SNAPSHOT_S
        before = await route.snapshot_position()
        await asyncio.gather(*(replica.poll() for replica in replicas))
        assert await route.snapshot_position() > before
    assert sum(replica.counters.snapshots for replica in replicas) == 5
    assert State.from_bytes(await route.snapshot()).digest() == replicas[0].state.digest()


# ---- what a store may lose


async def test_a_store_that_lost_everything_is_refilled_from_memory(route: Route) -> None:
    replica = await route.running()
    await route.rate(10)
    await replica.poll()
    before = replica.state.digest()
    await route.client.flushall()
    assert await replica.poll() is History.SEEDED
    assert replica.counters.seeds == 2
    assert replica.state.digest() == before
    assert (await route.running()).state.digest() == before
    await route.rate(3)
    assert await replica.poll() is History.CONTINUED
    assert replica.state.events == 13


async def test_the_other_replicas_go_on_where_the_refilled_log_goes_on(route: Route) -> None:
    abreast, behind, seeder = [await route.running() for _ in range(3)]
    await route.rate(4)
    await behind.poll()
    await route.rate(4)
    await seeder.poll()
    await abreast.poll()
    await route.client.flushall()
    assert await seeder.poll() is History.SEEDED
    assert await abreast.poll() is History.CONTINUED
    assert await behind.poll() is History.REPLACED
    await route.rate(1)
    for replica in (seeder, abreast, behind):
        assert await replica.poll() is History.CONTINUED
    assert len({replica.state.digest() for replica in (seeder, abreast, behind)}) == 1
    assert seeder.state.events == 9


async def test_replicas_that_all_want_to_refill_agree(route: Route) -> None:
    replicas = [await route.running() for _ in range(4)]
    for n, replica in enumerate(replicas):
        await route.rate(n)
        await replica.poll()
    await route.client.flushall()
    assert History.SEEDED in await asyncio.gather(*(replica.poll() for replica in replicas))
    assert [await replica.poll() for replica in replicas] == [History.CONTINUED] * 4
    assert len({replica.state.digest() for replica in replicas}) == 1


async def test_what_the_log_was_refilled_with_is_known_though_it_is_sent_again(route: Route) -> None:
    """The one that refilled the log lagged behind: of four feedbacks that all are sent again it held two."""
    seeder = await route.running()
    await route.rate(2)
    await seeder.poll()
    await route.rate(2)
    await route.client.flushall()
    assert await seeder.poll() is History.SEEDED
    route.given = 0
    await route.rate(4)
    assert await seeder.poll() is History.CONTINUED
    assert len((await route.log.read(START, 10)).entries) == 2
    assert seeder.state.events == 4


async def test_the_marks_of_what_a_log_holds_survive_a_restart_and_another_loss(route: Route) -> None:
    """Seeded, added to, snapshot, loaded by a fresh replica: the marks of all are there, and there again after a loss."""
    first = await route.running()
    await route.rate(2)
    await first.poll()
    await route.client.flushall()
    await first.poll()
    await route.rate(3)
    route.clock.now += SNAPSHOT_S
    await first.poll()
    fresh = await route.running()
    await route.client.flushall()
    assert await fresh.poll() is History.SEEDED
    route.given = 0
    await route.rate(5)
    assert await fresh.poll() is History.CONTINUED
    assert fresh.state.events == 5


async def test_what_is_older_than_the_marks_is_not_sent_again(
    route: Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feedback.remembered.FIELDS_REMEMBERED", 4)
    replica = await route.running()
    await route.rate(4)
    await replica.poll()
    tokens = [entry.token for entry in (await route.log.read(START, 10)).entries]
    assert not any(map(replica.was_seeded, tokens)), "the log itself holds them"
    await route.client.flushall()
    assert await replica.poll() is History.SEEDED
    assert [replica.was_seeded(token) for token in tokens] == [True, True, False, False]


async def test_parts_of_a_log_are_no_log_and_said_so(route: Route) -> None:
    replica = await route.running()
    await route.rate(2)
    await replica.poll()
    await route.client.delete(f"{route.base}:meta")
    with pytest.raises(StoreError, match="parts of a log"):
        await replica.poll()
    assert replica.state.events == 2


@pytest.mark.parametrize("followed", [4, 0])
async def test_a_history_that_lost_its_end_is_noticed_whether_it_went_on_or_not(
    route: Route, followed: int
) -> None:
    replica = await route.running()
    await route.rate(5)
    saved = await route.saved()
    await route.rate(3)
    await replica.poll()
    await route.back_to(saved)
    await route.rate(followed)
    assert await replica.poll() is History.REPLACED
    assert await replica.poll() is History.CONTINUED
    assert replica.state.events == 5 + followed
    assert replica.state.digest() == (await route.replayed()).digest()
    assert replica.counters.reloads == 1


async def test_an_id_given_twice_is_not_taken_for_the_same_entry(route: Route) -> None:
    """A promoted server whose clock is behind gives the lost entry's id to another."""
    replica = await route.running()
    await route.rate(2)
    saved = await route.saved()
    await route.rate(1)
    await replica.poll()
    await route.back_to(saved)
    last, lost = (await route.log.read(START, 1)).last, replica.state.cursor
    assert last is not None
    lost_id = lost.split(":", maxsplit=1)[0]
    await route.client.xadd(f"{route.base}:log", {"p": last, "e": b"another"}, id=lost_id)
    digest = hashlib.sha1(last.encode() + b"another").hexdigest()[:16]
    await route.client.hset(f"{route.base}:meta", "last", f"{lost_id}:{digest}")
    assert await replica.poll() is History.REPLACED
    assert await replica.poll() is History.CONTINUED
    assert (replica.state.events, replica.state.skipped) == (2, 1)


async def test_a_replica_too_slow_for_the_log_begins_again_at_the_snapshot(route: Route) -> None:
    slow, quick = await route.running(), await route.running()
    await route.rate(6)
    route.clock.now += SNAPSHOT_S
    await quick.poll()
    await route.rate(2)
    await route.client.xtrim(f"{route.base}:log", maxlen=2, approximate=False)
    assert await slow.poll() is History.REPLACED
    assert await slow.poll() is History.CONTINUED
    await quick.poll()
    assert slow.state.digest() == quick.state.digest()
    assert slow.state.events == 8


async def test_a_damaged_snapshot_costs_a_full_replay_and_is_then_replaced(route: Route) -> None:
    running = await route.running()
    await route.rate(5)
    route.clock.now += SNAPSHOT_S
    await running.poll()
    await route.client.set(f"{route.base}:snap", (await route.snapshot())[:-1] + b"?")
    restarted = await route.running()
    assert restarted.counters.bad_snapshots == 1
    assert restarted.state.digest() == running.state.digest()
    await route.rate()
    route.clock.now += SNAPSHOT_S
    await restarted.poll()
    assert restarted.counters.snapshots == 1
    again = await route.running()
    assert again.counters.bad_snapshots == 0
    assert again.state.digest() == restarted.state.digest()


async def test_a_log_that_cannot_be_read_from_anywhere_is_said_so(route: Route) -> None:
    running = await route.running()
    await route.rate(5)
    route.clock.now += SNAPSHOT_S
    await running.poll()
    await route.rate(2)
    await route.client.set(f"{route.base}:snap", b"damaged")
    await route.client.xtrim(f"{route.base}:log", maxlen=2, approximate=False)
    with pytest.raises(StoreError, match="do not fit together"):
        await route.running()
    await running.poll()  # who was there before still knows, and saves it again
    route.clock.now += SNAPSHOT_S
    await route.rate(1)
    await running.poll()
    assert (await route.running()).state.digest() == running.state.digest()


async def test_a_snapshot_of_another_feature_version_lends_its_place_and_not_its_sums(
    route: Route, caplog
) -> None:
    running = await route.running()
    await route.rate(5)
    await running.poll()
    seen = {"small": CallStatistics(calls=3, tokens_out=900)}
    other = replace(State(b"another!", 3), cursor=running.state.cursor, events=5, rated=5, calls=seen)
    assert await route.log.save_snapshot(other.to_bytes(), other.cursor, base=START)
    await route.rate(2)
    restarted = await route.running()
    assert "5 ratings were of another version's features" in caplog.text
    assert restarted.counters.digests_differing == 0
    assert restarted.state.events == 7
    assert restarted.state.d == DIMENSION
    assert sum(s.n for s in restarted.state.ratings_per_arm().values()) == pytest.approx(2, abs=0.1)
    assert restarted.state.calls == seen


# ---- a store that is away


@pytest.mark.parametrize("fault", ["away", "loses_answers"])
async def test_a_replica_keeps_what_it_knows_while_the_store_is_away(
    route: Route, faulty: Faulty, fault: str
) -> None:
    unsteady = faulty(route.log)
    replica = Replica(unsteady, SharedBaseline(), clock=route.clock)
    await catch_up(replica)
    await route.rate(3)
    await replica.poll()
    state, posterior = replica.state, replica.posterior
    await route.rate(3)
    route.clock.now += 5
    setattr(unsteady, fault, True)
    for _ in range(2):
        with pytest.raises(StoreError):
            await replica.poll()
    assert replica.state is state
    assert replica.posterior is posterior
    setattr(unsteady, fault, False)
    assert await replica.poll() is History.CONTINUED
    assert replica.state.digest() == (await route.replayed()).digest()


class NoSnapshots(MemoryLog):
    async def save_snapshot(self, snapshot: bytes, token: str, *, base: str, digest: str = "") -> bool:
        raise StoreError("full")


async def test_a_snapshot_that_cannot_be_saved_costs_nothing_that_was_learned() -> None:
    log, clock = NoSnapshots(), Clock()
    replica = Replica(log, SharedBaseline(), clock=clock)
    await catch_up(replica)
    await log.append(b"one")
    clock.now += SNAPSHOT_S
    with pytest.raises(StoreError, match="full"):
        await replica.poll()
    assert replica.state.skipped == 1
    await log.append(b"two")
    assert await replica.poll() is History.CONTINUED
    assert replica.state.skipped == 2


# ---- what is told to feedback on its way


async def test_a_replica_tells_what_it_has_seen_and_what_it_has_passed(route: Route) -> None:
    replica = await route.running()
    await route.rate(2)
    tokens = [entry.token for entry in (await route.log.read(START, 10)).entries]
    assert not any(map(replica.has_seen, tokens))
    assert not any(map(replica.has_passed, tokens))
    await replica.poll()
    assert all(map(replica.has_seen, tokens))
    assert all(map(replica.has_passed, tokens))
    forked = tokens[0].split(":", maxsplit=1)[0] + ":0000000000000000"
    assert not replica.has_seen(forked)
    assert replica.has_passed(forked)


async def test_what_was_seen_of_a_lost_history_is_forgotten(route: Route) -> None:
    replica = await route.running()
    saved = await route.saved()
    await route.rate(1)
    await replica.poll()
    lost = replica.state.cursor
    await route.back_to(saved)
    await route.rate(1)
    while await replica.poll() is not History.CONTINUED:
        assert not replica.has_seen(lost)
    assert not replica.has_seen(lost)
    assert replica.state.ratings.keys() == {("medium", "user")}


async def test_a_replica_that_knows_nothing_leaves_an_emptied_store_to_one_that_does(
    route: Route,
) -> None:
    """Everything is lost, and a gateway that has just started is the first to look."""
    knowing = await route.running()
    await route.rate(5)
    await knowing.poll()
    await route.client.delete(*[key async for key in route.client.scan_iter(f"{route.base}*")])
    fresh = Replica(route.log, SharedBaseline(), patience_s=3.0, clock=route.clock)
    await catch_up(fresh)
    route.clock.now += 2.9
    assert await fresh.poll() is History.CONTINUED
    assert (await route.log.read(START, 1)).last is None, "nobody has begun a log yet"
    assert await knowing.poll() is History.SEEDED
    await catch_up(fresh)
    assert fresh.state.digest() == knowing.state.digest()
    assert fresh.state.events >= 5


async def test_a_replica_that_knows_nothing_begins_a_log_when_nobody_else_has(route: Route) -> None:
    fresh = Replica(route.log, SharedBaseline(), patience_s=3.0, clock=route.clock)
    assert await fresh.poll() is History.CONTINUED
    route.clock.now += 3.1
    assert await fresh.poll() is History.SEEDED
    assert (await route.log.read(START, 1)).last is not None


# ---- drift


async def quiet(call: str) -> None:
    """The store is well again."""


QUALITIES = ((0.7, 300), (0.3, 150))  # what the arm's ratings were, and what they became


async def rate_small(route: Route, quality: float, count: int) -> None:
    """Ratings of one arm as its posterior expected them at 0.7, all of them with the same features."""
    x = np.eye(1, DIMENSION)[0]
    for n in range(route.given, route.given + count):
        rating = float(np.clip(np.random.default_rng(n).normal(quality, 0.15), 0, 1))
        prefix = DecisionPrefix("small", x, NOW, 0.5, TAG, b"policy!!", quality_mean=0.7, quality_sd=0.05)
        feedback = Feedback(f"d-{n}", RATED, "user", rating, bytes(8), encode_record(prefix))
        await route.log.give_feedback(feedback)
    route.given += count


async def resets(route: Route) -> list[Reset]:
    entries = (await route.log.read(START, 10_000)).entries
    return [event for entry in entries if isinstance(event := decode(entry.data), Reset)]


async def drifted(route: Route) -> None:
    for quality, count in QUALITIES:
        await rate_small(route, quality, count)


async def test_an_alarm_is_answered_by_ten_replicas_and_happens_once(route: Route) -> None:
    replicas = [await route.running() for _ in range(10)]
    await drifted(route)
    assert set(await asyncio.gather(*(replica.poll() for replica in replicas))) == {History.CONTINUED}
    await asyncio.gather(*(replica.poll() for replica in replicas))
    (reset,) = await resets(route)
    assert (reset.arm, reset.cause) == ("small", "drift")
    assert replicas[0].state.ratings_per_arm()["small"].n == pytest.approx(RATINGS_LEFT)
    assert len({replica.state.digest() for replica in replicas}) == 1
    state = replicas[0].state
    assert (state.alarms, len(state.cuts), state.skipped) == ((), 1, 0)
    assert state.digest() == (await route.replayed()).digest()


async def test_one_poll_reads_the_alarm_answers_it_and_reads_the_answer(route: Route) -> None:
    """So that the next decision is made after the reset, as in a simulation."""
    replica = await route.running()
    await drifted(route)
    assert await replica.poll() is History.CONTINUED
    assert (replica.state.alarms, len(replica.state.cuts)) == ((), 1)
    assert replica.counters.alarms_answered == 1


async def test_an_answer_that_a_failover_took_back_is_given_again(route: Route) -> None:
    replica = await route.running()
    await drifted(route)
    saved = await route.saved()
    await replica.poll()
    await route.back_to(saved)
    assert await replica.poll() is History.REPLACED
    await replica.poll()
    assert len(await resets(route)) == 1
    assert replica.state.alarms == ()
    assert replica.state.digest() == (await route.replayed()).digest()


async def test_a_store_that_takes_no_answer_is_asked_again_and_learning_goes_on(
    route: Route, faulty: Callable[[Log], Any]
) -> None:
    log = faulty(route.log)
    replica = Replica(log, SharedBaseline(), clock=route.clock)
    await catch_up(replica)
    await drifted(route)

    async def refuse(call: str) -> None:
        if call == "append":
            raise StoreError("OOM")

    log.before = refuse
    with pytest.raises(StoreError, match="OOM"):
        await replica.poll()
    assert len(replica.state.alarms) == 1
    assert replica.state.rated == sum(count for _, count in QUALITIES)
    log.before = quiet
    await replica.poll()
    assert (replica.state.alarms, len(await resets(route))) == ((), 1)


async def test_so_many_alarms_a_minute_are_answered_and_no_more(route: Route) -> None:
    """Whatever goes wrong: the others wait for the minute to pass."""
    replica = await route.running()
    alarms = tuple(Alarm(f"arm-{n}", f"judge:{n}", "drop", f"{n}-0:x") for n in range(2 * ANSWERS_PER_MINUTE))
    replica.state = replace(replica.state, alarms=alarms)
    await replica._answer_alarms()
    assert len(await resets(route)) == ANSWERS_PER_MINUTE
    await replica._answer_alarms()
    assert len(await resets(route)) == ANSWERS_PER_MINUTE
    route.clock.now += 61.0
    replica.state = replace(replica.state, alarms=alarms[ANSWERS_PER_MINUTE:])  # as the log leaves them
    await replica._answer_alarms()
    assert {reset.arm for reset in await resets(route)} == {alarm.arm for alarm in alarms}


async def test_an_arm_without_new_ratings_keeps_the_object_it_is_read_by(route: Route) -> None:
    replica = await route.running()
    await route.rate(3)
    await replica.poll()
    reader = replica._reader
    before = replica.state.on_one_scale(reader)
    await rate_small(route, 0.5, 1)
    await replica.poll()
    after = replica.state.on_one_scale(reader)
    assert [arm for arm in before if after[arm] is before[arm]] == [
        arm.name for arm in ARMS if arm.name != "small"
    ]


async def test_an_answer_that_was_lost_with_the_whole_store_is_given_again(route: Route) -> None:
    """Appended, and gone with everything else before anybody read it: the seed holds the alarm still."""
    replica = await route.running()
    await drifted(route)
    answered = await pending(route, replica)
    assert await route.log.append(encode_reset(answered), once=f"alarm:{answered.alarm}")
    replica._answered[str(answered.alarm)] = route.clock.now
    await route.back_to({})
    assert await replica.poll() is History.SEEDED
    await replica.poll()
    assert len(replica.state.alarms) == 1
    route.clock.now += 61.0
    await replica.poll()
    assert (replica.state.alarms, len(await resets(route))) == ((), 1)


async def pending(route: Route, replica: Replica) -> Reset | JudgeDrift:
    """What the alarm that the replica is about to read is to be answered with; it has read up to the alarm, not further."""
    state = await route.replayed()
    replica._adopt(state)
    (event,) = answers(state)
    return event


async def test_a_model_that_is_adopted_while_a_posterior_is_made_is_the_one_that_is_believed(
    route: Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests, and a reload of the configuration, go on between the pieces of the work."""
    replica, other = await route.running(), SharedBaseline(arms=ARMS)
    pieces = SharedBaselinePosterior.steps

    def interrupted(posterior: SharedBaselinePosterior) -> Any:
        replica.adopt_model(other)
        return pieces(posterior)

    await route.rate(6)
    monkeypatch.setattr(SharedBaselinePosterior, "steps", interrupted)
    await replica.poll()
    assert replica.model is other
    assert set(replica.posterior.quality.rows) == {arm.name for arm in ARMS}
    assert replica.posterior.token == replica.state.cursor
    x = np.eye(1, DIMENSION)[0]
    fresh = other.fit(replica.state.ratings_per_arm(), DIMENSION, replica.state.entry_prices)
    assert np.array_equal(
        replica.posterior.quality.draws(x, ["small"]).deviations, fresh.draws(x, ["small"]).deviations
    )


async def test_entries_that_fill_a_page_to_its_end_are_believed(
    route: Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = await route.running()
    monkeypatch.setattr("feedback.replica.PAGE", 6)
    await route.rate(6)
    await replica.poll()
    assert replica.posterior.token == replica.state.cursor != START


async def test_what_was_read_before_the_store_failed_is_believed_when_it_is_back(
    route: Route, faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsteady = faulty(route.log)
    replica = Replica(unsteady, SharedBaseline(), clock=route.clock)
    await catch_up(replica)
    monkeypatch.setattr("feedback.replica.PAGE", 6)
    await route.rate(6)
    fold_page = replica._fold

    async def then_away(tail: Any) -> None:
        await fold_page(tail)
        unsteady.away = True

    monkeypatch.setattr(replica, "_fold", then_away)
    with pytest.raises(StoreError):
        await replica.poll()
    assert replica.posterior.token == START
    unsteady.away = False
    monkeypatch.undo()
    await replica.poll()
    assert replica.posterior.token == replica.state.cursor != START
