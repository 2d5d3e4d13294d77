"""Sentence vectors of any embedder, made once: they are kept in a small database under the hash of embedder and text."""

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final, Protocol

import httpx
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

Floats32 = NDArray[np.float32]

CACHE: Final = Path(".cache")
AT_ONCE: Final = 32  # texts in one request to an endpoint
TIMEOUT_S: Final = 120.0


class EmbeddingError(RuntimeError):
    """The vectors cannot be made; the message says what is missing."""


class Source(Protocol):
    """key: 16 to 64 bytes that name the embedder; the same key, the same vectors."""

    key: bytes

    def vectors(self, texts: Sequence[str]) -> Iterator[Floats32]:
        """One for each text, in order, all of one length. Raises EmbeddingError."""
        ...


class Endpoint:
    """An OpenAI-compatible one. api_key_env: the variable that holds its key."""

    def __init__(self, base_url: str, model: str, api_key_env: str | None = None) -> None:
        self.key = hashlib.blake2b(f"{base_url.rstrip('/')}\n{model}".encode(), digest_size=32).digest()
        self._url, self._model = f"{base_url.rstrip('/')}/embeddings", model
        key = os.environ.get(api_key_env, "").strip() if api_key_env else ""
        if api_key_env and not key:
            raise EmbeddingError(f"--api-key-env: {api_key_env} is not set")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    def vectors(self, texts: Sequence[str]) -> Iterator[Floats32]:
        with httpx.Client(headers=self._headers, timeout=TIMEOUT_S) as client:
            for first in range(0, len(texts), AT_ONCE):
                yield from self._of_batch(client, texts[first : first + AT_ONCE])

    def _of_batch(self, client: httpx.Client, batch: Sequence[str]) -> list[Floats32]:
        asked = {"model": self._model, "input": list(batch), "encoding_format": "float"}
        try:
            reply = client.post(self._url, json=asked).raise_for_status().json()
            rows = sorted(reply["data"], key=lambda row: int(row["index"]))
            vectors = [np.asarray(row["embedding"], np.float32) for row in rows]
        except httpx.HTTPError as error:
            raise EmbeddingError(f"{self._url}: {error}") from error
        except (LookupError, TypeError, ValueError) as error:
            raise EmbeddingError(f"{self._url} answered with no data[].embedding: {error!r}") from error
        if len(vectors) != len(batch):
            raise EmbeddingError(f"{self._url} answered {len(batch)} texts with {len(vectors)} vectors")
        if {v.ndim for v in vectors} != {1} or not all(np.isfinite(v).all() for v in vectors):
            raise EmbeddingError(f"{self._url} answered with what are no vectors of finite numbers")
        if len({len(v) for v in vectors}) > 1:
            raise EmbeddingError(f"{self._url} answered with vectors that are not of one length")
        return vectors


def embed(texts: Sequence[str], source: Source, *, cache: Path = CACHE, progress: bool = False) -> Floats32:
    """(n, E) a vector per text, at least one, from the cache where it has them. Raises EmbeddingError."""
    keys = [_key(source, text) for text in texts]
    with closing(_opened(cache)) as kept:
        known = {key: row[0] for key in keys if (row := kept.execute(_FIND, (key,)).fetchone())}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        made = source.vectors(list(missing.values())) if missing else iter(())
        shown = tqdm(missing, desc="embedding", unit="text", disable=not progress or not missing)
        for key, vector in zip(shown, made, strict=True):
            known[key] = vector.tobytes()
            with kept:  # one by one: what was made stays, whatever happens next
                kept.execute(_KEEP, (key, known[key]))
    sizes = {len(vector) for vector in known.values()}
    if len(sizes) > 1:
        raise EmbeddingError(f"the vectors are not of one length: {sorted(size // 4 for size in sizes)}")
    return np.frombuffer(b"".join(known[key] for key in keys), np.float32).reshape(len(texts), -1)


def _key(source: Source, text: str) -> bytes:
    """Names the embedder and the text."""
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=20, key=source.key).digest()


def _opened(folder: Path) -> sqlite3.Connection:
    folder.mkdir(parents=True, exist_ok=True)
    kept = sqlite3.connect(folder / "vectors.sqlite", timeout=60.0)
    kept.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
    return kept


_FIND: Final = "SELECT vector FROM vectors WHERE key = ?"
_KEEP: Final = "INSERT OR IGNORE INTO vectors VALUES (?, ?)"
