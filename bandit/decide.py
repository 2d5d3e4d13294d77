"""One decision: probabilities of all candidates first, then a sample from them. A pure function; it can be made again."""

from collections.abc import Sequence
from dataclasses import dataclass

from bandit.arms import Arm
from bandit.noise import uniform_of
from bandit.policy import Policy
from bandit.posterior import Posterior
from bandit.types import Context, Vector


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What was decided, wide enough to learn from it and to evaluate other policies on it later.

    candidates, probabilities, quality_mean, quality_sd, typical, cost_usd and utility (K,) belong together; chosen is a place
    among them, of a probability above 0. quality_mean, quality_sd: what was expected of each candidate, and how surely (sd of
    the draws of it); typical: what over all traffic; cost_usd: expected; utility: what that is worth together. noise_variance:
    of a rating about its expectation. token: position in the log whose posterior decided. strategy (K,):
    of a ramped policy, the probabilities with which its own policy would have chosen.
    """

    decision_id: str
    chosen: int
    candidates: tuple[Arm, ...]
    probabilities: Vector
    context: Context
    token: str
    quality_mean: Vector
    quality_sd: Vector
    typical: Vector
    cost_usd: Vector
    utility: Vector
    noise_variance: float
    strategy: Vector | None = None

    @property
    def arm(self) -> Arm:
        return self.candidates[self.chosen]

    @property
    def propensity(self) -> float:
        return float(self.probabilities[self.chosen])


def decide(
    policy: Policy, posterior: Posterior, context: Context, candidates: Sequence[Arm], decision_id: str
) -> Decision:
    """Choose one of the candidates (at least one; ValueError otherwise)."""
    if not candidates:
        raise ValueError("decide needs at least one candidate")
    belief = posterior.belief(context, candidates)
    weighed = policy.weigh(belief)
    return Decision(
        decision_id=decision_id,
        chosen=_sample(weighed.probabilities, uniform_of(decision_id)),
        candidates=tuple(candidates),
        probabilities=weighed.probabilities,
        context=context,
        token=posterior.token,
        quality_mean=belief.quality.mean,
        quality_sd=belief.quality.sd(),
        typical=belief.typical,
        cost_usd=belief.cost_usd,
        utility=weighed.utility,
        noise_variance=belief.noise_variance,
        strategy=weighed.strategy,
    )


def _sample(probabilities: Vector, uniform: float) -> int:
    """Inverse of the cumulative distribution at uniform < 1; never an outcome of probability 0.

    uniform is at most 1 - 2^-53, so its multiple of the last edge lies below that edge whatever rounding does.
    """
    edges = probabilities.cumsum()
    return int(edges.searchsorted(uniform * edges[-1], side="right"))
