"""Learning: a state and an event make the next state. Pure, so replaying a log is the same as having lived it.

Every replica applies the same events in the same order, one by one, and so holds the same sums to the last bit wherever
its batches were cut. An entry that is no event of this version is skipped and counted, by every replica alike.
"""

from dataclasses import replace
from typing import Final

import numpy as np

from bandit.statistics import CallStatistics, RatingStatistics
from feedback.events import Called, Charged, Event, Rated, decode
from feedback.records import DecisionPrefix, MalformedError
from feedback.state import State, weight_grid
from feedback.store import position

EPOCH_SPAN: Final = 60  # half-lives after which the epoch moves on, long before a weight could overflow
WORKERS_REMEMBERED: Final = 256
SOURCES_MAX: Final = 64
OTHER_SOURCES: Final = "others"  # what sources beyond that are summed under
SERVER_CLOCK_FROM_MS: Final = (
    10**12
)  # an earlier stream id comes from no clock: a log in memory counts from zero
CLOCK_SKEW_S: Final = 300.0  # how far a gateway's clock may be ahead of the store's


def fold(state: State, token: str, entry: bytes) -> State:
    """The state after one entry of the log, with the cursor on it."""
    try:
        event = decode(entry)
        _check_clock(event, token)
    except MalformedError:
        return replace(state, cursor=token, skipped=state.skipped + 1)
    return replace(learn(state, event), cursor=token)


def _check_clock(event: Event, token: str) -> None:
    """A decision from the store's own future would make all that is known look old."""
    logged_ms = position(token)[0]
    if logged_ms < SERVER_CLOCK_FROM_MS or not isinstance(event, Rated):
        return
    if event.decision.decided_at > logged_ms / 1000 + CLOCK_SKEW_S:
        raise MalformedError("decided in the future of the store's clock")


def learn(state: State, event: Event) -> State:
    """The state after one event; the cursor stays."""
    match event:
        case Rated():
            learned = _rated(state, event)
        case Charged():
            learned = _charged(state, event)
        case Called():
            learned = _called(state, event)
    if learned is None:
        return replace(state, skipped=state.skipped + 1)
    return replace(learned, events=state.events + 1)


def _rated(state: State, event: Rated) -> State | None:
    decision = event.decision
    if decision.features != state.features or len(decision.x) != state.d:
        return None  # a vector of another feature version
    k, factor = weight_grid(decision.decided_at)
    state = _with_epoch(state, k)
    weight = float(np.ldexp(factor, k - (state.epoch or 0)))
    key = (decision.arm, _source(state, event.source))
    seen = state.ratings.get(key) or RatingStatistics.empty(state.d)
    if event.old is None:
        seen = seen.added(decision.x, event.quality, weight)
    else:
        seen = seen.revised(decision.x, event.quality, old=event.old, weight=weight)
    return replace(state, ratings={**state.ratings, key: seen}, as_of=max(state.as_of, decision.decided_at))


def _source(state: State, name: str) -> str:
    known = {source for _, source in state.ratings}
    return name if name in known or len(known) < SOURCES_MAX else OTHER_SOURCES


def _with_epoch(state: State, k: int) -> State:
    """The same state with an epoch that holds a weight of 2^k."""
    if state.epoch is None:
        return replace(state, epoch=k)
    if k - state.epoch <= EPOCH_SPAN:
        return state
    shift = state.epoch - k
    return replace(state, epoch=k, ratings={key: s.scaled(shift) for key, s in state.ratings.items()})


def _charged(state: State, event: Charged) -> State:
    return _with_calls(state, event.decision.arm, _charge(event.decision, event.cost_usd, event.old))


def _charge(decision: DecisionPrefix, cost_usd: float, old: float | None) -> CallStatistics:
    """One call's reported cost beside its listed one; a revision moves only the amount."""
    calls, nano_usd = (1, _nano(cost_usd)) if old is None else (0, _nano(cost_usd) - _nano(old))
    if decision.listed_in_nano_usd == decision.listed_out_nano_usd_per_token == 0:
        return CallStatistics(unpriced_calls=calls, unpriced_nano_usd=nano_usd)
    return CallStatistics(
        reported_calls=calls,
        reported_nano_usd=nano_usd,
        listed_in_nano_usd=calls * decision.listed_in_nano_usd,
        listed_out_nano_usd_per_token=calls * decision.listed_out_nano_usd_per_token,
    )


def _called(state: State, event: Called) -> State | None:
    if event.sequence <= state.workers.get(event.worker, -1):
        return None  # appended twice
    workers = {worker: last for worker, last in state.workers.items() if worker != event.worker}
    workers[event.worker] = event.sequence
    for worker in list(workers)[:-WORKERS_REMEMBERED]:
        del workers[worker]
    state = replace(state, workers=workers)
    for arm, calls in event.calls.items():
        state = _with_calls(state, arm, calls)
    return state


def _with_calls(state: State, arm: str, more: CallStatistics) -> State:
    return replace(state, calls={**state.calls, arm: state.calls.get(arm, CallStatistics()) + more})


def _nano(usd: float) -> int:
    return round(usd * 1e9)
