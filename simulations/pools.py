"""Every pool of recorded outcomes under every objective: who plays what, and what came of it.

A case is a pool under an objective. Each contestant plays each case in each of its settings over the same random orders
(seeds), cold start, learning included; a rival is then given, case by case, the setting that did best on the pools of
other sources. Gaps are utility minus that of the best fixed model in hindsight on the same requests.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandit.prior import QualityPrior
from bandit.types import Context
from simulations.contestants import CONTESTANTS, Pool
from simulations.datasets import Dataset, take
from simulations.grid import run_tasks
from simulations.hindsight import HINDSIGHT, Record
from simulations.metrics import Goal, best_fixed, goal_for
from simulations.sources import clusters
from simulations.stream import play
from simulations.world import (
    Facts,
    Features,
    SpaceOf,
    bias_alone,
    contexts_of,
    of_another,
    pure_noise,
    recorded_world,
)

Floats = NDArray[np.float64]

OBJECTIVES: Final = ("quality", "balanced")
RIVALS: Final = (
    "thompson-context-free",
    "epsilon-greedy",
    "ucb1",
    "linucb",
    "linucb-discounted",
    "lints",
    "paretobandit-policy",
)
NO_PRIOR: Final = "none"
HARMLESS: Final = ("noise", "another")  # views that tell nothing of the request

Priors = Mapping[str, Mapping[str, QualityPrior | None]]  # name of the prior -> pool -> prior


class Task(NamedTuple):
    """One stream. view: what becomes of the features: "features" as they are, "bias" alone, "noise" instead, or those of
    "another" request.
    """

    pool: str
    objective: str
    contestant: str
    setting: float
    prior: str
    view: str
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """What all streams are played on. contexts: by pool, of each prompt; goals: by (pool, objective)."""

    datasets: Mapping[str, Dataset]
    contexts: Mapping[str, tuple[Context, ...]]
    goals: Mapping[tuple[str, str], Goal]
    space: SpaceOf
    priors: Priors
    sources: Mapping[str, int] = field(default_factory=dict)

    def cases(self) -> list[tuple[str, str]]:
        return list(self.goals)

    def x(self, pool: str) -> Floats:
        return np.array([context.x for context in self.contexts[pool]])


def field_of(
    datasets: Sequence[Dataset],
    *,
    limit: int,
    priors: Callable[[Sequence[Dataset]], Priors] | None = None,
    features: Features | None = None,
    objectives: Sequence[str] = OBJECTIVES,
    usd_per_quality: float | None = None,
) -> Field:
    """priors: from all datasets to each prior of each pool; the prior "none" is always there."""
    features = Facts() if features is None else features
    pools = {
        data.name: replace(take(data, np.arange(min(limit, len(data.prompts)))), responses={})
        for data in datasets
    }
    if len(pools) < len(datasets):
        raise ValueError("two of the pools have the same name; each needs one of its own")
    nothing = {NO_PRIOR: dict.fromkeys(pools)}
    return Field(
        datasets=pools,
        contexts={name: contexts_of(data.prompts, features) for name, data in pools.items()},
        goals={
            (name, objective): goal_for(data, objective, usd_per_quality, 0.02)
            for name, data in pools.items()
            for objective in objectives
        },
        space=SpaceOf(features.tag, features.d),
        priors={**nothing, **(priors(datasets) if priors else {})},
        sources=dict(zip(pools, clusters(datasets), strict=True)),
    )


def order(data: Dataset, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed]).permutation(len(data.prompts))


def play_task(where: Field, task: Task) -> NDArray[np.int16]:
    """(n,) the chosen columns, in the stream's order."""
    data, goal = where.datasets[task.pool], where.goals[task.pool, task.objective]
    entry = CONTESTANTS[task.contestant]
    prior = where.priors[task.prior][task.pool]
    player = entry.build(goal, Pool(data.name, f"{task.seed}", where.space, prior, data.arms), task.setting)
    contexts = _view(where.contexts[task.pool], task.view, task.seed)
    vectors = None if entry.vectors is None else entry.vectors(data)
    world = recorded_world(data, order(data, task.seed))
    steps = play(world, contexts, player, vectors=vectors)
    return np.array([data.column(step.choice.arm) for step in steps], dtype=np.int16)


def _view(contexts: tuple[Context, ...], view: str, seed: int) -> tuple[Context, ...]:
    match view:
        case "bias":
            return bias_alone(contexts)
        case "noise":
            return pure_noise(contexts, np.random.default_rng([seed, 1]))
        case "another":
            return of_another(contexts, np.random.default_rng([seed, 1]))
        case _:
            return contexts


@dataclass(frozen=True, slots=True, eq=False)
class Gaps:
    """Of one contestant in one case, in utility. whole, last_third: (S,) each seed's mean. by_prompt, late_by_prompt:
    (n,) each prompt's mean over the seeds, and over those seeds in which it came in the last third (NaN in none).
    """

    whole: Floats
    last_third: Floats
    by_prompt: Floats
    late_by_prompt: Floats


