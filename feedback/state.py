"""State: what the log has taught, as additive statistics per arm and source, with the position it was read up to.

A rating counts with weight 2^(t / H) of its decision's time t (half-life H): as time goes on newer ratings outweigh
older ones, yet every sum stays a plain sum, so forgetting commutes with everything. To keep numbers finite t / H is
split once into an integer k and a fraction f, weights are relative to an epoch k0, and moving the epoch multiplies by a
power of two: exact, so it cannot matter when it happens. The prior is not in here; it is added undecayed when a
posterior is read.

States are never changed in place. Bytes (`to_bytes`) are versioned and carry a checksum; never pickle.
"""

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from bandit.posterior import Posterior
from bandit.quality import QualityModel
from bandit.statistics import CallStatistics, RatingStatistics
from feedback.records import MalformedError

HALF_LIFE_S: Final = 30 * 86_400.0
START: Final = "0-0:"  # the token before a log's first entry
_MAGIC: Final = b"FLS1"
_LENGTH = struct.Struct("<I")

ArmSource = tuple[str, str]
_EMPTY: Mapping[Any, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """features, d: tag and length of the vectors that may be folded in. epoch: k0, None before the first rating.

    as_of: the newest decision time seen (Unix seconds). ratings: (arm, source) -> sums with weights relative to the
    epoch. calls: arm -> sums. workers: worker -> its last sequence number. skipped: entries that were no event of this
    version. cursor: token of the last entry folded.
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
    workers: Mapping[str, int] = field(default_factory=lambda: _EMPTY)

    def ratings_per_arm(self) -> dict[str, RatingStatistics]:
        """Sums over all sources, each rating weighing 2^-(age / H), age counted back from `as_of`."""
        total: dict[str, RatingStatistics] = {}
        for (arm, _), statistics in self.ratings.items():
            total[arm] = total[arm] + statistics if arm in total else statistics
        if self.epoch is None:
            return total
        now = 2.0 ** (self.epoch - self.as_of / HALF_LIFE_S)
        return {arm: s.times(now) for arm, s in total.items()}

    def posterior(self, model: QualityModel) -> Posterior:
        """What is believed after this state."""
        return Posterior.of(model, self.ratings_per_arm(), self.calls, d=self.d, token=self.cursor)

    def digest(self) -> str:
        """Equal digests: equal statistics, to the last bit, at the same position of the same log."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

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
            "calls": {
                arm: [getattr(s, n) for n in CallStatistics.__slots__] for arm, s in self.calls.items()
            },
            "workers": dict(self.workers),
        }
        packed = json.dumps(header).encode()  # the standard library's: sums of counts may exceed 64 bits
        body = b"".join(_pack(statistics) for statistics in self.ratings.values())
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
        rows = body.reshape(len(keys), _packed_length(d)) if keys else ()
        return cls(
            features=bytes.fromhex(header["features"]),
            d=d,
            cursor=str(header["cursor"]),
            events=int(header["events"]),
            skipped=int(header["skipped"]),
            epoch=header["epoch"],
            as_of=float(header["as_of"]),
            ratings={key: _unpack(row, d) for key, row in zip(keys, rows, strict=True)},
            calls={arm: CallStatistics(*numbers) for arm, numbers in header["calls"].items()},
            workers={str(worker): int(sequence) for worker, sequence in header["workers"].items()},
        )


def weight_grid(decided_at: float) -> tuple[int, float]:
    """(k, 2^f) with t / H = k + f and 0 <= f < 1."""
    k = math.floor(decided_at / HALF_LIFE_S)
    return k, 2.0 ** (decided_at / HALF_LIFE_S - k)


def _packed_length(d: int) -> int:
    return d * (d + 1) // 2 + d + 2


def _pack(s: RatingStatistics) -> bytes:
    upper = s.xx[np.triu_indices(len(s.xr))]
    return np.concatenate([upper, s.xr, [s.n, s.rr]]).astype("<f8").tobytes()


def _unpack(row: np.ndarray[Any, np.dtype[np.float64]], d: int) -> RatingStatistics:
    upper = np.triu_indices(d)
    xx = np.zeros((d, d))
    xx[upper] = row[: len(upper[0])]
    xx.T[upper] = row[: len(upper[0])]
    return RatingStatistics(xx, row[len(upper[0]) : -2].copy(), float(row[-2]), float(row[-1]))
