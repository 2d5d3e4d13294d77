"""Several sources of ratings on one scale: what each says, as the anchor would have said it.

Users, judges and tests rate the same answers differently: one is stricter, one tells good from bad less clearly, one errs
more, one favours a model. One source is the anchor, whose word is what quality means here; of every other source s

    y = c + g_s + rho_s (q + h_sa - c) + e        e ~ N(0, s2 / w_s)

q: quality as the anchor would rate it, c: the anchor's mean rating, g_s: how much kinder s is, rho_s: how clearly it tells
better from worse, h_sa ~ N(0, tau_s^2): what it sees in arm a that the anchor does not, w_s: what one of its ratings weighs
against one of the anchor's. All of it is estimated from the sums where both rated the same arms, and shrunk to 0, 1, 0 and 1
as long as the anchor has said little. The sums are then corrected as they are read, exactly, with o = c + g - rho (c - h):

    xx <- w rho^2 xx        xr <- w rho (xr - o sum x)        rr <- w (rr - 2 o sum y + o^2 n)        n stays

so nothing is learned anew when the opinion of a judge changes, a withdrawn rating is still exact, and of a source that tells
nothing (rho = 0) nothing is left. Three steps, each of which begins with no correction, so that nothing jumps:

1. What a source said before it drifted is moved by how much kinder it has become, and is the same source's word again.
2. Sources other than the anchor are moved to what they think together: without an anchor, they have equal say.
3. Where the anchor has spoken, each is corrected to it as above.

What a source thinks is bandit.anchor's fit of its ratings. The error of that, and h, are in all ratings of an arm by another
at once: they count as fewer, 1 / (1 / n + 1 / n' + tau^2 / s2) for g, without h for rho, and as none where only one has rated.

(Regression calibration: Carroll, Ruppert, Stefanski, Crainiceanu, Measurement Error in Nonlinear Models, chapter 4; h_sa as
a random effect: Robinson, Statistical Science 1991.)
"""

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from bandit.anchor import NOISE_WEIGHT, Expectation, total_of, variance_of
from bandit.statistics import RatingStatistics

ANCHOR: Final = "user"  # by default
KIND_SD: Final = 0.1  # of g,
CLEAR_SD: Final = 0.25  # of rho, and
FAVOUR_SD: Final = 0.05  # of h, before the anchor has said anything
FAVOUR_SD_MAX: Final = 0.3
CLEAR_MIN: Final = 0.2  # below it a source's favour cannot be told
CLEAR_MAX: Final = 4.0
EFFECT_MAX: Final = 4.0  # w rho^2: of the anchor's ratings one of another source counts for no more
SOME: Final = 1e-6  # ratings; what is less was withdrawn
# Corrections move in steps finer than they are known, so that sums read the same for a while.
OFFSET_STEP: Final = 1 / 128
CLEAR_STEP: Final = 1 / 32
WEIGHT_STEPS: Final = 4.0  # to a doubling

_EARLIER: Final = " before its drift"  # no source's own name has a blank
ArmSource = tuple[str, str]
ByArm = Mapping[str, RatingStatistics]


def earlier_self(source: str) -> str:
    """The name of what a source said before it drifted."""
    return source_itself(source) + _EARLIER


def source_itself(source: str) -> str:
    return source.removesuffix(_EARLIER)


@dataclass(frozen=True, slots=True)
class Correction:
    """What turns a source's ratings of one arm into the anchor's: offset o, clarity rho >= 0, and weight w."""

    offset: float = 0.0
    clarity: float = 1.0
    weight: float = 1.0

    def of(self, s: RatingStatistics) -> RatingStatistics:
        """The sums as the anchor would have given them; features begin with a bias of 1."""
        o, rho, w = self.offset, self.clarity, self.weight
        if rho == 0.0:
            return RatingStatistics.empty(len(s.xr))
        rr = s.rr - 2.0 * o * float(s.xr[0]) + o * o * s.n
        return RatingStatistics(w * rho * rho * s.xx, w * rho * (s.xr - o * s.xx[0]), s.n, w * rr)

    def then(self, after: "Correction") -> "Correction":
        """Both, one after the other."""
        offset = self.offset + self.clarity * after.offset
        return Correction(offset, self.clarity * after.clarity, self.weight * after.weight)


