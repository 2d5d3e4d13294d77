"""Feedback from the caller to the sums, through everything that may fail on its way. Every test asks: counted once?"""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from redis.asyncio import Redis

from bandit.features import DIMENSION, TAG
from bandit.quality import SharedBaseline
from bandit.statistics import CallStatistics
from feedback.events import CHARGED, RATED
from feedback.ids import new_id
from feedback.intake import RESEND_AT_A_TIME, RETAIN_S, FeedbackRefusedError, Value, overall
from feedback.learning import Identity, Learning
from feedback.records import DecisionPrefix, encode_record
from feedback.redis_store import RedisStore
from feedback.replica import SNAPSHOT_S, TOKENS_REMEMBERED, History
from feedback.spool import DEAD_LETTERS, Spool, to_disk
from feedback.state import HALF_LIFE_S, START
from feedback.store import Answer, Log, Store, StoreError

Faulty = Callable[[Log], Any]
SECRETS = (b"s" * 32, b"the one before: 32 bytes or more")
WINDOW_S = 7 * 86_400.0
APPLIED, DUPLICATE, REVISED = Answer.APPLIED, Answer.DUPLICATE, Answer.REVISED
QUEUED = None


class Clock:
    def __init__(self) -> None:
        self.now = 1.79e9

    def __call__(self) -> float:
        return self.now


class OneLog:
    """The store of one route, whose log a test may put something in front of."""

    def __init__(self, store: Store, log: Log) -> None:
        self.store, self.one = store, log

    def log(self, scope: str) -> Log:
        return self.one

    async def close(self) -> None:
        await self.store.close()


class Gateway:
    """One process: its spool, its replica, and a connection of its own that fails on demand."""

    def __init__(self, site: "Site", worker: str) -> None:
        self.site, self.worker, self.disk_works = site, worker, True
        self.folder, self.made = site.folder / worker, 0

    async def start(self, scopes: Sequence[str] = ()) -> "Gateway":
        store = RedisStore(self.site.url, decision_ttl_ms=int(WINDOW_S * 1000), timeout_s=10.0)
        self.server, self.store = store, self.site.faulty(store.log(self.site.scope))
        self.spool = await Spool.open(self.folder, worker=self.worker, clock=self.site.clock, sync=self.sync)
        self.learning = Learning(
            OneLog(store, self.store),
            self.spool,
            dict.fromkeys(scopes or [self.site.scope], SharedBaseline()),
            identity=Identity(f"{self.worker}-{uuid.uuid4()}", SECRETS, WINDOW_S),
            clock=self.site.clock,
        )
        await self.learning.start()
        self.intake = self.learning.intake
        self.route = next(iter(self.learning.routes.values()))
        self.replica, self.recorder = self.route.replica, self.route.recorder
        return self

    def sync(self, descriptor: int) -> None:
        if not self.disk_works:
            raise OSError(28, "No space left on device")
        to_disk(descriptor)

    def decide(self, arm: str = "small", *, recorded: bool = True) -> str:
        """A decision's id; its record with the recorder, or lost with a process that was killed."""
        self.made += 1
        entropy = f"{self.worker:>4}{self.made:04d}".encode()[-8:]
        decision_id = new_id(SECRETS[0], self.site.scope, now_s=self.site.clock(), entropy=entropy)
        if recorded:
            self.recorder.decided(decision_id, self.record(arm))
        return decision_id

    def record(self, arm: str = "small") -> bytes:
        x = np.eye(1, DIMENSION)[0]
        now = self.site.clock()
        prefix = DecisionPrefix(arm, x, now, 0.5, TAG, b"policy!!", listed_in_nano_usd=1_000)
        return encode_record(prefix)

    async def rate(
        self, decision_id: str, value: float = 0.5, key: str | None = None, source: str = "user"
    ) -> Answer | None:
        (answer,) = await self.intake.give(decision_id, [Value("rating", RATED, source, value, key)])
        return answer

    async def tick(self, times: int = 1) -> None:
        for _ in range(times):
            await self.learning.tick()

    def ratings(self) -> tuple[float, float]:
        """Their number, and their sum, ages counted back from the newest decision itself."""
        state = self.replica.state
        young = 2.0 ** ((state.read_at() - state.as_of) / HALF_LIFE_S)
        sums = state.ratings_per_arm().values()
        return round(young * sum(s.n for s in sums), 9), round(young * sum(s.xr[0] for s in sums), 9)

    def dead(self) -> list[dict[str, Any]]:
        path = self.folder / DEAD_LETTERS
        return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []

    async def stop(self) -> None:
        """As abruptly as a process may end that lets go of its files: nothing more is written."""
        await self.spool.close()
        await self.server.close()


