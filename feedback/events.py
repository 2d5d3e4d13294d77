"""Events: the entries of the log, and their bytes. Everything that is ever learned is one of these.

    Rated      somebody judged an answer (a rating's first byte on the log is 1)
    Charged    somebody told what a call really cost (2)
    Withdrawn  somebody took a rating back (1 too: a change of it)
    Called     what one worker's calls took since its last tick, summed per arm, and how long some answers were (3)
    Reset      most of what is known of an arm is to be forgotten: it drifted, or an operator says so (4)
    JudgeDrift a source has changed its mind about all arms (5)

Rated, Withdrawn and Charged are put together inside the store, from the decision's record and the feedback's own bytes,
so that they are appended once:

    kind u8 | change u8 | decision prefix | value f64 | old value f64 | origin, NUL | source name (UTF-8)

change: 0 given, 1 revised, 2 withdrawn. A change carries the value that it replaces, and as origin the stream id of the
entry that gave it first: what resets in between have left of it follows from there. The others are written whole:
kind u8 | JSON.
"""

import struct
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson

from bandit.latency import LatencyStatistics
from bandit.lengths import LengthSample
from bandit.statistics import CallStatistics
from feedback.records import DECIDED_AT_MAX, HEAD, DecisionPrefix, MalformedError
from feedback.store import Position, position

RATED: Final = 1
CHARGED: Final = 2
CALLED: Final = 3
RESET: Final = 4
JUDGE_DRIFT: Final = 5
GIVEN, REVISED, WITHDRAWN = 0, 1, 2
COST_MAX_USD: Final = 1e6
WHOLE_BELOW: Final = 2**53

_VALUES = struct.Struct("<dd")
_LENGTH = struct.Struct("<H")
_PREFIX_LENGTH_AT = 4  # byte of the head's prefix length within an event: kind, change, version, attempt


@dataclass(frozen=True, slots=True, eq=False)
class Rated:
    """quality in [0, 1] by `source` ("user", "judge:NAME", ...); old: the value that this one replaces, first given by
    the entry at `origin`.
    """

    decision: DecisionPrefix
    source: str
    quality: float
    old: float | None = None
    origin: Position | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Withdrawn:
    """The rating `quality`, first given by the entry at `origin`, is to count as if it had never been given."""

    decision: DecisionPrefix
    source: str
    quality: float
    origin: Position


@dataclass(frozen=True, slots=True, eq=False)
class Charged:
    """cost_usd >= 0 of one call as the application knows it; old: the value that this one replaces."""

    decision: DecisionPrefix
    source: str
    cost_usd: float
    old: float | None = None


@dataclass(frozen=True, slots=True)
class Called:
    """Sums over a worker's calls since its last event; (worker, sequence) makes appending it twice harmless.

    calls: arm -> what its calls took. latencies: arm -> how long they took, each as of its last call. lengths: arm -> how
    long some of its answers were, for requests with features of that version.
    """

    worker: str
    sequence: int
    calls: Mapping[str, CallStatistics]
    latencies: Mapping[str, LatencyStatistics] = field(default_factory=dict)
    lengths: Mapping[str, LengthSample] = field(default_factory=dict)
    features: bytes = b""


@dataclass(frozen=True, slots=True)
class Reset:
    """The sums of `arm` by `source` (None: by all) are multiplied by factor in [0, 1] and its detectors begin anew.

    cause: "drift", "operator", ...; at: Unix seconds; alarm: token of the rating that raised the alarm which this answers.
    """

    arm: str
    source: str | None
    factor: float
    cause: str
    at: float
    alarm: str | None = None


@dataclass(frozen=True, slots=True)
class JudgeDrift:
    """What `source` has said so far is its earlier self's, of whose sums factor is left (feedback.cuts); its detectors begin
    anew. at, alarm: as above.
    """

    source: str
    factor: float
    at: float
    alarm: str | None = None


Event = Rated | Withdrawn | Charged | Called | Reset | JudgeDrift


def encode_called(event: Called) -> bytes:
    arms = {name: statistics.numbers() for name, statistics in event.calls.items()}
    latencies = {name: statistics.numbers() for name, statistics in event.latencies.items()}
    lengths = {name: [b64encode(s.rows).decode(), s.tokens_out] for name, s in event.lengths.items()}
    told = [event.worker, event.sequence, arms, latencies, lengths, event.features.hex()]
    return bytes([CALLED]) + orjson.dumps(told)


def encode_reset(event: Reset | JudgeDrift) -> bytes:
    kind = RESET if isinstance(event, Reset) else JUDGE_DRIFT
    return bytes([kind]) + orjson.dumps([getattr(event, name) for name in type(event).__slots__])


def feedback_tail(value: float | None, old: float | None, source: str, origin: str = "") -> bytes:
    """What follows the decision prefix in an event of feedback. origin: stream id of the entry that gave `old`."""
    values = _VALUES.pack(0.0 if value is None else value, 0.0 if old is None else old)
    return values + origin.encode() + b"\0" + source.encode()


