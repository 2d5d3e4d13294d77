"""The recorder: takes decisions and calls from requests without making them wait, and writes them behind their back.

Decisions wait in memory until the store has them, and stay there a while longer, so that feedback which is quicker than
the store still finds its decision, and what a failover takes back can be written again: the last WHOLE_KEPT as they were,
those before without their explanations. Calls are summed per arm and appended as one event per flush, with a few answers'
lengths, which no sums of a like size could tell; (worker, sequence) makes an append whose answer was lost harmless.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import islice
from typing import Final

from bandit.latency import LatencyStatistics
from bandit.lengths import LengthSample
from bandit.statistics import CallStatistics
from feedback.answers import Answered, calls_of, latency_of, sample_of
from feedback.events import Called, encode_called
from feedback.records import NO_EXPLANATION, MalformedError, without_explanation
from feedback.store import Log, StoreError

DECISIONS_KEPT: Final = 20_000  # while the store is away
WRITTEN_KEPT: Final = 10_000
WHOLE_KEPT: Final = 2_000
ANSWERS_HELD: Final = 1024
LENGTHS_TOLD: Final = 4  # of one arm's answers between two events
LENGTHS_OF_ALL: Final = 32  # of all arms' together; of more arms than that, one each
BATCH: Final = 256


class Recorder:
    """worker: a name that no other process, past or present, has used. features: tag of the vectors that are decided on.
    watchers: told of every decision made here.
    """

    def __init__(self, log: Log, *, worker: str, features: bytes) -> None:
        self.watchers: list[Callable[[str, bytes], object]] = []  # (decision id, record)
        self.dropped = 0  # decisions pushed out before it was sure that the store had them
        self._log, self._worker, self._features = log, worker, features
        self._unwritten: OrderedDict[str, bytes] = OrderedDict()
        self._written: OrderedDict[str, bytes] = OrderedDict()
        self._older: OrderedDict[str, bytes] = OrderedDict()
        self._answers: list[tuple[str, Answered]] = []  # not yet in the sums
        self._calls: dict[str, CallStatistics] = {}
        self._latencies: dict[str, LatencyStatistics] = {}
        self._lengths: dict[str, LengthSample] = {}
        self._sequence = 0
        self._beacon = -1  # the last that the store answered for
        self._attempts = (
            0  # never a number twice, not even where no answer came: an older one must not pass for it
        )
        self._sending: Called | None = None

    @property
    def waiting(self) -> int:
        """Decisions that the store does not have yet."""
        return len(self._unwritten)

    @property
    def calls(self) -> Mapping[str, CallStatistics]:
        """By arm: what calls took since the last event of this process."""
        self._sum_answers()
        return self._calls

    def decided(self, decision_id: str, record: bytes) -> None:
        self._unwritten[decision_id] = record
        for watcher in self.watchers:
            watcher(decision_id, record)
        while len(self._unwritten) > DECISIONS_KEPT:
            self._unwritten.popitem(last=False)
            self.dropped += 1

    def called(self, arm: str, calls: CallStatistics, latency: LatencyStatistics | None = None) -> None:
        self._calls[arm] = self._calls.get(arm, CallStatistics()) + calls
        if latency is not None:
            before = self._latencies.get(arm)
            self._latencies[arm] = latency if before is None else before + latency

    def answered(self, arm: str, answer: Answered) -> None:
        """An answer is complete. It is only put down here: sums are made for many at once."""
        self._answers.append((arm, answer))
        if len(self._answers) >= ANSWERS_HELD:
            self._sum_answers()

    def _sum_answers(self) -> None:
        by_arm: dict[str, list[Answered]] = {}
        for arm, answer in self._answers:
            by_arm.setdefault(arm, []).append(answer)
        self._answers = []
        for arm, answers in by_arm.items():
            self.called(arm, calls_of(answers), latency_of(answers))
            told = self._lengths.get(arm, LengthSample(b"", ()))
            self._lengths[arm] = told + sample_of(answers, LENGTHS_TOLD - len(told))

    def record_of(self, decision_id: str) -> bytes | None:
        """The decision's record, where this process still holds it; maybe without its explanation."""
        return (
            self._unwritten.get(decision_id) or self._written.get(decision_id) or self._older.get(decision_id)
        )

    def joined(self, decision_id: str, prefix: bytes) -> None:
        """Answer for another process's decision, since feedback for it came here: a failover may take back both.

        It is written once more, which changes nothing where it is, so that a beacon of ours stands behind it.
        """
        if decision_id not in self._written and decision_id not in self._older:
            self._unwritten.setdefault(decision_id, prefix + NO_EXPLANATION)

    async def flush(self) -> None:
        """Write what waits; after a StoreError it waits on, and the next flush tries again."""
        await self._flush_decisions()
        await self._flush_calls()

    async def _flush_decisions(self) -> None:
        if self._written and await self._log.last_beacon(self._worker) < self._beacon:
            self._write_again()
        while self._unwritten:
            batch = dict(islice(self._unwritten.items(), BATCH))
            beacon, self._attempts = self._attempts, self._attempts + 1
            try:
                before = await self._log.put_decisions(batch, (self._worker, beacon))
            except StoreError:
                self._write_again()  # it may have happened, on a server that had lost what came before
                raise
            if before < self._beacon:
                self._write_again()
            self._beacon = beacon
            for decision_id, record in batch.items():
                self._unwritten.pop(decision_id, None)
                self._written[decision_id] = record
            self._shorten()

    def _shorten(self) -> None:
        while len(self._written) > WHOLE_KEPT:
            decision_id, record = self._written.popitem(last=False)
            with suppress(MalformedError):  # of another version: it can wait for no rating of ours
                self._older[decision_id] = without_explanation(record)
        while len(self._older) > WRITTEN_KEPT - WHOLE_KEPT:
            self._older.popitem(last=False)

    def _write_again(self) -> None:
        """The store has lost what was written last: a failover, or it was emptied."""
        self._unwritten = OrderedDict({**self._older, **self._written, **self._unwritten})
        self._written.clear()
        self._older.clear()

    async def _flush_calls(self) -> None:
        self._sum_answers()
        if self._sending is None and self._calls:
            lengths, self._lengths = _told(self._lengths), {}
            self._sending = Called(
                self._worker, self._sequence, self._calls, self._latencies, lengths, self._features
            )
            self._sequence, self._calls, self._latencies = self._sequence + 1, {}, {}
        if self._sending is not None:
            appended = await self._log.append(encode_called(self._sending))
            if appended is not None:  # a store without a log waits for a replica to seed it
                self._sending = None


def _told(lengths: Mapping[str, LengthSample]) -> dict[str, LengthSample]:
    """No more of them than an event may hold, of every arm alike."""
    some = {arm: sample for arm, sample in lengths.items() if sample}
    each = max(1, LENGTHS_OF_ALL // max(len(some), 1))
    return {arm: sample.first(each) for arm, sample in some.items()}