class Site:
    """What all gateways share."""

    def __init__(self, url: str, folder: Path, faulty: Faulty) -> None:
        self.url, self.folder, self.faulty = url, folder, faulty
        self.scope = f"tenant.{uuid.uuid4().hex}"
        self.clock = Clock()
        self.gateways: list[Gateway] = []

    async def gateway(self, worker: str = "w") -> Gateway:
        self.gateways.append(await Gateway(self, worker).start())
        return self.gateways[-1]

    async def restarted(self, gateway: Gateway) -> Gateway:
        await gateway.stop()
        self.gateways.remove(gateway)
        return await self.gateway(gateway.worker)

    @asynccontextmanager
    async def server(self) -> AsyncIterator[Any]:
        async with Redis.from_url(self.url) as client:
            yield client

    async def keys(self, client: Any) -> list[bytes]:
        return [key async for key in client.scan_iter(match=f"lr:{{{self.scope}}}:*")]

    async def saved(self) -> dict[bytes, tuple[bytes, int]]:
        async with self.server() as client:
            return {key: (await client.dump(key), await client.pttl(key)) for key in await self.keys(client)}

    async def back_to(self, saved: dict[bytes, tuple[bytes, int]]) -> None:
        """What a failover does: everything since then is gone."""
        async with self.server() as client:
            await client.delete(*await self.keys(client))
            for key, (value, ttl_ms) in saved.items():
                await client.restore(key, max(ttl_ms, 0), value)

    async def emptied(self) -> None:
        async with self.server() as client:
            await client.flushall()


@pytest.fixture
async def site(store_url: str, tmp_path: Path, faulty: Faulty) -> AsyncIterator[Site]:
    site = Site(store_url, tmp_path, faulty)
    yield site
    for gateway in site.gateways:
        await gateway.stop()


@pytest.fixture
async def gateway(site: Site) -> Gateway:
    return await site.gateway()


# ---- what is answered


async def test_feedback_is_applied_then_a_duplicate_then_revised_then_a_conflict(gateway: Gateway) -> None:
    decision_id = gateway.decide()
    await gateway.tick()
    assert await gateway.rate(decision_id, 0.25, "one") is APPLIED
    assert await gateway.rate(decision_id, 0.25, "one") is DUPLICATE
    assert await gateway.rate(decision_id, 0.75, "two") is REVISED
    assert await gateway.rate(decision_id, 0.5, "two") is Answer.CONFLICT
    await gateway.tick()
    assert gateway.ratings() == (1.0, 0.75)


async def test_without_a_key_of_its_own_feedback_is_known_by_its_source(gateway: Gateway) -> None:
    decision_id = gateway.decide()
    assert await gateway.rate(decision_id, 0.25) is APPLIED
    assert await gateway.rate(decision_id, 0.25) is DUPLICATE
    assert await gateway.rate(decision_id, 0.75) is Answer.CONFLICT
    assert await gateway.rate(decision_id, 0.75, source="judge:a") is APPLIED


async def test_one_key_serves_several_values_of_one_request(gateway: Gateway) -> None:
    decision_id = gateway.decide()
    values = [
        Value("rating", RATED, "user", 0.5, "k"),
        Value("judge_score", RATED, "judge:a", 0.75, "k"),
        Value("cost_usd", CHARGED, "application", 0.5, "k"),
    ]
    assert await gateway.intake.give(decision_id, values) == [APPLIED] * 3
    assert await gateway.intake.give(decision_id, values) == [DUPLICATE] * 3
    await gateway.tick()
    assert gateway.ratings() == (2.0, 1.25)
    assert gateway.replica.state.calls["small"].reported_nano_usd == 500_000_000


async def test_feedback_quicker_than_its_decision_brings_the_decision_along(gateway: Gateway) -> None:
    decision_id = gateway.decide("large")
    assert await gateway.store.get_decision(decision_id) is None
    assert await gateway.rate(decision_id) is APPLIED
    await gateway.tick()
    assert gateway.ratings() == (1.0, 0.5)
    assert await gateway.rate(decision_id) is DUPLICATE


async def test_an_id_signed_with_the_secret_before_is_still_taken(gateway: Gateway) -> None:
    decision_id = new_id(SECRETS[1], gateway.site.scope, now_s=gateway.site.clock(), entropy=bytes(8))
    gateway.recorder.decided(decision_id, gateway.record())
    assert await gateway.rate(decision_id) is APPLIED


