"""Whole schedules of failures over the real code, and mutants of that code which they must catch."""

import os
import struct
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import pytest

from feedback.intake import Intake
from feedback.learning import Learning
from feedback.memory_store import MemoryLog
from feedback.recorder import Recorder
from feedback.remembered import Remembered
from feedback.replica import History, Replica
from feedback.spool import Entry, Spool
from feedback.state import START, State
from feedback.store import Answer, Feedback, Marks, Settled, position
from simulations.failing_store import ENTRIES_KEPT_S, FailingStore
from simulations.schedules import ScheduleError, World, run_schedule

SCHEDULES = 300
CHUNKS = 10
MUTANT_SEEDS = 300
RARE = {"snapshot of another history accepted": 90}  # where to begin


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_nothing_is_lost_doubled_stuck_or_different_whatever_fails(chunk: int) -> None:
    accounts = [run_schedule(seed) for seed in range(chunk, SCHEDULES, CHUNKS)]
    assert sum(account.acknowledged for account in accounts) > 300, "the schedules are about something"
    assert sum(account.queued for account in accounts) > 100
    steps = sum((account.steps for account in accounts), Counter[str]())
    assert min(steps[name] for name in ("kill", "power cut", "failover", "empty", "freeze", "stop")) > 10


def test_a_seed_is_a_schedule() -> None:
    """Run again it is the same to the last step, or a failing one could not be looked at."""
    assert run_schedule(7) == run_schedule(7)
    assert run_schedule(7) != run_schedule(8)


# ---- the store's mutants


class NoDuplicateCheck(MemoryLog):
    async def give_feedback(self, feedback: Feedback) -> Settled:
        self._given.pop(feedback.decision_id, None)
        self._marks = None
        return await super().give_feedback(feedback)


class SnapshotWithoutCompare(MemoryLog):
    """Any snapshot replaces any other, an older one too."""

    async def save_snapshot(self, snapshot: bytes, token: str, *, base: str, digest: str = "") -> bool:
        self._snapshot, self._digest = (token, snapshot), digest
        self._trim(token)
        return True


class ForkedSnapshot(MemoryLog):
    """A snapshot at a token that is not in this log is taken."""

    async def save_snapshot(self, snapshot: bytes, token: str, *, base: str, digest: str = "") -> bool:
        if (self._snapshot[0] if self._snapshot else START) != base or position(token) <= position(base):
            return False
        self._snapshot, self._digest = (token, snapshot), digest
        return True


class TrimsTooFar(MemoryLog):
    """A snapshot by a replica that lags behind takes entries with it that are not in it."""

    def _trim(self, base: str) -> None:
        self._entries.clear()


class IdsInsteadOfAChain(MemoryLog):
    """A token is a stream id alone: a server whose clock is behind gives one again."""

    def _append(self, data: bytes, mark: bytes = b"") -> str:
        token = super()._append(data, mark)
        self._last = token.split(":")[0] + ":"
        self._entries[-1] = entry_at(self._entries[-1], self._last)
        return self._last


def entry_at(entry: Any, token: str) -> Any:
    return replace(entry, token=token)


class SeedWithoutMarks(MemoryLog):
    async def seed(self, snapshot: bytes, token: str, marks: Marks | None = None) -> bool:
        return await super().seed(snapshot, token, None)


class LastArrivalCounts(MemoryLog):
    async def give_feedback(self, feedback: Feedback) -> Settled:
        return await super().give_feedback(replace(feedback, at=0.0))


class OldDecisionsOverwritten(MemoryLog):
    """The event is appended and the key is not kept with it: a crash between two writes that should be one."""

    async def give_feedback(self, feedback: Feedback) -> Settled:
        settled = await super().give_feedback(feedback)
        if (
            settled.answer is Answer.APPLIED
            and struct.unpack("<d", struct.pack("<d", feedback.value))[0] > 0.9
        ):
            self._given.pop(feedback.decision_id)
        return settled


def on(log: type[MemoryLog]) -> World:
    class Store(FailingStore):
        def new_log(self) -> MemoryLog:
            return log(clock=lambda: self._time, kept_s=ENTRIES_KEPT_S)

    return World(store=Store)


# ---- the gateway's mutants


class AcknowledgedIsSettled(Intake):
    async def settle(self, scope: str, history: History, sent: Collection[int] = ()) -> None:
        for tracked in [t for t in self._unsettled.values() if t.token]:
            self._unsettled.pop(tracked.sequence)
            await self._spool.finish(tracked.sequence)


