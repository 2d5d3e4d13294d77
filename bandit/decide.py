"""One decision: probabilities of all candidates first, then a sample from them. A pure function; it can be made again."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bandit.arms import Arm
from bandit.noise import Noise
from bandit.policy import Policy
from bandit.posterior import Posterior
from bandit.types import Context, Vector


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What was decided, wide enough to learn from it and to evaluate other policies on it later.

    candidates and probabilities (K,) belong together; propensity is the chosen one's probability, above 0.
    token: position in the log whose posterior decided.
    """

    decision_id: str
    arm: Arm
    propensity: float
    candidates: tuple[Arm, ...]
    probabilities: Vector
    context: Context
    token: str


def decide(
    policy: Policy, posterior: Posterior, context: Context, candidates: Sequence[Arm], decision_id: str
) -> Decision:
    """Choose one of the candidates (at least one; ValueError otherwise)."""
    if not candidates:
        raise ValueError("decide needs at least one candidate")
    noise = Noise.of(decision_id)
    probabilities = policy.probabilities(posterior, context, candidates, noise)
    chosen = _sample(probabilities, noise.uniform)
    return Decision(
        decision_id=decision_id,
        arm=candidates[chosen],
        propensity=float(probabilities[chosen]),
        candidates=tuple(candidates),
        probabilities=probabilities,
        context=context,
        token=posterior.token,
    )


def _sample(probabilities: Vector, uniform: float) -> int:
    """Inverse of the cumulative distribution at uniform < 1; never an outcome of probability 0.

    uniform is at most 1 - 2^-53, so its multiple of the last edge lies below that edge whatever rounding does.
    """
    edges = np.cumsum(probabilities)
    return int(np.searchsorted(edges, uniform * edges[-1], side="right"))