def gaps(where: Field, case: tuple[str, str], played: Mapping[int, NDArray[np.int16]]) -> Gaps:
    """played: seed -> chosen."""
    pool, _ = case
    data, goal = where.datasets[pool], where.goals[case]
    utility = goal.utility(data.quality, data.cost_usd)  # (n, K)
    gain = utility - utility[:, [best_fixed(data, goal)]]
    n = len(data.prompts)
    late = np.full((len(played), n), np.nan)
    every = np.zeros((len(played), n))
    whole, last = [], []
    for s, (seed, chosen) in enumerate(sorted(played.items())):
        rows = order(data, seed)
        taken = gain[rows, chosen]
        every[s, rows] = taken
        third = n - n // 3 if n >= 3 else 0
        late[s, rows[third:]] = taken[third:]
        whole.append(taken.mean())
        last.append(taken[third:].mean())
    counts = (~np.isnan(late)).sum(axis=0)
    sums = np.nansum(late, axis=0)
    by_prompt = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return Gaps(np.array(whole), np.array(last), every.mean(axis=0), by_prompt)


def hindsight_gaps(where: Field, case: tuple[str, str]) -> dict[str, float]:
    """Mean gap of each policy that may look at everything beforehand."""
    pool, _ = case
    data, goal = where.datasets[pool], where.goals[case]
    record = Record(
        x=where.x(pool),
        tasks=[prompt.task_family for prompt in data.prompts],
        quality=data.quality,
        cost_usd=data.cost_usd,
        offered=np.ones(data.quality.shape, dtype=np.bool_),
    )
    utility = goal.utility(data.quality, data.cost_usd)
    fixed = utility[:, best_fixed(data, goal)].mean()
    rows = np.arange(len(data.prompts))
    return {
        name: float(utility[rows, choose(record, goal)].mean() - fixed) for name, choose in HINDSIGHT.items()
    }


def gap_tasks(where: Field, contestants: Sequence[str], *, prior: str, seeds: int) -> list[Task]:
    """The router with that prior, and every rival in every setting of its grid."""
    return [
        Task(pool, objective, name, setting, prior, "features", seed)
        for seed in range(seeds)
        for pool, objective in where.cases()
        for name in contestants
        for setting in CONTESTANTS[name].grid
    ]


def harm_tasks(where: Field, *, seeds: int) -> list[Task]:
    """The router on what tells nothing, and on the bias alone, with every prior."""
    setting = CONTESTANTS["router"].default
    return [
        Task(pool, name, "router", setting, prior, view, seed)
        for seed in range(seeds)
        for pool, name in where.cases()
        for prior in where.priors
        for view in ("bias", *HARMLESS)
    ]


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """gaps and setting by case."""

    gaps: Mapping[tuple[str, str], Gaps]
    settings: Mapping[tuple[str, str], float]


Outcomes = dict[Task, NDArray[np.int16]]


def play_all(
    where: Field, tasks: Iterable[Task], *, cluster: str | None = None, progress: bool = False
) -> Outcomes:
    """Long streams first, so that no core is left alone with one at the end."""
    todo = sorted(dict.fromkeys(tasks), key=lambda task: -_work(where, task))
    return dict(run_tasks(play_task, todo, where, cluster=cluster, title="pools", progress=progress))


def _work(where: Field, task: Task) -> int:
    data = where.datasets[task.pool]
    return len(data.prompts) * (10 + len(data.arms))


def gaps_of(where: Field, played: Outcomes, contestants: Sequence[str], *, prior: str) -> dict[str, Chosen]:
    """Each contestant's gaps in every case, in the setting that was chosen for it."""
    return {name: _chosen(where, played, name, prior) for name in contestants}


def _chosen(where: Field, played: Outcomes, name: str, prior: str) -> Chosen:
    grid = CONTESTANTS[name].grid
    all_gaps = {
        (setting, case): gaps(where, case, _by_seed(played, case, name, setting, prior))
        for setting in grid
        for case in where.cases()
    }
    settings = {case: _best_elsewhere(where, case, grid, all_gaps) for case in where.cases()}
    return Chosen({case: all_gaps[setting, case] for case, setting in settings.items()}, settings)


def _best_elsewhere(
    where: Field,
    case: tuple[str, str],
    grid: Sequence[float],
    all_gaps: Mapping[tuple[float, tuple[str, str]], Gaps],
) -> float:
    """The setting with the best mean gap under the same objective on the pools of other sources; where there are no
    others, on this one, which favours the rival.
    """
    pool, objective = case
    same = [other for other in where.cases() if other[1] == objective]
    others = [other for other in same if where.sources[other[0]] != where.sources[pool]] or [case]
    return max(grid, key=lambda setting: float(np.mean([all_gaps[setting, o].whole.mean() for o in others])))


def _by_seed(
    played: Outcomes, case: tuple[str, str], name: str, setting: float, prior: str, view: str = "features"
) -> dict[int, NDArray[np.int16]]:
    pool, objective = case
    wanted = Task(pool, objective, name, setting, prior, view, 0)[:-1]
    return {task.seed: chosen for task, chosen in played.items() if task[:-1] == wanted}


def harm_of(where: Field, played: Outcomes, prior: str) -> dict[tuple[str, str], dict[str, Gaps]]:
    """By case: the router's gaps on the bias alone and on each view that tells nothing, with the same prior."""
    setting = CONTESTANTS["router"].default
    return {
        case: {
            view: gaps(where, case, _by_seed(played, case, "router", setting, prior, view))
            for view in ("bias", *HARMLESS)
        }
        for case in where.cases()
    }
