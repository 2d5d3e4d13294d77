"""Recovery: an arm that got worse may get well again, and what it was like meanwhile must not stand in the way.

By the time a failing model is mended it is hardly called any more, so nothing but its failures speaks of it. So for
FADING_RATINGS ratings of the route after a drop, half of what is known of the arm is forgotten every HALVING_RATINGS: it is
known less and less surely, is tried again where it might be best, and where few ratings are left is welcomed as a newcomer
is (bandit.newcomers). Another reset of the arm ends that, a rise or an operator's, and so does finding out that its source
had drifted and not the model.

The clock is the route's ratings, by all sources, so that all replicas halve at the same entry of the log. On a busy route
that is not long; what is left then is little, and a later recovery is found by what Thompson sampling still tries.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Final

from feedback.cuts import DRIFT, JUDGE, RECOVERY, Cut

HALVING_RATINGS: Final = 100
FADING_RATINGS: Final = 10 * HALVING_RATINGS
HALF: Final = 0.5


def halved(cuts: Iterable[Cut], rated: int) -> list[str]:
    """Arms of which half is forgotten after the rated-th rating."""
    return [arm for arm, since in _fading(cuts, rated) if _left(since) == 0]


def next_halving(cuts: Iterable[Cut], rated: int) -> float:
    """The number of ratings, `rated` or more, after which an arm is halved next; infinite where none fades."""
    return rated + min((_left(since) for _, since in _fading(cuts, rated)), default=math.inf)


def _left(since: int) -> int:
    """Ratings until a halving, that many after the drop; the drop's own reset is none."""
    return -since % HALVING_RATINGS if since else HALVING_RATINGS


def _fading(cuts: Iterable[Cut], rated: int) -> Iterator[tuple[str, int]]:
    """(arm, ratings since its drop)."""
    drops: dict[str, Cut] = {}
    for cut in cuts:
        if cut.cause == JUDGE:
            drops = {arm: drop for arm, drop in drops.items() if drop.by != cut.source}
        elif cut.arm is not None and cut.cause != RECOVERY:
            drops.pop(cut.arm, None)
            if cut.cause == DRIFT and cut.direction == "drop":
                drops[cut.arm] = cut
    for arm, drop in drops.items():
        if rated - drop.rated <= FADING_RATINGS:
            yield arm, rated - drop.rated
