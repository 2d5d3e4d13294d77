"""What a source of ratings thinks of every arm, roughly: the expectation that other sources are held to (bandit.sources).

    q = level_a + x' slopes

a level for each arm, and slopes that all arms share. Both are shrunk by what evidence there is for them, for fitted to noise
they would make all who did not rate the same answers look deaf: levels towards their mean by how far they are apart beyond
chance (method of moments), slopes towards 0 by ridge regression, averaged over SLOPE_WEIGHTS by evidence.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from bandit.statistics import RatingStatistics
from bandit.types import Vector

NOISE_VARIANCE: Final = 0.1  # of a rating, before any was seen,
NOISE_WEIGHT: Final = 20.0  # and how many ratings that belief is worth
LEVEL_SD: Final = 0.05  # of arms' levels, before any was seen,
ARMS_BEFORE: Final = 2.0  # and how many arms such a belief is worth
SLOPE_WEIGHTS: Final = np.array([40.0, 160.0, 640.0, 2560.0])  # ratings that may hold slopes at 0


@dataclass(frozen=True, slots=True, eq=False)
class Expectation:
    """mean: of all ratings; slopes (d,), 0 for the bias; noise: variance of a rating about its expectation; levels: arm ->
    (level as its own ratings have it, how many those are); typical: mean of the levels, apart: their variance. Counts are
    as in the sums, in which a rating of today weighs `unit`.
    """

    unit: float
    mean: float
    slopes: Vector
    noise: float
    levels: Mapping[str, tuple[float, float]]
    typical: float
    apart: float

    @classmethod
    def of(cls, told: Mapping[str, RatingStatistics], unit: float) -> "Expectation":
        """told: arm -> its ratings by one source, of each more than none."""
        count = total_of(s.n for s in told.values())
        slopes, noise = _slopes(told, count, unit)
        levels = {arm: (float(s.xr[0] - s.xx[0] @ slopes) / s.n, s.n) for arm, s in told.items()}
        typical = total_of(level * n for level, n in levels.values()) / count
        apart = variance_of([(level - typical, unit * noise / n) for level, n in levels.values()], LEVEL_SD)
        mean = total_of(float(s.xr[0]) for s in told.values()) / count
        return cls(unit, mean, slopes, noise, levels, typical, apart)

    def weights(self, arm: str) -> Vector:
        """(d,) what is expected of it at x is x' weights."""
        weights = self.slopes.copy()
        weights[0] = self.typical
        if arm in self.levels:
            level, n = self.levels[arm]
            chance = self.unit * self.noise / n
            weights[0] += (level - self.typical) * self.apart / (self.apart + chance)
        return weights

    def independent(self, arm: str, n: float, apart: float) -> float:
        """As how many n ratings of the arm by another count, beside this expectation's own error, and where the other differs
        from it by something else for each arm, with standard deviation `apart`.
        """
        if arm not in self.levels:
            return 0.0
        return 1.0 / (1.0 / n + 1.0 / self.levels[arm][1] + apart**2 / (self.noise * self.unit))


def _slopes(told: Mapping[str, RatingStatistics], count: float, unit: float) -> tuple[Vector, float]:
    """(d,) slopes within arms, and the variance of what they leave."""
    within = sum(s.xx - np.outer(s.xx[0], s.xx[0]) / s.n for s in told.values()) / unit
    along = sum(s.xr - s.xx[0] * (s.xr[0] / s.n) for s in told.values()) / unit
    square = total_of(s.rr - s.xr[0] ** 2 / s.n for s in told.values()) / unit
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


def variance_of(deviations: Iterable[tuple[float, float]], sd: float) -> float:
    """Of deviations from 0, each with a variance that is chance, by the method of moments; sd: before any is seen."""
    before, excess, weight = sd**2, ARMS_BEFORE * sd**2, ARMS_BEFORE
    for deviation, chance in deviations:
        tells = (before / (before + chance)) ** 2
        excess, weight = excess + tells * (deviation**2 - chance), weight + tells
    return max(excess, 0.0) / weight


def total_of(values: Iterable[float]) -> float:
    return float(math.fsum(values))
