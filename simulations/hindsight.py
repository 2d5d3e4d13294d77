"""What may look at everything beforehand: full-information predictors, the best model per task, the oracle.

None of these could be run on live traffic; they say how much there is to gain. Each takes a `Record` and gives the chosen
arm of every request, (n,).

    ridge, kNN   quality and cost of every arm predicted from x, out of fold: each request by what the others show of all
                 arms. What a linear (or local) policy on our features could reach with every label in hand.
    per task     the arm that is best on average over all requests of the task family, in hindsight
    oracle       the best arm of each request, in hindsight; it profits from luck and is a bound, not a goal
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from simulations.metrics import Goal, best_of

Floats = NDArray[np.float64]
Chosen = NDArray[np.int64]

FOLDS: Final = 5
NEIGHBOURS: Final = 30
PENALTIES: Final = (
    1.0,
    10.0,
    100.0,
    1000.0,
)  # of the ridge on standardised features; chosen by cross-validation


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """All that happened: x (n, d), task family (n,), quality and cost_usd (n, K), offered (n, K)."""

    x: Floats
    tasks: Sequence[str]
    quality: Floats
    cost_usd: Floats
    offered: NDArray[np.bool_]


Predict = Callable[
    [Floats, Floats, Floats], Floats
]  # (x train (m, d), y train (m, p), x test (l, d)) -> (l, p)


def ridge(record: Record, goal: Goal) -> Chosen:
    return best_of(*predicted(record, predict_by_ridge), record.offered, goal)


def nearest_neighbours(record: Record, goal: Goal) -> Chosen:
    return best_of(*predicted(record, predict_by_neighbours), record.offered, goal)


def per_task(record: Record, goal: Goal) -> Chosen:
    chosen = np.zeros(len(record.tasks), dtype=np.int64)
    tasks = np.asarray(record.tasks)
    for task in dict.fromkeys(record.tasks):
        of_task = tasks == task
        means = record.quality[of_task].mean(axis=0), record.cost_usd[of_task].mean(axis=0)
        count = int(of_task.sum())
        quality, cost = (np.tile(mean, (count, 1)) for mean in means)
        chosen[of_task] = best_of(quality, cost, record.offered[of_task], goal)
    return chosen


def oracle(record: Record, goal: Goal) -> Chosen:
    return best_of(record.quality, record.cost_usd, record.offered, goal)


HINDSIGHT: Final[Mapping[str, Callable[[Record, Goal], Chosen]]] = MappingProxyType(
    {
        "per-task best": per_task,
        "kNN, full information": nearest_neighbours,
        "ridge, full information": ridge,
        "oracle": oracle,
    }
)


def predicted(record: Record, predict: Predict) -> tuple[Floats, Floats]:
    """Quality and cost (n, K) of every request, each from the requests of the other folds."""
    n, K = record.quality.shape
    y = np.concatenate([record.quality, record.cost_usd], axis=1)
    out = np.tile(y.mean(axis=0), (n, 1))
    folds = np.random.default_rng(0).permutation(n) % FOLDS
    for fold in range(FOLDS):
        test = folds == fold
        if test.any() and not test.all():
            out[test] = predict(record.x[~test], y[~test], record.x[test])
    return out[:, :K], np.maximum(out[:, K:], 0.0)


def predict_by_ridge(x: Floats, y: Floats, at: Floats, penalties: Sequence[float] = PENALTIES) -> Floats:
    """Ridge regression on standardised features, each output with the penalty of least generalised cross-validation
    error (Golub, Heath and Wahba 1979).
    """
    mean, spread = x.mean(axis=0), x.std(axis=0)
    use = spread > 1e-9
    x, at = (x[:, use] - mean[use]) / spread[use], (at[:, use] - mean[use]) / spread[use]
    level = y.mean(axis=0)
    U, s, Vt = np.linalg.svd(x, full_matrices=False)
    projected = U.T @ (y - level)  # (r, p)
    predictions, errors = [], []
    for penalty in penalties:
        shrink = s**2 / (s**2 + penalty)
        residual = ((y - level - U @ (shrink[:, None] * projected)) ** 2).mean(axis=0)
        errors.append(
            residual / (1.0 - (1.0 + shrink.sum()) / len(x)) ** 2 if len(x) > shrink.sum() + 1 else residual
        )
        predictions.append(level + at @ (Vt.T @ ((s / (s**2 + penalty))[:, None] * projected)))
    best = np.argmin(errors, axis=0)  # (p,)
    chosen: Floats = np.stack(predictions)[best, :, np.arange(y.shape[1])].T
    return chosen


def predict_by_neighbours(x: Floats, y: Floats, at: Floats) -> Floats:
    """Means over the nearest requests, by distance of standardised features."""
    spread = np.where(x.std(axis=0) > 1e-9, x.std(axis=0), 1.0)
    x, at = x / spread, at / spread
    k = min(NEIGHBOURS, len(x))
    out = np.empty((len(at), y.shape[1]))
    for start in range(0, len(at), 500):
        block = at[start : start + 500]
        distance = (x**2).sum(axis=1) - 2.0 * block @ x.T  # + |block|^2, the same for all
        nearest = np.argpartition(distance, k - 1, axis=1)[:, :k]
        out[start : start + 500] = y[nearest].mean(axis=1)
    return out
