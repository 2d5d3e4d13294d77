"""Alarms that await their answer, and cuts: the resets of the past, as far as a changed rating may still ask for them.

A cut at some position of the log has multiplied the sums of an arm and source by its factor. A rating that is revised or
withdrawn later is in those sums with its weight times the factors of all cuts since it was given.

Where a source itself drifted nothing is forgotten: what it has said so far is from then on the word of another source, its
earlier self, whose ratings bandit.sources brings onto one scale with the rest as it does any source's. Only what its earlier
self had said already is multiplied by the factor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bandit.drift import Direction
from bandit.sources import earlier_self, source_itself
from feedback.store import Position

CUTS_KEPT_S: Final = 2 * 8760 * 3600.0  # twice the longest feedback window that a gateway may be given
CUTS_MAX: Final = 1000
DRIFT: Final = "drift"  # causes, beside an operator: an arm's ratings changed,
JUDGE: Final = "judge drift"  # all of a source's did,
RECOVERY: Final = "recovery"  # or the arm dropped a while ago (feedback.recovery)
ArmSource = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Alarm:
    """Ratings of `arm` by `source` have changed; token: the entry that raised it; it stays until the log holds an answer."""

    arm: str
    source: str
    direction: Direction
    token: str


@dataclass(frozen=True, slots=True)
class Cut:
    """The sums of arm (None: of all) by source (None: by all) were multiplied by factor, at a position and by the rated-th
    rating. direction: of the alarm that it answers, by whose source, for cause DRIFT or JUDGE.
    """

    position: Position
    arm: str | None
    source: str | None
    factor: float
    cause: str
    at: float
    rated: int
    direction: Direction | None = None
    by: str | None = None

    def concerns(self, key: ArmSource) -> bool:
        """Also what a source said before it drifted."""
        return self.arm in (None, key[0]) and self.source in (None, source_itself(key[1]))

    def told(self) -> str:
        """One sentence for operators."""
        whose = f"{self.arm or 'all models'} by {self.source or 'all sources'}"
        why = f"{self.cause}, a {self.direction} in ratings by {self.by}" if self.direction else self.cause
        if self.cause == JUDGE:
            return f"what was learned of {whose} is held to what it says from now on ({why})"
        return f"{100 * self.factor:.2g} % is kept of what was learned of {whose} ({why})"


def remaining(cuts: Sequence[Cut], key: ArmSource, since: Position) -> tuple[ArmSource, float]:
    """In which sums a rating by (arm, source), first given at a position, is now, and what share of it the cuts since then
    have left. Of one from before the oldest of CUTS_MAX cuts nothing: rather too little is taken back than more than there is.
    """
    if len(cuts) >= CUTS_MAX and since < cuts[0].position:
        return key, 0.0
    share, moved = 1.0, (key[0], earlier_self(key[1]))
    for cut in cuts:
        if cut.position <= since or not cut.concerns(key):
            continue
        if cut.cause == JUDGE and key != moved:
            key = moved
        else:
            share *= cut.factor
    return key, share


def kept(cuts: tuple[Cut, ...], as_of: float) -> tuple[Cut, ...]:
    """Those that a rating within any feedback window may still ask for."""
    return tuple(cut for cut in cuts if cut.at >= as_of - CUTS_KEPT_S)[-CUTS_MAX:]
