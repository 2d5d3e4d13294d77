"""Folding many ratings at once: the very additions of `learn`, in the same order, into sums of one's own.

A state is never changed in place, so learning one rating makes it anew, with all that it holds by name. A draft takes the
sums that a batch touches over once, adds to them in place, and becomes a state at the end. It takes only what happens all
the time, a first rating by a known source of a known arm, and leaves everything else to `learn`: where batches are cut, and
what was left to whom, cannot be seen in the bits.
"""

import math
from typing import Final

import numpy as np

from bandit.drift import Detector
from bandit.statistics import RatingStatistics
from bandit.types import Matrix, Vector
from feedback.cuts import ArmSource
from feedback.events import Rated
from feedback.recovery import next_halving
from feedback.state import State, changed, weight_grid

EPOCH_SPAN: Final = 60  # half-lives after which the epoch moves on, long before a weight could overflow


class _Sums:
    """RatingStatistics that are changed in place, by their only owner."""

    __slots__ = ("n", "rr", "xr", "xx")

    def __init__(self, statistics: RatingStatistics) -> None:
        self.xx: Matrix = statistics.xx.copy()
        self.xr: Vector = statistics.xr.copy()
        self.n, self.rr = statistics.n, statistics.rr


class Draft:
    def __init__(self, state: State) -> None:
        self._state = state
        self._sums: dict[ArmSource, _Sums] = {}
        self._detectors: dict[ArmSource, Detector] = {}
        self._alone: dict[ArmSource, Detector] = {}
        self._pending = {(alarm.arm, alarm.source) for alarm in state.alarms}
        self._as_of, self._added, self._skipped, self._cursor = state.as_of, 0, 0, state.cursor
        self._halving = next_halving(state.cuts, state.rated)
        self._product = np.empty((state.d, state.d))

    def skip(self, token: str) -> None:
        """An entry that is no event of this version."""
        self._skipped += 1
        self._cursor = token

    def add(self, token: str, event: Rated) -> bool:
        """Whether it was taken; if not, nothing has changed."""
        state, decision = self._state, event.decision
        key = (decision.arm, event.source)
        detector = self._detectors.get(key) or state.detectors.get(key)
        alone = self._alone.get(key) or state.alone.get(key)
        k, factor = weight_grid(decision.decided_at)
        if (
            event.old is not None
            or key not in state.ratings
            or (decision.quality_sd and (detector is None or alone is None))
            or key in self._pending
            or decision.features != state.features
            or len(decision.x) != state.d
            or decision.arm not in state.entry_prices
            or state.epoch is None
            or k - state.epoch > EPOCH_SPAN
            or state.rated + self._added >= self._halving
        ):
            return False
        if detector is not None and alone is not None and decision.quality_sd:
            detector = detector.after(event.quality, decision.quality_mean, decision.quality_sd)
            if detector.alarm is not None:
                return False
            self._detectors[key], self._alone[key] = detector, alone.alone(event.quality)
        sums = self._sums.get(key)
        if sums is None:
            sums = self._sums[key] = _Sums(state.ratings[key])
        self._add(sums, decision.x, event.quality, math.ldexp(factor, k - state.epoch))
        self._as_of = max(self._as_of, decision.decided_at)
        self._added += 1
        self._cursor = token
        return True

    def _add(self, sums: _Sums, x: Vector, r: float, weight: float) -> None:
        """As `RatingStatistics.added`, to the last bit."""
        product = self._product
        np.dot(x[:, None], x[None], out=product)
        product *= weight
        sums.xx += product
        sums.xr += (weight * r) * x
        sums.n += weight
        sums.rr += weight * r * r

    def state(self) -> State:
        """What it has become. The draft is spent."""
        before = self._state
        if self._cursor == before.cursor:
            return before
        ratings = {key: RatingStatistics(s.xx, s.xr, s.n, s.rr) for key, s in self._sums.items()}
        return changed(
            before,
            cursor=self._cursor,
            events=before.events + self._added,
            skipped=before.skipped + self._skipped,
            rated=before.rated + self._added,
            as_of=self._as_of,
            ratings={**before.ratings, **ratings},
            detectors={**before.detectors, **self._detectors},
            alone={**before.alone, **self._alone},
        )
