"""Scenarios played and measured: every contestant through the same worlds, and what each phase was worth to it.

Figures are per phase: an arm may be best before a change and not after it, so gaps and regret are against the best fixed
model *of that phase* in hindsight, among those on offer in it. Intervals are bootstrap intervals over seeds and prompts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulations.contestants import CONTESTANTS, Pool
from simulations.grid import run_tasks
from simulations.hindsight import HINDSIGHT, Record
from simulations.metrics import Goal, mix_at_cost
from simulations.pools import Field
from simulations.scenarios import SCENARIOS, watched_arms, world_of
from simulations.stream import play
from simulations.world import Phase, World

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

RESAMPLES: Final = 1000
STATIC_MIX: Final = "static mix at the router's cost"


class Task(NamedTuple):
    scenario: str
    pool: str
    objective: str
    contestant: str
    prior: str
    seed: int


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant in one phase. gap: utility minus the best fixed model's; regret: minus its sum over the phase's
    requests. shares: of each watched role's arm, 0 to 1.
    """

    name: str
    utility: Interval
    quality: float
    cost_usd: float
    gap: Interval
    regret: float
    shares: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class PhaseTable:
    """best_fixed: the best model of the phase, of all its seeds together; rows: the router first."""

    name: str
    requests: int
    best_fixed: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Rehearsal:
    """A scenario on one pool: tables, and what the pictures are drawn from. chosen: contestant -> (S, n) columns."""

    scenario: str
    pool: str
    goal: Goal
    worlds: tuple[World, ...]
    chosen: Mapping[str, NDArray[np.int16]]
    watched: Mapping[str, int]
    phases: tuple[PhaseTable, ...]


def play_task(where: Field, task: Task) -> NDArray[np.int16]:
    """(n,) the chosen columns."""
    data, goal = where.datasets[task.pool], where.goals[task.pool, task.objective]
    world = world_of(SCENARIOS[task.scenario], data, goal, task.seed)
    entry = CONTESTANTS[task.contestant]
    stream = f"{task.scenario}:{task.seed}"
    prior = where.priors[task.prior][task.pool]
    player = entry.build(goal, Pool(data.name, stream, where.space, prior, data.arms), entry.default)
    vectors = None if entry.vectors is None else entry.vectors(data)
    steps = play(world, where.contexts[task.pool], player, vectors=vectors)
    return np.array([data.column(step.choice.arm) for step in steps], dtype=np.int16)


def rehearse(
    where: Field,
    scenarios: Sequence[str],
    contestants: Sequence[str],
    *,
    prior: str,
    seeds: int,
    cluster: str | None = None,
    progress: bool = False,
) -> Iterator[Rehearsal]:
    """Every scenario on every pool of the field, each as soon as its last stream is played."""
    tasks = [
        Task(scenario, *case, contestant, prior, seed)
        for scenario in scenarios
        for case in where.cases()
        for seed in range(seeds)
        for contestant in contestants
    ]
    played: dict[Task, NDArray[np.int16]] = {}
    for task, chosen in run_tasks(
        play_task, tasks, where, cluster=cluster, title="scenarios", progress=progress
    ):
        played[task] = chosen
        ours = [one for one in played if one[:3] == task[:3]]
        if len(ours) == seeds * len(contestants):
            yield measured(
                where,
                task.scenario,
                (task.pool, task.objective),
                {
                    name: np.stack(
                        [played.pop(task._replace(contestant=name, seed=seed)) for seed in range(seeds)]
                    )
                    for name in contestants
                },
            )


def measured(
    where: Field, scenario: str, case: tuple[str, str], chosen: Mapping[str, NDArray[np.int16]]
) -> Rehearsal:
    """chosen: contestant -> (S, n), seeds from 0; beside them every fixed model and what hindsight could do."""
    data, goal = where.datasets[case[0]], where.goals[case]
    seeds = len(next(iter(chosen.values())))
    worlds = tuple(world_of(SCENARIOS[scenario], data, goal, seed) for seed in range(seeds))
    watched = watched_arms(SCENARIOS[scenario], data, goal)
    x = where.x(case[0])
    tasks = [prompt.task_family for prompt in data.prompts]
    phases = [
        _phase_table(_Stretch(worlds, index, goal, x, tasks), chosen, watched)
        for index in range(len(worlds[0].phases))
    ]
    return Rehearsal(scenario, case[0], goal, worlds, chosen, watched, tuple(phases))


