"""The store protocol: one hash-linked log per (tenant, route), its snapshot, and the decisions that await feedback.

A token names a position in a log: `streamid:` and the first 16 hex digits of sha1(previous token + entry + its mark). It
is a hash chain, so equal tokens mean equal histories: a stream id alone is not enough, because a promoted server with a
slower clock can give an id again. Every entry carries the token before it.

Implementations: feedback.redis_store (Redis or Valkey, embedded or not) and feedback.memory_store (one process, nothing
on disk). One suite of tests runs over both.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

from bandit.features import TAG

if TYPE_CHECKING:
    from feedback.budget import Ledger

RATINGS_PER_DECISION: Final = 64
Position = tuple[int, int]  # of an entry within its log: milliseconds and sequence number of its stream id
_SCOPE = re.compile(r"[a-z0-9][a-z0-9_.-]{0,127}")


class StoreError(Exception):
    """The store cannot do it now: away, slow, full, read-only, ... The message says which; try again later."""


class StoreGoneError(StoreError):
    """Nobody listens where the store should be."""


class StoreUnfitError(StoreError):
    """The store can never do it as it is: its version, its settings or its permissions are wrong."""


class Answer(Enum):
    """What became of a feedback at the store."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"  # or overtaken: a value accepted later is there already
    REVISED = "revised"
    WITHDRAWN = "withdrawn"
    NOTHING_GIVEN = "nothing_given"  # there is nothing to withdraw
    UNKNOWN_DECISION = "unknown_decision"  # not visible yet, or gone
    CONFLICT = "conflict"  # same idempotency key, another value
    TOO_MANY = "too_many"  # more than RATINGS_PER_DECISION feedbacks for one decision
    MALFORMED = "malformed"  # the decision's record is no record of ours
    NOT_SEEDED = "not_seeded"  # the store holds no log: it is new, or it lost everything


@dataclass(frozen=True, slots=True)
class Feedback:
    """One value for one decision. kind: feedback.events.RATED or CHARGED; value: None withdraws what the source has given;
    key: 8 bytes, hashed from the caller's idempotency key and the source; record: the decision's record, where the sender
    still holds it; at: when it was accepted (Unix seconds). Of two values the one accepted later counts, in whichever
    order they arrive.
    """

    decision_id: str
    kind: int
    source: str
    value: float | None
    key: bytes
    record: bytes | None = None
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Settled:
    """token: the entry that was appended, or the log's end for a duplicate; empty where nothing was written. prefix: of
    the decision's record, for a sender who had sent none and whose feedback the log now holds.
    """

    answer: Answer
    token: str = ""
    prefix: bytes = b""


@dataclass(frozen=True, slots=True)
class Entry:
    """previous: the token before this entry; token: its own; mark: which feedback it is (`marked`), if it is one."""

    previous: str
    token: str
    data: bytes
    mark: bytes = b""


@dataclass(frozen=True, slots=True)
class Tail:
    """last: token of the log's end, None where there is no log; snapshot: token of the stored snapshot, digest: of the
    state in it; seed: token that the log began at, another one after the store had lost everything and was refilled.

    `last` was read before `entries`, so it may be older than the last entry and is never newer.
    """

    last: str | None
    snapshot: str | None
    entries: Sequence[Entry]
    seed: str | None = None
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Marks:
    """Which feedback a history holds: field -> value, of all entries after the token `since` (see `fields_of`)."""

    since: str
    fields: Mapping[bytes, bytes]


