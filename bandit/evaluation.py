"""Off-policy evaluation: what another policy would have earned, from what this one logged.

Symbols    p (n, K) logged probabilities, a (n,) chosen arm, y (n,) outcome in [0, 1], pi (n, K) the other policy's
           probabilities, q (n, K) what the model expected when deciding, w = pi / p

    IPS      w_a y                                       unbiased, whatever q is; wild where p is small
    SNIPS    sum w_a y / sum w_a                         slightly biased, far calmer: for display
    DR       sum_b pi_b q_b + w_a (y - q_a)              unbiased, and calm where q is good
    SWITCH   DR, but the model alone where 1 / p_a is above a limit: biased by what the model is wrong there

(Dudik, Langford, Li 2011; Wang, Agarwal, Dudik 2017.) q is a function of what was known before y, so nothing needs to be
cross-fitted. The data are adaptive and are looked at all the time, so a t-interval is invalid; `confidence_sequence` holds
at every n at once (Waudby-Smith, Wu, Ramdas, Karampatziakis, Mineiro, arXiv 2210.10768, after 2102.09540).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bandit.decide import Decision
from bandit.types import Matrix, Vector

SWITCH_ABOVE: Final = 20.0  # 1 / propensity
TRUNCATION: Final = 8.0  # k: how far below 0 a term of the confidence sequence may lie
BETS: Final = tuple(2.0**-k for k in range(1, 9))  # that a sequence is the best of
OF_KNOWN: Final = 0.25  # what the sequence of `known_terms` has of alpha


@dataclass(frozen=True, slots=True, eq=False)
class Log:
    """n logged decisions and the policy to be evaluated on them; the module's symbols.

    probabilities, target and predicted are (n, K) over one list of arms; 0 where an arm was no candidate. Raises ValueError
    for a log that no policy can have written.
    """

    probabilities: Matrix
    chosen: NDArray[np.int64]
    outcome: Vector
    target: Matrix
    predicted: Matrix

    def __post_init__(self) -> None:
        n, k = self.probabilities.shape
        if {self.target.shape, self.predicted.shape} != {(n, k)} or self.chosen.shape != (n,):
            raise ValueError("probabilities, target and predicted are (n, K), chosen and outcome are (n,)")
        if n == 0 or self.outcome.shape != (n,) or not ((self.outcome >= 0) & (self.outcome <= 1)).all():
            raise ValueError("there is an outcome from 0 to 1 for each of at least one decision")
        if not (self.propensity > 0).all():
            raise ValueError("an arm was chosen with probability 0: that is no propensity")
        if ((self.target > 0) & (self.probabilities == 0)).any():
            raise ValueError(
                "the target chooses an arm that was never chosen there: nothing logged tells of it"
            )
        if not np.allclose(self.target.sum(axis=1), 1.0, atol=1e-6):
            raise ValueError("the target's probabilities sum to 1 for each decision")

    @classmethod
    def of(
        cls,
        decisions: Sequence[Decision],
        outcomes: Sequence[float],
        target: Callable[[Decision], Vector],
        arms: Sequence[str],
    ) -> "Log":
        """target: decision -> (K,) the other policy's probabilities of its candidates; arms: all that ever were one."""
        columns = {name: k for k, name in enumerate(arms)}
        probabilities, targets, predicted = (np.zeros((len(decisions), len(arms))) for _ in range(3))
        for i, decision in enumerate(decisions):
            at = [columns[arm.name] for arm in decision.candidates]
            probabilities[i, at], targets[i, at] = decision.probabilities, target(decision)
            predicted[i, at] = np.clip(decision.quality_mean, 0.0, 1.0)
        chosen = np.array([columns[decision.arm.name] for decision in decisions], dtype=np.int64)
        return cls(probabilities, chosen, np.array(outcomes, dtype=np.float64), targets, predicted)

    @property
    def propensity(self) -> Vector:
        """(n,) p_a."""
        return self._of_chosen(self.probabilities)

    @property
    def weight(self) -> Vector:
        """(n,) w_a."""
        return self._of_chosen(self.target) / self.propensity

    def _of_chosen(self, values: Matrix) -> Vector:
        chosen: Vector = np.take_along_axis(values, self.chosen[:, None], axis=1)[:, 0]
        return chosen


@dataclass(frozen=True, slots=True)
class Estimate:
    """A policy's mean outcome. se: standard error of it at a fixed n, of decisions that are independent."""

    value: float
    se: float

    @classmethod
    def mean_of(cls, terms: Vector) -> "Estimate":
        n = len(terms)
        se = float(terms.std(ddof=1) / math.sqrt(n)) if n > 1 else math.inf
        return cls(float(terms.mean()), se)


def ips(log: Log) -> Estimate:
    return Estimate.mean_of(log.weight * log.outcome)


def snips(log: Log) -> Estimate:
    """ValueError where the target never agrees with the log."""
    weight = log.weight
    total = float(weight.sum())
    if total == 0:
        raise ValueError("the target would have chosen otherwise every time: nothing logged tells of it")
    value = float(weight @ log.outcome) / total
    residual = weight * (log.outcome - value)  # delta method
    return Estimate(value, float(np.sqrt((residual**2).sum()) / total))


