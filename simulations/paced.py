"""Any policy of ours under a budget, as a player: a learner whose policy aims at what its pacer says."""

from dataclasses import replace

from bandit.pacing import Pacer
from bandit.policy import Thompson
from bandit.prediction import QualityModel
from simulations.learner import Contestant, Learner
from simulations.player import Choice, Lesson, Request
from simulations.world import Space


class PacedLearner:
    """Plays a policy and its model from a cold start within usd_per_request on average. stream: as in Learner."""

    def __init__(
        self, policy: Thompson, model: QualityModel, features: Space, *, usd_per_request: float, stream: str
    ) -> None:
        self.pacer = Pacer(usd_per_request)
        self._policy, self._stream = policy, stream
        self._learner = Learner(Contestant("paced", policy, model), features, stream=stream)

    def choose(self, request: Request) -> Choice:
        self._learner.policy = replace(self._policy, objective=self.pacer.objective())
        choice = self._learner.choose(request)
        decision = choice.decision
        assert decision is not None, "a learner tells its decision"
        self.pacer.decided(
            decision.decision_id,
            choice.arm,
            decision.candidates,
            decision.quality_mean,
            decision.cost_usd,
            decision.typical,
        )
        return choice

    def learn(self, lesson: Lesson) -> None:
        self._learner.learn(lesson)
        self.pacer.settled(
            f"{self._stream}:{lesson.n}", lesson.cost_usd
        )  # once: what is settled stays as it is
