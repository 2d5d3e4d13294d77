"""`savings DATA`: what a router's own log tells of other policies, beside the truth, which recorded outcomes know.

Per seed the router plays another order of the prompts; from its decisions, the ratings and the costs of the models that it
chose, `bandit.savings` tells what each fixed model and chance would have got. Then the other models' outcomes are opened.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bandit.decide import Decision
from bandit.policy import Thompson
from bandit.savings import UNIFORM, Row, Told, Traffic, always, rows
from simulations.baselines import router
from simulations.datasets import Dataset, load, take
from simulations.grid import run_tasks
from simulations.learner import Learner
from simulations.metrics import Goal, goal_for
from simulations.player import Choice
from simulations.stream import Step, play
from simulations.world import Facts, Floats, Integers, contexts_of, recorded_world


@dataclass(frozen=True, slots=True)
class Judged:
    """What one log told of one policy, and the truth of the same requests: quality and cost of everyone's answers."""

    told: Row
    quality: float
    usd: float
    routed_quality: float
    routed_usd: float


def run(options: argparse.Namespace) -> None:
    """Print the table."""
    data = load(options.data)
    data = replace(take(data, np.arange(min(options.limit, len(data.prompts)))), responses={})
    goal = goal_for(data, "balanced", options.usd_per_quality, 0.02)
    seeds, plan = list(range(options.seeds)), _Plan(data, goal, options.rated, options.floor)
    found = dict(run_tasks(_play_one, seeds, plan, title=data.name, progress=True))
    print(as_markdown([found[seed] for seed in seeds]))


@dataclass(frozen=True, slots=True)
class _Plan:
    """rated: share of the answers; floor: of exploration, the router's own if None."""

    data: Dataset
    goal: Goal
    rated: float
    floor: float | None


def _play_one(plan: _Plan, seed: int) -> list[Judged]:
    data, features = plan.data, Facts()
    order = np.random.default_rng(seed).permutation(len(data.prompts))
    contestant = router(plan.goal.objective(), None, data.arms)
    if plan.floor is not None:
        contestant = replace(contestant, policy=Thompson(plan.goal.objective(), floor=plan.floor))
    player = Learner(contestant, features, stream=f"savings:{seed}")
    steps = list(play(recorded_world(data, order), contexts_of(data.prompts, features), player))
    hidden = np.random.default_rng([seed, 1]).random(len(steps)) >= plan.rated
    traffic = traffic_of(steps, data)
    traffic = replace(traffic, quality=np.where(hidden, np.nan, traffic.quality))
    return [_judged(row, data, order, steps) for row in rows(traffic)[1:]]


def traffic_of(steps: Sequence[Step], data: Dataset) -> Traffic:
    """As a gateway's log would have it."""
    names = tuple(arm.name for arm in data.arms)

    def laid(values: Sequence[Floats], decisions: Sequence[Decision]) -> Floats:
        table = np.zeros((len(decisions), len(names)))
        for i, (row, decision) in enumerate(zip(values, decisions, strict=True)):
            table[i, [names.index(arm.name) for arm in decision.candidates]] = row
        return table

    decisions = [_decision(step.choice) for step in steps]
    probabilities = laid([decision.probabilities for decision in decisions], decisions)
    return Traffic(
        models=names,
        probabilities=probabilities,
        quality_mean=laid([decision.quality_mean for decision in decisions], decisions),
        expected_usd=laid([decision.cost_usd for decision in decisions], decisions),
        strategy=probabilities,
        chosen=np.array([names.index(step.choice.arm) for step in steps]),
        quality=np.array([step.quality for step in steps]),
        cost_usd=np.array([step.cost_usd for step in steps]),
    )


def _decision(choice: Choice) -> Decision:
    assert choice.decision is not None, "our own router tells all of its decisions"
    return choice.decision


def _judged(row: Row, data: Dataset, order: Integers, steps: Sequence[Step]) -> Judged:
    weights = np.full(len(data.arms), 1.0 / len(data.arms))
    if row.policy != UNIFORM:
        weights = np.array([float(row.policy == always(arm.name)) for arm in data.arms])
    return Judged(
        row,
        quality=float((data.quality[order] @ weights).mean()),
        usd=float((data.cost_usd[order] @ weights).mean()),
        routed_quality=float(np.mean([step.quality for step in steps])),
        routed_usd=float(np.mean([step.cost_usd for step in steps])),
    )


Z = 1.96
HEAD = (
    "| policy | of | true | told | root mean square error | mean se | within 1.96 se | always-valid interval | worth |\n"
    "|---|---|---:|---:|---:|---:|---:|---:|---:|"
)


def as_markdown(logs: Sequence[Sequence[Judged]]) -> str:
    """Rows for each policy that every log tells of: its quality, how far it is from the router's, and its cost."""
    lines = [line for k in range(len(logs[0])) for line in _lines([log[k] for log in logs])]
    quality = 100 * np.mean([log[0].routed_quality for log in logs])
    usd = 1000 * np.mean([log[0].routed_usd for log in logs])
    routed = f"As routed: quality {quality:.3f} points at {usd:.3f} USD per 1,000 requests."
    return "\n".join([HEAD, *lines, "", routed])


def _lines(judged: Sequence[Judged]) -> list[str]:
    against = [j.told.against for j in judged]
    quality = [(j.told.quality, j.quality) for j in judged]
    lost = [(a.quality, j.routed_quality - j.quality) for a, j in zip(against, judged, strict=True) if a]
    usd = [(j.told.usd, j.usd) for j in judged]
    policy = judged[0].told.policy
    return [
        f"| {policy} | quality, points | {_cells(quality, 100.0)} |",
        f"| | router minus it, points | {_cells(lost, 100.0)} |",
        f"| | USD per 1,000 | {_cells(usd, 1000.0)} |",
    ]


def _cells(pairs: Sequence[tuple[Told, float]], scale: float) -> str:
    said = [(told.value, told.se, true) for told, true in pairs if told.value is not None]
    true = f"{scale * np.mean([true for _, true in pairs]):.3f}"
    worth = f"{np.mean([told.effective_n for told, _ in pairs]):,.0f}"
    cells = [true, "-", "-", "-", "-"]
    if said:
        off = np.array([value - true for value, _, true in said])
        se = np.array([se for _, se, _ in said])
        cells = [
            true,
            f"{scale * np.mean([value for value, _, _ in said]):.3f}",
            f"{scale * np.sqrt(np.mean(off**2)):.3f}",
            f"{scale * se.mean():.3f}",
            f"{int((np.abs(off) <= Z * se).sum())} of {len(said)}",
        ]
    bounded = [(told, true) for told, true in pairs if np.isfinite(told.upper)]
    interval = "-"
    if bounded:
        held = sum(told.lower <= true <= told.upper for told, true in bounded)
        width = scale * np.mean([told.upper - told.lower for told, _ in bounded])
        interval = f"{held} of {len(bounded)}, {width:.1f} wide"
    return " | ".join([*cells, interval, worth])
