"""Any policy of ours under a budget, as a player: a learner whose policy aims at what its pacer says."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bandit.arms import Arm
from bandit.noise import Noise
from bandit.pacing import Pacer
from bandit.policy import Thompson
from bandit.posterior import Posterior
from bandit.quality import QualityModel
from bandit.types import Context, Vector
from simulations.learner import Contestant, Learner
from simulations.player import Choice, Lesson, Request
from simulations.world import Space


class UnderBudget:
    """A policy: Thompson's, with the pacer's objective, among the arms that the pacer's allowance covers.

    offer: expected quality and cost of all candidates at the last decision, (K,) each; the pacer asks for them after it.
    """

    def __init__(self, policy: Thompson, pacer: Pacer) -> None:
        self._policy, self._pacer = policy, pacer
        self.offer: tuple[Vector, Vector] = (np.zeros(0), np.zeros(0))

    def __repr__(self) -> str:  # names it in the records of its decisions
        return f"UnderBudget({self._policy!r}, {self._pacer.usd_per_request!r})"

    def probabilities(
        self, posterior: Posterior, context: Context, candidates: Sequence[Arm], noise: Noise
    ) -> Vector:
        cost_usd = posterior.cost.expected_usd(candidates, context.needs)
        mean = posterior.quality.predict(context.x, [arm.name for arm in candidates]).mean
        self.offer = mean, cost_usd
        objective = self._pacer.objective()
        within = objective.affordable(cost_usd)
        affordable = [arm for arm, covered in zip(candidates, within, strict=True) if covered]
        policy = replace(self._policy, objective=objective)
        probabilities: Vector = np.zeros(len(candidates))
        probabilities[within] = policy.probabilities(posterior, context, affordable, noise)
        return probabilities


class PacedLearner:
    """Plays a policy and its model from a cold start within usd_per_request on average. stream: as in Learner."""

    def __init__(
        self, policy: Thompson, model: QualityModel, features: Space, *, usd_per_request: float, stream: str
    ) -> None:
        self.pacer = Pacer(usd_per_request)
        self._policy, self._stream = UnderBudget(policy, self.pacer), stream
        self._learner = Learner(Contestant("paced", self._policy, model), features, stream=stream)

    def choose(self, request: Request) -> Choice:
        choice = self._learner.choose(request)
        quality, cost_usd = self._policy.offer
        self.pacer.decided(self._id(request.n), choice.arm, request.candidates, quality, cost_usd)
        return choice

    def learn(self, lesson: Lesson) -> None:
        self._learner.learn(lesson)
        self.pacer.settled(self._id(lesson.n), lesson.cost_usd)  # once: what is settled stays as it is

    def _id(self, n: int) -> str:
        return f"{self._stream}:{n}"
