"""Events: the entries of the log, and their bytes. Everything that is ever learned is one of these.

    Rated      somebody judged an answer (a rating's first byte on the log is 1)
    Charged    somebody told what a call really cost (2)
    Called     what one worker's calls took since its last tick, summed per arm (3)

Rated and Charged are put together inside the store, from the decision's record and the feedback's own bytes, so that
they are appended once:   kind u8 | revision u8 | decision prefix | value f64 | old value f64 | source name (UTF-8)
A revision carries the value that it replaces. Called is written whole:   kind u8 | JSON.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import orjson

from bandit.statistics import CallStatistics
from feedback.records import HEAD, DecisionPrefix, MalformedError

RATED: Final = 1
CHARGED: Final = 2
CALLED: Final = 3
COST_MAX_USD: Final = 1e6

_VALUES = struct.Struct("<dd")
_PREFIX_LENGTH_AT = 4  # byte of the head's prefix length within an event: kind, revision, version, attempt


@dataclass(frozen=True, slots=True, eq=False)
class Rated:
    """quality in [0, 1] by `source` ("user", "judge:NAME", ...); old: the value that this one replaces."""

    decision: DecisionPrefix
    source: str
    quality: float
    old: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Charged:
    """cost_usd >= 0 of one call as the application knows it; old: the value that this one replaces."""

    decision: DecisionPrefix
    source: str
    cost_usd: float
    old: float | None = None


@dataclass(frozen=True, slots=True)
class Called:
    """Sums over a worker's calls since its last event; (worker, sequence) makes appending it twice harmless."""

    worker: str
    sequence: int
    calls: Mapping[str, CallStatistics]


Event = Rated | Charged | Called


def encode_called(event: Called) -> bytes:
    arms = {name: _numbers(statistics) for name, statistics in event.calls.items()}
    return bytes([CALLED]) + orjson.dumps([event.worker, event.sequence, arms])


def feedback_tail(value: float, old: float | None, source: str) -> bytes:
    """What follows the decision prefix in a Rated or Charged event."""
    return _VALUES.pack(value, 0.0 if old is None else old) + source.encode()


def decode(data: bytes) -> Event:
    """Raises MalformedError; every replica refuses the same bytes."""
    kind = data[0] if data else 0
    if kind == CALLED:
        return _decode_called(data[1:])
    if kind not in (RATED, CHARGED) or len(data) < 2 + HEAD.size:
        raise MalformedError("neither kind nor length of an event of ours")
    (length,) = struct.unpack_from("<H", data, _PREFIX_LENGTH_AT)
    decision = DecisionPrefix.decode(data[2 : 2 + length])
    value, old, source = _decode_tail(data[2 + length :], revision=data[1] == 1)
    upper = 1.0 if kind == RATED else COST_MAX_USD
    if not all(0.0 <= v <= upper for v in (value, 0.0 if old is None else old)):
        raise MalformedError(f"a value is not between 0 and {upper:g}")
    return (Rated if kind == RATED else Charged)(decision, source, value, old)


def _decode_tail(data: bytes, *, revision: bool) -> tuple[float, float | None, str]:
    if len(data) <= _VALUES.size:
        raise MalformedError("a feedback event ends before its source")
    value, old = _VALUES.unpack_from(data)
    try:
        source = data[_VALUES.size :].decode()
    except UnicodeDecodeError as error:
        raise MalformedError("a source's name is no UTF-8") from error
    return value, (old if revision else None), source


def _decode_called(data: bytes) -> Called:
    try:
        worker, sequence, arms = orjson.loads(data)
        calls = {str(name): CallStatistics(*map(_count, numbers)) for name, numbers in arms.items()}
        return Called(str(worker), _count(sequence), calls)
    except (orjson.JSONDecodeError, TypeError, ValueError, AttributeError) as error:
        raise MalformedError("a worker's sums are not of the form that this version writes") from error


def _numbers(statistics: CallStatistics) -> list[int]:
    return [getattr(statistics, name) for name in CallStatistics.__slots__]


def _count(value: float) -> int:
    """A non-negative integer, as sums of counts are."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or not 0 <= value < 2**53
        or not math.isfinite(value)
    ):
        raise ValueError(value)
    return value
