"""Learning: a state and an event make the next state. Pure, so replaying a log is the same as having lived it.

Every replica applies the same events in the same order, one by one, and so holds the same sums to the last bit wherever
its batches were cut. An entry that is no event of this version is skipped and counted, by every replica alike. What lies
between two ratings of one decision counts by position: the state's cursor is on the entry that is being learned.
"""

from collections.abc import Iterable
from typing import Final

import numpy as np

from bandit.drift import Detector, confirmed
from bandit.sources import earlier_self, source_itself
from bandit.statistics import CallStatistics, RatingStatistics
from feedback.cuts import JUDGE, RECOVERY, Alarm, ArmSource, Cut, kept, remaining
from feedback.draft import EPOCH_SPAN, Draft
from feedback.events import Called, Charged, Event, JudgeDrift, Rated, Reset, Withdrawn, decode
from feedback.records import DecisionPrefix, MalformedError
from feedback.recovery import HALF, halved
from feedback.state import State, changed, weight_grid
from feedback.store import Position, position

WORKERS_REMEMBERED: Final = 256
SOURCES_MAX: Final = 64
OTHER_SOURCES: Final = "others"  # what sources beyond that are summed under
SERVER_CLOCK_FROM_MS: Final = (
    10**12
)  # an earlier stream id comes from no clock: a log in memory counts from zero
CLOCK_SKEW_S: Final = 300.0  # how far a gateway's clock may be ahead of the store's


def fold(state: State, token: str, entry: bytes) -> State:
    """The state after one entry of the log, with the cursor on it."""
    event = _event(token, entry)
    if event is None:
        return changed(state, cursor=token, skipped=state.skipped + 1)
    return learn(changed(state, cursor=token), event)


def fold_all(state: State, entries: Iterable[tuple[str, bytes]]) -> State:
    """The state after these entries (token and bytes), one by one: `fold` over and over, sooner."""
    draft = Draft(state)
    for token, entry in entries:
        event = _event(token, entry)
        if event is None:
            draft.skip(token)
        elif not (isinstance(event, Rated) and draft.add(token, event)):
            draft = Draft(learn(changed(draft.state(), cursor=token), event))
    return draft.state()


def _event(token: str, entry: bytes) -> Event | None:
    """None where the entry is no event of this version."""
    try:
        event = decode(entry)
        _check_clock(event, token)
    except MalformedError:
        return None
    return event


def _check_clock(event: Event, token: str) -> None:
    """A decision from the store's own future would make all that is known look old."""
    if not isinstance(event, (Rated, Withdrawn)):
        return
    origin = event.origin  # a change is taken where what it changes was
    logged_ms = int(token.partition("-")[0]) if origin is None else origin[0]
    if logged_ms < SERVER_CLOCK_FROM_MS:
        return
    if event.decision.decided_at > logged_ms / 1000 + CLOCK_SKEW_S:
        raise MalformedError("decided in the future of the store's clock")


def learn(state: State, event: Event) -> State:
    """The state after one event, which is at its cursor."""
    match event:
        case Rated():
            learned = _rated(state, event)
        case Withdrawn():
            learned = _withdrawn(state, event)
        case Reset() | JudgeDrift():
            learned = _cut(state, event)
        case Charged():
            learned = _charged(state, event)
        case Called():
            learned = _called(state, event)
    if learned is None:
        return changed(state, skipped=state.skipped + 1)
    return changed(learned, events=state.events + 1)


def _rated(state: State, event: Rated) -> State | None:
    decision, key = event.decision, (event.decision.arm, _source(state, event.source))
    if not _fits(state, decision):
        return None
    state = _with_epoch(state, decision.decided_at)
    if event.old is None:
        state = _halved(state)
    if decision.arm not in state.entry_prices:
        price = decision.listed_out_nano_usd_per_token * 1e-3  # USD per million tokens
        state = changed(state, entry_prices={**state.entry_prices, decision.arm: price})
    if event.old is None:
        seen = state.ratings.get(key) or RatingStatistics.empty(state.d)
        seen = seen.added(decision.x, event.quality, _weight(state, decision))
        state = _watched(state, key, event)
    else:
        key, weight = _within(state, decision, key, event.origin)
        if key not in state.ratings:
            return None
        seen = state.ratings[key].revised(decision.x, event.quality, old=event.old, weight=weight)
    return changed(state, ratings={**state.ratings, key: seen}, as_of=max(state.as_of, decision.decided_at))


def _halved(state: State) -> State:
    """Before the next rating: with less of the arms that may have recovered."""
    for arm in halved(state.cuts, state.rated):
        cut = Cut(position(state.cursor), arm, None, HALF, RECOVERY, state.as_of, state.rated)
        state = changed(state, ratings=_times(state, cut), cuts=kept((*state.cuts, cut), state.as_of))
    return state


def _withdrawn(state: State, event: Withdrawn) -> State | None:
    decision, key = event.decision, (event.decision.arm, _source(state, event.source))
    if not _fits(state, decision):
        return None
    state = _with_epoch(state, decision.decided_at)
    key, weight = _within(state, decision, key, event.origin)
    if key not in state.ratings:
        return None
    left = state.ratings[key].added(decision.x, event.quality, -weight)
    return changed(state, ratings={**state.ratings, key: left})


def _fits(state: State, decision: DecisionPrefix) -> bool:
    """The decision's features are of this version."""
    return decision.features == state.features and len(decision.x) == state.d


def _weight(state: State, decision: DecisionPrefix) -> float:
    """Of a rating of that decision within the sums."""
    k, factor = weight_grid(decision.decided_at)
    return float(np.ldexp(factor, k - (state.epoch or 0)))


