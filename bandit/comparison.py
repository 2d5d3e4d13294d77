"""What was logged, beside what another policy would have got on the same decisions: the difference, and how far it is known.

Symbols as in `bandit.evaluation`; V is the mean outcome as logged, V_pi the target's.

    d = y - DR term of pi          E d = V - V_pi: where both choose alike y cancels, which two intervals cannot use

A realised standard error is small where a rare choice happened not to be made. What is said here of an estimate's error
comes from the logged probabilities instead: they are known, whatever luck made of them.
"""

import math
from typing import Final

import numpy as np

from bandit.evaluation import (
    TRUNCATION,
    Estimate,
    Log,
    both_terms,
    doubly_robust_terms,
    lower_sequence,
)
from bandit.types import Vector

CHOSEN_MIN: Final = 5  # choices of an arm before the spread of its outcomes about the model is taken as known


def effective_n(log: Log) -> float:
    """n^2 / sum_i sum_b pi_b^2 / p_b: how many outcomes of the target's own choosing the log is expected to be worth."""
    squares = np.divide(
        log.target**2, log.probabilities, out=np.zeros_like(log.target), where=log.probabilities > 0
    )
    return len(log.outcome) ** 2 / float(squares.sum())


def difference(log: Log) -> float:
    """V - V_pi, doubly robust."""
    return float((log.outcome - doubly_robust_terms(log, log.predicted)).mean())


def difference_sequence(
    log: Log, *, alpha: float = 0.05, truncation: float = TRUNCATION
) -> tuple[Vector, Vector]:
    """(lower, upper), each (n,): with probability 1 - alpha V - V_pi lies within them after every decision.

    Sequences for d itself, not two intervals set off against each other, and the better of two as in `confidence_sequence`; terms
    are at least -(k + 1).
    """
    least, y = -(truncation + 1.0), log.outcome
    lower, upper = np.full((2, len(y)), -np.inf)
    for gain, loss, share in both_terms(log, truncation):
        lower = np.maximum(lower, lower_sequence(y - (1.0 - loss), share * alpha / 2, least=least, guess=0.0))
        upper = np.maximum(upper, lower_sequence(gain - y, share * alpha / 2, least=least, guess=0.0))
    return np.clip(lower, -1.0, 1.0), np.clip(-upper, -1.0, 1.0)


def on_these_requests(log: Log) -> Estimate:
    """DR, with the standard error of what the target would have got on these very requests.

        se^2 = sum_i sum_b pi_b^2 (1/p_b - [pi_b = 1]) s_b^2 / n^2        s_b^2: mean of (y - q_b)^2 where b was chosen

    or what the choices that were made say, where that is more. inf where an arm that the target needs was chosen less than
    CHOSEN_MIN times. Where the target is the logged policy itself nothing is unknown.
    """
    n = len(log.outcome)
    alike = (log.target == log.probabilities).all(axis=1, keepdims=True)
    unknown = (log.target > 0) & ~alike
    inverse = np.divide(1.0, log.probabilities, out=np.zeros_like(log.target), where=log.probabilities > 0)
    factor = np.where(unknown, log.target**2 * (inverse - (log.target == 1.0)), 0.0)  # (n, K)
    chosen = np.arange(n), log.chosen
    squares = (log.outcome - log.predicted[chosen]) ** 2
    expected = 0.0
    for b in np.flatnonzero(factor.any(axis=0)):
        of_b = squares[log.chosen == b]
        expected += float(factor[:, b].sum() * of_b.mean()) if len(of_b) >= CHOSEN_MIN else math.inf
    made = float((factor[chosen] / log.propensity) @ squares)
    terms = doubly_robust_terms(log, log.predicted)
    return Estimate(float(terms.mean()), math.sqrt(max(expected, made)) / n)
