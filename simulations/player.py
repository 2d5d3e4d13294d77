"""The roles on a stream: a player is shown a request, chooses an arm, and is told, perhaps late, perhaps never, what came
of it. The router, its rivals and the published bandits all play through these three messages and see nothing else.
"""

from dataclasses import dataclass
from typing import Protocol

from bandit.arms import Arm
from bandit.decide import Decision
from bandit.types import Context, Vector


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What a contestant sees before it chooses.

    n: position in the stream. row: of the dataset, for foreign vectors only and never to look up outcomes. context: our
    features x (d,) and the request's needs. vector: a foreign embedding of the prompt, where the contestant asks for one.
    """

    n: int
    row: int
    context: Context
    candidates: tuple[Arm, ...]
    vector: Vector | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The arm's name; the probability it was chosen with and the whole decision, where the contestant knows them."""

    arm: str
    propensity: float | None = None
    decision: Decision | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What a contestant is told of request n. quality: None where only the cost is known.

    The first lesson of a request comes at once and tells what it took; a rating that comes later repeats that, so that
    whoever needs the pair has it: count the cost once per n. source: who rates.
    """

    n: int
    row: int
    arm: str
    quality: float | None
    cost_usd: float
    tokens_in: int
    tokens_out: int
    source: str


class Player(Protocol):
    def choose(self, request: Request) -> Choice: ...

    def learn(self, lesson: Lesson) -> None: ...
