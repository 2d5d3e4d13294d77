"""Budgets: what a tenant or a route may spend in a period, held by all replicas together without asking at each request.

    held    what replicas have leased and not yet spent        spent    what is settled        spent + held <= limit

A replica leases a chunk in the background and reserves each request from it in memory; the request waits for nothing. What
a call really cost is settled by decision id, once, however often it is sent. A lease that is not renewed returns to the
budget by itself, so a killed replica blocks at most its chunk, for at most `lease_s`. A replica stops drawing on its lease
before the store gives it to others; what can be overspent is what was on its way then and what calls cost above their
reservations: at most one lease per replica. All amounts are integers of 10^-9 USD.
"""

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Final, Literal, Protocol

from feedback.spool import Entry, Spool, SpoolError
from feedback.store import StoreError

NANO_PER_USD: Final = 1e9
NANO_USD_MAX: Final = 2**53 // 2  # scripts compute in f64: sums stay exact
SETTLED_AT_A_TIME: Final = 256
MARGIN: Final = 0.8  # of a lease's life: after that it is not drawn on until it is renewed

_NAME = re.compile(r"[a-z0-9_-]{1,64}")
log = logging.getLogger(__name__)


def nano(usd: float) -> int:
    """USD in 10^-9 USD."""
    return round(usd * NANO_PER_USD)


@dataclass(frozen=True, slots=True)
class Budget:
    """name: 1 to 64 of a-z 0-9 _ -; part of a key. limit, lease, local_cap: in 10^-9 USD, the lease being what one replica
    holds at most. period: when a new budget begins, in UTC. when_away: what becomes of requests once the store is away and
    the lease is used up: fail_closed refuses them, fail_open lets each replica spend local_cap more.
    """

    name: str
    limit_nano_usd: int
    lease_nano_usd: int
    period: Literal["day", "month", "total"] = "month"
    lease_s: float = 30.0
    when_away: Literal["fail_open", "fail_closed"] = "fail_open"
    local_cap_nano_usd: int = 0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is no budget's name: 1 to 64 of a-z 0-9 _ -")
        if not 0 < self.lease_nano_usd <= self.limit_nano_usd <= NANO_USD_MAX:
            raise ValueError(
                f"a budget's lease is above 0 and at most its limit, and that at most {NANO_USD_MAX / 1e9:g} USD"
            )
        if self.lease_s <= 0 or self.local_cap_nano_usd < 0:
            raise ValueError("a lease lasts longer than 0 s, and a local cap is 0 or more")

    def window(self, now: float) -> str:
        """The name of the period that this moment (Unix seconds) lies in."""
        forms = {"day": "%Y-%m-%d", "month": "%Y-%m", "total": "total"}
        return datetime.fromtimestamp(now, UTC).strftime(forms[self.period])


@dataclass(frozen=True, slots=True)
class Account:
    """Where a budget stands. lease: what the asking replica holds of it."""

    spent: int
    held: int
    lease: int = 0


class Ledger(Protocol):
    """A tenant's budgets at the store. Every method raises StoreError where it cannot answer."""

    async def lease(self, budget: Budget, window: str, replica: str) -> Account:
        """Fill the replica's lease up to the budget's chunk, as far as the limit allows, and make it last `lease_s` more.

        It fills up and does not add, so an answer that was lost does no harm. Leases that have expired return first.
        """
        ...

    async def settle(self, budget: Budget, window: str, replica: str, costs: Mapping[str, int]) -> int:
        """Charge each decision id once; what it cost leaves the replica's lease. Returns what was charged now."""
        ...

    async def give_back(self, budget: Budget, window: str, replica: str) -> None:
        """The replica's lease returns at once: a clean end."""
        ...


@dataclass(slots=True)
class _Window:
    """One replica's side of one budget in one period. lease: what the store said, `until` when it may be drawn on.

    drawn: the sum of what is reserved and what the store has not confirmed; beyond: of that, on the local cap since the
    store went away.
    """

    lease: int = 0
    until: float = float("-inf")
    reserved: dict[str, int] = field(default_factory=dict)
    unsettled: dict[str, int] = field(default_factory=dict)
    drawn: int = 0
    beyond: int = 0

    def left(self, now: float) -> int:
        return max(self.lease - self.drawn, 0) if now < self.until else 0

    def reserve(self, decision_id: str, nano_usd: int) -> None:
        self.reserved[decision_id] = self.reserved.get(decision_id, 0) + nano_usd
        self.drawn += nano_usd

    def spend(self, decision_id: str, nano_usd: int | None) -> None:
        """None: as much as was reserved."""
        reserved = self.reserved.pop(decision_id)
        self.unsettled[decision_id] = reserved if nano_usd is None else nano_usd
        self.drawn += self.unsettled[decision_id] - reserved

    def settled(self, decision_ids: Iterable[str]) -> None:
        """The store has these, or the journal sees to it."""
        for decision_id in decision_ids:
            nano_usd = self.unsettled.pop(decision_id)
            self.lease -= nano_usd
            self.drawn -= nano_usd


