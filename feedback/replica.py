"""A replica: this process's fold of one route's log, kept up to date, and the posterior made from it.

`poll` reads what is new and folds it in. What it returns says what that means for feedback on its way (feedback.intake):
history went on, was replaced (a failover lost a suffix, or this replica was too slow), or was seeded from memory because
the store had lost it all. The last good state is never given up for nothing: an empty store is refilled from it.

Where a rating raised an alarm, `poll` appends the answer, as every replica does: one of them takes place.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from bandit import lengths
from bandit.features import DIMENSION, TAG
from bandit.posterior import Posterior
from bandit.prediction import QualityModel
from feedback.alarms import answers
from feedback.events import encode_reset
from feedback.learn import fold_all
from feedback.records import MalformedError
from feedback.remembered import Remembered
from feedback.state import START, Reader, State, digest_of
from feedback.store import Entry, Log, StoreError, Tail, position

PAGE: Final = 1024  # entries read at once
BATCH: Final = 128  # entries folded at a stretch: a few milliseconds
BATCH_BYTES: Final = 32_768  # of workers' sums fewer: one of many arms takes as long as a hundred ratings
POSTERIOR_S: Final = 1.0  # a replica that has much to catch up with makes a posterior this often
SNAPSHOT_EVENTS: Final = 1000
SNAPSHOT_S: Final = 60.0
TOKENS_REMEMBERED: Final = 4096
MARKS_READ_BACK: Final = 5_000  # entries before the snapshot that a start reads for their marks
ANSWERS_PER_MINUTE: Final = (
    6  # to alarms of one route: whatever goes wrong, not everything is forgotten at once
)

log = logging.getLogger(__name__)


class History(Enum):
    CONTINUED = "continued"
    REPLACED = "replaced"
    SEEDED = "seeded"


@dataclass(slots=True)
class Counters:
    """What operators see of a replica."""

    reloads: int = 0
    seeds: int = 0
    snapshots: int = 0
    bad_snapshots: int = 0
    digests_confirmed: int = (
        0  # published with a snapshot, and that of this replica's state at the same position
    )
    digests_differing: int = 0  # never: two replicas that read the same would hold different sums
    alarms_answered: int = 0


class Replica:
    """features: tag of the vectors that it learns from. patience_s: how long a replica that knows nothing leaves an empty
    store to others. clock: monotonic seconds.
    """

    def __init__(
        self,
        log: Log,
        model: QualityModel,
        *,
        features: bytes = TAG,
        patience_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._features = features
        self.state = self._empty()
        self.posterior: Posterior = self.state.posterior(model)
        self.counters = Counters()
        self.model = model
        self._log, self._clock = log, clock
        self._reader = Reader()
        self._answered: dict[str, float] = {}  # alarm -> when this replica answered it, by its clock
        self._seen: deque[str] = deque(maxlen=TOKENS_REMEMBERED)
        self._remembered = Remembered()
        self._seed: str | None = None  # where the log began, as of the last poll
        self._at_snapshot = (
            "",
            "",
        )  # cursor and digest of the state where another replica's was published last
        self._compared = ""
        self._posterior_due = clock() + POSTERIOR_S
        self._patience_s, self._empty_since = patience_s, float("inf")
        self._events_at_snapshot, self._snapshot_due = 0, clock() + SNAPSHOT_S

    def adopt_model(self, model: QualityModel) -> None:
        """Believe by this model from now on: another registry, another prior. What was learned is the same."""
        posterior = self.state.posterior(model, self._reader)
        self.model, self.posterior = model, posterior

    def has_seen(self, token: str) -> bool:
        """The entry is in the history that this replica holds (asked of recent tokens only)."""
        return token == self.state.cursor or token in self._seen

    def has_passed(self, token: str) -> bool:
        """The replica is at or beyond where the entry would have to be."""
        return position(token) <= position(self.state.cursor)

    def was_seeded(self, token: str) -> bool:
        """The entry is so old a part of what the log was last begun with that its mark is not kept: sent again it would
        count twice, so it must not be. (What is younger may be sent again: it is known by its mark.)
        """
        return self._seed is not None and position(token) <= min(
            position(self._seed), position(self._remembered.since)
        )

    async def load(self) -> None:
        """Begin with the stored snapshot instead of the log's first entry; StoreError, and nothing has changed, where log
        and snapshot are not of one history: because the store changes just now, or because it is damaged.
        """
        state = await self._stored_state()
        marks = await self._log.marks(state.cursor, MARKS_READ_BACK)
        tail = await self._log.read(state.cursor, 1)
        fits = self._continues(tail, state.cursor) if tail.last else state.cursor == START
        if not fits:
            raise StoreError("the stored snapshot and the log do not fit together")
        self._adopt(state)
        self._remembered = Remembered(marks, state.cursor)
        self._events_at_snapshot = self.state.events + self.state.skipped

    async def poll(self) -> History:
        """Fold everything that is new; StoreError where the store cannot be read."""
        while True:
            tail = await self._log.read(self.state.cursor, PAGE)
            if tail.last is None:
                return await self._begin_log()
            self._seed, self._empty_since = tail.seed, float("inf")
            if not self._continues(tail, self.state.cursor):
                await self._reload()
                return History.REPLACED
            await self._fold(tail)
            self._compare(tail)
            if len(tail.entries) == PAGE:
                if self._clock() >= self._posterior_due:
                    await self._believe()
                continue
            if (
                self.posterior.token != self.state.cursor
            ):  # this read's entries, or those of one that ended early
                await self._believe()
            if not await self._answer_alarms():
                await self._save_snapshot(tail.snapshot or START)
                return History.CONTINUED

    def _continues(self, tail: Tail, cursor: str) -> bool:
        """Each entry names the one before it, so a fork or a gap shows at once."""
        if not tail.entries:
            return tail.last == cursor
        for entry in tail.entries:
            if entry.previous != cursor:
                return False
            cursor = entry.token
        return True

    async def _fold(self, tail: Tail) -> None:
        for part in _parts(tail):
            self.state = fold_all(self.state, [(entry.token, entry.data) for entry in part])
            self._remember(part)
            if part[-1].token == tail.snapshot:
                self._at_snapshot = self.state.cursor, self.state.digest()
            if part[-1] is not tail.entries[-1]:
                await asyncio.sleep(0)  # requests go on meanwhile

    def _remember(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._seen.append(entry.token)
            self._remembered.add(entry)

    def _compare(self, tail: Tail) -> None:
        """The digest that was published with a snapshot, beside that of our own state at the same position."""
        if not tail.digest or not tail.snapshot or tail.snapshot == self._compared:
            return
        self._compared = tail.snapshot
        cursor, digest = self._at_snapshot
        if self.state.cursor == tail.snapshot:
            digest = self.state.digest()
        elif cursor != tail.snapshot:
            return
        if digest == tail.digest:
            self.counters.digests_confirmed += 1
        else:
            self.counters.digests_differing += 1
            log.error(
                "at %s this replica's state is not the one that was published: %s", tail.snapshot, tail.digest
            )

    async def _believe(self) -> None:
        """The posterior of what is known now and its draws, made arm by arm: requests go on between."""
        state, model = self.state, self.model
        for _ in self._reader.correcting(state.ratings, state.weight_now(), model.anchor):
            await asyncio.sleep(0)
        told = state.on_one_scale(self._reader, anchor=model.anchor), state.d, state.entry_prices
        if not self._reader.is_made(model, *told):
            for _ in model.steps(*told):
                await asyncio.sleep(0)
        for _ in lengths.steps(state.lengths):
            await asyncio.sleep(0)
        self._reader.cost(state.calls, state.lengths)
        await asyncio.sleep(0)
        posterior = state.posterior(model, self._reader)
        for _ in posterior.quality.steps():
            await asyncio.sleep(0)
        self._posterior_due = self._clock() + POSTERIOR_S
        if self.model is model:  # else another one was adopted meanwhile, with a posterior of its own
            self.posterior = posterior

    def _adopt(self, state: State) -> None:
        self._posterior_due = self._clock() + POSTERIOR_S
        self.state, self.posterior = state, state.posterior(self.model, self._reader)

    async def _answer_alarms(self) -> bool:
        """Append the answers to alarms that this replica has not answered within a minute; True where it appended any."""
        now, appended = self._clock(), False
        self._answered = {alarm: at for alarm, at in self._answered.items() if now - at < 60.0}
        for event in answers(self.state):
            alarm = event.alarm or ""
            if alarm in self._answered or len(self._answered) >= ANSWERS_PER_MINUTE:
                continue
            if await self._log.append(encode_reset(event), once=f"alarm:{alarm}") is not None:
                self._answered[alarm] = now
                self.counters.alarms_answered += 1
                appended = True
        return appended

    async def _begin_log(self) -> History:
        """The store holds no log: begin one with what this replica knows, or with what a quicker one knew.

        A replica that knows nothing first leaves the others time: an emptied store must not be taken for a new one.
        """
        if self._knows_nothing():
            self._empty_since = min(self._empty_since, self._clock())
            if self._clock() - self._empty_since < self._patience_s:
                return History.CONTINUED
        if await self._log.seed(self.state.to_bytes(), self.state.cursor, self._remembered.marks()):
            self.counters.seeds += 1
            self._seed = self.state.cursor
            return History.SEEDED
        tail = await self._log.read(START, 1)
        if tail.last is None:
            raise StoreError(
                "the store holds parts of a log without its end: restore the rest, or remove them"
            )
        await self._reload()
        self._seed = tail.seed
        return History.SEEDED

    def _empty(self) -> State:
        return State(self._features, DIMENSION)

    def _knows_nothing(self) -> bool:
        return self.state.events == 0

    async def _reload(self) -> None:
        """Take the stored snapshot as the new beginning; the next poll goes on from there."""
        self.counters.reloads += 1
        await self.load()
        self._seen.clear()
        self._answered.clear()

    async def _stored_state(self) -> State:
        data = await self._log.load_snapshot()
        if data is None:
            return self._empty()
        try:
            stored = State.from_bytes(data)
        except MalformedError:
            self.counters.bad_snapshots += 1
            return self._empty()  # the whole log again, if it still reaches back to its start
        if stored.features != self._features:
            log.warning("%d ratings were of another version's features and count no more", stored.rated)
            self._compared = stored.cursor  # what was published there is of the other version
        return stored.for_features(self._features, DIMENSION)

    async def _save_snapshot(self, base: str) -> None:
        fresh = self.state.events + self.state.skipped - self._events_at_snapshot
        overdue = self._clock() >= self._snapshot_due and fresh > 0
        if fresh < SNAPSHOT_EVENTS and not overdue:
            return
        self._events_at_snapshot = self.state.events + self.state.skipped
        self._snapshot_due = self._clock() + SNAPSHOT_S
        state = self.state
        packed = state.to_bytes()
        if await self._log.save_snapshot(packed, state.cursor, base=base, digest=digest_of(packed)):
            self._compared = state.cursor
            self.counters.snapshots += 1


def _parts(tail: Tail) -> Iterator[Sequence[Entry]]:
    """The entries in stretches of at most BATCH and not much above BATCH_BYTES, one of which ends where the snapshot does."""
    first = size = 0
    for n, entry in enumerate(tail.entries, 1):
        size += len(entry.data)
        full = n - first == BATCH or size >= BATCH_BYTES
        if full or entry.token == tail.snapshot or n == len(tail.entries):
            yield tail.entries[first:n]
            first, size = n, 0


async def catch_up(replica: Replica) -> None:
    """Bring a fresh replica to the log's end: the stored snapshot, then the entries after it."""
    await replica.load()
    for _ in range(3):
        if await replica.poll() is History.CONTINUED:
            return
    raise StoreError("the log does not settle: its snapshot and its entries do not fit together")
