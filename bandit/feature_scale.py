"""How large features are beside those that a prior is for: a factor on the prior variance of all arms' slopes.

What a prior says of slopes holds for features of the size that it was fitted with. Where they are larger on the whole, as
another embedder's may be, the same slopes would mean that requests differ far more in which arm serves them best than was
ever seen. So what slopes explain of quality is held where the prior has it. With v_j the prior variance of slope j and q_j
the usual mean of x_j^2 (typical_square), over the n ratings so far

    factor = min(1, 2^round(log2 (E0 / E)))      E0 = sum_j v_j q_j,  E = (HELD E0 + sum_n sum_j v_j x_nj^2) / (HELD + n)

a power of two, so that it changes seldom. It is 1 for features as they are.
"""

import math
from collections.abc import Iterable
from typing import Final

import numpy as np

from bandit.prior import QualityPrior
from bandit.statistics import RatingStatistics

HELD: Final = 10.0  # ratings that hold features for usual ones


def slope_factor(prior: QualityPrior, ratings: Iterable[RatingStatistics]) -> float:
    """In (0, 1]. ratings: of every arm that has any."""
    variance = prior.arm_variance[1:]
    usual = float(variance @ prior.typical_square[1:])
    squares, n = np.zeros(len(variance)), 0.0
    for s in ratings:
        squares += s.xx.diagonal()[1:]
        n += s.n
    seen = (HELD * usual + float(variance @ squares)) / (HELD + n)
    return 1.0 if seen <= usual else 2.0 ** round(math.log2(usual / seen))
