"""Recovery: an arm that got worse may get well again, and what it was like meanwhile must not stand in the way.

A model that fails is mostly mended within days. By then it is hardly called any more, so nothing but its old failures
speaks of it. So for WAIT_RATINGS ratings of the route after a drop, half of what is known of the arm is forgotten every
FADE_RATINGS ratings: it is known less and less surely, is tried again where it might be best, and when few ratings are
left is welcomed as a newcomer is (bandit.newcomers). A rise ends the wait. The route's ratings are the clock, so all
replicas forget at the same entry of the log.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Final

from feedback.cuts import DRIFT, Cut

WAIT_RATINGS: Final = 1000
FADE_RATINGS: Final = 100
FADE_FACTOR: Final = 0.5


def fading(cuts: Iterable[Cut], rated: int) -> list[str]:
    """Arms of which half is forgotten after the rated-th rating."""
    return [arm for arm, since in _waited_for(cuts, rated) if _wait(since) == 0]


def next_fading(cuts: Iterable[Cut], rated: int) -> float:
    """The number of ratings, `rated` or more, after which an arm fades next; infinite where none is waited for."""
    return rated + min((_wait(since) for _, since in _waited_for(cuts, rated)), default=math.inf)


def _wait(since: int) -> int:
    """Ratings until an arm fades, that many ratings after its drop."""
    return -since % FADE_RATINGS if since else FADE_RATINGS


def _waited_for(cuts: Iterable[Cut], rated: int) -> Iterator[tuple[str, int]]:
    """(arm, ratings since its drop)."""
    last = {cut.arm: cut for cut in cuts if cut.cause == DRIFT and cut.arm is not None}
    for arm, cut in last.items():
        if cut.direction == "drop" and rated - cut.rated <= WAIT_RATINGS:
            yield arm, rated - cut.rated
