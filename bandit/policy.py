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


@dataclass(frozen=True, slots=True, eq=False)
class Weighed:
    """What a policy makes of K candidates. probabilities (K,) of being chosen: at least 0, sum 1; utility (K,): what each is
    expected to be worth; strategy (K,): of a ramped policy, the probabilities with which its own policy would have chosen.
    """

    probabilities: Vector
    utility: Vector
    strategy: Vector | None = None


class Policy(Protocol):
    def weigh(self, belief: Belief) -> Weighed: ...


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

    def weigh(self, belief: Belief) -> Weighed:
        K, objective, mean = len(belief.arms), self.objective, belief.quality.mean
        reference = objective.reference(belief)
        quality = belief.quality.deviations * self.spread(belief) + mean  # (M, K)
        utility = objective.utility(quality, belief.cost_usd, reference)  # (M, K)
        preferred = objective.preferred(belief)
        if preferred is not everybody(K) and not preferred.all():
            utility = np.where(preferred, utility, -np.inf)
        wins = np.bincount(utility.argmax(axis=1), minlength=K)
        expected = objective.utility(mean[None], belief.cost_usd, reference)[0]
        greedy = wins * ((1.0 - self.floor) / len(quality))
        shares: Vector = greedy + spread_floor(self.floor, expected, objective.allowed(belief))
        return Weighed(self.newcomers.welcomed(shares, belief, objective), expected)

    def spread(self, belief: Belief) -> float:
        """The factor on the posterior's spread at this decision."""
        n = float(np.add.reduce(belief.ratings))
        return self.scale + (self.first_scale - self.scale) / math.sqrt(1.0 + n / RATINGS_TO_SETTLE)


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

    def weigh(self, belief: Belief) -> Weighed:
        own, baseline = self.policy.weigh(belief), belief.index(self.baseline)
        if baseline is None:
            return replace(own, strategy=own.probabilities)
        mixed = self.share * own.probabilities
        mixed[baseline] += 1.0 - self.share
        return Weighed(mixed, own.utility, own.probabilities)


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

    def weigh(self, belief: Belief) -> Weighed:
        first: Vector = np.zeros(len(belief.arms))
        first[0] = 1.0
        return Weighed(first, belief.quality.mean)


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every candidate alike: the way to gather unbiased data."""

    def weigh(self, belief: Belief) -> Weighed:
        return Weighed(np.full(len(belief.arms), 1.0 / len(belief.arms)), belief.quality.mean)
