"""`python -m simulations strategies DIR...`: every strategy of a route on the same recorded outcomes, in one table.

Half of the prompts, drawn by a seed, is what an operator knows beforehand: from it come the single model, the rules (the
best model of each task), the classifier and the cascade's pair and threshold. All play the other half. The learned strategy
knows nothing beforehand and pays for learning on that half; it is told the rating of each answer, the others need none. The
last one learns with the same pair's cascades among its arms, one for each of CASCADE_THRESHOLDS, and so finds its threshold.

No pool records a confidence, so the cascade's judge is simulated: the recorded quality of the cheap answer plus normal noise
of sd JUDGE_SD, cut to [0, 1]. Both calls are billed, the judge is not. Overhead is the median time of a decision, times the
decisions that a request takes.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bandit.arms import Arm
from bandit.classifier import Classified
from bandit.newcomers import Newcomers
from bandit.policy import Fixed, Thompson
from simulations.baselines import ContextFree, router
from simulations.datasets import Dataset, load, take
from simulations.fit_classifier import FAMILY_MIN, fitted
from simulations.learner import Contestant, Learner
from simulations.metrics import Goal, best_fixed, goal_for
from simulations.player import Choice, Lesson, Player, Request
from simulations.stream import Step, play
from simulations.world import Facts, contexts_of, recorded_world

JUDGE_SD: Final = 0.2
THRESHOLDS: Final = np.linspace(0.0, 1.0, 21)
CASCADE_THRESHOLDS: Final = (0.6, 0.8, 0.9, 0.95)  # of a cascade whose configuration gives none
CASCADE: Final = "cascade"
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Means per request of one strategy on one stream."""

    quality: float
    cost_usd: float
    calls: float
    overhead_us: float


class Ruled:
    """Rules narrow the candidates to one model, and the pipeline's own decision takes it. models: by dataset row."""

    def __init__(self, models: Sequence[str], *, stream: str) -> None:
        self._models = models
        self._player = Learner(
            Contestant("rules", Fixed(), ContextFree(), learns=False), Facts(), stream=stream
        )

    def choose(self, request: Request) -> Choice:
        kept = tuple(arm for arm in request.candidates if arm.name == self._models[request.row])
        return self._player.choose(
            Request(request.n, request.row, request.context, kept or request.candidates)
        )

    def learn(self, lesson: Lesson) -> None:
        """Rules learn nothing."""


def run(options: argparse.Namespace) -> None:
    for where in options.data:
        data = load(where)
        goal = goal_for(data, "balanced", options.usd_per_quality, 0.0)
        seeds = []
        for seed in range(options.seeds):
            if sys.stderr.isatty():
                print(f"{data.name}, seed {seed}", file=sys.stderr)
            seeds.append(compared(data, goal, seed=seed, limit=options.limit))
        print(table(data, goal, seeds), flush=True)


def compared(data: Dataset, goal: Goal, *, seed: int, limit: int) -> dict[str, Outcome]:
    """Strategy -> what it came to on the half that nothing was fitted on, at most `limit` prompts of it."""
    order = np.random.default_rng([seed, 5]).permutation(len(data.prompts))
    half = len(order) // 2
    known, stream = take(data, order[:half]), take(data, order[half : half + limit])
    name = f"strategies:{seed}"
    single = known.arms[best_fixed(known, goal)].name
    objective = goal.objective()
    classified = Classified.of(fitted([known]), known.arms, {})
    by_task = best_by_task(known, goal)
    tasks = [prompt.task_family for prompt in stream.prompts]
    players: Mapping[str, Player] = {
        "single": Ruled([single] * len(tasks), stream=name),
        "rules": Ruled([by_task.get(task, single) for task in tasks], stream=name),
        "classifier": Learner(
            Contestant("classifier", Thompson(objective, newcomers=Newcomers(share=0.0)), classified),
            Facts(),
            stream=name,
        ),
        "learned": Learner(router(objective, None, stream.arms), Facts(), stream=name),
    }
    played = {strategy: _played(stream, player) for strategy, player in players.items()}
    cascade = fitted_cascade(known, goal, np.random.default_rng([seed, 6]))
    decide_us = played["single"].overhead_us
    score = judged(stream.quality[:, cascade.cheap], np.random.default_rng([seed, 7]))
    played["cascade"] = cascaded(stream, cascade, score, decide_us)
    wider = with_cascades(stream, cascade, score)
    arms = router(objective, None, wider.arms)
    played["learned, cascades"] = _played(wider, Learner(arms, Facts(), stream=name), score)
    return {strategy: played[strategy] for strategy in STRATEGIES}


STRATEGIES: Final = ("single", "rules", "classifier", "cascade", "learned", "learned, cascades")


def best_by_task(known: Dataset, goal: Goal) -> dict[str, str]:
    """Task -> the model with the highest mean utility on it, for tasks with enough prompts."""
    counts = Counter(prompt.task_family for prompt in known.prompts)
    families = np.array([prompt.task_family for prompt in known.prompts])
    return {
        task: known.arms[best_fixed(take(known, np.flatnonzero(families == task)), goal)].name
        for task, count in counts.items()
        if count >= FAMILY_MIN
    }


@dataclass(frozen=True, slots=True)
class FittedCascade:
    """cheap, dear: columns. accept_from: the judge's score from which on the cheap answer is taken."""

    cheap: int
    dear: int
    accept_from: float


