"""What `bench times` measures: the parts of a decision beside the bare work that they cannot do without. Prints Markdown.

Times are of CPU, medians over rounds in which the candidates take turns, with the 10th and 90th percentile beside them; ratios
are medians of the ratios within a round, so that what else the machine is doing falls out.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from threadpoolctl import threadpool_limits

from bandit.arms import Arm
from bandit.decide import decide
from bandit.features import DIMENSION, TAG, context_of
from bandit.objective import Balanced, Cost
from bandit.policy import Thompson
from bandit.prompt import Prompt
from bandit.quality import DRAWS, SharedBaseline
from bandit.statistics import CallStatistics
from feedback.events import RATED, feedback_tail
from feedback.learn import fold, fold_all
from feedback.records import DecisionPrefix
from feedback.replica import BATCH
from feedback.state import State
from simulations.paretobandit_rival import RivalError, running

ROUNDS: Final = 15
CALLS_A_ROUND: Final = 400
ROUND_NS: Final = 200_000_000
PROMPT: Final = (
    "If a train leaves at 3 pm and travels 60 miles an hour, when does it arrive? Show your work. "
)


@dataclass(frozen=True, slots=True)
class Timed:
    """Microseconds a call: median, 10th and 90th percentile over rounds; ratio to the first candidate of its group."""

    name: str
    median_us: float
    low_us: float
    high_us: float
    ratio: float


def times() -> None:
    with threadpool_limits(1), _rival() as rival:
        print("## Microseconds\n")
        print(times_table(rival))


Candidate = tuple[str, Callable[[int], object]]
Clocked = Callable[[], float]  # microseconds of a call that another process makes and times


@contextmanager
def _rival() -> Iterator[tuple[str, Clocked] | None]:
    """ParetoBandit's own `route()`, 16 arms, a ready vector of as many features as ours; None where it is not installed."""
    try:
        with running() as process:
            prices = {"input_cost_per_m": 0.1, "output_cost_per_m": 0.4}
            registry = {f"model-{k}": {"model_id": f"model-{k}", "display_name": f"{k}", **prices} for k in range(16)}  # fmt: skip
            created = {"router": "timed", "registry": registry, "dimension": DIMENSION, "warm": False}
            told = {"prior_n_effective": 1.0, "alpha": 0.05, "forgetting_factor": 0.997, "budget_usd": None, "seed": 0}  # fmt: skip
            process.ask("create", **created, **told)
            x = [1.0, *np.random.default_rng(0).normal(size=DIMENSION - 1)]

            def clocked() -> float:
                return float(process.ask("timed", router="timed", x=x, times=CALLS_A_ROUND)["us"])

            clocked()
            yield "ParetoBandit's `route()`, 16 arms, ready vector", clocked
    except RivalError as error:
        print(f"ParetoBandit could not be timed: {error}\n")
        yield None


def times_table(rival: tuple[str, Clocked] | None = None) -> str:
    lines = ["| what | median µs | 10 % .. 90 % | x the first of its group |", "|---|---:|---:|---:|"]
    groups = [(_decision_group(K), rival if K == 16 else None) for K in (4, 16, 64)]
    groups += [(_features_group(), None), (_learning_group(), None)]
    for group, beside in groups:
        for t in _take_turns(group, beside):
            spread = f"{t.low_us:.1f} .. {t.high_us:.1f}"
            lines.append(f"| {t.name} | {t.median_us:.1f} | {spread} | {t.ratio:.2f} |")
    return "\n".join(lines)


def _decision_group(K: int) -> list[Candidate]:
    """The whole decision beside one plain Thompson choice and two products: every B^-1 with x, which drawing anew at each
    request takes and a stated confidence still does, and x with the draws of the weights.
    """
    arms = tuple(Arm(f"model-{k}", 0.1 * (k + 1), 0.4 * (k + 1)) for k in range(K))
    names = tuple(arm.name for arm in arms)
    state = _learned_state(names)
    posterior = state.posterior(SharedBaseline())
    policy, context = Thompson(Balanced(0.05)), context_of(Prompt(user=PROMPT * 3))
    rng = np.random.default_rng(0)
    x = context.x
    inverses = rng.normal(size=(K * DIMENSION, DIMENSION))
    single, drawn = x.astype(np.float32), rng.normal(size=(DIMENSION, DRAWS * K)).astype(np.float32)
    sure = Thompson(Cost(0.05, names[0], 0.9))

    def choice(_: int) -> object:
        told = posterior.quality.draws(x, names)
        return (told.deviations[0] * 0.2 + told.mean).argmax()

    sizes = f"{K} arms x {DIMENSION} features"
    return [
        (f"bare matrix-vector product, {sizes}", lambda _: inverses @ x),
        (f"bare product with {DRAWS} draws of the weights, {sizes}", lambda _: single @ drawn),
        (f"one Thompson choice from a joint draw, {sizes}", choice),
        (
            f"`decide()` with exact propensities, {DRAWS} draws, {sizes}",
            lambda i: decide(policy, posterior, context, arms, f"{K}:{i}"),
        ),
        (
            f"the same where the objective states a confidence, {sizes}",
            lambda i: decide(sure, posterior, context, arms, f"{K}:{i}"),
        ),
    ]


