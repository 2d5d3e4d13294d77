"""Several sources of ratings on one scale: what each says, as the anchor would have said it.

Users, judges and tests rate the same answers differently: one is stricter, one tells good from bad less clearly, one errs
more, one favours a model. One source is the anchor, whose word is what quality means here; of every other source s

    y = c + g_s + rho_s (q + h_sa - c) + e        e ~ N(0, s2 / w_s)

q: quality as the anchor would rate it, c: the anchor's mean rating, g_s: how much kinder s is, rho_s: how clearly it tells
better from worse, h_sa ~ N(0, tau_s^2): what it sees in arm a that the anchor does not, w_s: what one of its ratings weighs
against one of the anchor's. All of it is estimated from the sums where sources rated the same arms, and shrunk to 0, 1, 0
and 1 as long as the anchor has said little: one judge alone is believed as it is. The sums are then corrected as they are
read, exactly, with o = c + g - rho (c - h):

    xx <- w rho^2 xx        xr <- w rho (xr - o sum x)        rr <- w (rr - 2 o sum y + o^2 n)        n stays

so nothing is learned anew when the opinion of a judge changes, a withdrawn rating is still exact, and the information of a
source that tells nothing (rho = 0) is nothing. What q is like is taken from a fit of the anchor's ratings alone: a level for
each arm and slopes that all share. Its error is in all ratings of an arm by s at once, so they count for no more than
n_s n_anchor / (n_s + n_anchor) independent ones, and those of an arm that the anchor never rated for none. (Measurement error with a gold standard on a part: Carroll, Ruppert,
Stefanski, Measurement Error in Nonlinear Models, 2; h_sa as a random effect: Robinson, Statistical Science 1991.)
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from bandit.statistics import RatingStatistics
from bandit.types import Vector

ANCHOR: Final = "user"  # by default

NOISE_VARIANCE: Final = 0.1  # of a rating, before any was seen, and
NOISE_WEIGHT: Final = 20.0  # how many ratings that belief is worth
LEVEL_SD: Final = 0.05  # of arms' levels,
FAVOUR_SD: Final = 0.04  # and of h, before any was seen, and
ARMS_BEFORE: Final = 2.0  # how many arms that belief is worth
FAVOUR_SD_MAX: Final = 0.3
SLOPE_WEIGHTS: Final = np.array([40.0, 160.0, 640.0, 2560.0])  # ratings that may hold slopes at 0
KIND_SD: Final = 0.1  # of g
CLEAR_SD: Final = 0.25  # of rho
CLEAR_MIN: Final = 0.2  # below it a source's favour cannot be told
CLEAR_MAX: Final = 4.0
WEIGHT_MAX: Final = 16.0
# Corrections move in steps finer than they are known, so that sums read the same for a while.
SOME: Final = 1e-6  # ratings; what is less was withdrawn
OFFSET_STEP: Final = 1 / 128
CLEAR_STEP: Final = 1 / 32
WEIGHT_STEPS: Final = 4.0  # to a doubling

ArmSource = tuple[str, str]
Ratings = Mapping[ArmSource, RatingStatistics]


@dataclass(frozen=True, slots=True)
class Correction:
    """What turns a source's ratings of one arm into the anchor's: offset o, clarity rho, and weight w."""

    offset: float
    clarity: float
    weight: float

    def of(self, s: RatingStatistics) -> RatingStatistics:
        """The sums as the anchor would have given them; features begin with a bias of 1."""
        o, rho, w = self.offset, self.clarity, self.weight
        rr = s.rr - 2.0 * o * float(s.xr[0]) + o * o * s.n
        return RatingStatistics(w * rho * rho * s.xx, w * rho * (s.xr - o * s.xx[0]), s.n, w * rr)


def anchor_of(ratings: Ratings, wanted: str = ANCHOR) -> str | None:
    """The source that the others are held to: the one wanted, or while it is silent the one with most ratings; None where
    nobody rated.
    """
    counts: dict[str, float] = {}
    for (_, source), s in ratings.items():
        counts[source] = counts.get(source, 0.0) + s.n
    if counts.get(wanted, 0.0) > 0.0:
        return wanted
    return max(sorted(counts), key=counts.__getitem__, default=None)


def corrections(ratings: Ratings, unit: float = 1.0, *, wanted: str = ANCHOR) -> dict[ArmSource, Correction]:
    """Of every arm and source but the anchor. unit: what a rating of today weighs in the sums; wanted: see `anchor_of`."""
    anchor = anchor_of(ratings, wanted)
    sources = sorted({source for _, source in ratings if source != anchor})
    if anchor is None or not sources:
        return {}
    fit = _Anchor.fit(_by(anchor, ratings, unit), unit)
    return {
        (arm, source): correction
        for source in sources
        for arm, correction in _corrections(fit, _by(source, ratings, unit)).items()
    }


def _by(source: str, ratings: Ratings, unit: float) -> dict[str, RatingStatistics]:
    return {arm: s for (arm, its), s in sorted(ratings.items()) if its == source and s.n > SOME * unit}


@dataclass(frozen=True, slots=True, eq=False)
class _Anchor:
    """What the anchor thinks: count of its ratings, mean of them, slopes (d,) with 0 for the bias, variance of its noise;
    levels: arm -> level as its own ratings have it, and how many those are; typical: the mean of levels, apart: their
    variance. Counts are in units of the sums, in which a rating of today weighs `unit`.
    """

    unit: float
    count: float
    mean: float
    slopes: Vector
    noise: float
    levels: Mapping[str, tuple[float, float]]
    typical: float
    apart: float

    @classmethod
    def fit(cls, told: Mapping[str, RatingStatistics], unit: float) -> "_Anchor":
        count, total = _sum(s.n for s in told.values()), _sum(float(s.xr[0]) for s in told.values())
        slopes, noise = _slopes(told, count, unit)
        levels = {arm: (float(s.xr[0] - s.xx[0] @ slopes) / s.n, s.n) for arm, s in told.items()}
        typical = _sum(level * n for level, n in levels.values()) / count
        apart = _variance([(level - typical, unit * noise / n) for level, n in levels.values()], LEVEL_SD)
        return cls(unit, count, total / count, slopes, noise, levels, typical, apart)

    def weights(self, arm: str) -> Vector:
        """(d,) with the arm's level shrunk to that of all."""
        weights = self.slopes.copy()
        weights[0] = self.typical
        if arm in self.levels:
            level, n = self.levels[arm]
            chance = self.unit * self.noise / n
            weights[0] += (level - self.typical) * self.apart / (self.apart + chance)
        return weights


