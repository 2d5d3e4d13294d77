"""Replay of recorded outcomes: every policy over the same random orders of the same prompts, cold start, learning cost
included. The result is one JSON object (`Result.to_json`), and with a trace anyone can recompute every figure.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandit.prior import QualityPrior
from simulations.contestants import CONTESTANTS, Pool
from simulations.datasets import Dataset, take
from simulations.grid import run_tasks
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
from simulations.stream import play
from simulations.world import Facts, contexts_of, recorded_world

DEFAULT_POLICIES = ("router", "thompson-context-free", "random")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to replay: names of policies, how many random orders of at most `limit` prompts, and the goal."""

    policies: tuple[str, ...] = DEFAULT_POLICIES
    objective: str = "balanced"
    usd_per_quality: float | None = None
    quality_floor: float = 0.02
    orders: int = 5
    limit: int = 3000
    prior: QualityPrior | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Played:
    """One policy over one order: row, chosen arm and propensity (NaN where it knows none) of each step (n,); median
    time of a choice.
    """

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
    shared = (replace(data, responses={}), goal, plan)
    played = dict(run_tasks(_play_one, tasks, shared, title=data.name, progress=progress))
    return Result(data, goal, plan, tuple(played[task] for task in tasks))


def _play_one(shared: tuple[Dataset, Goal, Plan], task: tuple[str, int]) -> Played:
    (data, goal, plan), (name, order) = shared, task
    rows, entry, features = _orders(len(data.prompts), plan)[order], CONTESTANTS[name], Facts()
    pool = Pool(data.name, f"{plan.seed}:{order}", features, plan.prior, data.arms)
    player = entry.build(goal, pool, entry.default)
    vectors = None if entry.vectors is None else entry.vectors(data)
    steps = list(
        play(recorded_world(data, rows), contexts_of(data.prompts, features), player, vectors=vectors)
    )
    propensities = [step.choice.propensity for step in steps]
    return Played(
        policy=name,
        order=order,
        rows=rows,
        chosen=np.array([data.column(step.choice.arm) for step in steps]),
        propensity=np.array([np.nan if p is None else p for p in propensities]),
        decision_us_p50=float(np.median([step.choice_ns for step in steps])) / 1e3,
    )


def _orders(n: int, plan: Plan) -> list[NDArray[np.int64]]:
    return [np.random.default_rng([plan.seed, order]).permutation(n) for order in range(plan.orders)]
