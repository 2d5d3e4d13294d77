"""Policies: from what is believed of each candidate to the probability with which it is chosen.

A policy makes the probabilities of all candidates first; `bandit.decide` then samples from them. So the probability that
is logged with a decision is the one it was made with, exactly, for every policy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bandit.arms import Arm
from bandit.noise import NORMALS_MAX, Noise
from bandit.objective import Objective
from bandit.posterior import Posterior
from bandit.types import Context, Vector


class Policy(Protocol):
    def probabilities(
        self, posterior: Posterior, context: Context, candidates: Sequence[Arm], noise: Noise
    ) -> Vector:
        """(K,) probability of each candidate: at least 0, sum 1. Randomness comes from `noise` only."""
        ...


@dataclass(frozen=True, slots=True)
class Thompson:
    """Joint Thompson sampling with an exploration floor.

        p_a = (1 - floor) x share of `draws` posterior draws in which arm a has the highest utility + f_a

    scale: factor on the posterior's spread; well below 1 explores less than the posterior warrants and did best on
    recorded outcomes. floor: total probability spread over all candidates (`spread_floor`), so that every logged
    propensity is above zero and off-policy evaluation is possible.
    """

    objective: Objective
    scale: float = 0.3
    floor: float = 0.01
    draws: int = 64

    def probabilities(
        self, posterior: Posterior, context: Context, candidates: Sequence[Arm], noise: Noise
    ) -> Vector:
        names = [arm.name for arm in candidates]
        prediction = posterior.quality.predict(context.x, names)
        count = min(self.draws, NORMALS_MAX // prediction.normals_needed(1))  # M; fewer with hundreds of arms
        normals = noise.normals(prediction.normals_needed(count))
        quality = prediction.draws(normals, count, scale=self.scale)  # (M, K)
        cost_usd = posterior.cost.expected_usd(candidates, context.needs)  # (K,)
        reference = int(np.argmax(posterior.quality.typical(names)))
        utility = self.objective.utility(quality, cost_usd, reference)  # (M, K)
        wins = np.bincount(np.argmax(utility, axis=1), minlength=len(names))
        shares: Vector = (1.0 - self.floor) * (wins / count) + spread_floor(self.floor, cost_usd)
        return shares


def spread_floor(total: float, cost_usd: Vector) -> Vector:
    """(K,) the exploration floor of each arm, all above zero, together `total`: cheap arms get more of it.

        f_a proportional to 1 / sqrt(c_a)        c_a the arm's expected cost, plus a hundredth of the mean

    Of all floors with the same expected spend sum f_a c_a this one makes the variance of importance weights, which goes
    with sum 1 / f_a, the smallest. An even floor would spend nearly all of its money on the dearest arm.
    """
    mean = float(cost_usd.mean())
    weights = 1.0 / np.sqrt(cost_usd + 0.01 * mean) if mean > 0 else np.ones_like(cost_usd)
    floors: Vector = total * weights / weights.sum()
    return floors


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the first candidate: the first model listed that can serve the request."""

    def probabilities(
        self, posterior: Posterior, context: Context, candidates: Sequence[Arm], noise: Noise
    ) -> Vector:
        first: Vector = np.zeros(len(candidates))
        first[0] = 1.0
        return first


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every candidate alike: the way to gather unbiased data."""

    def probabilities(
        self, posterior: Posterior, context: Context, candidates: Sequence[Arm], noise: Noise
    ) -> Vector:
        return np.full(len(candidates), 1.0 / len(candidates))
