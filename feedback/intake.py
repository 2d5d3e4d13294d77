"""The intake of feedback: what was accepted is on this machine's disk first, then in the log, once.

    check the id -> spool (fsync) -> join and append at the store -> answer -> settled when read back in the log

A store's "done" is not the end of it: a failover may take it back. So an entry stays in the spool until this replica has
read it in the log and some time has passed, and is sent again whenever history was replaced; sending twice is harmless.
"""

import asyncio
import base64
import hashlib
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from feedback.ids import scope_of
from feedback.recorder import Recorder
from feedback.records import prefix_bytes
from feedback.replica import History, Replica
from feedback.spool import Entry, Spool, SpoolError
from feedback.store import Answer, Feedback, Log, Settled, StoreError, stream_id

log = logging.getLogger(__name__)
RETAIN_S: Final = 600.0  # how long settled feedback could still be sent again, should a failover take it back
RESEND_AT_A_TIME: Final = 2048
RESEND_AT_ONCE: Final = 16
TOO_LATE: Final = "not confirmed within the feedback window; it may have been counted before"
ASK_AGAIN_S: Final = 0.2  # after a decision was not visible twice
ASK_AGAIN_MAX_S: Final = 60.0
COUNTED: Final = frozenset({Answer.APPLIED, Answer.REVISED, Answer.WITHDRAWN})
REFUSALS: Final = {
    Answer.CONFLICT: "the same idempotency key was used with another value",
    Answer.TOO_MANY: "too many feedbacks for one decision",
    Answer.MALFORMED: "the decision's record is damaged",
    Answer.NOTHING_GIVEN: "there was nothing to withdraw",
}


class FeedbackRefusedError(Exception):
    """status: HTTP status; param: the offending field; code: for programs; str(error): for people."""

    def __init__(self, status: int, message: str, *, param: str | None, code: str) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


@dataclass(frozen=True, slots=True)
class Route:
    """One route's learning: its log, this process's fold of it, and what this process has yet to write."""

    scope: str
    log: Log
    replica: Replica
    recorder: Recorder


@dataclass(frozen=True, slots=True)
class Value:
    """One value of one feedback. kind: feedback.events.RATED or CHARGED; value: None withdraws what the source has given;
    key: the caller's, or the default.
    """

    name: str
    kind: int
    source: str
    value: float | None
    idempotency_key: str | None = None


@dataclass(slots=True)
class _Tracked:
    """A spooled feedback on its way. sequence: its entry in the spool; token: once the store has answered."""

    sequence: int
    scope: str
    feedback: Feedback
    token: str = ""
    done: bool = False


class _Settled(NamedTuple):
    """A feedback that was read back, at settled_at: what it said is in the spool alone, since many are held for long.
    stream_id: of its entry in the log.
    """

    sequence: int
    scope: str
    stream_id: str
    settled_at: float


class _Invisible(NamedTuple):
    """A decision that the store did not hold when it was asked, and when it is asked again (Unix seconds)."""

    pause_s: float
    again_at: float

    @classmethod
    def at(cls, now: float, before: "_Invisible | None") -> "_Invisible":
        """Ever more seldom, but at once at first: its gateway may just be writing it."""
        pause_s = min(max(2 * before.pause_s, ASK_AGAIN_S), ASK_AGAIN_MAX_S) if before else 0.0
        return cls(pause_s, now + pause_s)


NEVER_ASKED: Final = _Invisible(0.0, float("-inf"))


