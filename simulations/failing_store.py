"""A store for schedules: one log in memory with a copy that lags behind, and calls that fail before or after they happen.

Every call of every gateway waits twice for its turn, before it happens and before its answer arrives; a schedule draws
whose turn is next. So every order that separate processes could show can be had, and had again.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

from feedback.ledgers import MemoryLedger
from feedback.memory_store import MemoryLog
from feedback.store import Log, StoreError

READS: Final = ("read", "get_decision", "load_snapshot")
LAG_COMMITS: Final = 30
LAG_S: Final = 60.0
ENTRIES_KEPT_S: Final = 1200.0  # twice as long as feedback may be sent again (feedback.intake)


class KilledError(BaseException):
    """The process that waits here has been killed: nothing of it goes on."""


class Turns:
    """Who waits, and whose turn is next."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self._waiting, self._free = rng, list[asyncio.Future[None]](), False

    async def mine(self) -> None:
        if self._free:
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn

    def release_one(self) -> None:
        if self._waiting:
            turn = self._waiting.pop(self._rng.randrange(len(self._waiting)))
            if not turn.done():
                turn.set_result(None)

    def let_all_go(self) -> None:
        self._free = True
        while self._waiting:
            self.release_one()

    @contextmanager
    def free(self) -> Iterator[None]:
        """Within the block nobody waits."""
        before, self._free = self._free, True
        while self._waiting:
            self.release_one()
        try:
            yield
        finally:
            self._free = before


class FailingStore:
    """faults: the share of calls that fail, half of them after they were done. frozen: all of them, before."""

    def __init__(self, rng: random.Random, turns: Turns, clock: Callable[[], float]) -> None:
        self.faults, self.frozen = 0.0, False
        self._rng, self._turns, self._clock = rng, turns, clock
        self._time, self._behind_s = clock(), 0.0
        self._primary, self._copy = self.new_log(), self.new_log()
        self._journal: deque[tuple[float, str, tuple[Any, ...], dict[str, Any]]] = deque()
        self._cut_off: set[str] = set()

    def new_log(self) -> MemoryLog:
        return MemoryLog(clock=lambda: self._time, kept_s=ENTRIES_KEPT_S)

    def connection(self, process: str) -> "Connection":
        return Connection(self, process)

    def cut_off(self, process: str) -> None:
        self._cut_off.add(process)

    @property
    def seeded(self) -> bool:
        """Both hold a log: whatever fails now, not all is gone."""
        return self._primary.seeded and self._copy.seeded

    def holds(self, decision_id: str) -> bool:
        return self._primary.holds(decision_id)

    def failover(self, *, lost: int) -> None:
        """The copy takes over, without the last commits that it had not got, and maybe with a clock that is behind."""
        while len(self._journal) > lost:
            self._replicate_one()
        self._journal.clear()
        self._behind_s = self._rng.choice([0.0, 0.0, 2.0, 200.0])
        self._primary, self._copy = self._copy, self._copy.copy()

    def flush_all(self) -> None:
        self._journal.clear()
        self._primary, self._copy = self.new_log(), self.new_log()

    async def call(self, process: str, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        await self._turn(process)
        fails = self._rng.random() < self.faults
        if self.frozen or (fails and self._rng.random() < 0.5):
            raise StoreError("away")
        self._time = self._clock() - self._behind_s
        answer = await getattr(self._primary, name)(*arguments, **named)
        if name not in READS:
            self._journal.append((self._time, name, arguments, named))
            self._replicate_old()
        await self._turn(process)
        if fails:
            raise StoreError("the answer was lost")
        return answer

    async def _turn(self, process: str) -> None:
        await self._turns.mine()
        if process in self._cut_off:
            raise KilledError(process)

    def _replicate_old(self) -> None:
        while self._journal and (
            len(self._journal) > LAG_COMMITS or self._journal[0][0] < self._time - LAG_S
        ):
            self._replicate_one()

    def _replicate_one(self) -> None:
        self._time, name, arguments, named = self._journal.popleft()
        work = getattr(self._copy, name)(*arguments, **named)
        try:
            work.send(None)  # it waits for nothing
        except StopIteration:
            return
        raise AssertionError(f"{name} of a log in memory waits")


class Connection:
    """The store as one process reaches it."""

    def __init__(self, store: FailingStore, process: str) -> None:
        self._store, self._process = store, process

    def log(self, scope: str) -> Log:
        return cast("Log", _Calls(self._store, self._process))

    def ledger(self, tenant: str) -> MemoryLedger:
        """Schedules spend nothing: what budgets do under failure is tests/feedback/test_budget.py's business."""
        return MemoryLedger(lambda: 0.0)

    async def close(self) -> None:
        """Nothing is held open."""


class _Calls:
    """Every method of the log, through the store's faults."""

    def __init__(self, store: FailingStore, process: str) -> None:
        self._store, self._process = store, process

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*arguments: Any, **named: Any) -> Any:
            return await self._store.call(self._process, name, arguments, named)

        return call