@pytest.mark.parametrize(
    "decision_id",
    [
        "rt-" + "a" * 40,
        "",
        "chatcmpl-123",
        new_id(b"x" * 32, "tenant.route", now_s=1.79e9, entropy=bytes(8)),
        new_id(SECRETS[0], "other.route", now_s=1.79e9, entropy=bytes(8)),
    ],
)
async def test_an_id_that_is_forged_or_foreign_is_404_and_kept_nowhere(
    gateway: Gateway, decision_id: str
) -> None:
    with pytest.raises(FeedbackRefusedError) as refused:
        await gateway.rate(decision_id)
    assert (refused.value.status, refused.value.param) == (404, "decision_id")
    assert gateway.spool.pending() == []


async def test_after_the_window_it_is_410_and_not_a_second_before(gateway: Gateway) -> None:
    decision_id, late = gateway.decide(), gateway.decide()
    gateway.site.clock.now += WINDOW_S
    assert await gateway.rate(decision_id) is APPLIED
    gateway.site.clock.now += 1
    with pytest.raises(FeedbackRefusedError, match="168 hours") as refused:
        await gateway.rate(late)
    assert refused.value.status == 410
    assert len(gateway.spool.pending()) == 1


async def test_what_the_caller_was_told_is_refused_leaves_nothing_behind(gateway: Gateway) -> None:
    decision_id = gateway.decide()
    await gateway.rate(decision_id, 0.25)
    await gateway.rate(decision_id, 0.75)
    assert [entry.payload["value"] for entry in gateway.spool.pending()] == [0.25]
    assert gateway.dead() == []


def test_one_status_for_several_values_is_the_one_that_leaves_most_to_be_done() -> None:
    assert overall([DUPLICATE, APPLIED, QUEUED]) == "queued"
    assert overall([DUPLICATE, REVISED, APPLIED]) == "applied"
    assert overall([DUPLICATE, REVISED]) == "revised"
    assert overall([DUPLICATE]) == "duplicate"


# ---- a store that is away


async def test_feedback_waits_on_disk_while_the_store_is_away_and_counts_once(gateway: Gateway) -> None:
    decision_ids = [gateway.decide() for _ in range(5)]
    gateway.store.away = True
    assert [await gateway.rate(decision_id) for decision_id in decision_ids] == [QUEUED] * 5
    assert gateway.intake.queued == len(gateway.spool.pending()) == 5
    for _ in range(3):
        with pytest.raises(StoreError):
            await gateway.tick()
    gateway.store.away = False
    await gateway.tick(3)
    assert gateway.intake.queued == gateway.intake.unsettled == 0
    assert gateway.ratings() == (5.0, 2.5)


async def test_feedback_whose_answer_was_lost_counts_once(gateway: Gateway) -> None:
    decision_id = gateway.decide()
    gateway.store.loses_answers = True
    assert await gateway.rate(decision_id) is QUEUED
    gateway.store.loses_answers = False
    assert await gateway.rate(decision_id) is QUEUED  # the caller, too, tries again: behind the first
    await gateway.tick(2)
    assert await gateway.rate(decision_id) is DUPLICATE
    assert gateway.ratings() == (1.0, 0.5)
    assert gateway.intake.queued == 0


async def test_watchers_hear_of_what_the_store_took_and_of_nothing_else(gateway: Gateway) -> None:
    heard: list[tuple[str, float | None]] = []
    gateway.intake.watchers.append(lambda feedback: heard.append((feedback.decision_id, feedback.value)))
    first, second = gateway.decide(), gateway.decide()
    gateway.store.loses_answers = True
    assert await gateway.rate(first) is QUEUED
    assert heard == [], "nobody knows yet"
    gateway.store.loses_answers = False
    await gateway.tick()
    assert await gateway.rate(first) is DUPLICATE
    assert await gateway.rate(first, 0.75, "again") is REVISED
    with pytest.raises(FeedbackRefusedError):
        await gateway.rate(gateway.decide()[:-1] + "x")
    gateway.disk_works = False
    assert await gateway.rate(second, 0.25) is APPLIED
    assert heard == [(first, 0.5), (first, 0.75), (second, 0.25)]


async def test_a_caller_who_leaves_while_the_store_is_asked_leaves_the_feedback_behind(
    gateway: Gateway,
) -> None:
    asked, reply = asyncio.Event(), asyncio.Event()

    async def hold(_: str) -> None:
        asked.set()
        await reply.wait()

    gateway.store.before = hold
    caller = asyncio.create_task(gateway.rate(gateway.decide()))
    await asked.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    reply.set()
    async with asyncio.timeout(5):
        while gateway.ratings() != (1.0, 0.5):
            await gateway.tick()
    await gateway.tick()
    assert gateway.ratings() == (1.0, 0.5), "once, and not again"


