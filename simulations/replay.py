"""Replay of recorded outcomes: every policy over the same random orders of the same prompts, cold start, learning cost
included. The result is one JSON object (`Result.to_json`), and with a trace anyone can recompute every figure.
"""

import csv
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from bandit.quality import QualityPrior
from simulations import baselines
from simulations.datasets import Dataset, take
from simulations.metrics import (
    Floats,
    Goal,
    best_fixed,
    goal_for,
    oracle,
    paired_bootstrap_se,
    shares,
    static_mix,
)
from simulations.stream import Contestant, play

CONTESTANTS: dict[str, Callable[[Goal, QualityPrior], Contestant]] = {
    "router": lambda goal, prior: baselines.router(goal.objective(), prior),
    "thompson-context-free": lambda goal, _: baselines.context_free_thompson(goal.objective()),
    "random": lambda _goal, _prior: baselines.random(),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to replay: names of policies, how many random orders of at most `limit` prompts, and the goal."""

    policies: tuple[str, ...] = tuple(CONTESTANTS)
    objective: str = "balanced"
    usd_per_quality: float | None = None
    quality_floor: float = 0.02
    orders: int = 5
    limit: int = 3000
    prior: QualityPrior = field(default_factory=QualityPrior)
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Played:
    """One policy over one order: row, chosen arm and propensity of each step (n,); median decision time."""

    policy: str
    order: int
    rows: NDArray[np.int64]
    chosen: NDArray[np.int64]
    propensity: Floats
    decision_us_p50: float


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    dataset: Dataset
    goal: Goal
    plan: Plan
    played: tuple[Played, ...]

    def to_json(self) -> dict[str, Any]:
        fixed = best_fixed(self.dataset, self.goal)
        names = [arm.name for arm in self.dataset.arms]
        return {
            "dataset": self.dataset.name,
            "prompts": len(self.dataset.prompts),
            "models": names,
            "objective": self.goal.name,
            "usd_per_quality": self.goal.usd_per_quality,
            "best_fixed": {"model": names[fixed]} | self._means(np.full(len(self.dataset.prompts), fixed)),
            "oracle": self._means(oracle(self.dataset, self.goal)),
            "policies": self._policies(),
        }

    def write_trace(self, path: Path) -> None:
        """CSV: policy, order, step, prompt_id, arm, propensity."""
        names = [arm.name for arm in self.dataset.arms]
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["policy", "order", "step", "prompt_id", "arm", "propensity"])
            for p in self.played:
                for step, (row, arm, propensity) in enumerate(
                    zip(p.rows, p.chosen, p.propensity, strict=True)
                ):
                    prompt = self.dataset.prompts[row].prompt_id
                    writer.writerow([p.policy, p.order, step, prompt, names[arm], repr(float(propensity))])

    def _policies(self) -> list[dict[str, Any]]:
        played = [self._policy(name) for name in self.plan.policies]
        routers = [policy for policy in played if policy["name"] == "router"]
        return [
            *played,
            *self._fixed_policies(),
            *(self._static_mix(policy["cost_usd"]) for policy in routers),
        ]

    def _static_mix(self, cost_usd: float) -> dict[str, Any]:
        """The best mix of fixed models at the router's cost, context unseen: its expectation, the same on every order."""
        data, fixed = self.dataset, best_fixed(self.dataset, self.goal)
        weights = static_mix(data, cost_usd)  # (K,)
        utility = self.goal.utility(data.quality, data.cost_usd)  # (n, K)
        gaps = utility @ weights - utility[:, fixed]
        reference = float(utility[:, fixed].mean())
        gap = float(gaps.mean())
        return {
            "name": "static-mix-at-router-cost",
            "quality": float((data.quality @ weights).mean()),
            "cost_usd": float((data.cost_usd @ weights).mean()),
            "utility": reference + gap,
            "utility_last_third": reference + gap,
            "best_fixed_utility_last_third": reference,
            "gap_to_best_fixed": gap,
            "gap_last_third": gap,
            "se": paired_bootstrap_se(gaps, seed=self.plan.seed),
            "shares": {arm.name: float(w) for arm, w in zip(data.arms, weights, strict=True)},
            "decision_us_p50": None,
        }

    def _policy(self, name: str) -> dict[str, Any]:
        played = [p for p in self.played if p.policy == name]
        summary = self._summary(name, [(p.rows, p.chosen) for p in played])
        return summary | {"decision_us_p50": float(np.median([p.decision_us_p50 for p in played]))}

    def _fixed_policies(self) -> list[dict[str, Any]]:
        """Each fixed model on the same streams; nothing is decided, so nothing is timed."""
        orders = _orders(len(self.dataset.prompts), self.plan)
        return [
            self._summary(f"fixed:{arm.name}", [(rows, np.full(len(rows), k)) for rows in orders])
            | {"decision_us_p50": None}
            for k, arm in enumerate(self.dataset.arms)
        ]

    def _summary(
        self, name: str, streams: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]
    ) -> dict[str, Any]:
        """Means over all orders; `rows` of an order are a permutation of the same prompts."""
        data, fixed = self.dataset, best_fixed(self.dataset, self.goal)
        per_prompt = np.zeros((len(streams), len(data.prompts)))
        late, late_fixed, quality, cost = [], [], [], []
        for order, (rows, chosen) in enumerate(streams):
            utility = self.goal.utility(data.quality[rows, chosen], data.cost_usd[rows, chosen])
            reference = self.goal.utility(data.quality[rows, fixed], data.cost_usd[rows, fixed])
            per_prompt[order, rows] = utility - reference
            third = -(len(rows) // 3)
            late.append(utility[third:].mean())
            late_fixed.append(reference[third:].mean())
            quality.append(data.quality[rows, chosen].mean())
            cost.append(data.cost_usd[rows, chosen].mean())
        reference_utility = self._means(np.full(len(data.prompts), fixed))["utility"]
        gap = float(per_prompt.mean())
        return {
            "name": name,
            "quality": float(np.mean(quality)),
            "cost_usd": float(np.mean(cost)),
            "utility": reference_utility + gap,
            "utility_last_third": float(np.mean(late)),
            "best_fixed_utility_last_third": float(np.mean(late_fixed)),
            "gap_to_best_fixed": gap,
            "gap_last_third": float(np.mean(late) - np.mean(late_fixed)),
            "se": paired_bootstrap_se(per_prompt.mean(axis=0), seed=self.plan.seed),
            "shares": shares(np.concatenate([chosen for _, chosen in streams]), [a.name for a in data.arms]),
        }

    def _means(self, chosen: NDArray[np.int64]) -> dict[str, float]:
        rows = np.arange(len(chosen))
        quality, cost = self.dataset.quality[rows, chosen], self.dataset.cost_usd[rows, chosen]
        return {
            "quality": float(quality.mean()),
            "cost_usd": float(cost.mean()),
            "utility": float(self.goal.utility(quality, cost).mean()),
        }


def replay(dataset: Dataset, plan: Plan, *, progress: bool = False) -> Result:
    """Play every policy over every order, on all cores."""
    data = take(dataset, np.arange(min(plan.limit, len(dataset.prompts))))
    goal = goal_for(data, plan.objective, plan.usd_per_quality, plan.quality_floor)
    tasks = [(name, order) for order in range(plan.orders) for name in plan.policies]
    with ProcessPoolExecutor(
        min(len(tasks), os.cpu_count() or 1),
        mp_context=get_context("spawn"),
        initializer=_begin,
        initargs=(data, goal, plan),
    ) as pool:
        played: Iterable[Played] = pool.map(_play_one, tasks)
        done = tqdm(played, total=len(tasks), desc=data.name, unit="stream", disable=not progress)
        return Result(data, goal, plan, tuple(done))


_shared: tuple[Dataset, Goal, Plan] | None = None  # what a worker process was started with


def _begin(data: Dataset, goal: Goal, plan: Plan) -> None:
    global _shared  # noqa: PLW0603 - a process pool hands its workers their data this way
    threadpool_limits(1)
    _shared = (data, goal, plan)


def _play_one(task: tuple[str, int]) -> Played:
    assert _shared is not None
    (data, goal, plan), (name, order) = _shared, task
    return play_policy(data, goal, plan, name, order)


def play_policy(data: Dataset, goal: Goal, plan: Plan, name: str, order: int) -> Played:
    rows = _orders(len(data.prompts), plan)[order]
    contestant = CONTESTANTS[name](goal, plan.prior)
    steps = list(play(data, rows, contestant, stream=f"{plan.seed}:{order}", clock=time.perf_counter_ns))
    return Played(
        policy=name,
        order=order,
        rows=rows,
        chosen=np.array([data.column(step.decision.arm.name) for step in steps]),
        propensity=np.array([step.decision.propensity for step in steps]),
        decision_us_p50=float(np.median([step.decision_ns for step in steps])) / 1e3,
    )


def _orders(n: int, plan: Plan) -> list[NDArray[np.int64]]:
    return [np.random.default_rng([plan.seed, order]).permutation(n) for order in range(plan.orders)]