NONE: Final = Correction()


def corrections(
    ratings: Mapping[ArmSource, RatingStatistics], unit: float = 1.0, *, anchor: str = ANCHOR
) -> dict[ArmSource, Correction]:
    """Of all that needs one. unit: what a rating of today weighs in the sums."""
    steps = corrected(ratings, unit, anchor=anchor)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            made: dict[ArmSource, Correction] = done.value
            return made


def corrected(
    ratings: Mapping[ArmSource, RatingStatistics], unit: float = 1.0, *, anchor: str = ANCHOR
) -> Generator[None, None, dict[ArmSource, Correction]]:
    """The same source by source, for who has else to do meanwhile."""
    said = _Said.of(ratings, unit)
    for earlier in [source for source in said.told if source != source_itself(source)]:
        now = said.told.get(source_itself(earlier), {})
        said.correct(earlier, _since(now, said.told[earlier], unit))
        said.merge(earlier, source_itself(earlier))
        yield
    others = sorted(source for source in said.told if source != anchor)
    if len(others) > 1:
        counts = {source: _count(said.told[source]) for source in others}
        first = max(others, key=counts.__getitem__)
        expected, kinder = Expectation.of(said.told[first], unit), dict.fromkeys(others, 0.0)
        for source in others:
            if source != first:
                kinder[source] = _kindness(expected, said.told[source], KIND_SD, FAVOUR_SD)
                yield
        mean = total_of(counts[source] * kinder[source] for source in others) / total_of(counts.values())
        for source in others:
            said.correct(source, _less(said.told[source], kinder[source] - mean))
    if anchor in said.told and others:
        expected = Expectation.of(said.told[anchor], unit)
        for source in others:
            said.correct(source, _corrections(expected, said.told[source]))
            yield
    return {key: correction for key, correction in said.made.items() if correction != NONE}


@dataclass(slots=True)
class _Said:
    """told: source -> arm -> sums, as corrected so far by `made`, to which `parts` of the ratings each source has come."""

    told: dict[str, dict[str, RatingStatistics]]
    parts: dict[str, list[ArmSource]]
    made: dict[ArmSource, Correction]

    @classmethod
    def of(cls, ratings: Mapping[ArmSource, RatingStatistics], unit: float) -> "_Said":
        said = cls({}, {}, {})
        for arm, source in sorted(key for key, s in ratings.items() if s.n > SOME * unit):
            said.told.setdefault(source, {})[arm] = ratings[arm, source]
            said.parts.setdefault(source, []).append((arm, source))
            said.made[arm, source] = NONE
        return said

    def correct(self, source: str, by_arm: Mapping[str, Correction]) -> None:
        for arm, s in self.told[source].items():
            self.told[source][arm] = by_arm[arm].of(s)
        for key in self.parts[source]:
            self.made[key] = self.made[key].then(by_arm[key[0]])

    def merge(self, source: str, into: str) -> None:
        sums = self.told.setdefault(into, {})
        for arm, s in self.told.pop(source).items():
            sums[arm] = sums[arm] + s if arm in sums else s
        self.parts[into] = self.parts.get(into, []) + self.parts.pop(source)


def _count(told: ByArm) -> float:
    return total_of(s.n for s in told.values())


def _since(now: ByArm, before: ByArm, unit: float) -> dict[str, Correction]:
    """What turns a source's earlier words into its present ones; the fit is of whichever are more."""
    if not now:
        return _less(before, 0.0)
    if _count(now) >= _count(before):
        return _less(before, _kindness(Expectation.of(now, unit), before, KIND_SD, 0.0))
    return _less(before, -_kindness(Expectation.of(before, unit), now, KIND_SD, 0.0))


def _kindness(expected: Expectation, told: ByArm, sd: float, apart: float, clarity: float = 1.0) -> float:
    """How much higher these ratings are than expected, where arms were rated by both. sd: of that beforehand; apart: of what
    it differs by from arm to arm.
    """
    n, beyond, c = 0.0, 0.0, expected.mean
    for arm, s in told.items():
        share = expected.independent(arm, s.n, apart) / s.n
        higher = float(s.xr[0] - c * s.n - clarity * (s.xx[0] @ expected.weights(arm) - c * s.n))
        n, beyond = n + share * s.n, beyond + share * higher
    return beyond / (n + expected.unit * expected.noise / sd**2)


