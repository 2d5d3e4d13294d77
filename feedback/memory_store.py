"""The store protocol in this process's memory: for simulations, tests and `--ephemeral`. Nothing survives the process."""

import struct
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from feedback.events import GIVEN, REVISED, WITHDRAWN, feedback_tail
from feedback.ledgers import MemoryLedger
from feedback.records import MalformedError, prefix_bytes
from feedback.state import START
from feedback.store import (
    RATINGS_PER_DECISION,
    Answer,
    Entry,
    Feedback,
    Marks,
    Settled,
    StoreError,
    Tail,
    chained,
    check_scope,
    fields_of,
    mark_of,
    position,
    stream_id,
)

DECISIONS_KEPT: Final = 100_000
_ANSWERS: Final = {GIVEN: Answer.APPLIED, REVISED: Answer.REVISED, WITHDRAWN: Answer.WITHDRAWN}


class MemoryStore:
    def __init__(self) -> None:
        self._logs: dict[str, MemoryLog] = {}
        self._ledgers: dict[str, MemoryLedger] = {}

    def log(self, scope: str) -> "MemoryLog":
        return self._logs.setdefault(check_scope(scope), MemoryLog())

    def ledger(self, tenant: str) -> MemoryLedger:
        return self._ledgers.setdefault(check_scope(tenant), MemoryLedger(time.monotonic))

    async def close(self) -> None:
        """Nothing is held open."""


@dataclass(slots=True)
class _Given:
    """Feedback on one decision, as a server keeps it: by source when its value was accepted, the value and the entry that
    gave it first (neither: withdrawn); and the value that came with each idempotency key.
    """

    current: dict[tuple[int, str], bytes] = field(default_factory=dict)
    by_key: dict[bytes, bytes] = field(default_factory=dict)


