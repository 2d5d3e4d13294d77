"""The two ledgers of feedback.budget: at a server, through scripts, and in this process's memory."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from feedback.budget import Account, Budget
from feedback.budget_scripts import GIVE_BACK, LEASE, SETTLE

MARKS_LIVE_MS: Final = 7 * 86_400_000  # a cost that is sent again within a week is known
KEYS_LIVE_MS: Final = 400 * 86_400_000

RunScript = Callable[[str, Sequence[str], Sequence[Any]], Awaitable[Any]]


class RedisLedger:
    """base: "PREFIX:{tenant}", so that all keys are in the tenant's own slot."""

    def __init__(self, run: RunScript, base: str) -> None:
        self._run, self._base = run, base

    async def lease(self, budget: Budget, window: str, replica: str) -> Account:
        arguments = [replica, budget.lease_nano_usd, budget.limit_nano_usd]
        life = [round(budget.lease_s * 1000), KEYS_LIVE_MS]
        spent, held, lease = await self._run(LEASE, self._keys(budget, window), [*arguments, *life])
        return Account(int(spent), int(held), int(lease))

    async def settle(self, budget: Budget, window: str, replica: str, costs: Mapping[str, int]) -> int:
        account, leases, _ = self._keys(budget, window)
        marks = [f"{self._base}:stl:{budget.name}:{decision_id}" for decision_id in costs]
        arguments = [replica, MARKS_LIVE_MS, KEYS_LIVE_MS, *costs.values()]
        return int(await self._run(SETTLE, [account, leases, *marks], arguments))

    async def give_back(self, budget: Budget, window: str, replica: str) -> None:
        await self._run(GIVE_BACK, self._keys(budget, window), [replica])

    def _keys(self, budget: Budget, window: str) -> list[str]:
        return [f"{self._base}:{kind}:{budget.name}:{window}" for kind in ("bud", "lea", "lex")]


@dataclass(slots=True)
class _Book:
    spent: int = 0
    leases: dict[str, int] = field(default_factory=dict)
    expiries: dict[str, float] = field(default_factory=dict)

    @property
    def held(self) -> int:
        return sum(self.leases.values())


class MemoryLedger:
    """clock: seconds, of any origin."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._books: dict[tuple[str, str], _Book] = {}
        self._settled: set[tuple[str, str]] = set()

    async def lease(self, budget: Budget, window: str, replica: str) -> Account:
        book, now = self._book(budget, window), self._clock()
        for other in [name for name, expiry in book.expiries.items() if expiry <= now]:
            del book.expiries[other]
            book.leases.pop(other, None)
        lease = book.leases.get(replica, 0)
        more = min(budget.lease_nano_usd - lease, budget.limit_nano_usd - book.spent - book.held)
        book.leases[replica] = lease + max(more, 0)
        book.expiries[replica] = now + budget.lease_s
        return Account(book.spent, book.held, book.leases[replica])

    async def settle(self, budget: Budget, window: str, replica: str, costs: Mapping[str, int]) -> int:
        book = self._book(budget, window)
        new = {d: cost for d, cost in costs.items() if (budget.name, d) not in self._settled}
        self._settled.update((budget.name, decision_id) for decision_id in new)
        charged = sum(new.values())
        book.spent += charged
        if replica in book.leases:
            book.leases[replica] -= min(charged, book.leases[replica])
        return charged

    async def give_back(self, budget: Budget, window: str, replica: str) -> None:
        book = self._book(budget, window)
        book.leases.pop(replica, None)
        book.expiries.pop(replica, None)

    def _book(self, budget: Budget, window: str) -> _Book:
        return self._books.setdefault((budget.name, window), _Book())
