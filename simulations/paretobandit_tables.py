"""What became of both sides in ParetoBandit's experiments, as one table an experiment.

Intervals are 95 %, by resampling the seeds. Spend is the mean over the seeds of what the phase cost a request, over its
budget; beside it the seed that spent most.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from simulations import paretobandit_protocol as protocol
from simulations import paretobandit_published as published
from simulations.hindsight import predict_by_ridge
from simulations.paretobandit_compare import (
    ITS,
    ITS_COLD,
    OURS,
    Setting,
    Task,
    compare,
    prepare,
    tasks_of,
)
from simulations.paretobandit_protocol import Experiment
from simulations.paretobandit_rival import its_vectors
from simulations.tables import plain
from simulations.world import Phase, World

Floats = NDArray[np.float64]
Chosen = NDArray[np.int64]
Played = Mapping[Task, Chosen]

RESAMPLES: Final = 10_000
EARLY: Final = 200  # requests after which regret is also told
JOINED: Final = 60  # requests within which a newcomer should have found its share
LAST: Final = 200  # requests in which its final share is counted
SIDES: Final = {ITS: "its wheel", ITS_COLD: "its wheel, cold", OURS: "ours"}


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """One contestant at one budget of an experiment: the worlds of its seeds and what it chose in them."""

    worlds: tuple[World, ...]
    chosen: tuple[Chosen, ...]

    def quality(self, phase: str) -> Floats:
        """(S,) mean quality of each seed in a phase."""
        return self._means(phase, lambda world: world.quality)

    def cost_usd(self, phase: str) -> Floats:
        return self._means(phase, lambda world: world.cost_usd)

    def share(self, phase: str, arm: str, part: slice = slice(None)) -> Floats:
        """(S,) of an arm among the phase's requests, or some of them."""
        return np.array([picks[part].mean() for picks in self.picks(phase, arm)])

    def picks(self, phase: str, arm: str) -> list[NDArray[np.bool_]]:
        """Of each seed: at which requests of the phase the arm was chosen."""
        return [
            chosen[_span(world, phase)] == world.arms.index(arm)
            for world, chosen in zip(self.worlds, self.chosen, strict=True)
        ]

    def regrets(self, upto: int | None = None) -> Floats:
        """(S,) sum over the stream, or its first requests, of the best arm's quality minus that of the chosen."""
        lost = []
        for world, chosen in zip(self.worlds, self.chosen, strict=True):
            best = np.where(world.offered(), world.quality, -np.inf).max(axis=1)
            lost.append((best - world.quality[np.arange(len(chosen)), chosen])[:upto].sum())
        return np.array(lost)

    def _means(self, phase: str, of: Callable[[World], Floats]) -> Floats:
        means = []
        for world, chosen in zip(self.worlds, self.chosen, strict=True):
            span = _span(world, phase)
            means.append(of(world)[span][np.arange(span.stop - span.start), chosen[span]].mean())
        return np.array(means)


def report(
    setting: Setting, *, names: Sequence[str] | None, seeds: int, progress: bool, cluster: str | None = None
) -> Iterator[str]:
    """A table of each experiment, as soon as its streams are played. names: of experiments; None for all."""
    wanted = prepare(setting, names, progress=progress)
    if setting.data is None and not names:
        yield f"No --data: the onboarding of {protocol.NEWCOMER} is left out; its outcomes are in no wheel.\n"
    for experiment in wanted:
        played = compare(
            setting, tasks_of(experiment, seeds=seeds, sides=(ITS, OURS)), progress=progress, cluster=cluster
        )
        yield f"{experiment.name}: {seeds} seeds; our features: {setting.vectors}\n"
        yield table(experiment, played, its_vectors(experiment.texts())) + "\n"


def table(experiment: Experiment, played: Played, vectors: Floats) -> str:
    """vectors: (n, d) of the experiment's prompts, for the best linear policy in hindsight."""
    kind = experiment.name.split("-")[0]
    match kind:
        case "stationary":
            return _stationary(experiment, played, vectors)
        case "unconstrained":
            return _unconstrained(experiment, played)
        case "degradation":
            return _degradation(experiment, played)
        case "price":
            return _price_drop(experiment, played)
        case _:
            return _onboarding(experiment, played)


