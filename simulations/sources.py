"""Which pools come from one source: those that tell the same outcomes of the same models for the same prompts.

Two folders may hold parts of one collection, or one may be the union of others; their results are then no independent
evidence, and a prior fitted on one has seen the other. Names tell nothing: what they share does.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from simulations.datasets import Dataset

SAME_FROM: Final = 0.1  # share of the smaller pool's cells (prompt x model) that the other tells alike


def overlaps(datasets: Sequence[Dataset]) -> list[list[bool]]:
    """For each pair: do they tell the same outcomes? Symmetric; each overlaps with itself."""
    cells = [frozenset(_cells(dataset)) for dataset in datasets]
    return [[len(one & other) >= SAME_FROM * min(len(one), len(other)) for other in cells] for one in cells]


def clusters(datasets: Sequence[Dataset]) -> list[int]:
    """For each dataset the number of its source: the index of the first dataset of that source."""
    same = overlaps(datasets)
    source = list(range(len(datasets)))
    for i in range(len(datasets)):
        for j in range(i):
            if source[i] != source[j] and same[i][j]:
                old, new = max(source[i], source[j]), min(source[i], source[j])
                source = [new if s == old else s for s in source]
    return source


def _cells(dataset: Dataset) -> Iterator[int]:
    """(prompt, model, quality) of each cell, as hashes within this process."""
    texts = [" ".join(prompt.text.split()).lower() for prompt in dataset.prompts]
    for k, arm in enumerate(dataset.arms):
        for text, quality in zip(texts, dataset.quality[:, k], strict=True):
            yield hash((text, arm.name, round(float(quality), 3)))