class Intake:
    """clock: Unix seconds. window_s: how long a decision may be rated. watchers: told of every feedback given here, once the
    store has it; more than once where an answer of the store was lost.
    """

    def __init__(
        self,
        routes: Mapping[str, Route],
        spool: Spool,
        *,
        secrets: Sequence[bytes],
        clock: Callable[[], float],
        window_s: float,
    ) -> None:
        self.watchers: list[Callable[[Feedback], object]] = []
        self._routes, self._spool, self._secrets = routes, spool, secrets
        self._clock, self._window_s, self._retain_s = clock, window_s, min(RETAIN_S, window_s / 2)
        self._settled: deque[_Settled] = deque()
        self._invisible: dict[str, _Invisible] = {}  # by decision
        # What an earlier life of this process, or a worker that died, had accepted comes first.
        self._unsettled = {entry.sequence: _tracked(entry) for entry in spool.pending()}
        self._queued_ids = self._decisions_queued()
        for tracked in self._unsettled.values():
            if tracked.feedback.record and tracked.scope in routes:
                routes[tracked.scope].recorder.joined(tracked.feedback.decision_id, tracked.feedback.record)

    @property
    def queued(self) -> int:
        """Feedback accepted, and not yet in the log as far as this process knows."""
        return sum(not tracked.token for tracked in self._unsettled.values())

    @property
    def unsettled(self) -> int:
        """Feedback accepted, and not yet read back from the log: what is queued, and what the last poll had not seen."""
        return len(self._unsettled)

    def waiting(self) -> list[Entry]:
        """What the store has not answered for yet."""
        return [self._spool.entry(sequence) for sequence, t in self._unsettled.items() if not t.token]

    async def give(self, decision_id: str, values: Sequence[Value]) -> list[Answer | None]:
        """What became of each value; None: queued. Raises FeedbackRefusedError for an id that cannot be rated."""
        route = self._route_of(decision_id)
        record = route.recorder.record_of(decision_id)
        prefix = None if record is None else prefix_bytes(record)
        feedbacks = [_feedback(decision_id, value, prefix, self._clock()) for value in values]
        # Shielded: what is once in the spool is followed to its end, even if the caller leaves meanwhile.
        return [await asyncio.shield(self._give_one(route, feedback)) for feedback in feedbacks]

    async def resend(self, scope: str) -> None:
        """Send what the store has not answered for, a decision's values in the order they came; StoreError stops it until
        the next time.
        """
        by_decision: dict[str, list[_Tracked]] = {}
        for tracked in self._due(scope):
            by_decision.setdefault(tracked.feedback.decision_id, []).append(tracked)
        decisions = list(by_decision.values())
        for first in range(0, len(decisions), RESEND_AT_ONCE):
            sent = (self._resend_in_turn(scope, them) for them in decisions[first : first + RESEND_AT_ONCE])
            for outcome in await asyncio.gather(*sent, return_exceptions=True):
                if outcome is not None:
                    raise outcome
        self._queued_ids = self._decisions_queued()

    async def _resend_in_turn(self, scope: str, values: Sequence[_Tracked]) -> None:
        """None may overtake an earlier one: the value given last is the one that counts."""
        for tracked in values:
            decision_id = tracked.feedback.decision_id
            if self._waited_s(tracked) > self._window_s:
                await self._bury(tracked, TOO_LATE)
                continue
            await self._complete(tracked)
            settled = await self._routes[scope].log.give_feedback(tracked.feedback)
            await self._answered(tracked, settled)
            self._tell(tracked.feedback, settled.answer, before=True)
            before = self._invisible.pop(decision_id, None)
            if settled.answer in REFUSALS:
                await self._bury(tracked, REFUSALS[settled.answer])
            elif settled.answer is Answer.UNKNOWN_DECISION:
                self._invisible[decision_id] = _Invisible.at(self._clock(), before)
                return

    async def _complete(self, tracked: _Tracked) -> None:
        """With the decision's record, if this process has come to hold it since."""
        if tracked.feedback.record is None:
            record = self._routes[tracked.scope].recorder.record_of(tracked.feedback.decision_id)
            if record is not None:
                await self._amend(tracked, prefix_bytes(record))

    async def _answered(self, tracked: _Tracked, settled: Settled) -> None:
        tracked.token = settled.token
        if settled.prefix:  # so that it can be sent again though the store should lose the decision with it
            self._routes[tracked.scope].recorder.joined(tracked.feedback.decision_id, settled.prefix)
            await self._amend(tracked, settled.prefix)

    async def _amend(self, tracked: _Tracked, prefix: bytes) -> None:
        tracked.feedback = replace(tracked.feedback, record=prefix)
        await self._spool.amend(tracked.sequence, _to_payload(tracked.scope, tracked.feedback))

    def _decisions_queued(self) -> set[str]:
        return {t.feedback.decision_id for t in self._unsettled.values() if not t.token}

    def _due(self, scope: str) -> list[_Tracked]:
        now, invisible = self._clock(), self._invisible
        waiting = [t for t in self._unsettled.values() if t.scope == scope and not t.token]
        due = [t for t in waiting if invisible.get(t.feedback.decision_id, NEVER_ASKED).again_at <= now]
        due.sort(key=lambda t: (t.feedback.decision_id in invisible, t.sequence))
        return due[:RESEND_AT_A_TIME]

    def _waited_s(self, tracked: _Tracked) -> float:
        return self._clock() - tracked.feedback.at

    async def sort_out(self) -> None:
        """At the start: what had been settled and can no longer be sent is let go of, and feedback for routes that are not
        configured any more goes to the dead-letter file.
        """
        for tracked in list(self._unsettled.values()):
            told = self._spool.entry(tracked.sequence).payload
            if "settled_at" in told and self._waited_s(tracked) > self._window_s:
                del self._unsettled[tracked.sequence]
                await self._spool.finish(tracked.sequence)
        for tracked in [t for t in self._unsettled.values() if t.scope not in self._routes]:
            await self._bury(tracked, f"its route {tracked.scope} is not configured")

    def sent(self, scope: str) -> set[int]:
        """What the store has answered for and this process has not read back yet."""
        return {t.sequence for t in self._unsettled.values() if t.scope == scope and t.token}

    async def settle(self, scope: str, history: History, sent: Collection[int] = ()) -> None:
        """After a poll of that route: what was read back is settled, what was passed unseen is sent again. sent: before that
        poll, which read to the log's end; what it did not see of these was taken back, wherever the log ends now.
        """
        if history is not History.CONTINUED:
            await self._history_changed(scope)
        replica, now = self._routes[scope].replica, self._clock()
        for tracked in [t for t in self._unsettled.values() if t.scope == scope and t.token]:
            if replica.has_seen(tracked.token):
                del self._unsettled[tracked.sequence]
                self._settled.append(_Settled(tracked.sequence, scope, stream_id(tracked.token), now))
            elif tracked.sequence in sent or replica.has_passed(tracked.token):
                tracked.token = ""
        self._queued_ids = self._decisions_queued()
        while self._settled and now - self._settled[0].settled_at >= self._retain_s:
            await self._spool.finish(self._settled.popleft().sequence)

    async def leave(self) -> None:
        """At a clean end: what was read back stays on disk, since a failover may still take it back. Whoever takes up the
        spool sends it again, or, once the window has passed, lets go of it.
        """
        for settled in self._settled:
            payload = self._spool.entry(settled.sequence).payload | {"settled_at": settled.settled_at}
            await self._spool.amend(settled.sequence, payload)

    async def _history_changed(self, scope: str) -> None:
        replica = self._routes[scope].replica
        ours = [settled for settled in self._settled if settled.scope == scope]
        sent = [_tracked(self._spool.entry(settled.sequence), settled.stream_id) for settled in ours]
        sent += [t for t in self._unsettled.values() if t.scope == scope and t.token]
        self._settled = deque(settled for settled in self._settled if settled.scope != scope)
        for tracked in sent:
            if replica.was_seeded(tracked.token):
                # The store that knew its key is gone, and the new one began with it: sent again it would count twice.
                self._unsettled.pop(tracked.sequence, None)
                await self._spool.finish(tracked.sequence)
            else:
                tracked.token = ""
                self._unsettled[tracked.sequence] = tracked

    def route_of(self, decision_id: str) -> Route:
        """The route that the decision was made for. Raises FeedbackRefusedError for an id that is forged or too old."""
        return self._route_of(decision_id)

    def _route_of(self, decision_id: str) -> Route:
        found = scope_of(decision_id, self._secrets, self._routes)
        if found is None:
            message = "no decision of this router has this id; send the `id` of a chat completion or its x-router-decision-id"
            raise FeedbackRefusedError(404, message, param="decision_id", code="decision_not_found")
        scope, made_at = found
        if self._clock() - made_at > self._window_s:
            message = f"this decision can no longer be rated: the window is {self._window_s / 3600:g} hours"
            raise FeedbackRefusedError(410, message, param="decision_id", code="feedback_window_closed")
        return self._routes[scope]

    async def _give_one(self, route: Route, feedback: Feedback) -> Answer | None:
        try:
            entry = await self._spool.append(_to_payload(route.scope, feedback))
        except SpoolError:
            return await self._give_unspooled(route, feedback)
        tracked = _Tracked(entry.sequence, route.scope, feedback)
        if feedback.decision_id in self._queued_ids:  # behind an earlier value: the last one is to count
            self._unsettled[entry.sequence] = tracked
            return None
        try:
            settled = await route.log.give_feedback(feedback)
        except StoreError:
            return None
        else:
            tracked.done = settled.answer in REFUSALS  # the caller is told, so nothing is left to do
            await self._answered(tracked, settled)
            self._tell(feedback, settled.answer)
        finally:
            if not tracked.done:
                self._unsettled[entry.sequence] = tracked
            if not tracked.done and not tracked.token:
                self._queued_ids.add(feedback.decision_id)
        if tracked.done:
            await self._spool.finish(entry.sequence)
        return settled.answer if settled.answer not in (Answer.UNKNOWN_DECISION, Answer.NOT_SEEDED) else None

    async def _give_unspooled(self, route: Route, feedback: Feedback) -> Answer:
        """The disk takes nothing: only the store's own word is left to rely on."""
        try:
            settled = await route.log.give_feedback(feedback)
        except StoreError as error:
            message = "feedback can be kept neither on disk nor in the store now; send it again later"
            raise FeedbackRefusedError(503, message, param=None, code="store_unavailable") from error
        if settled.answer in (Answer.UNKNOWN_DECISION, Answer.NOT_SEEDED):
            message = (
                "the decision is not visible yet and feedback cannot be kept on disk; send it again later"
            )
            raise FeedbackRefusedError(503, message, param=None, code="store_unavailable")
        self._tell(feedback, settled.answer)
        return settled.answer

    def _tell(self, feedback: Feedback, answer: Answer, *, before: bool = False) -> None:
        """before: it was sent before, perhaps taken, and the answer lost: a duplicate may be itself."""
        if answer in COUNTED or (before and answer is Answer.DUPLICATE):
            for watcher in self.watchers:
                watcher(feedback)

    async def _bury(self, tracked: _Tracked, reason: str) -> None:
        try:
            await self._spool.bury(self._spool.entry(tracked.sequence), reason)
        except SpoolError as error:  # it stays in the spool, to be answered for and buried again
            log.warning("%s", error)
            return
        self._unsettled.pop(tracked.sequence, None)