class Log(Protocol):
    """The log of one route. Every method raises StoreError where the store cannot answer."""

    async def put_decisions(self, records: Mapping[str, bytes], beacon: tuple[str, int] | None = None) -> int:
        """Keep records by decision id for the feedback window; a record that is already there stays.

        beacon: (worker, sequence), written after them: where it is still found, they are too. Returns the sequence of the
        worker's beacon as it was before, -1 if there was none.
        """
        ...

    async def last_beacon(self, worker: str) -> int:
        """The sequence of this worker's last beacon, -1 where there is none."""
        ...

    async def get_decision(self, decision_id: str) -> bytes | None: ...

    async def give_feedback(self, feedback: Feedback) -> Settled:
        """Join the decision and append the event: all or nothing, and once for each (decision, key)."""
        ...

    async def append(self, entry: bytes, *, once: str = "") -> str | None:
        """Append an event that needs no join; returns its token, or None where there is no log (NOT_SEEDED).

        once: a key; of all appends with the same one only the first takes place, and the others return its token.
        """
        ...

    async def read(self, after: str, limit: int) -> Tail:
        """Up to `limit` entries after a token."""
        ...

    async def seed(self, snapshot: bytes, token: str, marks: Marks | None = None) -> bool:
        """Begin a log whose history up to `token` is in the snapshot; False where there is a log already.

        marks: which feedback that history holds, so that what is sent again is still known.
        """
        ...

    async def marks(self, before: str, limit: int) -> Marks:
        """The marks up to the token `before`: of up to `limit` entries, and, if they reach back to it, of the seed.

        StoreError where the log does not hold that history.
        """
        ...

    async def save_snapshot(self, snapshot: bytes, token: str, *, base: str, digest: str = "") -> bool:
        """Replace the snapshot at `base` by one at `token`: compare-and-set, so no lease is needed. False where another
        snapshot was saved meanwhile, or `token` is not in this log. digest: published beside it.
        """
        ...

    async def load_snapshot(self) -> bytes | None: ...


class Store(Protocol):
    def log(self, scope: str) -> Log:
        """scope: "tenant.route", see `check_scope`."""
        ...

    def ledger(self, tenant: str) -> "Ledger":
        """Of the tenant's budgets."""
        ...

    async def close(self) -> None: ...


def check_scope(scope: str) -> str:
    """The scope, or ValueError: it becomes a hash tag, and tenants must not be able to forge one another's."""
    if not _SCOPE.fullmatch(scope):
        raise ValueError(
            f"{scope!r} is no tenant.route: lower-case letters, digits, '_', '.', '-', at most 128"
        )
    return scope


def log_name(scope: str, features: bytes) -> str:
    """Where a scope's log lies. features: tag of the vectors that are learned from. Those that ship have the scope's own name; of
    any others the log lies beside it, so that what was learned from these waits, whole, until they are used again.
    """
    return scope if features == TAG else f"{scope}.{features.hex()}"


def chained(stream_id: str, previous: str, data: bytes) -> str:
    """The token of an entry."""
    return f"{stream_id}:{hashlib.sha1(previous.encode() + data).hexdigest()[:16]}"  # noqa: S324 - as in the scripts


def mark_of(feedback: Feedback) -> bytes:
    """16 bytes: which (decision, kind, source), and which (decision, idempotency key)."""
    decision = feedback.decision_id.encode()
    slot = hashlib.blake2b(bytes([feedback.kind]) + feedback.source.encode(), digest_size=8, key=decision)
    return slot.digest() + hashlib.blake2b(feedback.key, digest_size=8, key=decision).digest()


def fields_of(entry: Entry) -> dict[bytes, bytes]:
    """An entry's mark as fields of the hash that `FEEDBACK` asks: 'k' and the key -> the value, 's' and the slot -> when it
    was accepted, its value, and the id of the entry that gave it first (neither of these: withdrawn).

    mark: `mark_of`, accepted at f64, value f64 (none: withdrawn), origin (none: this entry)
    """
    mark = entry.mark
    if len(mark) < 24:
        return {}
    slot, key, at, value = mark[:8], mark[8:16], mark[16:24], mark[24:32]
    origin = mark[32:] or stream_id(entry.token).encode()
    return {b"s" + slot: at + (value and value + origin), b"k" + key: value}


def stream_id(token: str) -> str:
    return token.split(":", 1)[0]


def position(token: str) -> Position:
    """Order of tokens and stream ids within one log."""
    milliseconds, sequence = stream_id(token).split("-")
    return int(milliseconds), int(sequence)
