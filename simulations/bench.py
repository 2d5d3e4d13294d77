"""What `bench times` measures: the parts of a decision beside the bare work that they cannot do without. Prints Markdown.

Times are medians over rounds in which the candidates take turns, with the 10th and 90th percentile beside them; ratios
are medians of the ratios within a round, so that what else the machine is doing falls out.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from threadpoolctl import threadpool_limits

from bandit.arms import Arm
from bandit.decide import decide
from bandit.features import DIMENSION, TAG, Prompt, context_of
from bandit.objective import Balanced
from bandit.policy import Thompson
from bandit.quality import SharedBaseline
from bandit.statistics import CallStatistics
from feedback.events import RATED, feedback_tail
from feedback.learn import fold
from feedback.records import DecisionPrefix
from feedback.state import State

ROUNDS: Final = 15
CALLS_A_ROUND: Final = 400
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
    with threadpool_limits(1):
        print("## Microseconds\n")
        print(times_table())


def times_table() -> str:
    lines = ["| what | median µs | 10 % .. 90 % | x the first of its group |", "|---|---:|---:|---:|"]
    for group in (_decision_group(3), _decision_group(16), _features_group(), _learning_group()):
        for t in _take_turns(group):
            spread = f"{t.low_us:.1f} .. {t.high_us:.1f}"
            lines.append(f"| {t.name} | {t.median_us:.1f} | {spread} | {t.ratio:.2f} |")
    return "\n".join(lines)


Candidate = tuple[str, Callable[[int], object]]


def _decision_group(K: int) -> list[Candidate]:
    """The whole decision beside the matrix products that its draws need, and beside a draw of every arm's weights."""
    arms = [Arm(f"model-{k}", 0.1 * (k + 1), 0.4 * (k + 1)) for k in range(K)]
    names = [arm.name for arm in arms]
    state = _learned_state(names)
    posterior = state.posterior(SharedBaseline())
    policy, context = Thompson(Balanced(0.05)), context_of(Prompt(user=PROMPT * 3))
    prediction = posterior.quality.predict(context.x, names)
    rng = np.random.default_rng(0)
    normals = rng.normal(size=policy.draws * K)
    means, factors = rng.normal(size=(K, DIMENSION)), rng.normal(size=(K, DIMENSION, DIMENSION))
    covariances = factors @ factors.transpose(0, 2, 1)

    def naive(_: int) -> object:
        return [rng.multivariate_normal(means[k], covariances[k]) @ context.x for k in range(K)]

    return [
        (
            f"bare matrix products of {policy.draws} joint draws, {K} arms",
            lambda _: prediction.draws(normals),
        ),
        (
            f"`decide()` with exact propensities, {K} arms",
            lambda i: decide(policy, posterior, context, arms, f"{K}:{i}"),
        ),
        (f"one naive Thompson draw, a multivariate normal per arm, {K} arms", naive),
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
    prefix = DecisionPrefix("a", x, 1e9, 0.5, TAG, b"p" * 8).encode()
    entry = bytes([RATED, 0]) + prefix + feedback_tail(0.7, None, "user")
    return [
        (
            "bare rank-one update (d x d outer product and sum)",
            lambda _: np.zeros((DIMENSION, DIMENSION)) + np.outer(x, x),
        ),
        ("`fold` of one rating, decoded from the log's bytes", lambda _: fold(state, "1-0:t", entry)),
        ("posterior made anew, 3 arms", lambda _: state.posterior(SharedBaseline())),
    ]


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


def _take_turns(candidates: Sequence[Candidate]) -> list[Timed]:
    rounds = np.array(
        [[_time_us(call) for _, call in candidates] for _ in range(ROUNDS)]
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
        for k, (name, _) in enumerate(candidates)
    ]


def _time_us(call: Callable[[int], object]) -> float:
    """Mean microseconds of one call within a round."""
    started = time.perf_counter_ns()
    for i in range(CALLS_A_ROUND):
        call(i)
    return (time.perf_counter_ns() - started) / CALLS_A_ROUND / 1e3
