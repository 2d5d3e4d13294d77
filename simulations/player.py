"""Players: whoever chooses an arm per request and learns from what came of it, seen from outside.

A player is told of a request before it chooses and of the chosen arm's outcome after, possibly late, possibly never. It
sees no other arm's outcome.
"""

from dataclasses import dataclass
from typing import Protocol

from bandit.arms import Arm
from bandit.decide import Decision
from bandit.types import Context, Vector


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What a player sees before it chooses.

    n: position in the stream. row: row of the dataset (for foreign vectors only; never to look up outcomes).
    vector: a foreign embedding of the prompt, where the player asks for one.
    """

    n: int
    row: int
    context: Context
    candidates: tuple[Arm, ...]
    vector: Vector | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    arm: str
    propensity: float | None = None
    decision: Decision | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What a player is told of its choice. quality: None where only the cost is known."""

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