def _within(
    state: State, decision: DecisionPrefix, key: ArmSource, since: Position | None
) -> tuple[ArmSource, float]:
    """In which sums a rating of that decision is that was given there, and its weight within them."""
    weight = _weight(state, decision)
    if since is None:
        return key, weight
    key, share = remaining(state.cuts, key, since)
    return key, weight * share


def _watched(state: State, key: ArmSource, event: Rated) -> State:
    """With the rating told to the detector of its arm and source. While an alarm is pending there, it waits."""
    mean, sd = event.decision.quality_mean, event.decision.quality_sd
    state = changed(state, rated=state.rated + 1)
    if sd == 0 or any((alarm.arm, alarm.source) == key for alarm in state.alarms):
        return state
    detector = state.detectors.get(key, Detector()).after(event.quality, mean, sd)
    alone = state.alone.get(key, Detector()).alone(event.quality)
    if state.has_several_sources:
        detector = confirmed(detector, alone)
    state = changed(state, detectors={**state.detectors, key: detector}, alone={**state.alone, key: alone})
    if detector.alarm is None:
        return state
    return changed(state, alarms=(*state.alarms, Alarm(*key, detector.alarm, state.cursor)))


def _cut(state: State, event: Reset | JudgeDrift) -> State | None:
    """Sums multiplied and detectors begun anew; an answer to an alarm that was answered before changes nothing."""
    answered = next((alarm for alarm in state.alarms if alarm.token == event.alarm), None)
    if event.alarm is not None and answered is None:
        return None
    arm, cause = (event.arm, event.cause) if isinstance(event, Reset) else (None, JUDGE)
    direction, by = (answered.direction, answered.source) if answered else (None, None)
    cut = Cut(
        position=position(state.cursor),
        arm=arm,
        source=event.source,
        factor=event.factor,
        cause=cause,
        at=max(event.at, state.as_of),
        rated=state.rated,
        direction=direction,
        by=by,
    )
    return changed(
        state,
        ratings=_moved(state, cut) if cause == JUDGE else _times(state, cut),
        detectors={key: d for key, d in state.detectors.items() if not cut.concerns(key)},
        alone={key: d for key, d in state.alone.items() if not cut.concerns(key)},
        alarms=tuple(alarm for alarm in state.alarms if not cut.concerns((alarm.arm, alarm.source))),
        cuts=kept((*state.cuts, cut), state.as_of),
    )


def _times(state: State, cut: Cut) -> dict[ArmSource, RatingStatistics]:
    return {key: s.times(cut.factor) if cut.concerns(key) else s for key, s in state.ratings.items()}


def _moved(state: State, cut: Cut) -> dict[ArmSource, RatingStatistics]:
    """What a source said so far is its earlier self's, beside what is left of that one's."""
    ratings = _times(state, cut)
    for (arm, source), s in state.ratings.items():
        if source == cut.source:
            before = (arm, earlier_self(source))
            ratings[before] = ratings[before] + s if before in ratings else s
            ratings[arm, source] = RatingStatistics.empty(state.d)
    return ratings


def _source(state: State, name: str) -> str:
    known = {source_itself(source) for _, source in state.ratings}
    return name if name in known or len(known) < SOURCES_MAX else OTHER_SOURCES


def _with_epoch(state: State, decided_at: float) -> State:
    """The same state with an epoch that holds the weight of a decision at that time."""
    k, _ = weight_grid(decided_at)
    if state.epoch is None:
        return changed(state, epoch=k)
    if k - state.epoch <= EPOCH_SPAN:
        return state
    shift = state.epoch - k
    return changed(state, epoch=k, ratings={key: s.scaled(shift) for key, s in state.ratings.items()})


def _charged(state: State, event: Charged) -> State:
    return _with_calls(state, event.decision.arm, _charge(event.decision, event.cost_usd, event.old))


def _charge(decision: DecisionPrefix, cost_usd: float, old: float | None) -> CallStatistics:
    """One call's reported cost beside its listed one; a revision moves only the amount."""
    calls, nano_usd = (1, _nano(cost_usd)) if old is None else (0, _nano(cost_usd) - _nano(old))
    return CallStatistics.charged(
        nano_usd,
        listed_in_nano_usd=decision.listed_in_nano_usd,
        listed_out_nano_usd_per_token=decision.listed_out_nano_usd_per_token,
        calls=calls,
    )


def _called(state: State, event: Called) -> State | None:
    if event.sequence <= state.workers.get(event.worker, -1):
        return None  # appended twice
    workers = {worker: last for worker, last in state.workers.items() if worker != event.worker}
    workers[event.worker] = event.sequence
    for worker in list(workers)[:-WORKERS_REMEMBERED]:
        del workers[worker]
    state = changed(state, workers=workers)
    for arm, calls in event.calls.items():
        state = _with_calls(state, arm, calls)
    latencies = dict(state.latencies)
    for arm, times in event.latencies.items():
        latencies[arm] = latencies[arm] + times if arm in latencies else times
    lengths = dict(state.lengths)
    if event.features == state.features:
        for arm, sample in event.lengths.items():
            if (sums := sample.sums(state.d)) is not None:
                lengths[arm] = lengths[arm] + sums if arm in lengths else sums
    return changed(state, latencies=latencies, lengths=lengths)


def _with_calls(state: State, arm: str, more: CallStatistics) -> State:
    return changed(state, calls={**state.calls, arm: state.calls.get(arm, CallStatistics()) + more})


def _nano(usd: float) -> int:
    return round(usd * 1e9)
