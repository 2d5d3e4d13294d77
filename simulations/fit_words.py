"""`python -m simulations fit-words DIR... --out FILE`: the table of `bandit.words`, fitted from texts alone.

A static embedding (wordllama: one vector of 256 numbers per token, in the wheel) is averaged over each prompt, reduced to
its leading principal components, and these are regressed on the hashed words of the prompt:

    min_T  sum_i |mean_{w in text i} T[hash w] - (e_i - mean e) V S^-1|^2 + ridge |T|^2        e_i V S^-1: unit variance

so that a lookup and a mean stand in for a tokenizer and an embedding. The wheel's own loader asks a model hub for a
tokenizer that lies in the wheel, so its two files are read directly.
"""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import lsqr

from bandit.words import READ_CHARS, buckets
from simulations.datasets import DatasetError, load

BUCKETS: Final = 8192
DIRECTIONS: Final = 16
RIDGE: Final = 0.3  # in texts: a word of fewer is mostly noise
Floats = NDArray[np.float64]


def run(options: argparse.Namespace) -> None:
    texts = [
        prompt.text
        for where in dict.fromkeys(options.data)
        for prompt in load(where).prompts[: options.limit]
    ]
    vectors = embeddings(texts)
    centre, axes = principal_axes(vectors, DIRECTIONS)
    directions = (vectors - centre) @ axes
    counts = mean_counts([buckets(text.lower(), BUCKETS) for text in texts], BUCKETS)
    table, offset = fitted(counts, directions)
    scale = np.abs(table).max(axis=0) / 127
    np.savez_compressed(
        options.out,
        table=np.round(table / scale).astype(np.int8),
        scale=scale.astype(np.float32),
        offset=offset,
    )
    left = directions - (counts @ table + offset)
    explained = 1 - (left**2).sum(axis=0) / ((directions - directions.mean(axis=0)) ** 2).sum(axis=0)
    print(f"{len(texts)} texts, {BUCKETS} buckets; explained of each direction:", np.round(explained, 2))


def embeddings(texts: Sequence[str]) -> Floats:
    """(n, 256) mean token vectors."""
    weights, tokenizer = _wordllama()
    rows = []
    for text in texts:
        short = text if len(text) <= 2 * READ_CHARS else text[:READ_CHARS] + " " + text[-READ_CHARS:]
        ids = tokenizer.encode(short, add_special_tokens=False).ids or [0]
        rows.append(weights[ids].astype(np.float64).mean(axis=0))
    return np.array(rows)


def principal_axes(vectors: Floats, k: int) -> tuple[Floats, Floats]:
    """Centre (E,), axes (E, k) of vectors (n, E): (v - centre) axes are the leading principal components, of unit variance."""
    centre: Floats = vectors.mean(axis=0)
    _, sizes, right = np.linalg.svd(vectors - centre, full_matrices=False)
    axes: Floats = right[:k].T / sizes[:k] * np.sqrt(len(vectors))
    return centre, axes


def mean_counts(rows_of: Sequence[Sequence[int]], size: int) -> sparse.csr_matrix:
    """(n, size): the share of each text's words that fall into each bucket."""
    lengths = [len(b) for b in rows_of]
    rows = np.repeat(np.arange(len(rows_of)), lengths)
    columns = np.concatenate([np.asarray(b, dtype=np.int64) for b in rows_of])
    shares = np.repeat([1.0 / max(n, 1) for n in lengths], lengths)
    return sparse.csr_matrix((shares, (rows, columns)), shape=(len(rows_of), size))


def fitted(counts: sparse.csr_matrix, directions: Floats) -> tuple[Floats, Floats]:
    """Ridge regression, a column at a time: table (size, k), offset (k,)."""
    offset = directions.mean(axis=0)
    columns = [lsqr(counts, column, damp=RIDGE, iter_lim=60)[0] for column in (directions - offset).T]
    return np.stack(columns, axis=1), offset


def _wordllama() -> tuple[NDArray[np.float16], Any]:
    spec = find_spec("wordllama")
    if spec is None or not spec.submodule_search_locations:
        raise DatasetError(
            "fit-words reads the static embedding in the wheel wordllama: pip install 'fairlead[fit]'"
        )
    from safetensors.numpy import load_file  # noqa: PLC0415 - only this command needs them
    from tokenizers import Tokenizer  # noqa: PLC0415

    folder = Path(spec.submodule_search_locations[0])
    weights = load_file(folder / "weights" / "l2_supercat_256.safetensors")["embedding.weight"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    tokenizer.no_padding()
    return weights, tokenizer
