"""What a quality model answers: how good each arm will be at one request, as draws or as a Gaussian written out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bandit.statistics import RatingStatistics
from bandit.types import Matrix, Vector


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """Joint draws of K arms' expected quality at one x: mean (K,) of the posterior, deviations (M, K) of M draws from it."""

    mean: Vector
    deviations: NDArray[np.floating[Any]]

    def sd(self) -> Vector:
        """(K,) standard deviation of each arm's draws."""
        sd: Vector = np.sqrt(_even(len(self.deviations)) @ (self.deviations * self.deviations))
        return sd


@cache
def _even(M: int) -> Vector:
    """(M,) a mean's weights."""
    return np.full(M, 1.0 / M)


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """The Gaussian that the draws are of: mean (K,), covariance (K, K) of the arms' expected qualities at one x."""

    mean: Vector
    covariance: Matrix

    def sd(self) -> Vector:
        """(K,) standard deviation of each arm's expected quality."""
        sd: Vector = np.sqrt(self.covariance.diagonal())
        return sd


class QualityPosterior(Protocol):
    """A posterior holds one set of draws for all the requests that it decides: a decision only looks at them."""

    @property
    def noise_variance(self) -> float:
        """Variance of a rating about its expectation."""
        ...

    def draws(self, x: Vector, arms: Sequence[str]) -> Draws: ...

    def predict(self, x: Vector, arms: Sequence[str]) -> Prediction:
        """The same exactly, and in more time."""
        ...

    def typical(self, arms: Sequence[str]) -> Vector:
        """(K,) expected quality of each arm over the traffic seen so far."""
        ...

    def steps(self) -> Iterator[None]:
        """Most of the work of the first `draws`, in pieces of less than a millisecond, for who has else to do."""
        ...


class QualityModel(Protocol):
    @property
    def anchor(self) -> str:
        """The source of ratings whose word quality is (bandit.sources)."""
        ...

    def fit(
        self, ratings: Mapping[str, RatingStatistics], d: int, entry_prices: Mapping[str, float]
    ) -> QualityPosterior:
        """ratings: arm -> its statistics, none for an arm without. entry_prices: arm -> its price for output in USD per
        million tokens when it was first rated: what a prior may read of a price stays what it was.
        """
        ...

    def steps(
        self, ratings: Mapping[str, RatingStatistics], d: int, entry_prices: Mapping[str, float]
    ) -> Iterator[None]:
        """Most of the work of the `fit` that follows, in pieces of less than a millisecond, for who has else to do."""
        ...
