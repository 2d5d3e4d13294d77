"""Budgets: exact sums whatever is sent twice, lost or late, and never more than a lease per replica above the limit."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from feedback.budget import Account, Budget, Ledger, Purse
from feedback.ledgers import MemoryLedger
from feedback.redis_store import RedisStore
from feedback.spool import Spool
from feedback.store import StoreError

NANO = 10**9
BUDGET = Budget("all", limit_nano_usd=10 * NANO, lease_nano_usd=2 * NANO, lease_s=30.0)
NOW = 1.79e9


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class Unreliable:
    """A ledger that fails while `away`, and that does what it is asked without saying so while it `loses_answers`."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.away, self.loses_answers = ledger, False, False

    async def _ask(self, name: str, *arguments: Any) -> Any:
        if self.away:
            raise StoreError("away")
        answer = await getattr(self.ledger, name)(*arguments)
        if self.loses_answers:
            raise StoreError("the answer was lost")
        return answer

    async def lease(self, budget: Budget, window: str, replica: str) -> Account:
        return await self._ask("lease", budget, window, replica)

    async def settle(self, budget: Budget, window: str, replica: str, costs: Mapping[str, int]) -> int:
        return await self._ask("settle", budget, window, replica, costs)

    async def give_back(self, budget: Budget, window: str, replica: str) -> None:
        await self._ask("give_back", budget, window, replica)


class Site:
    def __init__(self, budget: Budget = BUDGET) -> None:
        self.budget, self.clock = budget, Clock()
        self.ledger = MemoryLedger(self.clock)

    def purse(self, replica: str, journal: Spool | None = None) -> tuple[Purse, Unreliable]:
        ledger = Unreliable(self.ledger)
        purse = Purse(
            self.budget, ledger, replica=replica, clock=self.clock, ticks=self.clock, journal=journal
        )
        return purse, ledger

    async def account(self) -> Account:
        """As it stands, seen by one who takes nothing."""
        window = self.budget.window(self.clock.now)
        book = self.ledger._book(self.budget, window)
        return Account(book.spent, book.held)


# ---- one replica