def _less(told: ByArm, kindness: float) -> dict[str, Correction]:
    return dict.fromkeys(told, Correction(_in_steps(kindness, OFFSET_STEP)))


@dataclass(frozen=True, slots=True)
class _Opinion:
    """Of one source: kindness g, clarity rho, noise: variance of its own."""

    kindness: float
    clarity: float
    noise: float


def _corrections(expected: Expectation, told: ByArm) -> dict[str, Correction]:
    opinion, c = _opinion(expected, told), expected.mean
    rho = _in_steps(opinion.clarity, CLEAR_STEP)
    if rho == 0.0:
        return dict.fromkeys(told, Correction(clarity=0.0))
    weight = min(expected.noise / opinion.noise, EFFECT_MAX / rho**2)
    weight = 2.0 ** _in_steps(math.log2(weight), 1.0 / WEIGHT_STEPS)
    favours = _favours(expected, told, opinion)
    offsets = {arm: c + opinion.kindness - rho * (c - favours.get(arm, 0.0)) for arm in told}
    return {arm: Correction(_in_steps(o, OFFSET_STEP), rho, weight) for arm, o in offsets.items()}


def _opinion(expected: Expectation, told: ByArm) -> _Opinion:
    """Ridge regression of what the source says beyond what is expected, p: y - p = g + (rho - 1) (p - c) + e; then g anew,
    with every arm's own h in mind.
    """
    c = expected.mean
    n = sum_p = sum_pp = sum_py = sum_y = sum_yy = 0.0  # over its ratings that count; p and y less c
    for arm, s in told.items():
        share = expected.independent(arm, s.n, 0.0) / s.n
        w = expected.weights(arm)
        w[0] -= c
        xy, yy = s.xr - c * s.xx[0], s.rr - 2.0 * c * s.xr[0] + c * c * s.n
        n, sum_y, sum_yy = n + share * s.n, sum_y + share * float(xy[0]), sum_yy + share * float(yy)
        sum_p, sum_py = sum_p + share * float(w @ s.xx[0]), sum_py + share * float(w @ xy)
        sum_pp += share * float(w @ s.xx @ w)
    held = expected.unit * expected.noise * np.diag([KIND_SD**-2, CLEAR_SD**-2])
    beyond = np.array([sum_y - sum_p, sum_py - sum_pp])
    g, clearer = np.linalg.solve(np.array([[n, sum_p], [sum_p, sum_pp]]) + held, beyond)
    rho = min(max(1.0 + float(clearer), 0.0), CLEAR_MAX)
    left = sum_yy + g * g * n + rho * rho * sum_pp - 2.0 * (g * sum_y + rho * sum_py - g * rho * sum_p)
    before = NOISE_WEIGHT * expected.unit
    noise = (before * expected.noise + max(float(left), 0.0)) / (before + n)
    return _Opinion(_kindness(expected, told, KIND_SD, FAVOUR_SD, rho), rho, noise)


def _favours(expected: Expectation, told: ByArm, opinion: _Opinion) -> dict[str, float]:
    """Arm -> h, of arms that both have rated: the best linear prediction."""
    if opinion.clarity < CLEAR_MIN:
        return {}
    c, noise = expected.mean, opinion.noise / opinion.clarity**2
    higher: dict[
        str, tuple[float, float]
    ] = {}  # than the anchor has its level, and the variance of that by chance
    for arm, s in told.items():
        if arm in expected.levels:
            level, n = expected.levels[arm]
            quality = (float(s.xr[0]) / s.n - c - opinion.kindness) / opinion.clarity + c
            by = quality - float(s.xx[0] @ expected.slopes) / s.n - level
            higher[arm] = by, expected.unit * (noise / s.n + expected.noise / n)
    variance = min(variance_of(higher.values(), FAVOUR_SD), FAVOUR_SD_MAX**2)
    return {arm: by * variance / (variance + chance) for arm, (by, chance) in higher.items()}


def _in_steps(value: float, step: float) -> float:
    return round(value / step) * step