def _feedback(decision_id: str, value: Value, record: bytes | None, now: float = 0.0) -> Feedback:
    key = hashlib.blake2b(digest_size=8)
    for part in (value.source, str(value.kind), value.idempotency_key or ""):
        key.update(part.encode() + b"\0")
    return Feedback(decision_id, value.kind, value.source, value.value, key.digest(), record, now)


def _to_payload(scope: str, feedback: Feedback) -> dict[str, Any]:
    return {
        "scope": scope,
        "id": feedback.decision_id,
        "kind": feedback.kind,
        "source": feedback.source,
        "value": feedback.value,
        "key": base64.b64encode(feedback.key).decode(),
        "record": base64.b64encode(feedback.record or b"").decode(),
        "at": feedback.at,
    }


def _tracked(entry: Entry, token: str = "") -> _Tracked:
    p = entry.payload
    feedback = Feedback(
        decision_id=p["id"],
        kind=p["kind"],
        source=p["source"],
        value=p["value"],
        key=base64.b64decode(p["key"]),
        record=base64.b64decode(p["record"]) or None,
        at=float(p["at"]),
    )
    return _Tracked(entry.sequence, p["scope"], feedback, token)


def overall(answers: Iterable[Answer | None]) -> str:
    """One status for several values: the one that leaves most to be done."""
    order = (None, Answer.APPLIED, Answer.REVISED, Answer.WITHDRAWN, Answer.DUPLICATE)
    first = min(answers, key=order.index)
    return "queued" if first is None else first.value