def doubly_robust(log: Log) -> Estimate:
    return Estimate.mean_of(doubly_robust_terms(log, log.predicted))


def switch(log: Log, *, above: float = SWITCH_ABOVE) -> Estimate:
    """DR where 1 / p_a <= above, elsewhere the model alone."""
    trusted = 1.0 / log.propensity <= above
    return Estimate.mean_of(doubly_robust_terms(log, log.predicted, trusted=trusted))


def doubly_robust_terms(log: Log, q: Matrix, *, trusted: NDArray[np.bool_] | None = None) -> Vector:
    """(n,) sum_b pi_b q_b + w_a (y - q_a); without the second part where not trusted."""
    q_chosen = np.take_along_axis(q, log.chosen[:, None], axis=1)[:, 0]
    correction = log.weight * (log.outcome - q_chosen)
    terms: Vector = (log.target * q).sum(axis=1) + (correction if trusted is None else correction * trusted)
    return terms


def confidence_sequence(
    log: Log, *, alpha: float = 0.05, truncation: float = TRUNCATION
) -> tuple[Vector, Vector]:
    """(lower, upper), each (n,): with probability 1 - alpha the value of the target lies within them after every decision.

    Decisions may depend on all that went before; where the target's value changes over time it is the mean of it so far.
    truncation: k; the model helps more where it is larger, and every bound scales with 1 + k. The better of two such
    sequences, which share alpha: `bounded_terms` close in on the value in the end, but do without the model where p is small;
    `known_terms` keep the model, and take what they leave out at its worst.
    """
    lower, upper = np.full((2, len(log.outcome)), -np.inf)
    for gain, loss, share in both_terms(log, truncation):
        lower = np.maximum(lower, lower_sequence(gain, share * alpha / 2, least=-truncation, guess=0.5))
        upper = np.maximum(upper, lower_sequence(loss, share * alpha / 2, least=-truncation, guess=0.5))
    return np.clip(lower, 0.0, 1.0), np.clip(1.0 - upper, 0.0, 1.0)


def both_terms(log: Log, k: float) -> Iterator[tuple[Vector, Vector, float]]:
    """(gain, loss, share of alpha), none below -k."""
    yield *bounded_terms(log, k), 1.0 - OF_KNOWN
    yield *known_terms(log, k), OF_KNOWN


def bounded_terms(log: Log, k: float) -> tuple[Vector, Vector]:
    """(gain, loss), each (n,): DR terms of the outcome y, and of 1 - y, with q_b cut to k / w_b, so that none is below -k."""
    weights = np.divide(
        log.target, log.probabilities, out=np.zeros_like(log.target), where=log.probabilities > 0
    )
    limit = np.divide(k, weights, out=np.full_like(weights, np.inf), where=weights > 0)
    q = np.clip(log.predicted, 0.0, 1.0)
    lost = replace(log, outcome=1.0 - log.outcome)
    gain = doubly_robust_terms(log, np.minimum(q, limit))
    return gain, doubly_robust_terms(lost, np.minimum(1.0 - q, limit))


def known_terms(log: Log, k: float) -> tuple[Vector, Vector]:
    """(gain, loss), each (n,): DR terms of y, and of 1 - y, of the arms with w_b <= k alone. Either outcome is at least 0, so
    without the other arms their means are at most those of the whole; no term is below -k.
    """
    known = log.target <= k * log.probabilities
    q = np.clip(log.predicted, 0.0, 1.0)
    chosen = np.arange(len(log.outcome)), log.chosen
    weight = np.where(known[chosen], log.weight, 0.0)
    off = weight * (log.outcome - q[chosen])
    target = np.where(known, log.target, 0.0)
    return (target * q).sum(axis=1) + off, (target * (1.0 - q)).sum(axis=1) - off


def lower_sequence(terms: Vector, alpha: float, *, least: float, guess: float) -> Vector:
    """(n,) lower confidence sequence for the mean of terms that are at least `least`, below 0, and whose mean is at most 1:
    empirical Bernstein, the best of several bets, which share alpha.

        s = 1 - least        xi = term / s        psi(l) = -log(1 - l) - l
        L_t = max over l in BETS:  s (sum xi - (log(|BETS| / alpha) + psi(l) sum (xi - xi^)^2) / l) / t

    xi^ (at first guess / s) depends at each step on the steps before alone; xi - xi^ >= -1 makes exp(...) a supermartingale. A
    bet stays what it is, so the plain mean is held, also of terms whose mean changes with time: the usual bets, which fall with
    t, hold one in which early terms count for more.
    """
    scale = 1.0 - least
    xi = terms / scale
    steps = np.arange(1, len(xi) + 1)
    centre = np.minimum(_before((guess / scale + np.cumsum(xi)) / (steps + 1), guess / scale), 1.0 / scale)
    earned, spread = np.cumsum(xi), np.cumsum((xi - centre) ** 2)
    lower = np.full(len(xi), -np.inf)
    for bet in BETS:
        price = (math.log(len(BETS) / alpha) + (-math.log1p(-bet) - bet) * spread) / bet
        lower = np.maximum(lower, scale * (earned - price) / steps)
    return lower


def _before(values: Vector, first: float) -> Vector:
    """Each value as of the step before."""
    return np.concatenate([[first], values[:-1]])
