"""Policies: from what is believed of each candidate to the probability with which it is chosen.

A policy makes the probabilities of all candidates first; `bandit.decide` then samples from them. So the probability that
is logged with a decision is the one it was made with, exactly, for every policy.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import numpy as np

from bandit.belief import Belief
from bandit.newcomers import Newcomers
from bandit.noise import NORMALS_MAX, Noise
from bandit.objective import Mask, Objective, everybody
from bandit.types import Vector

RATINGS_TO_SETTLE: Final = 100.0


class Policy(Protocol):
    def probabilities(self, belief: Belief, noise: Noise) -> Vector:
        """(K,) probability of each candidate: at least 0, sum 1. Randomness comes from `noise` only."""
        ...

    def utility(self, belief: Belief) -> Vector:
        """(K,) what each candidate is expected to be worth."""
        ...


@dataclass(frozen=True, slots=True)
class Thompson:
    """Joint Thompson sampling with an exploration floor.

        p_a = (1 - floor) x share of `draws` posterior draws in which arm a has the highest utility + f_a

    scale, first_scale: factors on the posterior's spread after many ratings and before the first. Between them the factor
    falls as 1 / sqrt(1 + n / RATINGS_TO_SETTLE), n ratings of the candidates: what is learned early serves for long. Well
    below 1 in the end: on recorded outcomes that explores enough (BENCHMARKS.md has the table). floor: total probability
    spread over all candidates that the objective allows (`spread_floor`), so that every logged propensity is above zero
    and off-policy evaluation is possible. newcomers: what arms with few ratings may take beyond that.
    """

    objective: Objective
    scale: float = 0.2
    first_scale: float = 0.7
    floor: float = 0.01
    draws: int = 64
    newcomers: Newcomers = field(default_factory=Newcomers)

    def probabilities(self, belief: Belief, noise: Noise) -> Vector:
        K, objective = len(belief.arms), self.objective
        count = min(self.draws, NORMALS_MAX // K)  # M; fewer with hundreds of arms
        deviations = belief.quality.deviations(noise.normals(count * K))  # (M, K)
        quality = deviations * self.spread(belief) + belief.quality.mean
        utility = objective.utility(quality, belief.cost_usd, objective.reference(belief))  # (M, K)
        preferred = objective.preferred(belief)
        if preferred is not everybody(K) and not preferred.all():
            utility = np.where(preferred, utility, -np.inf)
        wins = np.bincount(utility.argmax(axis=1), minlength=K)
        greedy = wins * ((1.0 - self.floor) / count)
        shares: Vector = greedy + spread_floor(self.floor, self.utility(belief), objective.allowed(belief))
        return self.newcomers.welcomed(shares, belief, objective, deviations)

    def spread(self, belief: Belief) -> float:
        """The factor on the posterior's spread at this decision."""
        n = float(np.add.reduce(belief.ratings))
        return self.scale + (self.first_scale - self.scale) / math.sqrt(1.0 + n / RATINGS_TO_SETTLE)

    def utility(self, belief: Belief) -> Vector:
        reference = self.objective.reference(belief)
        expected: Vector = self.objective.utility(belief.quality.mean[None], belief.cost_usd, reference)[0]
        return expected


def spread_floor(total: float, utility: Vector, allowed: Mask) -> Vector:
    """(K,) the exploration floor of each arm, together `total`: above zero where allowed, and more where less is lost.

        f_a proportional to 1 / sqrt(l_a)        l_a expected loss of utility to the best, plus a twentieth of the mean

    Of all floors with the same expected loss sum f_a l_a this one makes the variance of importance weights, which goes
    with sum 1 / f_a, the smallest. An even floor would spend nearly all of its money on the worst arm.
    """
    if allowed is everybody(len(utility)) or allowed.all():
        return _spread(total, utility)
    floors: Vector = np.zeros(len(utility))
    floors[allowed] = _spread(total, utility[allowed])
    return floors


def _spread(total: float, utility: Vector) -> Vector:
    loss = np.maximum.reduce(utility) - utility
    mean = float(np.add.reduce(loss)) / len(loss)
    if mean <= 0:
        return np.full(len(loss), total / len(loss))
    weights = 1.0 / np.sqrt(loss + 0.05 * mean)
    spread: Vector = weights * (total / float(np.add.reduce(weights)))
    return spread


@dataclass(frozen=True, slots=True)
class Ramped:
    """A share of the requests by `policy`, the rest to the baseline: how a route is switched on step by step.

        p = share x p_policy + (1 - share) x [a is the baseline]

    share: 0 is shadow: what the policy would do is decided and logged, and the baseline answers. Where the baseline cannot
    serve a request the policy chooses alone.
    """

    policy: Policy
    baseline: str
    share: float

    def probabilities(self, belief: Belief, noise: Noise) -> Vector:
        chosen = self.policy.probabilities(belief, noise)
        baseline = belief.index(self.baseline)
        if baseline is None:
            return chosen
        mixed: Vector = self.share * chosen
        mixed[baseline] += 1.0 - self.share
        return mixed

    def utility(self, belief: Belief) -> Vector:
        return self.policy.utility(belief)


def aimed(policy: Policy, objective: Objective) -> Policy:
    """The same policy with another objective; one that weighs nothing stays as it is."""
    match policy:
        case Thompson():
            return replace(policy, objective=objective)
        case Ramped():
            return replace(policy, policy=aimed(policy.policy, objective))
        case _:
            return policy


def objective_of(policy: Policy) -> Objective | None:
    """What the policy aims at; None for one that weighs nothing."""
    match policy:
        case Thompson():
            return policy.objective
        case Ramped():
            return objective_of(policy.policy)
        case _:
            return None


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the first candidate: the first model listed that can serve the request."""

    def probabilities(self, belief: Belief, noise: Noise) -> Vector:
        first: Vector = np.zeros(len(belief.arms))
        first[0] = 1.0
        return first

    def utility(self, belief: Belief) -> Vector:
        return belief.quality.mean


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every candidate alike: the way to gather unbiased data."""

    def probabilities(self, belief: Belief, noise: Noise) -> Vector:
        return np.full(len(belief.arms), 1.0 / len(belief.arms))

    def utility(self, belief: Belief) -> Vector:
        return belief.quality.mean