async def test_a_call_is_reserved_from_the_lease_and_settled_at_what_it_cost() -> None:
    site = Site()
    purse, _ = site.purse("a")
    assert not purse.reserve("early", 0.5), "nothing is leased yet"
    await purse.tick()
    assert purse.reserve("one", 1.5)
    assert not purse.reserve("two", 0.75), "the lease is 2 USD"
    purse.settle("one", 0.25)
    assert purse.reserve("two", 0.75)
    await purse.tick()
    assert await site.account() == Account(spent=NANO // 4, held=2 * NANO)
    assert purse.refused == 2


async def test_settling_again_or_what_was_never_reserved_changes_nothing() -> None:
    site = Site()
    purse, _ = site.purse("a")
    await purse.tick()
    purse.reserve("one", 1.0)
    for usd in (0.5, 0.75):
        purse.settle("one", usd)
    purse.settle("unknown", 1.0)
    await purse.tick()
    assert (await site.account()).spent == NANO // 2


async def test_a_settlement_whose_answer_was_lost_is_charged_once() -> None:
    site = Site()
    purse, ledger = site.purse("a")
    await purse.tick()
    purse.reserve("one", 1.0)
    purse.settle("one", 1.0)
    ledger.loses_answers = True
    for _ in range(3):
        with pytest.raises(StoreError):
            await purse.tick()
    ledger.loses_answers = False
    await purse.tick()
    assert await site.account() == Account(spent=NANO, held=2 * NANO)


async def test_a_lease_that_is_not_renewed_is_not_drawn_on_and_returns() -> None:
    site = Site()
    purse, ledger = site.purse("a")
    other, _ = site.purse("b")
    await purse.tick()
    ledger.away = True
    site.clock.now += 0.9 * BUDGET.lease_s
    assert not purse.reserve("late", 0.1), "the store may soon give it to others"
    await other.tick()
    assert (await site.account()).held == 4 * NANO
    site.clock.now += 0.2 * BUDGET.lease_s
    await other.tick()
    assert (await site.account()).held == 2 * NANO


@pytest.mark.parametrize(("when_away", "cap", "may"), [("fail_open", 1.0, 2), ("fail_closed", 1.0, 0)])
async def test_without_the_store_and_the_lease_a_local_cap_decides(
    when_away: Any, cap: float, may: int
) -> None:
    site = Site(Budget("all", 10 * NANO, 2 * NANO, when_away=when_away, local_cap_nano_usd=int(cap * NANO)))
    purse, ledger = site.purse("a")
    await purse.tick()
    assert purse.reserve("leased", 2.0)
    ledger.away = True
    assert not purse.reserve("not yet known to be away", 0.5)
    with pytest.raises(StoreError):
        await purse.tick()
    assert sum(purse.reserve(f"beyond {n}", 0.5) for n in range(5)) == may
    ledger.away = False
    for n in range(5):
        purse.settle(f"beyond {n}", 0.5)
    await purse.tick()
    assert (await site.account()).spent == may * NANO // 2, "it is charged all the same"


async def test_a_new_period_begins_a_new_budget_and_the_old_one_is_settled_where_it_was_spent() -> None:
    site = Site(Budget("all", 10 * NANO, 2 * NANO, period="day"))
    purse, _ = site.purse("a")
    await purse.tick()
    first = site.budget.window(site.clock.now)
    assert purse.reserve("yesterday", 1.0)
    site.clock.now += 86_400
    assert not purse.reserve("today", 0.5), "nothing is leased of today yet"
    await purse.tick()
    assert purse.reserve("today", 0.5)
    purse.settle("yesterday", 1.0)
    await purse.tick()
    await purse.tick()
    book = site.ledger._book(site.budget, first)
    assert (book.spent, book.held) == (NANO, 0)
    assert (await site.account()).spent == 0


async def test_a_clean_end_gives_back_what_is_left() -> None:
    site = Site()
    purse, _ = site.purse("a")
    await purse.tick()
    purse.reserve("one", 1.0)
    purse.settle("one", 0.5)
    await purse.close()
    assert await site.account() == Account(spent=NANO // 2, held=0)


async def test_costs_on_disk_are_charged_by_the_next_life(tmp_path: Path) -> None:
    """Killed between the disk and the store, or between the store and the mark: charged once."""
    site = Site()
    for life, loses in enumerate([True, False]):
        journal = await Spool.open(tmp_path, worker=f"w{life}", clock=site.clock)
        purse, ledger = site.purse(f"a{life}", journal)
        await purse.tick()
        if loses:
            purse.reserve("one", 1.0)
            purse.settle("one", 1.0)
            ledger.loses_answers = True
            with pytest.raises(StoreError):
                await purse.tick()
            journal.abandon()
    await journal.close()
    journal = await Spool.open(tmp_path, worker="w2", clock=site.clock)
    assert journal.pending() == []
    assert (await site.account()).spent == NANO
    await journal.close()


async def test_costs_made_while_the_store_is_away_are_on_disk_before_anybody_is_killed(
    tmp_path: Path,
) -> None:
    site = Site()
    journal = await Spool.open(tmp_path, worker="w0", clock=site.clock)
    purse, ledger = site.purse("a0", journal)
    await purse.tick()
    ledger.away = True
    for n in range(3):
        purse.reserve(f"call {n}", 0.25)
        purse.settle(f"call {n}", 0.25)
        with pytest.raises(StoreError):
            await purse.tick()
    assert purse.room_usd() == pytest.approx(2.0 - 0.75), "they are drawn from the lease all the same"
    journal.abandon()
    journal = await Spool.open(tmp_path, worker="w1", clock=site.clock)
    await site.purse("a1", journal)[0].tick()
    assert (await site.account()).spent == 3 * NANO // 4
    await journal.close()


async def test_a_call_that_was_made_without_room_is_billed() -> None:
    site = Site()
    purse, _ = site.purse("a")
    await purse.tick()
    purse.draw("more than the lease", 3.0)
    assert purse.room_usd() == 0.0
    purse.settle("more than the lease", 2.5)
    await purse.tick()
    assert await site.account() == Account(spent=5 * NANO // 2, held=2 * NANO)
    assert purse.room_usd() == pytest.approx(2.0)


async def test_what_is_settled_without_an_amount_costs_what_was_set_aside() -> None:
    site = Site()
    purse, _ = site.purse("a")
    await purse.tick()
    purse.reserve("nobody knows", 1.0)
    purse.settle("nobody knows", None)
    await purse.tick()
    assert (await site.account()).spent == NANO


@pytest.mark.parametrize(
    "wrong",
    [
        {"lease_nano_usd": 0},
        {"lease_nano_usd": 11 * NANO},
        {"limit_nano_usd": 2**60},
        {"name": "a:b"},
        {"lease_s": 0.0},
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(wrong: dict[str, Any]) -> None:
    right = {"name": "all", "limit_nano_usd": 10 * NANO, "lease_nano_usd": NANO}
    with pytest.raises(ValueError, match=r"budget|lease"):
        Budget(**(right | wrong))


# ---- many replicas


@pytest.mark.parametrize("seed", range(40))
async def test_whatever_fails_spending_stays_within_a_lease_per_replica_of_the_limit(  # noqa: C901 - one story
    seed: int,
) -> None:
    """Crashes, lost answers, outages and late settlements; afterwards the books are exact and nothing is held."""
    rng, site, replicas = random.Random(seed), Site(), 4
    purses = [site.purse(f"r{n}") for n in range(replicas)]
    open_: list[tuple[Purse, str, float]] = []
    charged: dict[str, float] = {}
    for step in range(400):
        site.clock.now += rng.choice([0.1, 0.2, 3.0])
        n = rng.randrange(replicas)
        purse, ledger = purses[n]
        match rng.choices(["reserve", "settle", "tick", "fault", "crash"], [40, 30, 25, 4, 1])[0]:
            case "reserve":
                usd = rng.randint(1, 40) / 64
                if purse.reserve(f"d{step}", usd):
                    open_.append((purse, f"d{step}", usd))
            case "settle" if open_:
                owner, decision, usd = open_.pop(rng.randrange(len(open_)))
                if any(owner is purse for purse, _ in purses):
                    charged[decision] = usd * rng.choice([0.25, 1.0])
                    owner.settle(decision, charged[decision])
            case "tick":
                try:
                    await purse.tick()
                except StoreError:
                    continue
            case "fault":
                ledger.away, ledger.loses_answers = rng.random() < 0.4, rng.random() < 0.4
            case "crash":
                charged = {d: c for d, c in charged.items() if d not in _unsettled(purse)}
                purses[n] = site.purse(f"r{n}-{step}")
    for purse, ledger in purses:
        ledger.away = ledger.loses_answers = False
        await purse.tick()
        await purse.close()
    site.clock.now += BUDGET.lease_s + 1
    await site.ledger.lease(BUDGET, BUDGET.window(site.clock.now), "last")
    await site.ledger.give_back(BUDGET, BUDGET.window(site.clock.now), "last")
    book = await site.account()
    known = round(sum(charged.values()) * NANO)
    assert book.held == 0
    assert known <= book.spent <= known + round(2 * NANO * replicas), "a crash loses at most its last tick"
    assert book.spent <= BUDGET.limit_nano_usd + replicas * BUDGET.lease_nano_usd


def _unsettled(purse: Purse) -> set[str]:
    return {decision for window in purse._windows.values() for decision in window.unsettled}


# ---- the ledger, in memory and at a server


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[RedisStore]:
    store = RedisStore(store_url, decision_ttl_ms=60_000, timeout_s=10.0)
    yield store
    await store.close()


class SideBySide(RuleBasedStateMachine):
    """The same calls on both ledgers give the same accounts, and neither ever promises more than the limit."""

    url = ""
    budget = Budget("side", 100, 30, lease_s=1000.0)

    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.store = self.runner.run(self._connect())
        tenant = f"tenant-{uuid.uuid4().hex}"
        self.ledgers = [MemoryLedger(lambda: 0.0), self.store.ledger(tenant)]
        self.last = Account(0, 0)

    async def _connect(self) -> RedisStore:
        return RedisStore(self.url, decision_ttl_ms=60_000, timeout_s=10.0)

    def both(self, name: str, *arguments: Any) -> Any:
        one, other = (
            self.runner.run(getattr(ledger, name)(self.budget, "w", *arguments)) for ledger in self.ledgers
        )
        assert one == other
        return one

    @rule(replica=st.sampled_from("abcd"))
    def lease(self, replica: str) -> None:
        self.last = self.both("lease", replica)
        assert 0 <= self.last.lease <= self.budget.lease_nano_usd

    @rule(
        replica=st.sampled_from("abcd"),
        costs=st.dictionaries(st.sampled_from("12345678"), st.integers(0, 40), min_size=1, max_size=4),
    )
    def settle(self, replica: str, costs: dict[str, int]) -> None:
        self.both("settle", replica, costs)

    @rule(replica=st.sampled_from("abcd"))
    def give_back(self, replica: str) -> None:
        self.both("give_back", replica)

    @invariant()
    def no_more_is_promised_than_there_is(self) -> None:
        if hasattr(self, "last"):
            assert self.last.held == 0 or self.last.spent + self.last.held <= max(100, self.last.spent + 120)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.runner.run(self.store.close())
            self.runner.close()


def test_memory_and_server_keep_the_same_books(store_url: str) -> None:
    class OnThisServer(SideBySide):
        url = store_url

    run_state_machine_as_test(
        OnThisServer, settings=settings(max_examples=40, stateful_step_count=30, deadline=None)
    )


async def test_an_expired_lease_returns_at_a_server(store: RedisStore) -> None:
    ledger = store.ledger(f"tenant-{uuid.uuid4().hex}")
    short, long = Budget("b", 100, 60, lease_s=0.001), Budget("b", 100, 60, lease_s=100.0)
    assert (await ledger.lease(short, "w", "killed")).lease == 60
    async with asyncio.timeout(10):
        while (await ledger.lease(long, "w", "living")).lease < 60:
            pass
    assert await ledger.lease(long, "w", "living") == Account(spent=0, held=60, lease=60)


async def test_many_at_once_with_duplicates_and_lost_settlements_are_exact(store: RedisStore) -> None:
    """Eight replicas race for the last money; every settlement is sent up to three times, some never."""
    tenant = f"tenant-{uuid.uuid4().hex}"
    budget = Budget("race", 2_000_000, 40_000, lease_s=100.0)
    paid: dict[str, int] = {}

    async def replica(number: int) -> None:
        ledger, rng = store.ledger(tenant), random.Random(number)
        for turn in range(60):
            account = await ledger.lease(budget, "w", f"r{number}")
            assert account.spent + account.held <= budget.limit_nano_usd
            if not account.lease:
                return
            cost = rng.randint(1, account.lease)
            if rng.random() < 0.05:
                continue  # never settled
            for _ in range(rng.choice([1, 2, 3])):
                await ledger.settle(budget, "w", f"r{number}", {f"d{number}-{turn}": cost})
            paid[f"d{number}-{turn}"] = cost

    await asyncio.gather(*(replica(number) for number in range(8)))
    ledger = store.ledger(tenant)
    for number in range(8):
        await ledger.give_back(budget, "w", f"r{number}")
    account = await ledger.lease(budget, "w", "last")
    assert account.spent == sum(paid.values())
    assert account.held == account.lease
    assert account.spent <= budget.limit_nano_usd


async def test_all_keys_of_a_tenants_budgets_share_one_slot(store: RedisStore) -> None:
    tenant = f"tenant-{uuid.uuid4().hex}"
    ledger = store.ledger(tenant)
    await ledger.lease(BUDGET, "w", "a")
    await ledger.settle(BUDGET, "w", "a", {"d": 5})
    keys = [key async for key in store._client.commands.scan_iter(match=f"*{tenant}*")]
    assert len(keys) == 4
    assert all(b"{" + tenant.encode() + b"}" in key for key in keys)