def _stationary(experiment: Experiment, played: Played, vectors: Floats) -> str:
    head = [
        "USD",
        "published",
        "its wheel",
        "spend",
        "ours",
        "spend",
        "worst",
        "mix",
        "ours-mix",
        "linear",
        "oracle",
    ]
    lines = []
    for (budget, usd), row in zip(experiment.budgets_usd.items(), published.STATIONARY, strict=False):
        assert usd is not None
        its, we = _runs(experiment, played, ITS, budget), _runs(experiment, played, OURS, budget)
        spend, quality = we.cost_usd("test") / usd, we.quality("test")
        mixes = [
            mix_at(*_means(world, "test"), float(cost))
            for world, cost in zip(we.worlds, we.cost_usd("test"), strict=True)
        ]
        linear, oracle = bounds(we.worlds[0], vectors, usd)
        lines.append(
            [
                budget,
                f"{row[0]:.3f} [{row[1]:.3f}, {row[2]:.3f}] {row[3]:.2f}",
                _with_interval(its.quality("test")),
                f"{(its.cost_usd('test') / usd).mean():.3f}",
                _with_interval(quality),
                f"{spend.mean():.3f}",
                f"{spend.max():.3f}",
                f"{np.mean(mixes):.4f}",
                f"{np.mean(quality - mixes):+.4f}",
                f"{linear:.4f}",
                f"{oracle:.4f}",
            ]
        )
    return plain([head, *lines])


def _unconstrained(experiment: Experiment, played: Played) -> str:
    head = ["start", "published", "regret", "sd", "worst", f"after {EARLY}", "quality"]
    lines = []
    for contestant, key in ((ITS, "warm"), (ITS_COLD, "cold"), (OURS, "")):
        runs = _runs(experiment, played, contestant, "none")
        regret = runs.regrets()
        told = published.UNCONSTRAINED.get(key)
        lines.append(
            [
                f"{SIDES[contestant]}{', warm' if key == 'warm' else ''}",
                f"{told[0]:.1f} ± {told[1]:.1f}" if told else "",
                _with_interval(regret, 1),
                f"{regret.std():.1f}",
                f"{regret.max():.1f}",
                f"{runs.regrets(EARLY).mean():.1f}",
                f"{runs.quality('test').mean():.4f}",
            ]
        )
    return plain([head, *lines])


def _degradation(experiment: Experiment, played: Played) -> str:
    model = protocol.DEGRADED[0]
    head = ["budget", "side", "P1", "P2", "P3", "P3/P1", "spend", f"{model} in P2", "last 100"]
    lines = []
    for budget, usd in experiment.budgets_usd.items():
        assert usd is not None
        p1, p2, p3 = published.DEGRADATION[budget]
        lines.append(
            [budget, "published", f"{p1:.3f}", f"{p2:.3f}", f"{p3:.3f}", f"{p3 / p1:.3f}", "", "", ""]
        )
        for contestant in (ITS, OURS):
            runs = _runs(experiment, played, contestant, budget)
            qualities = [runs.quality(phase) for phase in ("P1", "P2", "P3")]
            spend = [f"{(runs.cost_usd(phase) / usd).mean():.2f}" for phase in ("P1", "P2", "P3")]
            lines.append(
                [
                    budget,
                    SIDES[contestant],
                    *(_with_interval(quality) for quality in qualities),
                    f"{(qualities[2].mean() / qualities[0].mean()):.3f}",
                    "/".join(spend),
                    f"{100 * runs.share('P2', model).mean():.0f} %",
                    f"{100 * runs.share('P2', model, slice(-100, None)).mean():.0f} %",
                ]
            )
    return plain([head, *lines])


def _price_drop(experiment: Experiment, played: Played) -> str:
    head = ["budget", "side", "spend P1", "P2", "P3", "quality P1", "P2", "P3"]
    lines = []
    for budget, usd in experiment.budgets_usd.items():
        assert usd is not None
        lines.append([budget, "published", *(f"{x:.2f}" for x in published.PRICE_DROP[budget]), "", "", ""])
        for contestant in (ITS, OURS):
            runs = _runs(experiment, played, contestant, budget)
            spend = [f"{(runs.cost_usd(phase) / usd).mean():.3f}" for phase in ("P1", "P2", "P3")]
            quality = [_with_interval(runs.quality(phase)) for phase in ("P1", "P2", "P3")]
            lines.append([budget, SIDES[contestant], *spend, *quality])
    return plain([head, *lines])


