"""One stream of recorded requests, played by one contestant: the only loop over requests in these simulations.

The network is replaced by the recorded matrix; everything else is what the service runs: `decide` on a posterior,
`learn` on the events that the chosen arm's outcome makes. A contestant sees only the outcome of the arm it chose, and
no cost before it has chosen.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from bandit.decide import Decision, decide
from bandit.features import DIMENSION, TAG, Prompt, context_of
from bandit.policy import Policy
from bandit.quality import QualityModel
from bandit.statistics import CallStatistics
from bandit.types import Context
from feedback.alarms import answers
from feedback.events import Called, Event, Rated
from feedback.learn import learn
from feedback.records import policy_tag, prefix_of
from feedback.state import State
from simulations.datasets import Dataset, RecordedPrompt

SECONDS_BETWEEN_REQUESTS = 1.0
WORKER = "simulation"


@dataclass(frozen=True, slots=True)
class Contestant:
    """A named policy with the quality model that it decides on; learns: fold outcomes in, or stay as it began."""

    name: str
    policy: Policy
    model: QualityModel
    learns: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One request: row of the dataset, the decision and how long it took, what the chosen arm was recorded to do."""

    row: int
    decision: Decision
    decision_ns: int
    quality: float
    cost_usd: float


def play(
    dataset: Dataset,
    rows: Sequence[int] | NDArray[np.int64],
    contestant: Contestant,
    *,
    stream: str,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Iterator[Step]:
    """Steps over the dataset's rows in that order, cold start. `stream` names it: decision ids derive from it."""
    state = State(TAG, DIMENSION)
    posterior = state.posterior(contestant.model)
    tag = policy_tag(contestant)
    for n, row in enumerate(rows):
        context = context_of_prompt(dataset.prompts[row])
        started = clock()
        decision = decide(contestant.policy, posterior, context, dataset.arms, f"{stream}:{n}")
        step = observe(dataset, int(row), decision, decision_ns=clock() - started)
        yield step
        if contestant.learns:
            for event in events_of(dataset, step, sequence=n, policy=tag):
                state = learn(state, event)
            for answer in answers(state):
                state = learn(state, answer)
            posterior = state.posterior(contestant.model)


@lru_cache(maxsize=1 << 16)
def context_of_prompt(prompt: RecordedPrompt) -> Context:
    return context_of(Prompt(user=prompt.text, chars=len(prompt.text), tools=prompt.tools))


def observe(dataset: Dataset, row: int, decision: Decision, *, decision_ns: int = 0) -> Step:
    column = dataset.column(decision.arm.name)
    quality, cost_usd = float(dataset.quality[row, column]), float(dataset.cost_usd[row, column])
    return Step(row, decision, decision_ns, quality, cost_usd)


def events_of(dataset: Dataset, step: Step, *, sequence: int, policy: bytes) -> tuple[Event, ...]:
    """What the gateway's log would hold after this request: its tokens, then its rating."""
    decision, column = step.decision, dataset.column(step.decision.arm.name)
    calls = CallStatistics(
        calls=1,
        tokens_in=int(dataset.tokens_in[step.row, column]),
        tokens_in_estimated=decision.context.needs.tokens_in,
        tokens_out=int(dataset.tokens_out[step.row, column]),
    )
    prefix = prefix_of(decision, decided_at=sequence * SECONDS_BETWEEN_REQUESTS, policy=policy)
    return (
        Called(WORKER, sequence, {decision.arm.name: calls}),
        Rated(prefix, "recorded", step.quality),
    )
