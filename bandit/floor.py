"""The exploration floor: what every candidate's probability has beyond its chances, and where it is spent."""

import numpy as np

from bandit.objective import Mask, everybody
from bandit.types import Vector


def spread_floor(total: float, utility: Vector, allowed: Mask) -> Vector:
    """(K,) the exploration floor of each arm, together `total`: above zero where allowed, and more where less is lost.

        f_a proportional to 1 / sqrt(l_a)        l_a expected loss of utility to the best, plus a twentieth of the mean

    Of all floors with the same expected loss sum f_a l_a this one makes the variance of importance weights, which goes
    with sum 1 / f_a, the smallest. An even floor would spend nearly all of its money on the worst arm.
    """
    if allowed is everybody(len(utility)) or allowed.all():
        return _spread(total, utility)
    floors: Vector = np.zeros(len(utility))
    floors[allowed] = _spread(total, utility[allowed])
    return floors


def _spread(total: float, utility: Vector) -> Vector:
    loss = np.maximum.reduce(utility) - utility
    mean = float(np.add.reduce(loss)) / len(loss)
    if mean <= 0:
        return np.full(len(loss), total / len(loss))
    weights = 1.0 / np.sqrt(loss + 0.05 * mean)
    spread: Vector = weights * (total / float(np.add.reduce(weights)))
    return spread
