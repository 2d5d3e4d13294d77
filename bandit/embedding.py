"""Where an embedder says that a text points: its vectors, reduced to the few directions that pay.

    u = v / |v|                  an embedder's vector (E,), of unit length
    w = (u - centre) axes        (DIRECTIONS,), of about unit variance over the texts that it was fitted on

w stands in the features where that of `bandit.words` does, and all else of them is the same. An embedder that does not
answer in time must neither hold a request nor change what a number means; so for a text without a vector its words guess w
(by a table that was fitted to w as the shipped one is to a static embedding). All vectors made with one projection are of
one version, guessed or not, and the version of no other.

A projection is a file that `python -m simulations fit-embedder` writes: fitted on texts alone, no outcome comes near it.
"""

import binascii
import hashlib
import json
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bandit.features import FeatureVersion, version_of
from bandit.types import Vector
from bandit.words import BUCKETS, DIRECTIONS, WordTable

FORMAT: Final = 1
Numbers = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Projection:
    """centre (E,), axes (E, DIRECTIONS): see the module. rows (BUCKETS, DIRECTIONS), offset (DIRECTIONS,): of the words that
    guess. model: what the embedder that it was fitted for calls itself.
    """

    model: str
    centre: Numbers
    axes: Numbers
    rows: Numbers
    offset: Numbers

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Projection) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.version.tag)

    @cached_property
    def version(self) -> FeatureVersion:
        """Of the features that are made with it."""
        numbers = self.model.encode() + self.centre.tobytes() + self.axes.tobytes()
        named = hashlib.blake2b(numbers, digest_size=8).hexdigest()
        return version_of(f"embedding-{named}", WordTable(self.rows, self.offset.astype(np.float64)))

    def directions(self, embedding: Sequence[float] | Vector) -> Vector:
        """(DIRECTIONS,) of an embedder's vector. Raises ValueError for one that is none, or another embedder's."""
        try:
            vector = np.asarray(embedding, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            raise ValueError("an embedding should be a list of numbers") from None
        if vector.shape != self.centre.shape:
            raise ValueError(
                f"an embedding should be a list of {len(self.centre)} numbers, as those that the projection was "
                f"fitted on; this one is of shape {vector.shape}"
            )
        largest = float(np.abs(vector).max())
        if not 0.0 < largest < np.inf:
            raise ValueError("an embedding should hold finite numbers that are not all 0")
        vector = vector / largest  # no number is too large to be squared
        directions: Vector = (vector / np.sqrt(vector @ vector) - self.centre) @ self.axes
        return directions

    def to_json(self) -> str:
        arrays = {name: b64encode(getattr(self, name).astype("<f4").tobytes()).decode() for name in _SHAPES}
        return json.dumps({"version": FORMAT, "model": self.model, **arrays}) + "\n"


_SHAPES: Final = {  # None: as long as the embedder's vectors are
    "centre": (None,),
    "axes": (None, DIRECTIONS),
    "rows": (BUCKETS, DIRECTIONS),
    "offset": (DIRECTIONS,),
}


def projection_from_json(text: str) -> Projection:
    """A file of fit-embedder. Raises ValueError naming the field and what would be right."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON: {error}") from error
    if not isinstance(given, dict) or given.get("version") != FORMAT:
        raise ValueError(f"should be one JSON object of version {FORMAT}, as fit-embedder writes it")
    model = given.get("model")
    if not isinstance(model, str) or not model:
        raise ValueError("model should be what the embedder calls its model")
    arrays = {name: _array(name, given.get(name), shape[1:]) for name, shape in _SHAPES.items()}
    E = len(arrays["centre"])
    for name, (length, *_) in _SHAPES.items():
        wanted = E if length is None else length
        if len(arrays[name]) != wanted or not wanted:
            raise ValueError(f"{name} should have {wanted or 'some'} rows, not {len(arrays[name])}")
    return Projection(model, **arrays)


def _array(name: str, given: Any, width: tuple[int | None, ...]) -> Numbers:
    """As many rows as there are."""
    try:
        array = np.frombuffer(b64decode(given, validate=True), "<f4").astype(np.float32)
        array = array.reshape(-1, *(size or 1 for size in width))
    except (binascii.Error, TypeError, ValueError):
        raise ValueError(f"{name} should be 32-bit floats in base64, as fit-embedder writes them") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{name} should hold finite numbers only")
    return array