def decode(data: bytes) -> Event:
    """Raises MalformedError; every replica refuses the same bytes."""
    kind = data[0] if data else 0
    if kind == CALLED:
        return _decode_called(data[1:])
    if kind in (RESET, JUDGE_DRIFT):
        return _decode_reset(kind, data[1:])
    if kind not in (RATED, CHARGED) or len(data) < 2 + HEAD.size:
        raise MalformedError("neither kind nor length of an event of ours")
    end = 2 + _LENGTH.unpack_from(data, _PREFIX_LENGTH_AT)[0]
    decision, tail, change = DecisionPrefix.decode(data[2:end]), _Tail.decode(data, end), data[1]
    upper = 1.0 if kind == RATED else COST_MAX_USD
    if not (0.0 <= tail.value <= upper and (change == GIVEN or 0.0 <= tail.old <= upper)):
        raise MalformedError(f"a value is not between 0 and {upper:g}")
    return (_rating if kind == RATED else _charge)(decision, tail, change)


def _rating(decision: DecisionPrefix, tail: "_Tail", change: int) -> Rated | Withdrawn:
    if change == GIVEN:
        return Rated(decision, tail.source, tail.value)
    if change == REVISED:
        return Rated(decision, tail.source, tail.value, tail.old, tail.given_at())
    if change == WITHDRAWN:
        return Withdrawn(decision, tail.source, tail.old, tail.given_at())
    raise MalformedError(f"no change of a rating is {change}")


def _charge(decision: DecisionPrefix, tail: "_Tail", change: int) -> Charged:
    if change not in (GIVEN, REVISED):
        raise MalformedError(f"no change of a cost is {change}")
    return Charged(decision, tail.source, tail.value, tail.old if change == REVISED else None)


class _Tail(NamedTuple):
    """What follows the decision prefix in an event of feedback."""

    value: float
    old: float
    origin: str
    source: str

    @classmethod
    def decode(cls, data: bytes, at: int) -> "_Tail":
        """It begins at that byte."""
        origin, end, source = data[at + _VALUES.size :].partition(b"\0")
        if not end or not source:
            raise MalformedError("a feedback event ends before its source")
        value, old = _VALUES.unpack_from(data, at)
        try:
            return cls(value, old, origin.decode(), source.decode())
        except UnicodeDecodeError as error:
            raise MalformedError("a source's name is no UTF-8") from error

    def given_at(self) -> Position:
        try:
            return position(self.origin)
        except ValueError as error:
            raise MalformedError("a change names no entry that it changes") from error


def _decode_reset(kind: int, data: bytes) -> Reset | JudgeDrift:
    form = Reset if kind == RESET else JudgeDrift
    try:
        values = orjson.loads(data)
        event = form(**dict(zip(form.__slots__, values, strict=True)))
    except (orjson.JSONDecodeError, TypeError, ValueError) as error:
        raise MalformedError("a reset is not of the form that this version writes") from error
    texts = [event.source, event.alarm] + ([event.arm, event.cause] if isinstance(event, Reset) else [])
    needed = texts[2:] if isinstance(event, Reset) else texts[:1]
    if not all(text is None or isinstance(text, str) for text in texts) or None in needed:
        raise MalformedError("a reset's arm, source or cause is no text")
    if not (_is_between(event.factor, 1.0) and _is_between(event.at, DECIDED_AT_MAX)):
        raise MalformedError("a reset's factor is not between 0 and 1, or its time no clock's")
    return event


def _is_between(value: Any, upper: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= upper


def _decode_called(data: bytes) -> Called:
    try:
        worker, sequence, arms, latencies, lengths, features = orjson.loads(data)
        return Called(
            str(worker),
            _count(sequence),
            {str(name): _calls(numbers) for name, numbers in arms.items()},
            {str(name): _latency(numbers) for name, numbers in latencies.items()},
            {str(name): _lengths(*sample) for name, sample in lengths.items()},
            bytes.fromhex(features),
        )
    except (orjson.JSONDecodeError, TypeError, ValueError, AttributeError) as error:
        raise MalformedError("a worker's sums are not of the form that this version writes") from error


def _calls(numbers: list[int]) -> CallStatistics:
    return CallStatistics.of_numbers([_count(number) for number in numbers])


def _lengths(rows: str, tokens_out: list[int]) -> LengthSample:
    """Whether the rows are of as many features as this version has is for the fold to say."""
    return LengthSample(b64decode(rows, validate=True), tuple(map(_count, tokens_out)))


def _latency(numbers: list[float]) -> LatencyStatistics:
    latency = LatencyStatistics.of_numbers(numbers)
    if latency.at > DECIDED_AT_MAX:
        raise ValueError(numbers)
    return latency


def _count(value: Any) -> int:
    """A whole number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < WHOLE_BELOW:
        raise ValueError(value)
    return value