async def test_queued_values_end_with_the_one_given_last(gateway: Gateway) -> None:
    decision_id = gateway.decide()
    gateway.store.away = True
    for value, key in ((0.1, "first"), (0.2, "second"), (0.3, "third")):
        assert await gateway.rate(decision_id, value, key) is QUEUED
    gateway.store.away = False
    await gateway.tick()
    assert gateway.ratings() == (1.0, 0.3)


async def test_a_value_given_when_the_store_is_back_does_not_overtake_one_that_is_queued(
    gateway: Gateway,
) -> None:
    decision_id, another = gateway.decide(), gateway.decide()
    gateway.store.away = True
    assert await gateway.rate(decision_id, 0.25, "first") is QUEUED
    gateway.store.away = False
    assert await gateway.rate(another, 0.5) is APPLIED
    assert await gateway.rate(decision_id, 0.75, "second") is QUEUED
    await gateway.tick()
    assert gateway.ratings() == (2.0, 1.25)
    assert await gateway.rate(decision_id, 1.0, "third") is REVISED


# ---- a decision that is not visible


async def test_feedback_for_another_gateways_decision_waits_until_that_is_written(site: Site) -> None:
    one, other = await site.gateway("one"), await site.gateway("two")
    decision_id = one.decide()
    assert await other.rate(decision_id) is QUEUED
    await other.tick()
    assert other.intake.queued == 1
    await one.tick()
    await other.tick()
    assert other.intake.queued == 0
    assert other.ratings() == (1.0, 0.5)


async def test_what_is_learned_of_a_decision_is_written_to_all_feedback_that_waits_for_it(site: Site) -> None:
    """A failover may take back the decision too, and only what is in the spool is sent again."""
    one, other = await site.gateway("one"), await site.gateway("two")
    decision_id = one.decide()
    for source in ("user", "judge"):
        assert await other.rate(decision_id, source=source) is QUEUED
    await one.tick()
    await other.tick()
    assert other.intake.unsettled == 0
    assert all(entry.payload["record"] for entry in other.spool.pending())


async def test_a_decision_that_appears_during_an_outage_is_rated_soon_after_it(site: Site) -> None:
    """The pause once grew with the time waited: who had asked before the outage asked again as long after it."""
    one, other = await site.gateway("one"), await site.gateway("two")
    decision_id = one.decide()
    assert await other.rate(decision_id) is QUEUED
    await other.tick()
    other.store.away = True
    site.clock.now += 30
    with pytest.raises(StoreError):
        await other.tick()
    await one.tick()
    other.store.away = False
    site.clock.now += 1
    await other.tick()
    assert other.intake.queued == 0


async def test_a_decision_that_never_appears_ends_among_the_dead_letters_after_the_window(
    gateway: Gateway,
) -> None:
    decision_id = gateway.decide(recorded=False)
    assert await gateway.rate(decision_id, 0.25) is QUEUED
    gateway.site.clock.now += WINDOW_S
    await gateway.tick()
    assert gateway.dead() == []
    assert gateway.intake.queued == 1
    gateway.site.clock.now += 61
    await gateway.tick()
    (letter,) = gateway.dead()
    assert "within the feedback window" in letter["reason"]
    assert (letter["payload"]["id"], letter["payload"]["value"]) == (decision_id, 0.25)
    assert gateway.intake.queued == 0
    assert gateway.spool.pending() == []


async def test_decisions_that_never_appear_hold_up_nobody(gateway: Gateway) -> None:
    for _ in range(RESEND_AT_A_TIME + 10):
        assert await gateway.rate(gateway.decide(recorded=False)) is QUEUED
    decision_id = gateway.decide()
    gateway.store.away = True
    assert await gateway.rate(decision_id) is QUEUED
    gateway.store.away = False
    for _ in range(3):
        gateway.site.clock.now += 0.2
        await gateway.tick()
    assert gateway.ratings() == (1.0, 0.5)
    assert gateway.intake.queued == RESEND_AT_A_TIME + 10


async def test_a_decision_that_appears_late_is_joined_and_asked_for_ever_more_seldom(
    gateway: Gateway,
) -> None:
    decision_id = gateway.decide(recorded=False)
    await gateway.rate(decision_id)
    asked: Counter[str] = Counter()

    async def count(call: str) -> None:
        asked[call] += 1

    gateway.store.before = count
    for _ in range(7200):
        gateway.site.clock.now += 1
        await gateway.intake.resend(gateway.site.scope)
    assert 100 < asked["give_feedback"] < 140  # a doubling pause, then once a minute
    gateway.recorder.decided(decision_id, gateway.record())
    gateway.site.clock.now += 60
    await gateway.tick()
    assert gateway.ratings() == (1.0, 0.5)