class MemoryLog:
    """clock: Unix seconds that ids are made of, as a server's are; without one they only count. kept_s: how long entries
    that a snapshot covers stay.
    """

    def __init__(self, *, clock: Callable[[], float] | None = None, kept_s: float = 86_400.0) -> None:
        self._clock, self._kept_s = clock, kept_s
        self._records: dict[str, bytes] = {}
        self._given: dict[str, _Given] = {}
        self._entries: list[Entry] = []
        self._last: str | None = None
        self._snapshot: tuple[str, bytes] | None = None
        self._seed: str | None = None
        self._marks: Marks | None = None
        self._digest: str | None = None
        self._beacons: dict[str, int] = {}
        self._once: dict[str, str] = {}

    async def put_decisions(self, records: Mapping[str, bytes], beacon: tuple[str, int] | None = None) -> int:
        before = -1 if beacon is None else self._beacons.get(beacon[0], -1)
        if beacon is not None:
            self._beacons[beacon[0]] = beacon[1]
        for decision_id, record in records.items():
            self._records.setdefault(decision_id, record)
        for decision_id in list(islice(self._records, max(len(self._records) - DECISIONS_KEPT, 0))):
            del self._records[decision_id]
            self._given.pop(decision_id, None)
        return before

    async def last_beacon(self, worker: str) -> int:
        return self._beacons.get(worker, -1)

    async def get_decision(self, decision_id: str) -> bytes | None:
        return self._records.get(decision_id)

    async def give_feedback(self, feedback: Feedback) -> Settled:
        given = self._given.get(feedback.decision_id) or _Given()
        same = given.by_key.get(feedback.key, self._seeded(b"k" + mark_of(feedback)[8:]))
        if same is not None:
            known = same == _f64(feedback.value)
            told = b"" if feedback.record else self._prefix(feedback) or b""
            return Settled(Answer.DUPLICATE, self._last or "", told) if known else Settled(Answer.CONFLICT)
        prefix = self._prefix(feedback)
        if prefix is None:
            return Settled(Answer.UNKNOWN_DECISION)
        return self._join(prefix, feedback) if prefix else Settled(Answer.MALFORMED)

    def _prefix(self, feedback: Feedback) -> bytes | None:
        """Of the decision's record, stored or carried; None where there is none, empty where it is malformed."""
        record = self._records.get(feedback.decision_id) or feedback.record
        try:
            return prefix_bytes(record) if record else None
        except MalformedError:
            return b""

    def _join(self, prefix: bytes, feedback: Feedback) -> Settled:
        given = self._given.get(feedback.decision_id) or _Given()
        if len(given.by_key) >= RATINGS_PER_DECISION:
            return Settled(Answer.TOO_MANY)
        if self._last is None:
            return Settled(Answer.NOT_SEEDED)
        self._given[feedback.decision_id] = given
        slot, mark = (feedback.kind, feedback.source), mark_of(feedback)
        held = given.current.get(slot) or self._seeded(b"s" + mark[:8]) or b""
        value, at, told = _f64(feedback.value), _f64(feedback.at), b"" if feedback.record else prefix
        given.by_key[feedback.key] = value
        if (
            held and struct.unpack_from("<d", held)[0] > feedback.at
        ):  # a failover took it back, and not the later
            return Settled(Answer.DUPLICATE, self._last, told)
        old, origin = (struct.unpack_from("<d", held, 8)[0], held[16:]) if len(held) > 8 else (None, b"")
        if feedback.value is None and old is None:
            del given.by_key[feedback.key]
            return Settled(Answer.NOTHING_GIVEN)
        change = WITHDRAWN if feedback.value is None else GIVEN if old is None else REVISED
        tail = feedback_tail(feedback.value, old, feedback.source, origin.decode())
        entry = bytes([feedback.kind, change]) + prefix + tail
        token = self._append(entry, mark + at + value + (origin if value else b""))
        given.current[slot] = at + (value and value + (origin or stream_id(token).encode()))
        return Settled(_ANSWERS[change], token, told)

    def _seeded(self, name: bytes) -> bytes | None:
        return self._marks.fields.get(name) if self._marks else None

    async def append(self, entry: bytes, *, once: str = "") -> str | None:
        if self._last is None:
            return None
        token = self._once.get(once) or self._append(entry)
        if once:
            self._once[once] = token
        return token

    async def read(self, after: str, limit: int) -> Tail:
        first = bisect_right(self._entries, position(after), key=lambda entry: position(entry.token))
        later = self._entries[first : first + limit]
        return Tail(
            self._last, self._snapshot[0] if self._snapshot else None, later, self._seed, self._digest
        )

    async def seed(self, snapshot: bytes, token: str, marks: Marks | None = None) -> bool:
        if self._last is not None:
            return False
        self._snapshot, self._last, self._seed = (token, snapshot), token, token
        self._marks = marks or Marks(token, {})
        return True

    async def marks(self, before: str, limit: int) -> Marks:
        if before not in (self._seed, START) and not any(entry.token == before for entry in self._entries):
            raise StoreError("the log does not hold the history that was asked for")
        upto = bisect_right(self._entries, position(before), key=lambda entry: position(entry.token))
        entries = self._entries[max(upto - limit, 0) : upto]
        fields = dict(field for entry in entries for field in fields_of(entry).items())
        oldest = entries[0].previous if entries else before
        if oldest != self._seed or self._marks is None:
            return Marks(oldest, fields)
        return Marks(self._marks.since, {**self._marks.fields, **fields})

    async def save_snapshot(self, snapshot: bytes, token: str, *, base: str, digest: str = "") -> bool:
        current = self._snapshot[0] if self._snapshot else START
        known = any(entry.token == token for entry in self._entries)
        if current != base or not known or position(token) <= position(base):
            return False
        self._snapshot, self._digest = (token, snapshot), digest
        self._trim(base)
        return True

    async def load_snapshot(self) -> bytes | None:
        return self._snapshot[1] if self._snapshot else None

    @property
    def seeded(self) -> bool:
        return self._last is not None

    def holds(self, decision_id: str) -> bool:
        return decision_id in self._records

    def copy(self) -> "MemoryLog":
        """Another log with the same contents, that goes its own way."""
        other = copy(self)
        given = {d: _Given(dict(g.current), dict(g.by_key)) for d, g in self._given.items()}
        held = {"_records": dict(self._records), "_beacons": dict(self._beacons), "_given": given}
        vars(other).update(held, _entries=list(self._entries))
        return other

    def _trim(self, base: str) -> None:
        if self._clock is not None:
            before = min(position(base), (int((self._clock() - self._kept_s) * 1000), 0))
            old = bisect_right(self._entries, before, key=lambda entry: position(entry.token))
            del self._entries[:old]

    def _append(self, data: bytes, mark: bytes = b"") -> str:
        previous = self._last or START
        now = (int(self._clock() * 1000) if self._clock else 0, 0)
        milliseconds, sequence = max(position(previous), now)
        token = chained(f"{milliseconds}-{sequence + (now <= position(previous))}", previous, data + mark)
        self._entries.append(Entry(previous, token, data, mark))
        self._last = token
        return token


def _f64(value: float | None) -> bytes:
    return b"" if value is None else struct.pack("<d", value)
