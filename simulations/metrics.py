"""What a stream was worth: utility, gaps to the best fixed model, its mix at equal cost, the oracle, and their spread."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from bandit.objective import BELOW_FLOOR, Balanced, Cost, Objective, Quality
from simulations.datasets import Dataset

Floats = NDArray[np.float64]
OBJECTIVES = ("quality", "balanced", "cost")


@dataclass(frozen=True, slots=True)
class Goal:
    """An objective with its parameters, and the utility by which recorded outcomes are judged under it.

    usd_per_quality: X, the USD that one full point of quality is worth. quality_floor: how far the cost objective may
    lie below the best fixed model's quality.
    """

    name: str
    usd_per_quality: float
    quality_floor: float

    def objective(self) -> Objective:
        match self.name:
            case "quality":
                return Quality()
            case "balanced":
                return Balanced(self.usd_per_quality)
            case _:
                return Cost(self.quality_floor)

    def utility(self, quality: Floats, cost_usd: Floats) -> Floats:
        """quality: quality; balanced: quality - cost / X; cost: -cost / X (its floor is reported beside it)."""
        match self.name:
            case "quality":
                return quality
            case "balanced":
                return quality - cost_usd / self.usd_per_quality
            case _:
                return -cost_usd / self.usd_per_quality


def goal_for(dataset: Dataset, name: str, usd_per_quality: float | None, quality_floor: float) -> Goal:
    """X defaults to the dearest model's mean cost divided by 0.3: that model costs 0.3 points of quality."""
    dearest = float(dataset.cost_usd.mean(axis=0).max())
    return Goal(name, usd_per_quality or dearest / 0.3 or 1.0, quality_floor)


def best_fixed(dataset: Dataset, goal: Goal) -> int:
    """Index of the model with the highest mean utility over the whole stream; for `cost`, among those within the floor
    of the best quality.
    """
    utility = goal.utility(dataset.quality, dataset.cost_usd).mean(axis=0)
    if goal.name == "cost":
        quality = dataset.quality.mean(axis=0)
        utility = np.where(quality >= quality.max() - goal.quality_floor, utility, -np.inf)
    return int(np.argmax(utility))


def oracle(dataset: Dataset, goal: Goal) -> NDArray[np.int64]:
    """(n,) the best model for each prompt, knowing its outcome; ties go to the cheapest. A bound, not a goal."""
    everything = np.ones(dataset.quality.shape, dtype=np.bool_)
    return best_of(dataset.quality, dataset.cost_usd, everything, goal)


def best_of(quality: Floats, cost_usd: Floats, offered: NDArray[np.bool_], goal: Goal) -> NDArray[np.int64]:
    """The arm on offer with the highest utility; of equals the cheapest. quality, cost_usd: (n, K), known or predicted."""
    utility = goal.utility(quality, cost_usd)
    if goal.name == "cost":  # below the floor under the best model's quality, any cost is better
        reference = quality[:, [int(np.argmax(quality.mean(axis=0)))]]
        lacking = np.maximum(reference - goal.quality_floor - quality, 0.0)
        utility = -cost_usd - BELOW_FLOOR * lacking
    utility = np.where(offered, utility, -np.inf)
    best = utility >= utility.max(axis=1, keepdims=True) - 1e-12
    chosen: NDArray[np.int64] = np.argmin(np.where(best & offered, cost_usd, np.inf), axis=1)
    return chosen


def static_mix(dataset: Dataset, cost_usd: float) -> Floats:
    """(K,) the share of requests to send to each fixed model, context unseen, for the highest mean quality at a mean
    cost of at most cost_usd (or as near to it as the cheapest model allows).
    """
    return mix_at_cost(dataset.quality.mean(axis=0), dataset.cost_usd.mean(axis=0), cost_usd)


def mix_at_cost(quality: Floats, costs: Floats, cost_usd: float) -> Floats:
    """The same from each model's mean quality and cost, (K,) each."""
    limit = max(cost_usd, float(costs.min()))
    unit = limit or 1.0  # in units of the limit, lest the solver meet costs of 1e-5
    solution = linprog(
        -quality, A_ub=[costs / unit], b_ub=[limit / unit], A_eq=[np.ones_like(costs)], b_eq=[1.0]
    )
    shares: Floats = solution.x
    return shares


def paired_bootstrap_se(differences: Floats, *, seed: int, resamples: int = 1000) -> float:
    """Standard error of the mean of per-prompt differences (n,), by resampling prompts."""
    n = len(differences)
    rng = np.random.default_rng(seed)
    means = [differences[rng.integers(0, n, n)].mean() for _ in range(resamples)]
    return float(np.std(means, ddof=1))


def paired_bootstrap_interval(
    differences: Floats, *, seed: int = 0, resamples: int = 1000
) -> tuple[float, float]:
    """95 % interval of the mean of per-prompt differences (n,), by resampling prompts."""
    n = len(differences)
    rng = np.random.default_rng(seed)
    means = [differences[rng.integers(0, n, n)].mean() for _ in range(resamples)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def clustered_mean(differences: Floats, clusters: Sequence[int]) -> tuple[float, float]:
    """Mean of differences (C,) and its standard error when those of one cluster may hang together.

    se^2 = G / (G - 1) sum_g (sum_{c in g} (d_c - mean))^2 / C^2        Liang and Zeger 1986; infinite for G = 1
    """
    mean = float(differences.mean())
    labels = np.asarray(clusters)
    sums = [float((differences[labels == g] - mean).sum()) for g in dict.fromkeys(clusters)]
    G = len(sums)
    if G < 2:
        return mean, float("inf")
    return mean, float(np.sqrt(G / (G - 1) * np.sum(np.square(sums)))) / len(differences)


def shares(chosen: NDArray[np.int64], models: Sequence[str]) -> dict[str, float]:
    counts = np.bincount(chosen, minlength=len(models))
    return {model: float(count) / len(chosen) for model, count in zip(models, counts, strict=True)}