def _onboarding(experiment: Experiment, played: Played) -> str:
    case, arm = experiment.name.removeprefix("onboarding-"), protocol.NEWCOMER
    head = ["budget", "side", "quality", "spend", "calls", f"first {JOINED}", f"last {LAST}", "found at"]
    lines = []
    for budget, usd in experiment.budgets_usd.items():
        reward, _, last, adopted = published.ONBOARDING[case, budget]
        lines.append(
            [
                budget,
                "published",
                f"{reward:.3f}",
                "",
                "",
                "",
                f"{100 * last:.1f} %",
                f"{adopted or '-'} (theirs)",
            ]
        )
        for contestant in (ITS, OURS):
            runs = _runs(experiment, played, contestant, budget)
            picks = runs.picks("newcomer", arm)
            lines.append(
                [
                    budget,
                    SIDES[contestant],
                    _with_interval(runs.quality("newcomer")),
                    "" if usd is None else f"{(runs.cost_usd('newcomer') / usd).mean():.3f}",
                    f"{np.mean([p.sum() for p in picks]):.1f} (most {max(p.sum() for p in picks)})",
                    f"{100 * runs.share('newcomer', arm, slice(JOINED)).mean():.1f} %",
                    f"{100 * runs.share('newcomer', arm, slice(-LAST, None)).mean():.1f} %",
                    f"{np.median([found_at(p) for p in picks]):.0f}",
                ]
            )
    return plain([head, *lines])


def found_at(picks: NDArray[np.bool_]) -> int:
    """The request, counted from 1, by which an arm's share so far has reached its share of the last LAST requests."""
    shares = picks.cumsum() / np.arange(1, len(picks) + 1)
    return int(np.argmax(shares >= picks[-LAST:].mean())) + 1


def bounds(world: World, vectors: Floats, usd: float) -> tuple[float, float]:
    """Quality in the phase "test" within the budget in hindsight: of the best linear policy (ridge fitted on every arm's
    outcome in the learning phase) and of the oracle; both know every cost.
    """
    learning, test = _span(world, protocol.LEARNING), _span(world, "test")
    x = vectors[world.rows]
    predicted = predict_by_ridge(x[learning], world.quality[learning], x[test])
    truth, cost = world.quality[test], world.cost_usd[test]
    rows = np.arange(len(truth))
    linear = truth[rows, best_within(predicted, cost, usd)].mean()
    return float(linear), float(truth[rows, best_within(truth, cost, usd)].mean())


def best_within(worth: Floats, cost_usd: Floats, usd: float) -> Chosen:
    """(n,) argmax of worth - l cost / usd with the least l >= 0 at which the mean cost is at most usd."""

    def chosen(dual: float) -> Chosen:
        picks: Chosen = np.argmax(worth - dual * cost_usd / usd, axis=1)
        return picks

    def spend(dual: float) -> float:
        return float(cost_usd[np.arange(len(worth)), chosen(dual)].mean())

    if spend(0.0) <= usd:
        return chosen(0.0)
    low, high = 1e-9, 1e9
    for _ in range(100):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if spend(middle) <= usd else (middle, high)
    return chosen(high)


def mix_at(quality: Floats, cost_usd: Floats, usd: float) -> float:
    """Quality of the best mix of two fixed arms, prompt unseen, that costs usd on average; at least the cheapest arm's.

    quality, cost_usd: (K,) means of each fixed arm.
    """
    cheapest = int(np.argmin(cost_usd))
    best = float(quality[cost_usd <= max(usd, cost_usd[cheapest])].max())
    for low in range(len(quality)):
        for high in range(len(quality)):
            if cost_usd[low] <= usd < cost_usd[high]:
                share = (usd - cost_usd[low]) / (cost_usd[high] - cost_usd[low])
                best = max(best, float(quality[low] + share * (quality[high] - quality[low])))
    return best


def interval(values: Floats, *, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % of the mean of (S,) values, by resampling them."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (resamples, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _with_interval(values: Floats, digits: int = 4) -> str:
    low, high = interval(values)
    return f"{values.mean():.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _runs(experiment: Experiment, played: Played, contestant: str, budget: str) -> Runs:
    tasks: Sequence[Task] = [
        task
        for task in played
        if (task.experiment, task.contestant, task.budget) == (experiment.name, contestant, budget)
    ]
    tasks = sorted(tasks)
    return Runs(tuple(experiment.world(task.seed) for task in tasks), tuple(played[task] for task in tasks))


def _span(world: World, phase: str) -> slice:
    found: Phase = next(p for p in world.phases if p.name == phase)
    return slice(found.start, found.stop)


def _means(world: World, phase: str) -> tuple[Floats, Floats]:
    span = _span(world, phase)
    return world.quality[span].mean(axis=0), world.cost_usd[span].mean(axis=0)
