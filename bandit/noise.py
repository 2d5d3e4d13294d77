"""Randomness, all of it hashed from names, so that anything drawn can be drawn again.

The final uniform of a decision comes from its id; normals are a stretch of one fixed table that starts at an offset hashed
from what they are for. (A generator for each would cost as much as the rest of the work.) The table is made by numpy's
legacy generator, whose stream is frozen for good.
"""

import hashlib
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

TABLE_VERSION: Final = "normals-2"
_SEED: Final = 20_260_101
_STARTS: Final = 1 << 19  # stretches that lie over each other are seldom
NORMALS_MAX: Final = 1 << 15  # that may be read at once


def uniform_of(decision_id: str) -> float:
    """In [0, 1)."""
    digest = hashlib.blake2b(decision_id.encode(), digest_size=16, person=b"decide-1").digest()
    return (int.from_bytes(digest[8:], "little") >> 11) * 2.0**-53


def start_of(key: bytes) -> int:
    """Where in the table the normals for this begin."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8, person=b"normals").digest(), "little") % _STARTS


def normals_of(key: bytes, count: int) -> NDArray[np.float32]:
    """(count,) standard normals; count <= NORMALS_MAX."""
    if count > NORMALS_MAX:
        raise ValueError(f"at most {NORMALS_MAX} normals are read at once, not {count}: use fewer draws")
    start = start_of(key)
    return _table()[start : start + count]


@cache
def _table() -> NDArray[np.float32]:
    table: NDArray[np.float32] = (
        np.random.RandomState(_SEED).standard_normal(_STARTS + NORMALS_MAX).astype(np.float32)
    )
    table.flags.writeable = False
    return table
