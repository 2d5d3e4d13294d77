"""`python -m simulations apgr DIR`: RouteLLM's question, asked of a router that learns as it goes.

How much of the gap between a weak and a strong model is recovered when only a share of the calls may go to the strong one?

    PGR(s) = (mean quality at a share s of strong calls - weak) / (strong - weak)      s = 10 %, 20 % ... 90 %
    APGR   = mean of PGR over those nine and the two ends, PGR(0) = 0 and PGR(1) = 1     (Ong et al., arXiv 2406.18665)

RouteLLM's routers are trained on labels of both models beforehand and evaluated without learning. Here each share is a run
of its own from a cold start over the same requests; only the chosen model's outcome is told, learning included. Calls are
what is rationed, so every call of a model costs the same, at the models' own list prices, and the budget is what the
share of calls would cost.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np

from bandit.objective import Quality
from bandit.policy import Thompson
from bandit.prior import QualityPrior
from bandit.quality import SharedBaseline
from simulations.datasets import Dataset, DatasetError, load, take
from simulations.fit_prior import leave_out
from simulations.grid import run_tasks
from simulations.paced import PacedLearner
from simulations.stream import play
from simulations.tables import plain
from simulations.world import Facts, contexts_of, recorded_world

SHARES: Final = tuple(percent / 100 for percent in range(10, 100, 10))
TOKENS_OUT: Final = 100  # of every call


class Task(NamedTuple):
    share: float
    order: int


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """dataset: two models, the dearer one strong. order 0 is the recorded order, others are random."""

    dataset: Dataset
    prior: QualityPrior | None
    tasks: bool


@dataclass(frozen=True, slots=True)
class Run:
    """Mean quality, of a stream, and the share of its calls that went to the strong model."""

    quality: float
    strong: float


def run(options: argparse.Namespace) -> None:
    datasets = [load(where) for where in dict.fromkeys([options.data, *options.others])]
    prior = leave_out(datasets)[datasets[0].name] if options.others else None
    setting = Setting(rationed(datasets[0], options.family, options.limit), prior, options.tasks)
    tasks = [Task(share, order) for order in range(options.seeds) for share in SHARES]
    played = dict(run_tasks(play_task, tasks, setting, title="shares", progress=sys.stderr.isatty()))
    print(report(setting, played, options.seeds))


def rationed(data: Dataset, family: str, limit: int) -> Dataset:
    """The first `limit` prompts of that family of tasks, with two models whose calls cost the same each time."""
    if len(data.arms) != 2:
        raise DatasetError(
            f"{data.name}: should hold two models, a weak and a strong one, not {len(data.arms)}"
        )
    rows = [row for row, prompt in enumerate(data.prompts) if prompt.task_family.startswith(family)][:limit]
    if not rows:
        raise DatasetError(f"{data.name}: no prompt's task_family begins with {family!r}")
    kept = take(data, rows)
    arms = tuple(replace(arm, price_usd_per_mtok_in=0.0) for arm in kept.arms)
    costs = np.array([arm.cost_usd(0, TOKENS_OUT) for arm in arms])
    if costs[0] == costs[1]:
        raise DatasetError(
            f"{data.name}: both models cost the same, so nothing tells which is the strong one"
        )
    shape = kept.quality.shape
    return replace(
        kept,
        arms=arms,
        cost_usd=np.tile(costs, (shape[0], 1)),
        tokens_in=np.zeros(shape, dtype=np.int64),
        tokens_out=np.full(shape, TOKENS_OUT),
        responses={},
    )


def play_task(setting: Setting, task: Task) -> Run:
    data, features = setting.dataset, Facts(tasks=setting.tasks)
    strong, weak = _ends(data)
    costs = data.cost_usd[0]
    rows = np.arange(len(data.prompts))
    if task.order:
        rows = np.random.default_rng([task.order]).permutation(rows)
    player = PacedLearner(
        Thompson(Quality()),
        SharedBaseline(setting.prior, data.arms),
        features,
        usd_per_request=task.share * costs[strong] + (1 - task.share) * costs[weak],
        stream=f"{task.share}:{task.order}",
    )
    steps = list(play(recorded_world(data, rows), contexts_of(data.prompts, features), player))
    name = data.arms[strong].name
    return Run(
        float(np.mean([step.quality for step in steps])),
        float(np.mean([step.choice.arm == name for step in steps])),
    )


def report(setting: Setting, played: dict[Task, Run], seeds: int) -> str:
    data = setting.dataset
    strong, weak = _ends(data)
    low, high = data.quality[:, weak].mean(), data.quality[:, strong].mean()

    def recovered(share: float) -> list[float]:
        return [(played[Task(share, order)].quality - low) / (high - low) for order in range(seeds)]

    lines = [["strong calls allowed", "made", "PGR", "± se over orders"]]
    for share in SHARES:
        made = np.mean([played[Task(share, order)].strong for order in range(seeds)])
        lines.append(
            [f"{share:.0%}", f"{made:.1%}", f"{np.mean(recovered(share)):.3f}", _se(recovered(share))]
        )
    each = [
        (sum(recovered(share)[order] for share in SHARES) + 1.0) / (len(SHARES) + 2) for order in range(seeds)
    ]
    knows = "nothing" if setting.prior is None else "a prior fitted without this source"
    title = (
        f"{data.name}: {len(data.prompts)} requests, {data.arms[weak].name} {low:.4f}, {data.arms[strong].name} "
        f"{high:.4f}; it begins knowing {knows}; tasks named: {'yes' if setting.tasks else 'no'}"
    )
    result = (
        f"APGR {np.mean(each):.4f} ± {_se(each)} over {seeds} orders (the recorded order: {each[0]:.4f}); "
        "drawing at random: 0.5"
    )
    return "\n".join([title, "", plain(lines), "", result])


def _ends(data: Dataset) -> tuple[int, int]:
    """(strong, weak): columns of the dearer and of the cheaper model."""
    strong = int(np.argmax(data.cost_usd[0]))
    return strong, 1 - strong


def _se(values: Sequence[float]) -> str:
    return f"{np.std(values, ddof=1) / len(values) ** 0.5:.4f}" if len(values) > 1 else "-"
