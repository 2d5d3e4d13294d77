"""Randomness of a decision, all of it derived from the decision's id, so that any decision can be made again.

The normals are a stretch of one fixed table that starts at an offset hashed from the id; the final uniform comes from
other bits of the same hash. (A generator per decision would cost as much as the rest of the decision.) The table is
made by numpy's legacy generator, whose stream is frozen for good.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np

from bandit.types import Vector

TABLE_VERSION: Final = "normals-1"
_SEED: Final = 20_260_101
_STARTS: Final = 1 << 16
NORMALS_MAX: Final = 1 << 15  # that one decision may read


@dataclass(frozen=True, slots=True)
class Noise:
    """uniform: in [0, 1). start: where in the table this decision's normals begin."""

    start: int
    uniform: float

    @classmethod
    def of(cls, decision_id: str) -> "Noise":
        digest = hashlib.blake2b(decision_id.encode(), digest_size=16, person=b"decide-1").digest()
        start = int.from_bytes(digest[:8], "little") % _STARTS
        return cls(start, (int.from_bytes(digest[8:], "little") >> 11) * 2.0**-53)

    def normals(self, count: int) -> Vector:
        """(count,) standard normals; count <= NORMALS_MAX."""
        if count > NORMALS_MAX:
            raise ValueError(
                f"a decision reads at most {NORMALS_MAX} normals, not {count}: use fewer draws or arms"
            )
        return _table()[self.start : self.start + count]


@cache
def _table() -> Vector:
    table = np.random.RandomState(_SEED).standard_normal(_STARTS + NORMALS_MAX)
    table.flags.writeable = False
    return table
