"""How much features vary beside those that a prior was fitted with: a factor on the prior variance of all arms' slopes.

What a prior says of slopes holds for features that vary as much as its own did. Where they vary more, as noise in their place
would or another embedder's, the same slopes would mean that requests differ far more in which arm serves them best than was
ever seen. So what slopes explain of quality is held where the prior has it. With v_j the prior variance of slope j, u_j the
usual variance of feature j (typical_square - typical_x^2) and w_j that over the n ratings so far

    factor = min(1, 2^round(log2 (E0 / E)))      E0 = sum_j v_j u_j,  E = (HELD E0 + n sum_j v_j w_j) / (HELD + n)

over the features that varied when the prior was fitted: what was never seen there, such as tools, is no excess here. A rule,
not evidence; for this package's own features on recorded prompts it is 1.
"""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from bandit.prior import QualityPrior
from bandit.statistics import RatingStatistics

HELD: Final = 10.0  # ratings that hold features for usual ones
LEAST: Final = -10  # power of two


def slope_factor(prior: QualityPrior, ratings: Mapping[str, RatingStatistics]) -> float:
    """In (0, 1]. ratings: of every arm that has any. Summed in an order and a way that are the same everywhere."""
    usual = np.maximum(prior.typical_square - prior.typical_x**2, 0.0)
    usual[0] = 0.0
    usually = math.fsum(prior.arm_variance * usual)
    n = math.fsum(s.weight for s in ratings.values())
    if usually <= 0.0 or n <= 0.0:
        return 1.0
    sums, squares = np.zeros(len(usual)), np.zeros(len(usual))
    for _, s in sorted(ratings.items()):
        sums += s.xx[0]
        squares += s.xx.diagonal()
    varies = np.where(usual > 0.0, np.maximum(squares / n - (sums / n) ** 2, 0.0), 0.0)
    seen = (HELD * usually + n * math.fsum(prior.arm_variance * varies)) / (HELD + n)
    return 1.0 if seen <= usually else 2.0 ** max(round(math.log2(usually / seen)), LEAST)