class _Stretch:
    """One phase of all worlds: arrays over seeds S, the phase's requests n, and arms K."""

    def __init__(
        self, worlds: Sequence[World], index: int, goal: Goal, x: Floats, tasks: Sequence[str]
    ) -> None:
        self.phase: Phase = worlds[0].phases[index]
        self.arms = worlds[0].arms
        self.goal = goal
        self.part = slice(self.phase.start, self.phase.stop)
        self.quality = np.stack([world.quality[self.part] for world in worlds])  # (S, n, K)
        self.cost = np.stack([world.cost_usd[self.part] for world in worlds])
        self.offered = worlds[0].offered()[self.part]  # (n, K), the same for every seed
        self.utility = goal.utility(self.quality, self.cost)
        self.best = self._best_fixed()
        self.records = [
            Record(
                x[world.rows[self.part]],
                [tasks[row] for row in world.rows[self.part]],
                world.quality[self.part],
                world.cost_usd[self.part],
                self.offered,
            )
            for world in worlds
        ]

    def fixed(self) -> list[int]:
        """Columns of the arms on offer in this phase."""
        return [int(k) for k in np.flatnonzero(self.offered.all(axis=0))]

    def row(self, name: str, weights: Floats, watched: Mapping[str, int]) -> Row:
        """weights: (S, n, K) the probability of each arm, 0 or 1 for what was really chosen."""
        utility = (weights * self.utility).sum(axis=2)  # (S, n)
        gap = utility - self.utility[:, :, self.best]
        return Row(
            name,
            _interval(utility),
            float((weights * self.quality).sum(axis=2).mean()),
            float((weights * self.cost).sum(axis=2).mean()),
            _interval(gap),
            0.0 - float(gap.sum(axis=1).mean()),
            {role: float(weights[:, :, k].mean()) for role, k in watched.items()},
        )

    def one_hot(self, chosen: NDArray[np.int16] | Integers) -> Floats:
        """(S, n) columns -> (S, n, K)."""
        hot: Floats = np.eye(len(self.arms))[chosen]
        return hot

    def _best_fixed(self) -> int:
        utility, quality = self.utility.mean(axis=(0, 1)), self.quality.mean(axis=(0, 1))
        offered = self.offered.all(axis=0)
        if self.goal.name == "cost":
            floor = quality[offered].max() - self.goal.quality_floor
            offered = offered & (quality >= floor)
        return int(np.argmax(np.where(offered, utility, -np.inf)))


def _phase_table(
    stretch: _Stretch, chosen: Mapping[str, NDArray[np.int16]], watched: Mapping[str, int]
) -> PhaseTable:
    shape = stretch.quality.shape[:2]
    rows = [
        stretch.row(name, stretch.one_hot(columns[:, stretch.part]), watched)
        for name, columns in chosen.items()
    ]
    fixed = stretch.fixed()
    mix = np.zeros(len(stretch.arms))
    mix[fixed] = mix_at_cost(
        stretch.quality.mean(axis=(0, 1))[fixed], stretch.cost.mean(axis=(0, 1))[fixed], rows[0].cost_usd
    )
    rows += [
        stretch.row(f"always {stretch.arms[k]}", stretch.one_hot(np.full(shape, k, dtype=np.int64)), watched)
        for k in fixed
    ]
    rows.append(stretch.row(STATIC_MIX, np.broadcast_to(mix, stretch.quality.shape), watched))
    rows += [
        stretch.row(
            name,
            stretch.one_hot(np.stack([choose(record, stretch.goal) for record in stretch.records])),
            watched,
        )
        for name, choose in HINDSIGHT.items()
    ]
    phase = stretch.phase
    return PhaseTable(phase.name, phase.stop - phase.start, stretch.arms[stretch.best], tuple(rows))


def _interval(values: Floats) -> Interval:
    """Of the mean of values (S, n): seeds are resampled; the mean over prompts, which all seeds share, moves by its
    normal limit (the bootstrap's own, for more than a few requests).
    """
    S, n = values.shape
    rng = np.random.default_rng(0)
    seeds = values.mean(axis=1)[rng.integers(0, S, (RESAMPLES, S))].mean(axis=1)
    spread = float(np.sqrt(values.var(axis=1).mean() / n))
    low, high = np.percentile(seeds + spread * rng.normal(size=RESAMPLES), [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high))
