"""How well the length of an answer is foretold, since budgets are spent by what a call is expected to cost.

A pool's prompts are asked in random order, each of one model by chance, whose answer's length is then known: what a gateway
sees. Before each the lengths of all models' answers are foretold (bandit.cost), and the error is held against that of each
model's mean so far, without a look at the request:

    sum |shape(x) mean - tokens| / sum |mean - tokens|       over requests after the first BEFORE, and models

Beside it the same by the facts about a prompt alone, without its words and its task, and where the answers of all models are
told each time.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandit.cost import CostModel
from bandit.features import DIMENSION, FACTS
from bandit.lengths import LengthSample
from bandit.statistics import CallStatistics, RatingStatistics
from simulations.grid import run_tasks
from simulations.pools import Field, order

Floats = NDArray[np.float64]

BEFORE: Final = 40  # requests that are only learned from
EVERY: Final = 20  # requests: so often what was learned is used
WHOLE: Final = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Way:
    """features: the first so many are looked at. all_told: every model's answer is known, not one's."""

    features: int = DIMENSION
    all_told: bool = False


GATEWAYS: Final = Way()
FACTS_ALONE: Final = Way(features=1 + len(FACTS))
ALL_TOLD: Final = Way(all_told=True)


class Task(NamedTuple):
    pool: str
    way: Way
    seed: int


class Errors(NamedTuple):
    """In tokens, (n,) over requests after BEFORE: with a look at the request, and with each model's mean alone."""

    foretold: Floats
    mean_alone: Floats


def play_task(where: Field, task: Task) -> Errors:
    data = where.datasets[task.pool]
    rows, rng = order(data, task.seed), np.random.default_rng([task.seed, 4])
    X, tokens = where.x(task.pool)[rows, : task.way.features], data.tokens_out[rows]
    arms = [arm.name for arm in data.arms]
    calls = {name: CallStatistics() for name in arms}
    sums: dict[str, RatingStatistics] = {}
    model = CostModel.fit(calls, sums)
    errors = []
    for n, (x, told) in enumerate(zip(X, tokens, strict=True)):
        if n % EVERY == 0:
            model = CostModel.fit(calls, sums)
        if n >= BEFORE:
            mean = np.array([model.tokens_out(name) for name in arms])
            foretold = mean * model.lengths.shapes(x)[:-1]
            errors.append((np.abs(foretold - told).mean(), np.abs(mean - told).mean()))
        known = range(len(arms)) if task.way.all_told else [int(rng.integers(len(arms)))]
        for k in known:
            name, length = arms[k], int(told[k])
            one = LengthSample.of([x], [length]).sums(len(x))
            if one is not None:
                sums[name] = sums[name] + one if name in sums else one
            calls[name] += CallStatistics(calls=1, tokens_out=length)
    return Errors(*np.array(errors).reshape(-1, 2).T)


def figures(
    where: Field, *, seeds: int, cluster: str | None = None, progress: bool = False
) -> tuple[dict[str, list[float]], str]:
    """By pool the shares of the table's columns, NaN where a pool is too small; and the table as Markdown, with a mean over all
    pools below.
    """
    tasks = [
        Task(pool, way, seed)
        for pool in where.datasets
        for way in (GATEWAYS, FACTS_ALONE, ALL_TOLD)
        for seed in range(seeds)
    ]
    played = dict(run_tasks(play_task, tasks, where, cluster=cluster, title="lengths", progress=progress))
    lines = [
        "| data | the mean alone, tokens off | foretold, x that: whole | first third | last third | facts alone | all models' answers told |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    shares: dict[str, list[float]] = {}
    for pool in where.datasets:
        seen, facts, told = (
            [played[Task(pool, way, seed)] for seed in range(seeds)]
            for way in (GATEWAYS, FACTS_ALONE, ALL_TOLD)
        )
        alone = np.concatenate([errors.mean_alone for errors in seen])
        off = alone.sum() / max(len(alone), 1)
        parts = [_share(seen, part) for part in (WHOLE, (0.0, 1 / 3), (2 / 3, 1.0))]
        shares[pool] = [*parts, _share(facts, WHOLE), _share(told, WHOLE)]
        lines.append(f"| {pool} | {off:,.0f} | {_cells(shares[pool])} |")
    lines.append(f"| mean | | {_cells(np.mean(list(shares.values()), axis=0))} |")
    return shares, "\n".join(lines)


def _cells(shares: Iterable[float]) -> str:
    return " | ".join(f"{share:.2f}" for share in shares)


def _share(runs: Sequence[Errors], part: tuple[float, float]) -> float:
    """Of the error of the mean alone, over that part of each stream."""
    first, last = part
    spans = [slice(round(first * len(run.foretold)), round(last * len(run.foretold))) for run in runs]
    foretold = sum(float(run.foretold[span].sum()) for run, span in zip(runs, spans, strict=True))
    alone = sum(float(run.mean_alone[span].sum()) for run, span in zip(runs, spans, strict=True))
    return foretold / alone if alone else math.nan
