"""State: what the log has taught, as additive statistics per arm and source, with the position it was read up to.

A rating counts with weight 2^(t / H) of its decision's time t (half-life H): as time goes on newer ratings outweigh
older ones, yet every sum stays a plain sum, so forgetting commutes with everything. To keep numbers finite t / H is
split once into an integer k and a fraction f, weights are relative to an epoch k0, and moving the epoch multiplies by a
power of two: exact, so it cannot matter when it happens. Sums are read relative to the next of AGE_STEPS points of a
half-life, so for hours an arm without new ratings reads the same. The prior is not in here; it is added undecayed when a
posterior is read.

States are never changed in place. Bytes (`to_bytes`) are versioned and carry a checksum; never pickle.
"""

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, field, replace
from functools import cache, reduce
from operator import add, attrgetter, is_
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from bandit.cost import CostModel
from bandit.drift import Detector
from bandit.latency import LatencyStatistics
from bandit.lengths import LengthSums
from bandit.posterior import Posterior
from bandit.prediction import QualityModel, QualityPosterior
from bandit.sources import ANCHOR, Correction, corrected, source_itself
from bandit.statistics import CallStatistics, RatingStatistics
from feedback.cuts import Alarm, ArmSource, Cut
from feedback.records import MalformedError

HALF_LIFE_S: Final = 30 * 86_400.0
START: Final = "0-0:"  # the token before a log's first entry
AGE_STEPS: Final = 256  # points of a half-life (2.8 hours apart) to which ages are counted back
_MAGIC: Final = b"FLS5"
_LENGTH = struct.Struct("<I")

