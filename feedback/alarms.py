"""What is to be done about alarms: the events that answer them, made from the state, so that all replicas make the same.

An arm that drifted is reset: most of what is known of it is forgotten, by every source. Where most arms move the same way
by the word of one source alone, that source drifted: its ratings are cut for all arms alike, which leaves the arms their
differences, and no model is blamed.
"""

from collections.abc import Iterator
from typing import Final

from bandit.drift import Direction, source_drifted
from feedback.cuts import Alarm
from feedback.events import JudgeDrift, Reset
from feedback.state import State

RESET_FACTOR: Final = 0.02  # what a reset leaves of the past
RECENT_RATINGS: Final = 2000  # of the route: alarms that near to each other may have one cause
DRIFT: Final = "drift"
JUDGE: Final = "judge drift"


def answers(state: State) -> tuple[Reset | JudgeDrift, ...]:
    """The events that the log should hold for the alarms pending, one for each arm or source."""
    told: dict[tuple[str, str], Reset | JudgeDrift] = {}
    for alarm in state.alarms:
        if _is_the_sources(state, alarm):
            event = JudgeDrift(alarm.source, RESET_FACTOR, state.as_of, alarm.token)
            told.setdefault((JUDGE, alarm.source), event)
        else:
            told.setdefault(
                (DRIFT, alarm.arm), Reset(alarm.arm, None, RESET_FACTOR, DRIFT, state.as_of, alarm.token)
            )
    return tuple(told.values())


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
