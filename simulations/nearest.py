"""The nearest recorded prompt to a text: cosine of hashed words, weighted by how rare a word is among the prompts."""

import re
import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy import sparse

BUCKETS: Final = 1 << 16
_WORD = re.compile(r"\w+")


class NearestPrompt:
    def __init__(self, texts: Sequence[str]) -> None:
        counts = _counts(texts)
        appears_in = np.asarray((counts > 0).sum(axis=0)).ravel()
        self._rarity = np.log((1 + len(texts)) / (1 + appears_in)) + 1
        prompts = _unit_rows(counts.multiply(self._rarity).tocsr())  # (n, BUCKETS)
        self._by_word = sparse.csr_matrix(prompts.T)  # (BUCKETS, n): only the text's own words are looked at

    def row(self, text: str) -> int:
        """Index of the most similar prompt; 0 for a text that shares no word with any."""
        words, counts = np.unique(np.array(_buckets(text), dtype=np.int64), return_counts=True)
        return int(np.argmax(self._by_word[words].T @ (counts * self._rarity[words])))


def _counts(texts: Sequence[str]) -> sparse.csr_matrix:
    rows: list[int] = []
    columns: list[int] = []
    for row, text in enumerate(texts):
        words = _buckets(text)
        rows += [row] * len(words)
        columns += words
    ones = np.ones(len(rows))
    return sparse.csr_matrix((ones, (rows, columns)), shape=(len(texts), BUCKETS))


def _buckets(text: str) -> list[int]:
    return [zlib.crc32(word.encode()) % BUCKETS for word in _WORD.findall(text.lower())]


def _unit_rows(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return sparse.csr_matrix(sparse.diags(1 / np.where(norms > 0, norms, 1)) @ matrix)
