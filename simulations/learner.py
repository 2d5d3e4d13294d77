"""Any policy of ours as a player: state, decide and learn exactly as the gateway runs them, from the same events."""

from dataclasses import dataclass
from typing import Final

from bandit.decide import Decision, decide
from bandit.lengths import LengthSample
from bandit.policy import Policy
from bandit.prediction import QualityModel
from bandit.statistics import CallStatistics
from feedback.alarms import answers
from feedback.events import Called, Event, Rated
from feedback.learn import learn
from feedback.records import policy_tag, prefix_of
from feedback.state import Reader, State
from simulations.player import Choice, Lesson, Request
from simulations.world import Space

SECONDS_BETWEEN_REQUESTS: Final = 1.0
WORKER: Final = "simulation"


@dataclass(frozen=True, slots=True)
class Contestant:
    """A named policy with the quality model that it decides on; learns: fold outcomes in, or stay as it began."""

    name: str
    policy: Policy
    model: QualityModel
    learns: bool = True


class Learner:
    """Plays a contestant from a cold start. stream: its decisions' ids are "STREAM:n", and chance derives from them.

    policy: may be exchanged between decisions; nothing that was learned depends on it.
    """

    def __init__(self, contestant: Contestant, features: Space, *, stream: str) -> None:
        self._contestant, self._features, self._stream = contestant, features, stream
        self.policy = contestant.policy
        self._tag = policy_tag(contestant)
        self._state = State(features.tag, features.d)
        self._posterior = self._state.posterior(contestant.model)
        self._reader = Reader()
        self._decisions: dict[int, Decision] = {}
        self._told_usage = -1  # the last request whose tokens are in the state

    def choose(self, request: Request) -> Choice:
        decision_id = f"{self._stream}:{request.n}"
        decision = decide(self.policy, self._posterior, request.context, request.candidates, decision_id)
        if self._contestant.learns:
            self._decisions[request.n] = decision
        return Choice(decision.arm.name, decision.propensity, decision)

    def learn(self, lesson: Lesson) -> None:
        if not self._contestant.learns:
            return
        for event in self._events(lesson):
            self._state = learn(self._state, event)
        for answer in answers(self._state):
            self._state = learn(self._state, answer)
        self._posterior = self._state.posterior(self._contestant.model, self._reader)

    def _events(self, lesson: Lesson) -> list[Event]:
        """What the gateway's log would hold: the call's tokens, once, then the rating."""
        events: list[Event] = []
        decision = self._decisions[lesson.n]
        if lesson.n > self._told_usage:
            self._told_usage = lesson.n
            calls = CallStatistics(
                calls=1,
                tokens_in=lesson.tokens_in,
                tokens_in_estimated=decision.context.needs.tokens_in,
                tokens_out=lesson.tokens_out,
            )
            length = LengthSample.of([decision.context.x], [lesson.tokens_out])
            called = Called(
                WORKER,
                lesson.n,
                {lesson.arm: calls},
                lengths={lesson.arm: length},
                features=self._features.tag,
            )
            events.append(called)
        if lesson.quality is not None:
            decided_at = lesson.n * SECONDS_BETWEEN_REQUESTS
            prefix = prefix_of(decision, decided_at=decided_at, policy=self._tag, features=self._features.tag)
            events.append(Rated(prefix, lesson.source, lesson.quality))
        return events
