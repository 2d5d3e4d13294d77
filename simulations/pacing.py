"""How near the pacer comes to the best that a budget can buy, and how far it overspends, in orders that mean it ill.

Qualities and costs are known beforehand, so that nothing but pacing is measured; where costs are mispredicted, only the
prediction is wrong. The bound is a linear programme over all requests at once, outcomes and order known.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csr_matrix, eye, kron

from bandit.arms import Arm
from bandit.pacing import Pacer
from bandit.types import Matrix, Vector
from simulations.datasets import Dataset
from simulations.tables import plain

BUDGETS: Final = 6  # between the cheapest and the dearest model's mean cost, evenly in their logarithm
BLOCKS: Final = 40  # of a bursty order


@dataclass(frozen=True, slots=True)
class Case:
    """An order of requests, what costs are predicted to be as a multiple of the truth, and after how many requests a cost
    is known. mean: each model's mean cost is predicted for every request.
    """

    order: str
    predicted: float = 1.0
    late: int = 0
    mean: bool = False

    @property
    def name(self) -> str:
        told = [self.order]
        told += ["costs predicted by their mean"] if self.mean else []
        told += [f"costs predicted x {self.predicted:.2g}"] if self.predicted != 1 else []
        told += [f"known {self.late} later"] if self.late else []
        return ", ".join(told)


CASES: Final = (
    Case("shuffled"),
    Case("shuffled", late=100, mean=True),
    Case("dear first"),
    Case("dear last"),
    Case("bursts"),
    Case("shuffled", predicted=1 / 3),
    Case("shuffled", predicted=3.0),
    Case("dear last", predicted=1 / 3, late=100),
)


@dataclass(frozen=True, slots=True)
class Paced:
    """quality: mean; spent: mean cost in units of the budget; most_over: the largest sum above n B, in units of B."""

    quality: float
    spent: float
    most_over: float


def paced(quality: Matrix, cost_usd: Matrix, predicted_usd: Matrix, budget: float, late: int) -> Paced:
    """Greedy choices (n,) under the pacer's objective; quality, cost_usd and predicted_usd (n, K)."""
    n, k = quality.shape
    arms = [Arm(f"model-{a}", 1.0, 1.0) for a in range(k)]
    pacer, earned, total, most_over = Pacer(budget), 0.0, 0.0, -np.inf
    waiting: list[tuple[str, float]] = []
    for i in range(n):
        utility = pacer.objective().utility(quality[i][None], predicted_usd[i], 0)[0]
        chosen = int(np.argmax(utility))
        pacer.decided(str(i), arms[chosen].name, arms, quality[i], predicted_usd[i])
        waiting.append((str(i), float(cost_usd[i, chosen])))
        while len(waiting) > late:
            pacer.settled(*waiting.pop(0))
        earned, total = earned + float(quality[i, chosen]), total + float(cost_usd[i, chosen]) / budget
        most_over = max(most_over, total - (i + 1))
    return Paced(earned / n, total / n, most_over)


def best(quality: Matrix, cost_usd: Matrix, budget: float) -> float:
    """Mean quality of the best mix of models per request whose mean cost is within the budget (or as low as can be)."""
    n, k = quality.shape
    limit = max(budget, float(cost_usd.min(axis=1).mean()))
    solution = linprog(
        -quality.ravel(),
        A_ub=csr_matrix(cost_usd.ravel()[None] / (limit * n)),
        b_ub=[1.0],
        A_eq=csr_matrix(kron(eye(n), np.ones((1, k)))),
        b_eq=np.ones(n),
    )
    return float(-solution.fun / n)


def orders(cost_usd: Matrix, seed: int) -> Mapping[str, NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    dear = np.argsort(-cost_usd.sum(axis=1), kind="stable")
    blocks = np.array_split(dear, BLOCKS)
    bursts = np.concatenate([blocks[b] for b in rng.permutation(BLOCKS)])
    return {
        "shuffled": rng.permutation(len(dear)),
        "dear first": dear,
        "dear last": dear[::-1],
        "bursts": bursts,
    }


def budgets(cost_usd: Matrix) -> Vector:
    means = cost_usd.mean(axis=0)
    low, high = float(means[means > 0].min()), float(means.max())
    return np.geomspace(1.5 * low, high, BUDGETS)


def run(dataset: Dataset, *, seed: int) -> None:
    """Print one table: a line for each case, a column for each budget."""
    quality, cost_usd = dataset.quality, dataset.cost_usd
    limits, by_order = budgets(cost_usd), orders(cost_usd, seed)
    bounds = [best(quality, cost_usd, float(budget)) for budget in limits]
    print(
        f"{dataset.name}: {len(quality)} requests, outcomes known. Quality against the best within the budget, in %;"
    )
    print(
        "spend in units of the budget; in brackets the most that was ever overspent, in requests' worth of budget\n"
    )
    table = [["case", *(f"{budget:.2g} USD" for budget in limits)]]
    for case in CASES:
        rows = by_order[case.order]
        truth = np.broadcast_to(cost_usd.mean(axis=0), cost_usd.shape) if case.mean else cost_usd
        predicted = case.predicted * truth[rows]
        done = [paced(quality[rows], cost_usd[rows], predicted, float(b), case.late) for b in limits]
        table.append([case.name, *(_cell(p, bound) for p, bound in zip(done, bounds, strict=True))])
    print(plain(table))


def _cell(done: Paced, bound: float) -> str:
    return f"{100 * (done.quality / bound - 1):+.2f}  {done.spent:.3f} [{max(done.most_over, 0):.0f}]"
