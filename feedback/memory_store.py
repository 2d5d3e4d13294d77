"""The store protocol in this process's memory: for simulations, tests and `--ephemeral`. Nothing survives the process."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from feedback.events import GIVEN, REVISED, WITHDRAWN, feedback_tail
from feedback.records import MalformedError, prefix_bytes
from feedback.state import START
from feedback.store import (
    RATINGS_PER_DECISION,
    Answer,
    Entry,
    Feedback,
    Settled,
    Tail,
    chained,
    check_scope,
    position,
    stream_id,
)

DECISIONS_KEPT: Final = 100_000
_ANSWERS: Final = {GIVEN: Answer.APPLIED, REVISED: Answer.REVISED, WITHDRAWN: Answer.WITHDRAWN}


class MemoryStore:
    def __init__(self) -> None:
        self._logs: dict[str, MemoryLog] = {}

    def log(self, scope: str) -> "MemoryLog":
        return self._logs.setdefault(check_scope(scope), MemoryLog())

    async def close(self) -> None:
        """Nothing is held open."""


@dataclass(slots=True)
class _Given:
    """Feedback on one decision: current value by source with the entry that gave it first, and the value (None:
    withdrawn) that came with each idempotency key.
    """

    current: dict[tuple[int, str], tuple[float, str]] = field(default_factory=dict)
    by_key: dict[bytes, float | None] = field(default_factory=dict)


class MemoryLog:
    def __init__(self) -> None:
        self._records: dict[str, bytes] = {}
        self._given: dict[str, _Given] = {}
        self._entries: list[Entry] = []
        self._last: str | None = None
        self._snapshot: tuple[str, bytes] | None = None
        self._seed: str | None = None
        self._once: dict[str, str] = {}

    async def put_decisions(self, records: Mapping[str, bytes]) -> None:
        for decision_id, record in records.items():
            self._records.setdefault(decision_id, record)
        for decision_id in list(islice(self._records, max(len(self._records) - DECISIONS_KEPT, 0))):
            del self._records[decision_id]
            self._given.pop(decision_id, None)

    async def get_decision(self, decision_id: str) -> bytes | None:
        return self._records.get(decision_id)

    async def give_feedback(self, feedback: Feedback) -> Settled:
        record = self._records.get(feedback.decision_id) or feedback.record
        if not record:
            return Settled(Answer.UNKNOWN_DECISION)
        try:
            prefix = prefix_bytes(record)
        except MalformedError:
            return Settled(Answer.MALFORMED)
        return self._join(prefix, feedback)

    def _join(self, prefix: bytes, feedback: Feedback) -> Settled:
        given = self._given.get(feedback.decision_id) or _Given()
        if feedback.key in given.by_key:
            same = given.by_key[feedback.key] == feedback.value
            return Settled(Answer.DUPLICATE, self._last or "") if same else Settled(Answer.CONFLICT)
        if len(given.by_key) >= RATINGS_PER_DECISION:
            return Settled(Answer.TOO_MANY)
        if self._last is None:
            return Settled(Answer.NOT_SEEDED)
        slot, value = (feedback.kind, feedback.source), feedback.value
        old, origin = given.current.get(slot, (None, ""))
        if value is None and old is None:
            return Settled(Answer.NOTHING_GIVEN)
        change = WITHDRAWN if value is None else GIVEN if old is None else REVISED
        tail = feedback_tail(value, old, feedback.source, origin)
        token = self._append(bytes([feedback.kind, change]) + prefix + tail)
        given.by_key[feedback.key] = value
        if value is None:
            del given.current[slot]
        else:
            given.current[slot] = (value, origin or stream_id(token))
        self._given[feedback.decision_id] = given
        return Settled(_ANSWERS[change], token)

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
        return Tail(self._last, self._snapshot[0] if self._snapshot else None, later, self._seed)

    async def seed(self, snapshot: bytes, token: str) -> bool:
        if self._last is not None:
            return False
        self._snapshot, self._last, self._seed = (token, snapshot), token, token
        return True

    async def save_snapshot(self, snapshot: bytes, token: str, *, base: str) -> bool:
        current = self._snapshot[0] if self._snapshot else START
        known = any(entry.token == token for entry in self._entries)
        if current != base or not known or position(token) <= position(base):
            return False
        self._snapshot = (token, snapshot)
        return True

    async def load_snapshot(self) -> bytes | None:
        return self._snapshot[1] if self._snapshot else None

    def _append(self, data: bytes) -> str:
        previous = self._last or START
        milliseconds, sequence = position(previous)
        token = chained(f"{milliseconds}-{sequence + 1}", previous, data)
        self._entries.append(Entry(previous, token, data))
        self._last = token
        return token