def _features_group() -> list[Candidate]:
    texts = {tokens: (PROMPT * (tokens // 20 + 1))[: 4 * tokens] for tokens in (20, 200, 2000)}
    baseline: Candidate = ("`str.split` of 200 tokens", lambda _: texts[200].split())
    ours = [
        (f"features of {n} tokens", lambda _, t=text: context_of(Prompt(user=t))) for n, text in texts.items()
    ]
    return [baseline, *ours]


def _learning_group() -> list[Candidate]:
    state = _learned_state(["a", "b", "c"])
    x = context_of(Prompt(user=PROMPT)).x
    prefix = DecisionPrefix("a", x, 1e9, 0.5, TAG, b"p" * 8, quality_mean=0.6, quality_sd=0.05).encode()
    lower, entry = (bytes([RATED, 0]) + prefix + feedback_tail(q, None, "user") for q in (0.5, 0.7))
    batch = [(f"{n}-0:t", entry if n % 2 else lower) for n in range(BATCH)]
    return [
        (
            "bare rank-one update (d x d outer product and sum)",
            lambda _: np.zeros((DIMENSION, DIMENSION)) + np.outer(x, x),
        ),
        ("`fold` of one rating, decoded from the log's bytes", lambda _: fold(state, "1-0:t", entry)),
        (f"`fold_all` of {BATCH} such ratings", lambda _: fold_all(state, batch)),
        ("posterior made anew, 3 arms", lambda _: state.posterior(SharedBaseline())),
        *(_drawing(K) for K in (16, 64)),
    ]


def _drawing(K: int) -> Candidate:
    quality = SharedBaseline().fit(
        _learned_state([f"model-{k}" for k in range(K)]).ratings_per_arm(), DIMENSION
    )
    return (
        f"{DRAWS} draws of its weights, {K} arms",
        lambda _: list(replace(quality, _drawn={}, _parts={}).steps()),
    )


def _learned_state(names: Sequence[str]) -> State:
    rng = np.random.default_rng(1)
    state = State(TAG, DIMENSION)
    for n in range(20 * len(names)):
        x = np.r_[1.0, rng.normal(size=DIMENSION - 1)].astype(np.float16).astype(np.float64)
        prefix = DecisionPrefix(names[n % len(names)], x, 1e9 + n, 0.5, TAG, b"p" * 8).encode()
        state = fold(
            state, f"{n}-0:t", bytes([RATED, 0]) + prefix + feedback_tail(rng.random(), None, "user")
        )
    calls = {
        name: CallStatistics(calls=9, tokens_in=900, tokens_in_estimated=900, tokens_out=2700)
        for name in names
    }
    return replace(state, calls=calls)


def _take_turns(candidates: Sequence[Candidate], beside: tuple[str, Clocked] | None) -> list[Timed]:
    names = [name for name, _ in candidates] + ([beside[0]] if beside else [])
    rounds = np.array(
        [
            [_time_us(call) for _, call in candidates] + ([beside[1]()] if beside else [])
            for _ in range(ROUNDS)
        ]
    )  # (rounds, candidates)
    ratios = np.median(rounds / rounds[:, :1], axis=0)
    return [
        Timed(
            name,
            median_us=float(np.median(rounds[:, k])),
            low_us=float(np.percentile(rounds[:, k], 10)),
            high_us=float(np.percentile(rounds[:, k], 90)),
            ratio=float(ratios[k]),
        )
        for k, name in enumerate(names)
    ]


def _time_us(call: Callable[[int], object]) -> float:
    """Mean microseconds of CPU of one call within a round, which ends early where calls take long."""
    started = time.process_time_ns()
    for i in range(CALLS_A_ROUND):
        call(i)
        if (spent := time.process_time_ns() - started) > ROUND_NS:
            break
    return spent / (i + 1) / 1e3
