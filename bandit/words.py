"""Where a text's words point: the mean of one small vector per word, looked up by hash. No vocabulary, no tokenizer.

    w(text) = mean over the words of TABLE[crc32(word) mod BUCKETS] + OFFSET         (DIRECTIONS,), about unit variance

The table is the one thing in this package that is data and not code. It was fitted so that w reproduces the leading
principal components of a static embedding (256 dimensions over 32,000 tokens) of recorded prompts; texts only, no outcome
ever came near it (`python -m simulations fit-words`). On the recorded pools w decides as well as the embedding itself, at a
tenth of its time and a hundredth of its memory.
"""

import hashlib
import re
import zlib
from importlib.resources import files
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bandit.types import Vector

READ_CHARS: Final = 1200  # of a text's head and as many of its tail: cost stays bounded
_WORD = re.compile(r"\w+|[^\w\s]")


def _load() -> tuple[NDArray[np.float32], Vector]:
    with files("bandit").joinpath("words.npz").open("rb") as file, np.load(file) as shipped:
        return shipped["table"].astype(np.float32) * shipped["scale"], shipped["offset"].astype(np.float64)


TABLE, OFFSET = _load()  # (BUCKETS, DIRECTIONS), (DIRECTIONS,)
BUCKETS, DIRECTIONS = TABLE.shape
VERSION: Final = "words-" + hashlib.blake2b(TABLE.tobytes() + OFFSET.tobytes(), digest_size=4).hexdigest()


def mean_direction(lower: str) -> Vector:
    """(DIRECTIONS,) of a text in lower case; OFFSET for a text without words."""
    rows = buckets(lower, BUCKETS)
    if not rows:
        return OFFSET
    direction: Vector = TABLE[rows].mean(axis=0) + OFFSET
    return direction


def buckets(lower: str, size: int) -> list[int]:
    """The bucket, below size, of each word and each sign, in order."""
    if len(lower) > 2 * READ_CHARS:
        lower = lower[:READ_CHARS] + " " + lower[-READ_CHARS:]
    crc = zlib.crc32
    return [crc(word.encode("utf-8", "surrogatepass")) % size for word in _WORD.findall(lower)]
