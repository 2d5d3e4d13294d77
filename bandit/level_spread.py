"""How far the arms of a route lie from where their priors put them: a factor on the prior variance of all their levels.

A prior says how good each arm is and how surely. Where it is wrong it is wrong about many arms at once (a name that means
another model here, a judge with another taste), so what the rated arms tell holds for the others too. With y_a the mean of
arm a's n_a ratings minus its prior mean, v_a its level's prior variance and c that of the shared level, all variances in
units of a rating's noise s2,

    y | t  ~  N(0, s2 (diag(t v_a + 1 / n_a) + c 1 1'))         log p(t) = -PENALTY log2 t + const,  t = 1, 2, 4 ... 32

and t is the most probable one (empirical Bayes: Morris, JASA 1983, with the prior's own variance as the default). The
matrix is diagonal plus rank one: its inverse and determinant are closed forms. While the arms lie where they should, t is 1.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from bandit.prior import ArmPriors, QualityPrior
from bandit.statistics import RatingStatistics
from bandit.types import Vector

FACTORS: Final = 2.0 ** np.arange(6)
PENALTY: Final = 0.3  # nats for each doubling


def level_factor(prior: QualityPrior, priors: ArmPriors, ratings: Sequence[RatingStatistics | None]) -> float:
    """One of FACTORS. ratings: of each arm in the order of `priors`, None without any."""
    rated = [(k, s) for k, s in enumerate(ratings) if s is not None and s.weight > 0]
    if len(rated) < 2:
        return 1.0  # one arm alone cannot be told from a route that is harder
    rows = [k for k, _ in rated]
    n = np.array([s.weight for _, s in rated])
    left = np.array([s.xr[0] - s.xx[0] @ priors.means[k] for k, s in rated])  # sum w (r - x' m)
    scatter = sum(s.rr - priors.means[k] @ (2.0 * s.xr - s.xx @ priors.means[k]) for k, s in rated) - float(
        (left**2 / n).sum()
    )
    noise = (prior.noise_weight * prior.noise_variance + max(scatter, 0.0)) / (
        prior.noise_weight + sum(s.n for _, s in rated)
    )
    evidence = _log_evidence(left / n, n, 1.0 / priors.precisions[rows, 0], prior.shared_variance[0], noise)
    return float(FACTORS[np.argmax(evidence - PENALTY * np.log2(FACTORS))])


def _log_evidence(y: Vector, n: Vector, v: Vector, c: float, noise: float) -> Vector:
    """(len(FACTORS),) log density of y under each factor, up to a constant (Sherman and Morrison; the determinant lemma)."""
    weights = 1.0 / (FACTORS[:, None] * v + 1.0 / n)  # (T, K)
    total, weighted = 1.0 + c * weights.sum(axis=1), weights @ y
    distance = weights @ y**2 - c * weighted**2 / total
    evidence: Vector = 0.5 * (np.log(weights).sum(axis=1) - np.log(total) - distance / noise)
    return evidence
