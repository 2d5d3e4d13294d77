"""Answers as requests hand them over, and their sums: made for many at once, off the requests' path."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from bandit.latency import LatencyStatistics
from bandit.lengths import LengthSample
from bandit.statistics import CallStatistics
from bandit.types import Vector


class Answered(NamedTuple):
    """One complete answer. x: the request's features; tokens: as billed, None where the upstream did not say;
    tokens_in_estimated: what was expected; first_byte_s, latency_s: from the decision on; at: when it was complete (Unix
    seconds).
    """

    x: Vector
    tokens_in: int | None
    tokens_in_estimated: int
    tokens_out: int | None
    first_byte_s: float
    latency_s: float
    at: float


def calls_of(answers: Sequence[Answered]) -> CallStatistics:
    """What one arm's answers took (at least one)."""
    billed = [
        (a.tokens_in, a.tokens_in_estimated, a.tokens_out)
        for a in answers
        if a.tokens_in is not None and a.tokens_out is not None
    ]
    tokens_in, estimated, tokens_out = zip(*billed, strict=True) if billed else ((), (), ())
    return CallStatistics(
        calls=len(billed),
        tokens_in=sum(tokens_in),
        tokens_in_estimated=sum(estimated),
        tokens_out=sum(tokens_out),
        timed=len(answers),
        latency_us=sum([round(1e6 * a.latency_s) for a in answers]),
        first_byte_us=sum([round(1e6 * a.first_byte_s) for a in answers]),
    )


def sample_of(answers: Sequence[Answered], most: int) -> LengthSample:
    """How long the first of one arm's answers are whose tokens are known, for which requests."""
    known = [(a.x, a.tokens_out) for a in answers if a.tokens_out is not None][:most]
    return LengthSample.of([x for x, _ in known], [tokens_out for _, tokens_out in known])


def latency_of(answers: Sequence[Answered]) -> LatencyStatistics:
    """How long one arm's answers took (at least one), weighted as of the last."""
    at = max(a.at for a in answers)
    return LatencyStatistics.of_calls(
        first_byte_s=[a.first_byte_s for a in answers],
        s_per_token=[
            (a.latency_s - a.first_byte_s) / a.tokens_out if _paced(a) and a.tokens_out else math.nan
            for a in answers
        ],
        ages_s=[at - a.at for a in answers],
        at=at,
    )


def _paced(a: Answered) -> bool:
    """An answer that came whole tells of its pace nothing apart from the rest."""
    return bool(a.tokens_out) and a.latency_s > a.first_byte_s