async def test_a_later_value_does_not_overtake_one_that_waits_for_its_decision(gateway: Gateway) -> None:
    decision_id = gateway.decide(recorded=False)
    await gateway.rate(decision_id, 0.1, "first")
    await gateway.rate(decision_id, 0.2, "second")

    async def then_it_appears(_: str) -> None:
        await gateway.store.log.put_decisions({decision_id: gateway.record()})

    gateway.store.after = then_it_appears
    await gateway.tick(3)
    assert gateway.ratings() == (1.0, 0.2)


async def test_a_queued_feedback_that_is_refused_ends_among_the_dead_letters(gateway: Gateway) -> None:
    decision_id = gateway.decide()
    gateway.store.away = True
    assert await gateway.rate(decision_id, 0.25) is QUEUED
    assert await gateway.rate(decision_id, 0.75) is QUEUED
    gateway.store.away = False
    await gateway.tick(2)
    (letter,) = gateway.dead()
    assert "same idempotency key" in letter["reason"]
    assert letter["payload"]["value"] == 0.75
    assert gateway.ratings() == (1.0, 0.25)


# ---- when it is done


async def test_feedback_leaves_the_disk_only_a_while_after_it_was_read_back(gateway: Gateway) -> None:
    await gateway.rate(gateway.decide())
    for _ in range(3):  # not polled: not read back, however long ago it was applied
        gateway.site.clock.now += RETAIN_S
        await gateway.intake.settle(gateway.site.scope, History.CONTINUED)
    assert len(gateway.spool.pending()) == gateway.intake.unsettled == 1
    await gateway.tick()
    assert gateway.intake.unsettled == 0
    gateway.site.clock.now += RETAIN_S - 1
    await gateway.tick()
    assert len(gateway.spool.pending()) == 1
    gateway.site.clock.now += 1
    await gateway.tick()
    assert gateway.spool.pending() == []


