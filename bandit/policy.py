"""Policies: from what is believed of each candidate to the probability with which it is chosen.

A policy makes the probabilities of all candidates first; `bandit.decide` then samples from them. So the probability that
is logged with a decision is the one it was made with, exactly, for every policy.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import numpy as np

from bandit.belief import Belief
from bandit.floor import spread_floor
from bandit.newcomers import Newcomers
from bandit.objective import Objective, everybody
from bandit.types import Vector

RATINGS_TO_SETTLE: Final = 100.0


class Policy(Protocol):
    def probabilities(self, belief: Belief) -> Vector:
        """(K,) probability of each candidate: at least 0, sum 1."""
        ...

    def utility(self, belief: Belief) -> Vector:
        """(K,) what each candidate is expected to be worth."""
        ...


@dataclass(frozen=True, slots=True)
class Thompson:
    """Joint Thompson sampling with an exploration floor.

        p_a = (1 - floor) x share of the posterior's draws in which arm a has the highest utility + f_a

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
    newcomers: Newcomers = field(default_factory=Newcomers)

    def probabilities(self, belief: Belief) -> Vector:
        K, objective = len(belief.arms), self.objective
        quality = belief.quality.deviations * self.spread(belief) + belief.quality.mean  # (M, K)
        utility = objective.utility(quality, belief.cost_usd, objective.reference(belief))  # (M, K)
        preferred = objective.preferred(belief)
        if preferred is not everybody(K) and not preferred.all():
            utility = np.where(preferred, utility, -np.inf)
        wins = np.bincount(utility.argmax(axis=1), minlength=K)
        greedy = wins * ((1.0 - self.floor) / len(quality))
        shares: Vector = greedy + spread_floor(self.floor, self.utility(belief), objective.allowed(belief))
        return self.newcomers.welcomed(shares, belief, objective)

    def spread(self, belief: Belief) -> float:
        """The factor on the posterior's spread at this decision."""
        n = float(np.add.reduce(belief.ratings))
        return self.scale + (self.first_scale - self.scale) / math.sqrt(1.0 + n / RATINGS_TO_SETTLE)

    def utility(self, belief: Belief) -> Vector:
        reference = self.objective.reference(belief)
        expected: Vector = self.objective.utility(belief.quality.mean[None], belief.cost_usd, reference)[0]
        return expected


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

    def probabilities(self, belief: Belief) -> Vector:
        return self.ramped(self.policy.probabilities(belief), belief)

    def ramped(self, chosen: Vector, belief: Belief) -> Vector:
        """(K,) of the policy's own probabilities what the baseline leaves."""
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

    def probabilities(self, belief: Belief) -> Vector:
        first: Vector = np.zeros(len(belief.arms))
        first[0] = 1.0
        return first

    def utility(self, belief: Belief) -> Vector:
        return belief.quality.mean


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every candidate alike: the way to gather unbiased data."""

    def probabilities(self, belief: Belief) -> Vector:
        return np.full(len(belief.arms), 1.0 / len(belief.arms))

    def utility(self, belief: Belief) -> Vector:
        return belief.quality.mean
