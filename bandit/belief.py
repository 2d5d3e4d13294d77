"""What is believed of each candidate for one request: all that a policy may look at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bandit.arms import Arm
from bandit.prediction import Draws, Prediction
from bandit.types import Vector


@dataclass(frozen=True, slots=True, eq=False)
class Belief:
    """quality: of the K arms at this request; exactly(): the Gaussian that it is drawn from. cost_usd (K,): expected.

    typical (K,): expected quality over all traffic. noise_variance: of a rating about its expectation. ratings (K,): how many
    each arm has, old ones counting less.
    """

    arms: Sequence[Arm]
    quality: Draws
    exactly: Callable[[], Prediction]
    cost_usd: Vector
    typical: Vector
    noise_variance: float
    ratings: Vector

    def index(self, name: str) -> int | None:
        """Where the arm stands among the candidates; None where it is none."""
        return next((k for k, arm in enumerate(self.arms) if arm.name == name), None)
