"""Where a text's words point: the mean of one small vector per word, looked up by hash. No vocabulary, no tokenizer.

    w(text) = mean over the words of rows[crc32(word) mod BUCKETS] + offset         (DIRECTIONS,), about unit variance

The shipped table is the one thing in this package that is data and not code. It was fitted so that w reproduces the leading
principal components of a static embedding (256 dimensions over 32,000 tokens) of recorded prompts; texts only, no outcome
ever came near it (`python -m simulations fit-words`). On the recorded pools w decides as well as the embedding itself, at a
tenth of its time and a hundredth of its memory.
"""

import hashlib
import re
import sys
import zlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bandit.types import Vector

READ_CHARS: Final = 1200  # of a text's head and as many of its tail: cost stays bounded
KNOWN_MAX: Final = 20_000  # words whose rows are remembered
KNOWN_CHARS: Final = 24  # the longest of them
MANY_ROWS: Final = (
    256  # that einsum, which takes longer to begin, adds up sooner, one after another all the same
)
SIGNS_MAX: Final = 10  # different signs in a text up to which setting them apart one by one beats a pattern
_WORD = re.compile(r"\w+|[^\w\s]")
_ASCII_WORD = re.compile(r"[a-z0-9_]+|[^\sa-z0-9_]")  # the same in a text of ASCII in lower case
_NO_SIGNS: Final = bytes(i for i in range(128) if chr(i).isalnum() or chr(i) == "_" or chr(i).isspace())


@dataclass(frozen=True, slots=True, eq=False)
class WordTable:
    """rows (BUCKETS, DIRECTIONS): of each bucket of words. offset (DIRECTIONS,): of a text without words."""

    rows: NDArray[np.float32]
    offset: Vector

    @property
    def version(self) -> str:
        """Names its numbers."""
        return hashlib.blake2b(self.rows.tobytes() + self.offset.tobytes(), digest_size=4).hexdigest()


def _load() -> WordTable:
    with files("bandit").joinpath("words.npz").open("rb") as file, np.load(file) as shipped:
        rows = shipped["table"].astype(np.float32) * shipped["scale"]
        return WordTable(rows, shipped["offset"].astype(np.float64))


SHIPPED: Final = _load()
BUCKETS, DIRECTIONS = SHIPPED.rows.shape


def mean_direction(lower: str, table: WordTable = SHIPPED) -> Vector:
    """(DIRECTIONS,) of a text in lower case."""
    rows = np.frombuffer(b"".join(map(_ROWS.__getitem__, words_of(lower))), np.intp)
    if not len(rows):
        return table.offset
    taken = table.rows.take(rows, axis=0)
    total = np.einsum("ij->j", taken) if len(rows) > MANY_ROWS else np.add.reduce(taken, axis=0)
    direction: Vector = total / len(rows) + table.offset
    return direction


def buckets(lower: str, size: int) -> list[int]:
    """The bucket, below size, of each word and each sign, in order."""
    return [_bucket(word, size) for word in words_of(lower)]


def words_of(lower: str) -> list[str]:
    """Each word and each sign of a text in lower case, in order; of a long text its head's and its tail's."""
    if len(lower) > 2 * READ_CHARS:
        lower = lower[:READ_CHARS] + " " + lower[-READ_CHARS:]
    if not lower.isascii():
        return _WORD.findall(lower)
    signs = set(lower.encode().translate(None, _NO_SIGNS))
    if len(signs) > SIGNS_MAX:
        return _ASCII_WORD.findall(lower)
    for sign in map(chr, signs):
        lower = lower.replace(sign, f" {sign} ")
    return lower.split()


def _bucket(word: str, size: int) -> int:
    return zlib.crc32(word.encode("utf-8", "surrogatepass")) % size


class _Rows(dict[str, bytes]):
    """Word -> its row of any table, as the bytes of an integer. A memory of what can be worked out at any time."""

    def __missing__(self, word: str) -> bytes:
        row = _bucket(word, BUCKETS).to_bytes(np.intp().itemsize, sys.byteorder)
        if len(word) <= KNOWN_CHARS:
            if len(self) >= KNOWN_MAX:
                self.clear()
            self[word] = row
        return row


_ROWS: Final = _Rows()