def _slopes(told: Mapping[str, RatingStatistics], count: float, unit: float) -> tuple[Vector, float]:
    """(d,) slopes within arms, and the variance of what they leave, by ridge regression: the mean over SLOPE_WEIGHTS by evidence."""
    within = sum(s.xx - np.outer(s.xx[0], s.xx[0]) / s.n for s in told.values()) / unit
    along = sum(s.xr - s.xx[0] * (s.xr[0] / s.n) for s in told.values()) / unit
    square = _sum(s.rr - s.xr[0] ** 2 / s.n for s in told.values()) / unit
    spreads, axes = np.linalg.eigh(within)
    spreads, along = np.maximum(spreads, 0.0), axes.T @ along
    held = spreads + SLOPE_WEIGHTS[:, None]  # (H, d)
    left = np.maximum(square - (along**2 / held).sum(axis=1), 0.0)
    degrees = NOISE_WEIGHT + count / unit
    noise = (NOISE_WEIGHT * NOISE_VARIANCE + left) / degrees
    evidence = -0.5 * (np.log(held / SLOPE_WEIGHTS[:, None]).sum(axis=1) + degrees * np.log(noise))
    likely = np.exp(evidence - evidence.max())
    likely /= likely.sum()
    slopes: Vector = axes @ (likely @ (along / held))
    slopes[0] = 0.0
    return slopes, float(likely @ noise)


@dataclass(frozen=True, slots=True)
class _Opinion:
    """Of one source: kindness g, clarity rho, noise: variance of its own."""

    kindness: float
    clarity: float
    noise: float