async def test_feedback_that_went_by_among_very_many_entries_is_still_known_as_done(gateway: Gateway) -> None:
    """More entries in one poll than a replica remembers by name: it is sent again, and is a duplicate."""
    decision_id = gateway.decide()
    await gateway.rate(decision_id)
    for _ in range(20):
        await asyncio.gather(*(gateway.route.log.append(b"entry") for _ in range(TOKENS_REMEMBERED // 16)))
    await gateway.tick()
    assert gateway.ratings() == (1.0, 0.5)
    assert gateway.intake.unsettled == 1
    await gateway.tick()
    assert gateway.intake.unsettled == 0
    assert gateway.ratings() == (1.0, 0.5)


async def test_a_restart_finishes_what_was_queued(site: Site) -> None:
    gateway = await site.gateway()
    decision_ids = [gateway.decide() for _ in range(3)]
    gateway.store.away = True
    for decision_id in decision_ids:
        await gateway.rate(decision_id)
    gateway = await site.restarted(gateway)
    assert gateway.intake.queued == 3
    await gateway.tick(2)
    assert gateway.ratings() == (3.0, 1.5)
    assert gateway.intake.queued == 0


@pytest.mark.parametrize("settled", [False, True])
async def test_a_restart_counts_nothing_twice(site: Site, settled: bool) -> None:
    gateway = await site.gateway()
    decision_id = gateway.decide()
    await gateway.rate(decision_id, 0.25, "first")
    await gateway.rate(decision_id, 0.75, "second")
    if settled:
        await gateway.tick()
    gateway = await site.restarted(gateway)
    assert gateway.intake.queued == 2
    await gateway.tick(3)
    assert gateway.ratings() == (1.0, 0.75)
    assert gateway.intake.unsettled == 0


async def test_two_gateways_given_the_same_feedback_count_it_once(site: Site) -> None:
    one, other = await site.gateway("one"), await site.gateway("two")
    decision_id = one.decide()
    await one.tick()
    answers = await asyncio.gather(one.rate(decision_id), other.rate(decision_id))
    assert Counter(answers) == {APPLIED: 1, DUPLICATE: 1}
    for gateway in (one, other):
        await gateway.tick(2)
        assert gateway.ratings() == (1.0, 0.5)
    assert one.replica.state.digest() == other.replica.state.digest()


async def test_feedback_for_a_route_that_is_no_longer_configured_is_a_dead_letter(site: Site) -> None:
    gateway = await site.gateway()
    gateway.store.away = True
    await gateway.rate(gateway.decide(), 0.25)
    await gateway.stop()
    await gateway.start(scopes=["tenant.another"])
    (letter,) = gateway.dead()
    assert letter["reason"] == f"its route {site.scope} is not configured"
    assert letter["payload"]["value"] == 0.25
    assert gateway.spool.pending() == []


# ---- a store that lost something


async def test_what_a_failover_took_back_is_sent_again(site: Site) -> None:
    gateway = await site.gateway()
    kept, lost = gateway.decide(), gateway.decide()
    await gateway.tick()
    await gateway.rate(kept, 0.25)
    await gateway.tick()
    saved = await site.saved()
    await gateway.rate(lost, 0.75)
    await gateway.tick()
    assert gateway.ratings() == (2.0, 1.0)
    await site.back_to(saved)
    await gateway.tick(3)
    assert gateway.ratings() == (2.0, 1.0)
    assert gateway.intake.unsettled == 0
    assert len(gateway.spool.pending()) == 2


async def test_what_a_failover_left_counts_once_though_it_is_sent_again(site: Site) -> None:
    gateway = await site.gateway()
    decision_id = gateway.decide()
    await gateway.rate(decision_id, 0.25)
    saved = await site.saved()
    await gateway.route.log.append(b"lost")
    await gateway.tick()
    await site.back_to(saved)
    await gateway.tick(3)
    assert gateway.replica.counters.reloads == 1
    assert gateway.ratings() == (1.0, 0.25)
    assert await gateway.rate(decision_id, 0.25) is DUPLICATE


async def test_after_a_failover_too_the_value_given_last_is_the_one_that_counts(site: Site) -> None:
    """The first is settled and the second is not when both are lost: they go again in the order they came."""
    gateway = await site.gateway()
    decision_id = gateway.decide()
    await gateway.tick()
    saved = await site.saved()
    await gateway.rate(decision_id, 0.25, "first")
    await gateway.tick()
    await gateway.rate(decision_id, 0.75, "second")
    await site.back_to(saved)
    await gateway.tick(3)
    assert gateway.ratings() == (1.0, 0.75)


@pytest.mark.parametrize("settled", [True, False], ids=["settled", "read back only"])
async def test_what_the_log_is_refilled_with_is_not_counted_again(site: Site, settled: bool) -> None:
    gateway = await site.gateway()
    await gateway.rate(gateway.decide())
    await (gateway.tick() if settled else gateway.replica.poll())
    await site.emptied()
    await gateway.tick(3)
    assert gateway.replica.counters.seeds == 2
    assert gateway.ratings() == (1.0, 0.5)
    assert gateway.intake.unsettled == 0
    site.clock.now += RETAIN_S
    await gateway.tick()
    assert gateway.spool.pending() == []


async def test_what_was_applied_and_not_read_back_survives_the_loss_of_everything(site: Site) -> None:
    gateway = await site.gateway()
    await gateway.rate(gateway.decide())
    await gateway.tick()
    await gateway.rate(gateway.decide(), 1.0)
    await site.emptied()
    await gateway.tick(3)
    assert gateway.ratings() == (2.0, 1.5)


async def test_a_gateway_sends_again_what_another_refilled_the_log_without(site: Site) -> None:
    """`behind` refills the log; `ahead` had read back one more, and both hold what they were given themselves."""
    behind, ahead = await site.gateway("one"), await site.gateway("two")
    await behind.rate(behind.decide(), 0.25)
    await ahead.rate(ahead.decide(), 0.5)
    await behind.tick()
    await ahead.tick()
    await ahead.rate(ahead.decide(), 1.0)
    await ahead.tick()
    await site.emptied()
    await behind.tick()
    await ahead.tick(2)
    await behind.tick(2)
    await ahead.tick()
    assert ahead.ratings() == behind.ratings() == (3.0, 1.75)
    assert ahead.replica.state.digest() == behind.replica.state.digest()


async def test_a_gateway_that_was_behind_does_not_send_again_what_the_log_was_refilled_with(
    site: Site,
) -> None:
    behind, ahead = await site.gateway("one"), await site.gateway("two")
    await behind.rate(behind.decide(), 0.25)
    await behind.tick()
    await behind.rate(behind.decide(), 0.5)  # applied, and read back by the other only
    await ahead.rate(ahead.decide(), 1.0)
    await ahead.tick()
    await site.emptied()
    await ahead.tick()
    for _ in range(3):
        await behind.tick()
        await ahead.tick()
    assert ahead.ratings() == behind.ratings() == (3.0, 1.75)


async def test_a_store_that_lost_everything_is_refilled_though_calls_wait_to_be_counted(site: Site) -> None:
    gateway = await site.gateway()
    await gateway.rate(gateway.decide())
    await gateway.tick()
    await site.emptied()
    gateway.recorder.called("small", CallStatistics(calls=1))
    await gateway.tick(3)
    assert gateway.ratings() == (1.0, 0.5)
    assert gateway.replica.state.calls["small"].calls == 1


async def test_feedback_for_a_store_that_is_not_yet_refilled_is_queued(site: Site) -> None:
    gateway = await site.gateway()
    await site.emptied()
    assert await gateway.rate(gateway.decide()) is QUEUED
    await gateway.tick(3)
    assert gateway.ratings() == (1.0, 0.5)


async def test_a_gateway_that_began_without_the_store_takes_up_what_is_there(site: Site) -> None:
    one = await site.gateway("one")
    await one.rate(one.decide())
    await one.tick()
    other = Gateway(site, "two")
    faulty, site.faulty = site.faulty, lambda log: away(faulty(log))
    await other.start()
    site.faulty = faulty
    site.gateways.append(other)
    assert str(other.learning.store_error) == "away"
    assert await other.rate(other.decide(), 1.0) is QUEUED
    other.store.away = False
    await other.tick(3)
    assert other.learning.store_error is None
    assert other.ratings() == (2.0, 1.5)


def away(log: Any) -> Any:
    log.away = True
    return log


# ---- a disk that takes nothing


async def test_without_the_disk_the_stores_word_is_enough(gateway: Gateway) -> None:
    decision_id = gateway.decide()
    gateway.disk_works = False
    assert await gateway.rate(decision_id) is APPLIED
    assert await gateway.rate(decision_id) is DUPLICATE
    assert gateway.spool.pending() == []
    gateway.disk_works = True
    assert await gateway.rate(decision_id, 0.75, "again") is REVISED
    await gateway.tick()
    assert gateway.ratings() == (1.0, 0.75)


async def test_with_neither_disk_nor_store_the_caller_is_told_to_try_again(gateway: Gateway) -> None:
    decision_id = gateway.decide()
    gateway.disk_works, gateway.store.away = False, True
    with pytest.raises(FeedbackRefusedError, match="later") as refused:
        await gateway.rate(decision_id)
    assert (refused.value.status, refused.value.code) == (503, "store_unavailable")
    gateway.disk_works, gateway.store.away = True, False
    assert await gateway.rate(decision_id) is APPLIED


async def test_without_the_disk_nothing_can_wait_for_its_decision(gateway: Gateway) -> None:
    gateway.disk_works = False
    with pytest.raises(FeedbackRefusedError, match="not visible yet") as refused:
        await gateway.rate(gateway.decide(recorded=False))
    assert refused.value.status == 503


async def test_learning_goes_on_while_a_dead_letter_cannot_be_written(gateway: Gateway) -> None:
    gateway.store.away = True
    decision_id, other = gateway.decide(), gateway.decide()
    for value in (0.25, 0.75):
        await gateway.rate(decision_id, value)
    gateway.store.away = False
    (gateway.folder / DEAD_LETTERS).mkdir()
    await gateway.rate(other, 1.0)
    await gateway.tick(3)
    assert gateway.ratings() == (2.0, 1.25)
    assert gateway.intake.queued == 1
    (gateway.folder / DEAD_LETTERS).rmdir()
    await gateway.tick()
    assert [letter["payload"]["value"] for letter in gateway.dead()] == [0.75]
    assert gateway.intake.queued == 0


async def test_everything_together(site: Site) -> None:
    """Two gateways, a store that comes and goes, answers that get lost, failovers and restarts: each counts once."""
    rng = np.random.default_rng(7)
    gateways = [await site.gateway("one"), await site.gateway("two")]
    wanted: dict[str, float] = {}
    for step in range(60):
        n = int(rng.integers(2))
        gateway = gateways[n]
        site.clock.now += 1
        gateway.store.away, gateway.store.loses_answers = rng.random() < 0.2, rng.random() < 0.2
        decision_id = gateway.decide(["small", "large"][step % 2])
        for key in range(int(rng.integers(1, 4))):
            wanted[decision_id] = step / 60 + key / 1000
            await gateway.rate(decision_id, wanted[decision_id], f"{key}")
        gateway.store.away = gateway.store.loses_answers = False
        await gateway.tick()
        if step % 13 == 5:
            gateways[n] = await site.restarted(gateway)
        if step % 17 == 3:
            saved = await site.saved()
        if step % 17 == 9:
            await site.back_to(saved)
    site.clock.now += 60
    for gateway in gateways * 4:
        await gateway.tick()
    for gateway in gateways:
        assert gateway.ratings() == pytest.approx((len(wanted), sum(wanted.values())), rel=1e-4)
        assert gateway.intake.queued == 0
        assert gateway.dead() == []
    assert gateways[0].replica.state.digest() == gateways[1].replica.state.digest()
    assert gateways[0].replica.state.cursor != START
    assert SNAPSHOT_S < RETAIN_S  # what a reload may take back is still on disk


async def test_a_restart_after_the_window_counts_nothing_twice(site: Site) -> None:
    """Killed with settled feedback still in its spool, and started when the store has forgotten its keys."""
    gateway = await site.gateway("killed")
    decision_id = gateway.decide()
    assert await gateway.rate(decision_id) is APPLIED
    await gateway.tick(2)
    site.clock.now += WINDOW_S + 60
    again = await site.restarted(gateway)
    async with Redis.from_url(site.url) as client:
        await client.delete(*[key async for key in client.scan_iter(f"*{site.scope}*:[df]:*")])
    await again.tick(2)
    assert again.ratings()[0] == 1.0
    assert [letter["payload"]["id"] for letter in again.dead()] == [decision_id]


@pytest.mark.parametrize("away_s", [60.0, WINDOW_S + 60.0])
async def test_after_a_clean_end_a_failover_may_still_take_it_back(site: Site, away_s: float) -> None:
    """What was settled is sent again by the next life, as long as it can be rated, and is then let go of in silence."""
    gateway = await Gateway(site, "clean").start()
    saved = await site.saved()
    assert await gateway.rate(gateway.decide()) is APPLIED
    await gateway.tick(2)
    await gateway.learning.close()
    await site.back_to(saved)
    site.clock.now += away_s
    again = await site.gateway("clean")
    await again.tick(2)
    assert again.ratings()[0] == (1.0 if away_s < WINDOW_S else 0.0)
    assert again.dead() == []
    assert len(again.spool.pending()) == (1 if away_s < WINDOW_S else 0)


async def test_a_value_given_right_after_a_failover_is_not_overwritten_by_an_older_one(
    gateway: Gateway,
) -> None:
    decision_id = gateway.decide()
    assert await gateway.rate(decision_id, 0.0, "first") is APPLIED
    await gateway.tick()
    await gateway.intake.settle(gateway.site.scope, History.REPLACED)
    assert await gateway.rate(decision_id, 1.0, "second") is QUEUED
    await gateway.tick(2)
    assert gateway.ratings() == (1.0, 1.0)


# ---- withdrawals


async def withdraw(gateway: Gateway, decision_id: str, key: str) -> Answer | None:
    (answer,) = await gateway.intake.give(decision_id, [Value("rating", RATED, "user", None, key)])
    return answer


async def test_a_withdrawal_waits_on_disk_while_the_store_is_away_and_counts_once(gateway: Gateway) -> None:
    decision_id, other = gateway.decide(), gateway.decide()
    assert await gateway.rate(decision_id, 0.5) is Answer.APPLIED
    assert await gateway.rate(other, 1.0) is Answer.APPLIED
    gateway.store.away = True
    assert await withdraw(gateway, decision_id, "undo") is QUEUED
    gateway.store.away = False
    await gateway.tick(2)
    assert gateway.ratings() == (1.0, 1.0)
    assert (await withdraw(gateway, decision_id, "undo"), gateway.intake.queued) == (DUPLICATE, 0)
    await gateway.tick(2)
    assert gateway.ratings() == (1.0, 1.0)


async def test_a_withdrawal_stays_behind_the_rating_that_it_takes_back(gateway: Gateway) -> None:
    """Both queued: in the order given they leave nothing; the other way round the rating would stay."""
    decision_id = gateway.decide()
    gateway.store.away = True
    assert await gateway.rate(decision_id, 0.5) is QUEUED
    assert await withdraw(gateway, decision_id, "undo") is QUEUED
    gateway.store.away = False
    await gateway.tick(3)
    assert gateway.ratings() == (0.0, 0.0)
    assert gateway.dead() == []


async def test_a_queued_withdrawal_of_nothing_ends_in_the_dead_letters_with_its_reason(
    gateway: Gateway,
) -> None:
    decision_id = gateway.decide()
    await gateway.tick()
    gateway.store.away = True
    assert await withdraw(gateway, decision_id, "undo") is QUEUED
    gateway.store.away = False
    await gateway.tick(2)
    assert gateway.intake.queued == 0
    assert ["nothing to withdraw" in str(letter) for letter in gateway.dead()] == [True]