class DuplicateIsSettled(Intake):
    async def _answered(self, tracked: Any, settled: Settled) -> None:
        await super()._answered(tracked, settled)
        if settled.answer is Answer.DUPLICATE and self._unsettled.pop(tracked.sequence, None):
            self._spool._pending.pop(tracked.sequence, None)


class NothingSentAgainAfterAFork(Intake):
    async def _history_changed(self, scope: str) -> None:
        """Whatever became of it."""


class UnanchoredSeed(Intake):
    """Everything that was sent goes again after a seed, by position alone what the seed held is dropped."""

    async def _history_changed(self, scope: str) -> None:
        replica = self._routes[scope].replica
        seed = replica._seed or START
        sent = {t.sequence: t.stream_id for t in self._settled}
        sent |= {t.sequence: t.token for t in self._unsettled.values() if t.token}
        for sequence, token in sent.items():
            if position(token) <= position(seed):
                self._unsettled.pop(sequence, None)
                await self._spool.finish(sequence)
        self._settled = deque(t for t in self._settled if t.sequence in self._spool._pending)
        await super()._history_changed(scope)


class NoRewriting(Recorder):
    def _write_again(self) -> None:
        """What the store lost stays lost."""


class NoChainCheck(Replica):
    def _continues(self, tail: Any, cursor: str) -> bool:
        return True


class FoldsTwice(Replica):
    async def _fold(self, tail: Any) -> None:
        before = self.state
        await super()._fold(tail)
        if len(tail.entries) == 3:
            self._adopt(replace(before, cursor=self.state.cursor))


class AdoptsEmptiness(Replica):
    async def _begin_log(self) -> History:
        self._adopt(State(self.state.features, self.state.d))
        self._remembered = Remembered()
        return await super()._begin_log()


class DeadLettersDropped(Spool):
    async def bury(self, entry: Entry, reason: str) -> None:
        await self.finish(entry.sequence)


def forgets_what_it_finds(learning: Learning) -> None:
    """Nothing is sent again after a restart: it takes what its spool holds for done."""
    learning.intake._unsettled.clear()
    learning.intake._queued_ids.clear()


def with_class(part: Callable[[Learning], Any], mutant: type) -> World:
    def mutate(learning: Learning) -> None:
        part(learning).__class__ = mutant

    return World(mutate=mutate)


def route(learning: Learning) -> Any:
    return next(iter(learning.routes.values()))


MUTANTS = {
    "no duplicate check": on(NoDuplicateCheck),
    "key not kept with its event": on(OldDecisionsOverwritten),
    "snapshot of another history accepted": on(ForkedSnapshot),
    "log trimmed past the snapshot": on(TrimsTooFar),
    "stream ids instead of a hash chain": on(IdsInsteadOfAChain),
    "seed without marks": on(SeedWithoutMarks),
    "the last to arrive counts": on(LastArrivalCounts),
    "acknowledged before it is on disk": World(sync=lambda _disk, _descriptor: None),
    "acknowledged taken for settled": with_class(lambda x: x.intake, AcknowledgedIsSettled),
    "duplicate taken for settled": with_class(lambda x: x.intake, DuplicateIsSettled),
    "nothing sent again after a fork": with_class(lambda x: x.intake, NothingSentAgainAfterAFork),
    "what a seed held told by position": with_class(lambda x: x.intake, UnanchoredSeed),
    "nothing sent again after a restart": World(mutate=forgets_what_it_finds),
    "decisions not written again": with_class(lambda x: route(x).recorder, NoRewriting),
    "fork undetected": with_class(lambda x: route(x).replica, NoChainCheck),
    "a batch folded wrongly": with_class(lambda x: route(x).replica, FoldsTwice),
    "emptiness adopted": with_class(lambda x: route(x).replica, AdoptsEmptiness),
    "dead letters dropped": with_class(lambda x: x.spool, DeadLettersDropped),
}


def caught(world: World, seeds: range) -> int | None:
    """The first seed that catches it."""
    for seed in seeds:
        try:
            run_schedule(seed, world)
        except ScheduleError:
            return seed
    return None


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name: str) -> None:
    first = RARE.get(name, 0)
    assert caught(MUTANTS[name], range(first, first + MUTANT_SEEDS)) is not None


@pytest.mark.soak
def test_a_snapshot_that_may_go_backwards_is_caught_in_the_end() -> None:
    """It takes a rare order of things, so it is looked for only in a soak."""
    seeds = range(int(os.environ.get("SOAK_SCHEDULES", "5000")))
    assert caught(on(SnapshotWithoutCompare), seeds) is not None