def _corrections(fit: _Anchor, told: Mapping[str, RatingStatistics]) -> dict[str, Correction]:
    opinion, c = _opinion(fit, told), fit.mean
    rho = round(opinion.clarity / CLEAR_STEP) * CLEAR_STEP
    weight = min(fit.noise / opinion.noise, WEIGHT_MAX)
    weight = 2.0 ** (round(WEIGHT_STEPS * math.log2(weight)) / WEIGHT_STEPS)
    favours = _favours(fit, told, opinion)
    return {
        arm: Correction(
            round((c + opinion.kindness - rho * (c - favours.get(arm, 0.0))) / OFFSET_STEP) * OFFSET_STEP,
            rho,
            weight,
        )
        for arm in told
    }


def _opinion(fit: _Anchor, told: Mapping[str, RatingStatistics]) -> _Opinion:
    """Ridge regression of what the source says beyond the anchor's expectation p: y - p = g + (rho - 1) (p - c) + e."""
    c = fit.mean
    n = p = pp = py = y = yy = 0.0  # sums over its ratings that count, of 1, and of p and y less c
    for arm, s in told.items():
        _, anchors = fit.levels.get(arm, (0.0, 0.0))
        share = anchors / (anchors + s.n)
        w = fit.weights(arm)
        w[0] -= c
        xr, rr = s.xr - c * s.xx[0], s.rr - 2.0 * c * s.xr[0] + c * c * s.n
        n, p, pp = n + share * s.n, p + share * float(w @ s.xx[0]), pp + share * float(w @ s.xx @ w)
        py, y, yy = py + share * float(w @ xr), y + share * float(xr[0]), yy + share * float(rr)
    held = fit.unit * fit.noise * np.diag([KIND_SD**-2, CLEAR_SD**-2])
    kindness, clearer = np.linalg.solve(np.array([[n, p], [p, pp]]) + held, np.array([y - p, py - pp]))
    clarity = min(max(1.0 + float(clearer), 0.0), CLEAR_MAX)
    left = (
        yy + kindness**2 * n + clarity**2 * pp - 2.0 * (kindness * y + clarity * py - kindness * clarity * p)
    )
    before = NOISE_WEIGHT * fit.unit
    noise = (before * fit.noise + max(float(left), 0.0)) / (before + n)
    return _Opinion(float(kindness), clarity, noise)


def _favours(fit: _Anchor, told: Mapping[str, RatingStatistics], opinion: _Opinion) -> dict[str, float]:
    """Arm -> h, of arms that both have rated: the best linear prediction, its spread by the method of moments."""
    if opinion.clarity < CLEAR_MIN:
        return {}
    c = fit.mean
    seen: dict[
        str, tuple[float, float]
    ] = {}  # arm -> how much higher s has its level, and the variance of that by chance
    for arm, s in told.items():
        if arm in fit.levels:
            level, n = fit.levels[arm]
            its = (float(s.xr[0]) / s.n - c - opinion.kindness) / opinion.clarity + c
            higher = its - float(s.xx[0] @ fit.slopes) / s.n - level
            seen[arm] = higher, fit.unit * (opinion.noise / opinion.clarity**2 / s.n + fit.noise / n)
    variance = min(_variance(seen.values(), FAVOUR_SD), FAVOUR_SD_MAX**2)
    return {arm: higher * variance / (variance + chance) for arm, (higher, chance) in seen.items()}


def _variance(seen: Iterable[tuple[float, float]], sd: float) -> float:
    """Of deviations, each with a variance that is chance, by the method of moments; sd: before any is seen."""
    before = sd**2
    tells = [((before / (before + chance)) ** 2, deviation**2 - chance) for deviation, chance in seen]
    excess = _sum(weight * beyond for weight, beyond in tells)
    return max(ARMS_BEFORE * before + excess, 0.0) / (ARMS_BEFORE + _sum(weight for weight, _ in tells))


def _sum(values: Iterable[float]) -> float:
    return float(math.fsum(values))