class Purse:
    """One replica's share of a budget: `reserve` and `settle` in memory, at once; `tick` with the store, behind them.

    replica: a name that no other process, past or present, has used. clock: Unix seconds; ticks: monotonic seconds.
    journal: where costs wait on disk until the store has them; without one they wait in memory.
    """

    def __init__(
        self,
        budget: Budget,
        ledger: Ledger,
        *,
        replica: str,
        clock: Callable[[], float],
        ticks: Callable[[], float],
        journal: Spool | None = None,
    ) -> None:
        self.budget, self.refused, self.away = budget, 0, False
        self.account: Account | None = None  # as the store told it last
        self._ledger, self._replica, self._clock, self._ticks = ledger, replica, clock, ticks
        self._journal = journal
        self._windows: dict[str, _Window] = {}
        self._window_of: dict[str, str] = {}  # decision -> the window it was reserved in
        self._journalled: list[Entry] = [] if journal is None else self._ours(journal.pending())

    def reserve(self, decision_id: str, usd: float) -> bool:
        """May this call be made, that may cost so much? If so the amount is set aside until it is settled."""
        if _ceil(usd) > self._room():
            self.refused += 1
            return False
        self.draw(decision_id, usd)
        return True

    def draw(self, decision_id: str, usd: float) -> None:
        """Set the amount aside whether there is room for it or not: the call is made, and will be billed."""
        name, nano_usd = self.budget.window(self._clock()), _ceil(usd)
        window = self._windows.setdefault(name, _Window())
        if self.away:
            window.beyond += max(nano_usd - window.left(self._ticks()), 0)
        window.reserve(decision_id, nano_usd)
        self._window_of[decision_id] = name

    def room_usd(self) -> float:
        """What a call may cost that is reserved now."""
        return self._room() / NANO_PER_USD

    def _room(self) -> int:
        window = self._windows.get(self.budget.window(self._clock()), _Window())
        room = window.left(self._ticks())
        if self.away and self.budget.when_away == "fail_open":
            room += max(self.budget.local_cap_nano_usd - window.beyond, 0)
        return room

    def settle(self, decision_id: str, usd: float | None) -> None:
        """What the call really cost, 0 if it failed, None for what was set aside. Of a decision that is settled again the
        first amount counts.
        """
        name = self._window_of.pop(decision_id, None)
        if name is not None:
            self._windows[name].spend(decision_id, None if usd is None else nano(usd))

    async def tick(self) -> None:
        """Settle what was spent and fill up the lease; StoreError where the store is away. What was spent is on disk first."""
        await self._write_down()
        try:
            await self._settle_journalled()
            await self._settle_unjournalled()
            await self._fill_up()
        except StoreError:
            self.away = True
            raise
        self.away = False
        for window in self._windows.values():
            window.beyond = 0

    async def close(self) -> None:
        """Settle, and give back what is left of the lease."""
        await self.tick()
        for name in self._windows:
            await self._ledger.give_back(self.budget, name, self._replica)

    async def _fill_up(self) -> None:
        name, asked_at = self.budget.window(self._clock()), self._ticks()
        self.account = await self._ledger.lease(self.budget, name, self._replica)
        window = self._windows.setdefault(name, _Window())
        window.lease, window.until = self.account.lease, asked_at + MARGIN * self.budget.lease_s
        for old in [n for n, w in self._windows.items() if n != name and not w.reserved and not w.unsettled]:
            await self._ledger.give_back(self.budget, old, self._replica)
            del self._windows[old]

    async def _write_down(self) -> None:
        if self._journal is None:
            return
        for name, window in list(self._windows.items()):
            while costs := _some_of(window.unsettled):
                payload = {
                    "budget": self.budget.name,
                    "window": name,
                    "replica": self._replica,
                    "costs": costs,
                }
                try:
                    self._journalled.append(await self._journal.append(payload))
                except SpoolError as error:
                    log.warning("what was spent cannot be kept on disk, only in memory: %s", error)
                    return
                window.settled(costs)

    async def _settle_unjournalled(self) -> None:
        for name, window in list(self._windows.items()):
            while costs := _some_of(window.unsettled):
                await self._ledger.settle(self.budget, name, self._replica, costs)
                window.settled(costs)

    async def _settle_journalled(self) -> None:
        while self._journalled:
            payload = self._journalled[0].payload
            await self._ledger.settle(
                self.budget, payload["window"], payload["replica"], dict(payload["costs"])
            )
            entry = self._journalled.pop(0)
            assert self._journal is not None, "what was journalled has a journal"
            await self._journal.finish(entry.sequence)

    def _ours(self, entries: list[Entry]) -> list[Entry]:
        return [entry for entry in entries if entry.payload.get("budget") == self.budget.name]


def _ceil(usd: float) -> int:
    return math.ceil(usd * NANO_PER_USD)


def _some_of(unsettled: Mapping[str, int]) -> dict[str, int]:
    return dict(islice(unsettled.items(), SETTLED_AT_A_TIME))