_EMPTY: Mapping[Any, Any] = MappingProxyType({})
_Told = tuple[RatingStatistics, Correction | None]
Corrections = Mapping[ArmSource, Correction]
_MadeFrom = tuple[QualityModel, Mapping[str, RatingStatistics], int, Mapping[str, float]]


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """features, d: tag and length of the vectors that may be folded in. epoch: k0, None before the first rating.

    as_of: the newest decision time seen (Unix seconds). ratings: (arm, source) -> sums with weights relative to the
    epoch. calls: arm -> sums. latencies: arm -> sums as of its last call. lengths: arm -> sums over its answers
    (bandit.lengths). workers: worker -> its last sequence number. skipped: entries that were no event of this version.
    cursor: token of the last entry folded. rated: ratings so far, each counted when it was first given. detectors: (arm,
    source) -> what its ratings say of drift; alone: the same of the ratings alone, whatever was expected; alarms: those
    without an answer; cuts: resets so far.
    entry_prices: arm -> USD per million tokens out when it was first rated, for that is what a prior may read of it.
    """

    features: bytes
    d: int
    cursor: str = START
    events: int = 0
    skipped: int = 0
    epoch: int | None = None
    as_of: float = 0.0
    ratings: Mapping[ArmSource, RatingStatistics] = field(default_factory=lambda: _EMPTY)
    calls: Mapping[str, CallStatistics] = field(default_factory=lambda: _EMPTY)
    latencies: Mapping[str, LatencyStatistics] = field(default_factory=lambda: _EMPTY)
    lengths: LengthSums = field(default_factory=lambda: _EMPTY)
    workers: Mapping[str, int] = field(default_factory=lambda: _EMPTY)
    rated: int = 0
    detectors: Mapping[ArmSource, Detector] = field(default_factory=lambda: _EMPTY)
    alone: Mapping[ArmSource, Detector] = field(default_factory=lambda: _EMPTY)
    alarms: tuple[Alarm, ...] = ()
    cuts: tuple[Cut, ...] = ()
    entry_prices: Mapping[str, float] = field(default_factory=lambda: _EMPTY)

    def for_features(self, features: bytes, d: int) -> "State":
        """It where vectors are of that version: what hangs on others counts no more, what calls took does."""
        if self.features == features:
            return self
        return replace(
            self,
            features=features,
            d=d,
            ratings=_EMPTY,
            lengths=_EMPTY,
            epoch=None,
            as_of=0.0,
            rated=0,
            detectors=_EMPTY,
            alone=_EMPTY,
            alarms=(),
            cuts=(),
        )

    def read_at(self) -> float:
        """Unix seconds from which ages are counted back: the point of the grid at or after `as_of`."""
        return math.ceil(self.as_of / HALF_LIFE_S * AGE_STEPS) / AGE_STEPS * HALF_LIFE_S

    @property
    def has_several_sources(self) -> bool:
        return len({source_itself(source) for _, source in self.ratings}) > 1

    def weight_now(self) -> float:
        """What a weight in the sums is as of `read_at()`: a rating weighs 2^-(age / H)."""
        if self.epoch is None:
            return 0.0
        return float(2.0 ** (self.epoch - math.ceil(self.as_of / HALF_LIFE_S * AGE_STEPS) / AGE_STEPS))

    def ratings_per_arm(self) -> dict[str, RatingStatistics]:
        """Sums over all sources, as they told it, as of `read_at()`."""
        now, sums = self.weight_now(), dict[str, RatingStatistics]()
        for (arm, _), s in self.ratings.items():
            sums[arm] = sums[arm] + s if arm in sums else s
        return {arm: s.times(now) for arm, s in sums.items()}

    def on_one_scale(
        self, reader: "Reader | None" = None, *, anchor: str = ANCHOR
    ) -> dict[str, RatingStatistics]:
        """The same, each source's ratings as the anchor would have given them (bandit.sources).

        reader: remembers the last reading, and gives the same object again for an arm that reads the same.
        """
        reader, now = reader or Reader(), self.weight_now()
        corrections = reader.corrections(self.ratings, now, anchor)
        parts: dict[str, list[tuple[RatingStatistics, Correction | None]]] = {}
        for key, statistics in self.ratings.items():
            parts.setdefault(key[0], []).append((statistics, corrections.get(key)))
        return {arm: reader.read(arm, now, tuple(sums)) for arm, sums in parts.items()}

    def posterior(self, model: QualityModel, reader: "Reader | None" = None) -> Posterior:
        """What is believed after this state. reader: as for `on_one_scale`; it also remembers what was made of them."""
        reader = reader or Reader()
        ratings = self.on_one_scale(reader, anchor=model.anchor)
        quality = reader.quality(model, ratings, self.d, self.entry_prices)
        counts = {arm: s.weight for arm, s in ratings.items()}
        return Posterior(quality, reader.cost(self.calls, self.lengths), counts, self.cursor)

    def digest(self) -> str:
        """Equal digests: equal statistics, to the last bit, at the same position of the same log."""
        return digest_of(self.to_bytes())

    def to_bytes(self) -> bytes:
        header = {
            "features": self.features.hex(),
            "d": self.d,
            "half_life_s": HALF_LIFE_S,
            "cursor": self.cursor,
            "events": self.events,
            "skipped": self.skipped,
            "epoch": self.epoch,
            "as_of": self.as_of,
            "ratings": list(self.ratings),
            "calls": {arm: s.numbers() for arm, s in self.calls.items()},
            "latencies": {arm: s.numbers() for arm, s in self.latencies.items()},
            "lengths": list(self.lengths),
            "workers": dict(self.workers),
            "rated": self.rated,
            "detectors": [[*key, *detector] for key, detector in self.detectors.items()],
            "alone": [[*key, *detector] for key, detector in self.alone.items()],
            "alarms": [astuple(alarm) for alarm in self.alarms],
            "cuts": [astuple(cut) for cut in self.cuts],
            "entry_prices": dict(self.entry_prices),
        }
        packed = json.dumps(header).encode()  # the standard library's: sums of counts may exceed 64 bits
        body = b"".join(map(_pack, (*self.ratings.values(), *self.lengths.values())))
        data = _MAGIC + _LENGTH.pack(len(packed)) + packed + body
        return data + _LENGTH.pack(zlib.crc32(data))

    @classmethod
    def from_bytes(cls, data: bytes) -> "State":
        """Raises MalformedError unless `data` is what `to_bytes` wrote, unharmed."""
        if len(data) < 12 or data[:4] != _MAGIC or zlib.crc32(data[:-4]) != _LENGTH.unpack(data[-4:])[0]:
            raise MalformedError("a snapshot's mark or checksum is wrong")
        (length,) = _LENGTH.unpack_from(data, 4)
        try:
            header = json.loads(data[8 : 8 + length])
            return cls._from_parts(header, np.frombuffer(data[8 + length : -4], "<f8"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MalformedError(f"a snapshot's header does not fit its body: {error}") from error

    @classmethod
    def _from_parts(cls, header: dict[str, Any], body: np.ndarray[Any, np.dtype[np.float64]]) -> "State":
        d, keys = int(header["d"]), [(str(arm), str(source)) for arm, source in header["ratings"]]
        if header["half_life_s"] != HALF_LIFE_S or not np.isfinite(body).all():
            raise MalformedError("a snapshot of another half-life, or with numbers that are not finite")
        arms = [str(arm) for arm in header["lengths"]]
        rows = list(body.reshape(len(keys) + len(arms), _packed_length(d)))
        return cls(
            features=bytes.fromhex(header["features"]),
            d=d,
            cursor=str(header["cursor"]),
            events=int(header["events"]),
            skipped=int(header["skipped"]),
            epoch=header["epoch"],
            as_of=float(header["as_of"]),
            ratings={key: _unpack(row, d) for key, row in zip(keys, rows[: len(keys)], strict=True)},
            calls={arm: CallStatistics.of_numbers(numbers) for arm, numbers in header["calls"].items()},
            latencies={arm: LatencyStatistics.of_numbers(n) for arm, n in header["latencies"].items()},
            lengths={arm: _unpack(row, d) for arm, row in zip(arms, rows[len(keys) :], strict=True)},
            workers={str(worker): int(sequence) for worker, sequence in header["workers"].items()},
            rated=int(header["rated"]),
            detectors=_detectors(header["detectors"]),
            alone=_detectors(header["alone"]),
            alarms=tuple(Alarm(*values) for values in header["alarms"]),
            cuts=tuple(Cut((int(ms), int(n)), *values) for (ms, n), *values in header["cuts"]),
            entry_prices={str(arm): float(price) for arm, price in header["entry_prices"].items()},
        )


def digest_of(snapshot: bytes) -> str:
    """Of the state that was written as these bytes."""
    return hashlib.sha256(snapshot).hexdigest()


def changed(state: State, **values: Any) -> State:
    """The state with these values: `dataclasses.replace` in a third of its time, for what every event does."""
    held = dict(zip(_NAMES, _HELD(state), strict=True))
    held.update(values)
    return State(**held)


_NAMES: Final = State.__slots__
_HELD: Final = attrgetter(*_NAMES)


class Reader:
    """The last reading of each arm: the sums that went into it, their factor, and what came of it; and what the last model
    made of them all. Calls come in with every tick and ratings do not: then the posterior of quality is still the same.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, tuple[_Told, ...], RatingStatistics]] = {}
        self._corrected: tuple[Mapping[ArmSource, RatingStatistics], float, str, Corrections] | None = None
        self._made: tuple[_MadeFrom, QualityPosterior] | None = None
        self._cost: tuple[Mapping[str, CallStatistics], LengthSums, CostModel] | None = None

    def cost(self, calls: Mapping[str, CallStatistics], lengths: LengthSums) -> CostModel:
        """What these say of costs; the very same where neither has changed."""
        if self._cost is None or not (self._cost[0] is calls and self._cost[1] is lengths):
            self._cost = calls, lengths, CostModel.fit(calls, lengths)
        return self._cost[2]

    def corrections(
        self, ratings: Mapping[ArmSource, RatingStatistics], factor: float, anchor: str
    ) -> Corrections:
        """Of every arm and source but the anchor. factor: what a weight in the sums is now."""
        for _ in self.correcting(ratings, factor, anchor):
            """Nobody has else to do."""
        assert self._corrected is not None, "they were just made"
        return self._corrected[3]

    def correcting(
        self, ratings: Mapping[ArmSource, RatingStatistics], factor: float, anchor: str
    ) -> Iterator[None]:
        """Most of the work of the `corrections` that follow, source by source, for who has else to do."""
        before = self._corrected
        if before is None or not (before[0] is ratings and before[1:3] == (factor, anchor)):
            several = len({source for _, source in ratings}) > 1
            made = (yield from corrected(ratings, 1.0 / factor, anchor=anchor)) if several else {}
            self._corrected = ratings, factor, anchor, made

    def read(self, arm: str, factor: float, told: "tuple[_Told, ...]") -> RatingStatistics:
        """The sum of the sums, each corrected, times factor."""
        before = self._last.get(arm)
        if before and before[0] == factor and _alike(before[1], told):
            return before[2]
        sums = [correction.of(s) if correction else s for s, correction in told]
        total = reduce(add, sums).times(factor)
        self._last[arm] = (factor, told, total)
        return total

    def quality(
        self,
        model: QualityModel,
        ratings: Mapping[str, RatingStatistics],
        d: int,
        entry_prices: Mapping[str, float],
    ) -> QualityPosterior:
        """What the model makes of these readings; the very same where none of them has changed."""
        if self._made is None or not self.is_made(model, ratings, d, entry_prices):
            self._made = (model, ratings, d, entry_prices), model.fit(ratings, d, entry_prices)
        return self._made[1]

    def is_made(
        self,
        model: QualityModel,
        ratings: Mapping[str, RatingStatistics],
        d: int,
        entry_prices: Mapping[str, float],
    ) -> bool:
        """`quality` has nothing to do."""
        if self._made is None:
            return False
        its_model, its_ratings, its_d, its_prices = self._made[0]
        return (
            model is its_model
            and (d, entry_prices) == (its_d, its_prices)
            and tuple(ratings) == tuple(its_ratings)
            and _same(tuple(ratings.values()), tuple(its_ratings.values()))
        )


def _alike(one: tuple[_Told, ...], other: tuple[_Told, ...]) -> bool:
    return len(one) == len(other) and all(
        s is t and c == k for (s, c), (t, k) in zip(one, other, strict=True)
    )


def _same(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    return len(one) == len(other) and all(map(is_, one, other))


def _detectors(told: list[Any]) -> dict[ArmSource, Detector]:
    return {(str(arm), str(source)): _detector(*values) for arm, source, *values in told}


def _detector(n: float, offset: float, scatter: float, rises: list[float], drops: list[float]) -> Detector:
    numbers = (n, offset, scatter, *rises, *drops)
    if not all(isinstance(v, int | float) and math.isfinite(v) for v in numbers):
        raise MalformedError("a snapshot's detector holds something that is no finite number")
    first, second = map(float, rises)
    third, fourth = map(float, drops)
    return Detector(float(n), float(offset), float(scatter), (first, second), (third, fourth))


def weight_grid(decided_at: float) -> tuple[int, float]:
    """(k, 2^f) with t / H = k + f and 0 <= f < 1."""
    k = math.floor(decided_at / HALF_LIFE_S)
    return k, 2.0 ** (decided_at / HALF_LIFE_S - k)


def _packed_length(d: int) -> int:
    return d * (d + 1) // 2 + d + 2


@cache
def _upper(d: int) -> tuple[Any, Any]:
    return np.triu_indices(d)


def _pack(s: RatingStatistics) -> bytes:
    upper = s.xx[_upper(len(s.xr))]
    return np.concatenate([upper, s.xr, [s.n, s.rr]]).astype("<f8").tobytes()


def _unpack(row: np.ndarray[Any, np.dtype[np.float64]], d: int) -> RatingStatistics:
    upper = _upper(d)
    xx = np.zeros((d, d))
    xx[upper] = row[: len(upper[0])]
    xx.T[upper] = row[: len(upper[0])]
    return RatingStatistics(xx, row[len(upper[0]) : -2].copy(), float(row[-2]), float(row[-1]))
