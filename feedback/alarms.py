"""What is to be done about alarms: the events that answer them, made from the state, so that all replicas make the same.

An arm that drifted is reset: what was known of it is forgotten but for the weight of a few ratings, by every source, and
feedback.recovery sees to it that a model which dropped is tried again. Where most arms move the same way by the word of one
source alone, that source drifted: what it said so far is held to what it says from now on (bandit.sources), and no model is
blamed.
"""

from collections.abc import Iterator
from typing import Final

from bandit.drift import Direction, source_drifted
from feedback.cuts import DRIFT, JUDGE, Alarm
from feedback.events import JudgeDrift, Reset
from feedback.state import State

RATINGS_LEFT: Final = (
    5.0  # a reset leaves as much of the past as so many ratings of today weigh, as they were given,
)
JUDGE_FACTOR: Final = (
    0.02  # and where a source drifted this share of what it had said before it drifted the last time
)
RECENT_RATINGS: Final = 2000  # of the route: alarms that near to each other may have one cause


def answers(state: State) -> tuple[Reset | JudgeDrift, ...]:
    """The events that the log should hold for the alarms pending, one for each arm or source."""
    told: dict[tuple[str, str], Reset | JudgeDrift] = {}
    for alarm in state.alarms:
        if _is_the_sources(state, alarm):
            event = JudgeDrift(alarm.source, JUDGE_FACTOR, state.as_of, alarm.token)
            told.setdefault((JUDGE, alarm.source), event)
        else:
            reset = Reset(alarm.arm, None, _factor(state, alarm.arm), DRIFT, state.as_of, alarm.token)
            told.setdefault((DRIFT, alarm.arm), reset)
    return tuple(told.values())


def _factor(state: State, arm: str) -> float:
    known = state.ratings_per_arm().get(arm)
    return RATINGS_LEFT / known.n if known and known.n > RATINGS_LEFT else 1.0


def _is_the_sources(state: State, alarm: Alarm) -> bool:
    detectors = {arm: d for (arm, source), d in state.detectors.items() if source == alarm.source}
    alarmed = {arm: way for arm, source, way in _recent(state) if source == alarm.source}
    elsewhere = {
        arm for arm, source, way in _moving(state) if source != alarm.source and way == alarm.direction
    }
    return source_drifted(alarm.direction, detectors, alarmed, elsewhere)


def _moving(state: State) -> Iterator[tuple[str, str, Direction]]:
    """(arm, source, direction) of all that alarmed lately or leans."""
    yield from _recent(state)
    for (arm, source), detector in state.detectors.items():
        if detector.leaning is not None:
            yield arm, source, detector.leaning


def _recent(state: State) -> Iterator[tuple[str, str, Direction]]:
    """(arm, source, direction) of alarms pending, and of those answered lately unless their source was cut since."""
    for cut in state.cuts:
        near = cut.cause == DRIFT and state.rated - cut.rated <= RECENT_RATINGS
        if near and cut.arm and cut.by and cut.direction and not _source_cut_since(state, cut.by, cut.rated):
            yield cut.arm, cut.by, cut.direction
    for alarm in state.alarms:
        yield alarm.arm, alarm.source, alarm.direction


def _source_cut_since(state: State, source: str, rated: int) -> bool:
    return any(cut.cause == JUDGE and cut.source == source and cut.rated >= rated for cut in state.cuts)