def fitted_cascade(known: Dataset, goal: Goal, rng: np.random.Generator) -> FittedCascade:
    """The pair and the threshold with the highest mean utility on what is known beforehand."""
    costs = known.cost_usd.mean(axis=0)
    by_cost = [int(k) for k in np.argsort(costs)]
    best, found = -np.inf, FittedCascade(by_cost[0], by_cost[-1], 0.5)
    for place, cheap in enumerate(by_cost):
        score = judged(known.quality[:, cheap], rng)
        for dear in by_cost[place + 1 :]:
            for accept_from in THRESHOLDS:
                quality, cost, _ = answers(known, FittedCascade(cheap, dear, accept_from), score)
                utility = float(goal.utility(quality, cost).mean())
                if utility > best:
                    best, found = utility, FittedCascade(cheap, dear, float(accept_from))
    return found


def judged(quality: Floats, rng: np.random.Generator) -> Floats:
    """What the simulated judge says of answers of this quality."""
    return np.clip(quality + rng.normal(0.0, JUDGE_SD, len(quality)), 0.0, 1.0)


def answers(data: Dataset, cascade: FittedCascade, score: Floats) -> tuple[Floats, Floats, Floats]:
    """(n,) each: quality of the answer given, cost of all calls, number of calls."""
    escalated = (score < cascade.accept_from).astype(np.float64)
    quality = np.where(escalated > 0, data.quality[:, cascade.dear], data.quality[:, cascade.cheap])
    cost = data.cost_usd[:, cascade.cheap] + escalated * data.cost_usd[:, cascade.dear]
    return quality, cost, 1.0 + escalated


def with_cascades(stream: Dataset, cascade: FittedCascade, score: Floats) -> Dataset:
    """The same prompts with one more arm for each threshold, priced as the gateway prices a cascade."""
    cheap, dear = stream.arms[cascade.cheap], stream.arms[cascade.dear]
    arms, columns = (
        list(stream.arms),
        [[stream.quality, stream.cost_usd, stream.tokens_in, stream.tokens_out]],
    )
    for accept_from in CASCADE_THRESHOLDS:
        own = FittedCascade(cascade.cheap, cascade.dear, accept_from)
        quality, cost, calls = answers(stream, own, score)
        answered = np.where(calls > 1, cascade.dear, cascade.cheap)[:, None]
        tokens = [np.take_along_axis(t, answered, axis=1) for t in (stream.tokens_in, stream.tokens_out)]
        columns.append([quality[:, None], cost[:, None], *tokens])
        price_in = cheap.price_usd_per_mtok_in + dear.price_usd_per_mtok_in / 2
        price_out = cheap.price_usd_per_mtok_out + dear.price_usd_per_mtok_out / 2
        arms.append(Arm(f"{CASCADE}@{accept_from:g}", price_in, price_out))
    quality, cost, tokens_in, tokens_out = (np.hstack(parts) for parts in zip(*columns, strict=True))
    return replace(
        stream,
        arms=tuple(arms),
        quality=quality,
        cost_usd=cost,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
    )


def cascaded(stream: Dataset, cascade: FittedCascade, score: Floats, decide_us: float) -> Outcome:
    quality, cost, calls = answers(stream, cascade, score)
    return Outcome(
        float(quality.mean()), float(cost.mean()), float(calls.mean()), decide_us * float(calls.mean())
    )


def _played(stream: Dataset, player: Player, score: Floats | None = None) -> Outcome:
    """score: what the judge says of the cheap answers, where cascades are among the arms."""
    world = recorded_world(stream, np.arange(len(stream.prompts)))
    steps = list(play(world, contexts_of(stream.prompts, Facts()), player))
    return Outcome(
        quality=float(np.mean([step.quality for step in steps])),
        cost_usd=float(np.mean([step.cost_usd for step in steps])),
        calls=float(np.mean([_calls(step, score) for step in steps])),
        overhead_us=float(np.median([step.choice_ns for step in steps])) / 1e3,
    )


def _calls(step: Step, score: Floats | None) -> float:
    name, _, accept_from = step.choice.arm.partition("@")
    if name != CASCADE or score is None:
        return 1.0
    return 2.0 if score[step.row] < float(accept_from) else 1.0


def table(data: Dataset, goal: Goal, seeds: Sequence[Mapping[str, Outcome]]) -> str:
    """Markdown: means over seeds, utility with its standard deviation between them."""
    size = f"{len(data.prompts)} prompts x {len(data.arms)} models, seeds: {len(seeds)}"
    lines = [
        f"{data.name}: {size}; utility = quality - cost / {goal.usd_per_quality:.3g} USD",
        "",
        "| strategy | quality | USD/1,000 | utility | to single, points | calls | overhead µs |",
        "|---|---|---|---|---|---|---|",
    ]
    worth = {s: np.array([_utility(goal, own[s]) for own in seeds]) for s in STRATEGIES}
    for strategy in STRATEGIES:
        own = [outcomes[strategy] for outcomes in seeds]
        ahead = 100 * (worth[strategy] - worth["single"])
        lines.append(
            f"| {strategy} | {_mean(own, lambda o: o.quality):.4f} | {1000 * _mean(own, lambda o: o.cost_usd):.3f} "
            f"| {worth[strategy].mean():+.4f} ± {_spread(worth[strategy]):.4f} "
            f"| {ahead.mean():+.2f} ± {_spread(ahead):.2f} "
            f"| {_mean(own, lambda o: o.calls):.2f} | {_mean(own, lambda o: o.overhead_us):.0f} |"
        )
    return "\n".join([*lines, ""])


def _utility(goal: Goal, outcome: Outcome) -> float:
    return float(goal.utility(np.array([outcome.quality]), np.array([outcome.cost_usd]))[0])


def _mean(outcomes: Sequence[Outcome], of: Callable[[Outcome], float]) -> float:
    return float(np.mean([of(outcome) for outcome in outcomes]))


def _spread(values: Floats) -> float:
    """Standard deviation between seeds; 0 of one."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0
