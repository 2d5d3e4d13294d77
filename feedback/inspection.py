"""A route's log looked over from outside: does its chain hold, does its snapshot fit, what would a replica know?"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bandit.features import DIMENSION, TAG
from feedback.events import Called, Charged, Event, JudgeDrift, Rated, Reset, Withdrawn, decode
from feedback.learn import fold
from feedback.records import MalformedError
from feedback.redis_store import RedisLog
from feedback.state import START, State
from feedback.store import Entry, Log, StoreError

PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class Findings:
    """state: what a replica that begins now would hold; it ends where the chain does. beyond: entries that hang on nothing
    and so are lost to all replicas. problems: sentences; none if all is well.
    """

    state: State
    entries: int
    last: str | None
    problems: Sequence[str] = field(default_factory=list)
    beyond: Sequence[Entry] = field(default_factory=list)


async def examine(log: Log, features: bytes = TAG) -> Findings:
    """Read all of it. features: tag of the vectors that its replicas fold. StoreError where the store cannot be read."""
    tail = await log.read(START, 1)
    problems: list[str] = []
    if tail.last is None:
        return Findings(State(features, DIMENSION), 0, None)
    stored = _snapshot_state(await log.load_snapshot(), features, problems)
    if tail.digest and stored.cursor == tail.snapshot and stored.digest() != tail.digest:
        problems.append(
            f"the snapshot's digest is {stored.digest()}, and {tail.digest} was published with it"
        )
    state = stored.for_features(features, DIMENSION)
    entries, count = await _all_entries(log), 0
    previous: str | None = None
    for entry in entries:
        if previous is not None and entry.previous != previous:
            problems.append(f"the chain breaks at {entry.token}: it follows {entry.previous}, not {previous}")
        previous, count = entry.token, count + 1
    state, beyond = _folded(state, entries)
    last = (await log.read(state.cursor, 1)).last
    if beyond:
        problems.append(f"{len(beyond)} entries hang on nothing that is left")
    elif last != state.cursor:
        problems.append(f"the log should end at {last}, and its entries end at {state.cursor}")
    if state.skipped:
        problems.append(f"{state.skipped} entries were no events of this version, or came twice")
    return Findings(state, count, last, problems, beyond)


def told(entry: Entry) -> dict[str, Any]:
    """An entry as one JSON object."""
    try:
        event = decode(entry.data)
    except MalformedError as error:
        return {"token": entry.token, "malformed": str(error), "bytes": entry.data.hex()}
    return {"token": entry.token, "event": type(event).__name__.lower()} | _fields(event)


async def entries_after(log: Log, token: str) -> list[Entry]:
    return await _all_entries(log, token)


def _fields(event: Event) -> dict[str, Any]:
    match event:
        case Rated() | Withdrawn():
            decision = event.decision
            told = {"arm": decision.arm, "source": event.source, "quality": event.quality}
            return told | {"decided_at": decision.decided_at, "propensity": decision.propensity}
        case Charged():
            return {"arm": event.decision.arm, "source": event.source, "cost_usd": event.cost_usd}
        case Called():
            return {"worker": event.worker, "sequence": event.sequence, "arms": sorted(event.calls)}
        case Reset() | JudgeDrift():
            return {"told": repr(event)}


def _snapshot_state(data: bytes | None, features: bytes, problems: list[str]) -> State:
    if data is None:
        problems.append("there is no snapshot")
        return State(features, DIMENSION)
    try:
        return State.from_bytes(data)
    except MalformedError as error:
        problems.append(f"the snapshot is damaged: {error}")
        return State(features, DIMENSION)


async def _all_entries(log: Log, after: str = START) -> list[Entry]:
    entries: list[Entry] = []
    while page := (await log.read(entries[-1].token if entries else after, PAGE)).entries:
        entries += page
    return entries


def _folded(state: State, entries: Sequence[Entry]) -> tuple[State, Sequence[Entry]]:
    """The state after the entries that follow on it, and those that follow on nothing."""
    following = {entry.previous: entry for entry in entries}
    used: set[str] = set()
    while (entry := following.get(state.cursor)) is not None:
        state = fold(state, entry.token, entry.data)
        used.add(entry.token)
    position = next((n for n, entry in enumerate(entries) if entry.token == state.cursor), -1)
    return state, [entry for entry in entries[position + 1 :] if entry.token not in used]


async def rebuild(log: RedisLog, findings: Findings) -> None:
    """Begin the log again with all that could be read of it; StoreError where somebody appended meanwhile."""
    try:
        marks = await log.marks(findings.state.cursor, 20_000)
    except StoreError:
        marks = None
    if not await log.replace(findings.state.to_bytes(), findings.state.cursor, marks, last=findings.last):
        raise StoreError("the log has grown meanwhile: try again")
