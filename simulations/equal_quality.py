"""What the best model's quality costs when one may choose: the share of its cost at its quality minus half a point.

Each contestant learns over 2,000 requests drawn from one part of a pool (again and again where there are fewer), then
answers the other part, still learning; the ridge with full information is fitted on the same first part. Played at several
prices of a point of quality they span a curve of quality against cost, and what is wanted of it is the cheapest mix of
its points, and of calling the best model itself, whose quality is high enough.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from simulations.contestants import CONTESTANTS, Pool
from simulations.datasets import Dataset
from simulations.grid import run_tasks
from simulations.hindsight import predict_by_ridge
from simulations.metrics import Goal, best_of
from simulations.pools import Field
from simulations.stream import play
from simulations.world import recorded_world

Floats = NDArray[np.float64]

LEARN: Final = 2000
TEST_SHARE: Final = 0.3
BELOW: Final = 0.005
PENALTIES: Final = (
    0.0,
    0.003,
    0.01,
    0.03,
    0.1,
    0.3,
    1.0,
    3.0,
    10.0,
)  # what the best model's mean cost costs in quality


class Task(NamedTuple):
    pool: str
    contestant: str
    prior: str
    seed: int
    penalty: float
    learn: int


@dataclass(frozen=True, slots=True)
class Point:
    """Mean quality and cost on the part that was not learned from."""

    quality: float
    cost_usd: float


@dataclass(frozen=True, slots=True)
class Share:
    """Of the best model's cost: what each contestant pays for its quality minus half a point."""

    best_model: str
    shares: Mapping[str, float]


def split(data: Dataset, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to learn from, rows to be judged on."""
    rows = np.random.default_rng([seed, 2]).permutation(len(data.prompts))
    held_out = max(1, round(TEST_SHARE * len(rows)))
    return rows[held_out:], rows[:held_out]


def goal_of(data: Dataset, penalty: float) -> Goal:
    """Balanced so that the best model's mean cost is worth `penalty` of quality; for 0 quality alone."""
    cost = float(data.cost_usd[:, best_model(data)].mean())
    if penalty == 0.0 or cost == 0.0:
        return Goal("quality", 1.0, BELOW)
    return Goal("balanced", cost / penalty, BELOW)


def best_model(data: Dataset) -> int:
    return int(np.argmax(data.quality.mean(axis=0)))


def play_task(where: Field, task: Task) -> Point:
    data = where.datasets[task.pool]
    learn, judged = split(data, task.seed)
    rng = np.random.default_rng([task.seed, 3])
    rounds = [rng.permutation(learn) for _ in range(-(-task.learn // len(learn)))]
    rows = np.concatenate([np.concatenate(rounds)[: task.learn], judged])
    entry = CONTESTANTS[task.contestant]
    pool = Pool(data.name, f"equal:{task.seed}", where.space, where.priors[task.prior][task.pool])
    player = entry.build(goal_of(data, task.penalty), pool, entry.default)
    vectors = None if entry.vectors is None else entry.vectors(data)
    steps = list(play(recorded_world(data, rows), where.contexts[task.pool], player, vectors=vectors))[
        task.learn :
    ]
    return Point(
        float(np.mean([step.quality for step in steps])), float(np.mean([step.cost_usd for step in steps]))
    )


def ridge_point(where: Field, pool: str, seed: int, penalty: float) -> Point:
    data, x = where.datasets[pool], where.x(pool)
    learn, judged = split(data, seed)
    K = len(data.arms)
    y = np.concatenate([data.quality, data.cost_usd], axis=1)
    predicted = predict_by_ridge(x[learn], y[learn], x[judged])
    offered = np.ones((len(judged), K), dtype=np.bool_)
    cost = np.maximum(predicted[:, K:], 0.0)
    chosen = best_of(predicted[:, :K], cost, offered, goal_of(data, penalty))
    return Point(float(data.quality[judged, chosen].mean()), float(data.cost_usd[judged, chosen].mean()))


def shares(
    where: Field,
    contestants: Sequence[str],
    *,
    prior: str,
    seeds: int,
    learn: int = LEARN,
    cluster: str | None = None,
    progress: bool = False,
) -> dict[str, Share]:
    """By pool; "ridge, full information" beside the contestants."""
    tasks = [
        Task(pool, name, prior, seed, penalty, learn)
        for seed in range(seeds)
        for pool in where.datasets
        for name in contestants
        for penalty in PENALTIES
    ]
    points = dict(
        run_tasks(play_task, tasks, where, cluster=cluster, title="equal quality", progress=progress)
    )
    return {pool: _share(where, pool, points, contestants, seeds) for pool in where.datasets}


def _share(
    where: Field, pool: str, points: Mapping[Task, Point], contestants: Sequence[str], seeds: int
) -> Share:
    data = where.datasets[pool]
    best = best_model(data)
    judged = [split(data, seed)[1] for seed in range(seeds)]
    model = Point(
        float(np.mean([data.quality[rows, best].mean() for rows in judged])),
        float(np.mean([data.cost_usd[rows, best].mean() for rows in judged])),
    )
    curves = {
        name: [
            _mean([at for task, at in points.items() if (task.pool, task.contestant, task.penalty) == key])
            for key in [(pool, name, penalty) for penalty in PENALTIES]
        ]
        for name in contestants
    }
    curves["ridge, full information"] = [
        _mean([ridge_point(where, pool, seed, penalty) for seed in range(seeds)]) for penalty in PENALTIES
    ]
    return Share(
        data.arms[best].name, {name: cost_share([*curve, model], model) for name, curve in curves.items()}
    )


def _mean(points: Sequence[Point]) -> Point:
    return Point(float(np.mean([p.quality for p in points])), float(np.mean([p.cost_usd for p in points])))


def cost_share(points: Sequence[Point], model: Point) -> float:
    """Cost of the cheapest mix of points with a quality of at least the model's minus half a point, over its cost."""
    if model.cost_usd == 0.0:
        return 1.0
    costs = np.array([p.cost_usd for p in points]) / model.cost_usd
    lacking = [model.quality - BELOW - p.quality for p in points]
    solution = linprog(costs, A_ub=[lacking], b_ub=[0.0], A_eq=[np.ones(len(points))], b_eq=[1.0])
    return float(solution.fun)
