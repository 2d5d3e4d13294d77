"""`python -m simulations fit-classifier DIR... --out FILE`: what kinds of request there are, and who is good at which.

A kind is a task family, divided at the median of how well all models did on its prompts into easy and hard where it has
enough of them. Every prompt is shown twice, with its task named and without: a caller may name it or not.

    min_W  -1/n sum_i log softmax(W x_i)[kind of i] + RIDGE / 2n |W|^2
    q[c, m] = ease of c + (sum of m's lead on prompts of kind c + PROMPTS x m's mean lead) / (their number + PROMPTS)
    ease: mean quality of all models; lead: a model's quality less the ease of the prompt
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

from bandit.classifier import Classifier, Kind, classifier_from_json
from bandit.prior import canonical
from simulations.datasets import Dataset, load
from simulations.fit_embedder import Embedded, features_of
from simulations.world import Facts, contexts_of

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

RIDGE: Final = 10.0  # in prompts
PROMPTS: Final = (
    10.0  # what a model's mean lead over all kinds is worth where it was seen on few prompts of a kind
)
FAMILY_MIN: Final = 20  # smaller families are one
DIVIDED_FROM: Final = 60
OTHER: Final = "other"


def run(options: argparse.Namespace) -> None:
    datasets = [load(where) for where in dict.fromkeys(options.data)]
    classifier = fitted(datasets, features_of(options, datasets))
    options.out.write_text(classifier.to_json())
    print(f"{len(classifier.kinds)} kinds of request, {len(classifier.quality)} models -> {options.out}")


def fitted(datasets: Sequence[Dataset], features: Facts | Embedded | None = None) -> Classifier:
    """From all prompts of these; a model's qualities come from those where it was asked."""
    features = features or Facts()
    labels = [kinds_of(data) for data in datasets]
    kinds = tuple(sorted({kind for own in labels for kind in own}, key=lambda kind: (kind.task, kind.level)))
    column = {kind: c for c, kind in enumerate(kinds)}
    y = [np.array([column[kind] for kind in own]) for own in labels]
    X = [
        np.array([context.x for context in contexts_of(data.prompts, replace(features, tasks=named))])
        for named in (True, False)
        for data in datasets
    ]
    everything = np.concatenate([*y, *y])
    unnamed = np.concatenate(y)
    classifier = Classifier(
        kinds=kinds,
        weights=regressed(np.concatenate(X), everything, len(kinds)),
        shares=np.bincount(unnamed, minlength=len(kinds)) / len(unnamed),
        quality=qualities(datasets, y, len(kinds)),
        features=features.tag,
        provenance={"sources": {data.name: len(data.prompts) for data in datasets}, "ridge": RIDGE},
    )
    return classifier_from_json(classifier.to_json(), features.tag)  # as whoever reads the file has it


def kinds_of(data: Dataset) -> list[Kind]:
    """The kind of each prompt, from its family and from how well the models did on it."""
    counts = Counter(prompt.task_family for prompt in data.prompts)
    tasks = [p.task_family if counts[p.task_family] >= FAMILY_MIN else OTHER for p in data.prompts]
    ease = data.quality.mean(axis=1)
    kinds = [Kind(task) for task in tasks]
    for task in dict.fromkeys(tasks):
        rows = np.array([i for i, own in enumerate(tasks) if own == task])
        hard = ease[rows] < np.median(ease[rows])
        if len(rows) >= DIVIDED_FROM and hard.any():
            for i, is_hard in zip(rows, hard, strict=True):
                kinds[i] = Kind(task, "hard" if is_hard else "easy")
    return kinds


def regressed(X: Floats, y: Integers, C: int) -> Floats:
    """(C, d) weights of multinomial logistic regression with a ridge."""
    n, d = X.shape
    one_hot = np.eye(C)[y]

    def loss(flat: Floats) -> tuple[float, Floats]:
        W = flat.reshape(C, d)
        log_p = log_softmax(X @ W.T, axis=1)
        value = -log_p[np.arange(n), y].sum() / n + RIDGE / (2 * n) * float(flat @ flat)
        slope = (np.exp(log_p) - one_hot).T @ X / n + RIDGE / n * W
        return float(value), slope.ravel()

    found = minimize(loss, np.zeros(C * d), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    weights: Floats = np.round(found.x.reshape(C, d), 5)
    return weights


def qualities(datasets: Sequence[Dataset], y: Sequence[Integers], C: int) -> Mapping[str, Floats]:
    """Canonical model name -> (C,)."""
    ease = [data.quality.mean(axis=1) for data in datasets]
    kinds = np.concatenate(y)
    ease_of_kind = np.bincount(kinds, np.concatenate(ease), minlength=C) / np.bincount(kinds, minlength=C)
    sums: dict[str, Floats] = {}
    counts: dict[str, Floats] = {}
    for data, own, easy in zip(datasets, y, ease, strict=True):
        for k, arm in enumerate(data.arms):
            name = canonical(arm.name)
            ahead = np.bincount(own, data.quality[:, k] - easy, minlength=C)
            sums[name] = sums.get(name, np.zeros(C)) + ahead
            counts[name] = counts.get(name, np.zeros(C)) + np.bincount(own, minlength=C)
    return {
        name: np.round(
            (ease_of_kind + (sums[name] + PROMPTS * sums[name].sum() / n.sum()) / (n + PROMPTS)).clip(0, 1), 5
        )
        for name, n in counts.items()
    }
