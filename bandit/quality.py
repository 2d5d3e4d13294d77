"""The quality model: one shared baseline and a small deviation per arm, as one joint Gaussian posterior.

    r = x' (m_a + theta + delta_a) + e       e ~ N(0, s2)      arm a, features x (d,), quality r in [0, 1]
    theta   ~ N(0, s2 P^-1)                  how this route differs from others: learned from every arm
    delta_a ~ N(0, s2 D_a^-1)                what is particular to arm a
    s2      ~ IG(nu/2, nu s0 / 2)            learned noise;  m_a, P, D_a, nu, s0: bandit.prior

A choice needs only differences between arms, so the shared part takes the bulk of what prompts have in common and each
arm is left with little to learn. The joint precision is an arrow (one shared block, one block per arm): with the arms'
statistics A_a = sum w x x', b_a = sum w (r - x' m_a) x it is eliminated arm by arm (block Cholesky; Murphy, Machine
Learning: a Probabilistic Perspective, 4.3.1, and 7.6.3 for the noise):

    B_a     = A_a + D_a                                  arm block (d, d)
    S       = P + sum_a (D_a - D_a B_a^-1 D_a)           shared block after elimination
    theta^  = S^-1 sum_a D_a B_a^-1 b_a                  weights of arm a = m_a + B_a^-1 (b_a + D_a theta^)

P and D_a are diagonal. How much of the prior to believe is learned too, by evidence, as one factor for all arms on each of
two things: how far their levels may lie from the prior (bandit.level_spread), and whether requests differ in which arm
serves them best at all (SLOPES). By a rule, features that vary more than usual mean no more than usual ones
(bandit.feature_scale). The evidence of a fit is

    log p(ratings) = -1/2 (sum_a log |B_a| / |D_a| + log |S| / |P|) - (nu + n) / 2 log(nu s0 + scatter) + const

What is then believed of a request: bandit.quality_posterior.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np

from bandit.arms import Arm
from bandit.feature_scale import slope_factor
from bandit.level_spread import level_factor
from bandit.noise import NORMALS_MAX
from bandit.prior import ArmPriors, QualityPrior
from bandit.quality_posterior import SharedBaselinePosterior
from bandit.sources import ANCHOR
from bandit.statistics import RatingStatistics
from bandit.triangular import inverse_factor
from bandit.types import Matrix, Vector

# Factors on the prior variance of all arms' slopes, each with what it lacks in evidence beforehand: where features tell
# nothing of which arm is best, believing that they may costs for ever.
SLOPES: Final = ((1.0, 0.0), (1 / 32, 3.0))
AS_THE_PRIOR_SAYS: Final = SLOPES[:1]
DRAWS: Final = 64  # of the posterior, on which decisions are made


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """One arm after elimination: R (d, d) with B^-1 = R' R, v = B^-1 b (d,), left = rr - b' v in units of quality^2,
    gain = D - D B^-1 D (d, d), what it adds to S, None without ratings, and log_volume = log |B| / |D|.
    """

    R: Matrix
    v: Vector
    left: float
    gain: Matrix | None
    log_volume: float


@dataclass(frozen=True, slots=True)
class SharedBaseline:
    """The model above. prior: None knows nothing of any model. arms: those of the route, with what the registry says.
    slopes: what the evidence chooses from; AS_THE_PRIOR_SAYS leaves no choice. draws: how many a posterior holds. anchor: see
    QualityModel.
    """

    prior: QualityPrior | None = None
    arms: tuple[Arm, ...] = ()
    slopes: tuple[tuple[float, float], ...] = SLOPES
    draws: int = DRAWS
    anchor: str = ANCHOR
    _blocks: "WeakKeyDictionary[RatingStatistics, dict[bytes, _Block]]" = field(
        default_factory=WeakKeyDictionary, repr=False, compare=False
    )  # an arm whose statistics did not change is not eliminated again under the same prior

    def fit(
        self,
        ratings: Mapping[str, RatingStatistics],
        d: int,
        entry_prices: Mapping[str, float] | None = None,
    ) -> "SharedBaselinePosterior":
        """The posterior given each arm's statistics; see QualityModel."""
        prior, arms, choices = self._choices(ratings, d, entry_prices or {})
        told = tuple(ratings.values())
        arrows = [
            _arrow(prior, priors, self._all_blocks(priors, ratings, arms), told, lacking)
            for priors, lacking in choices
        ]
        best = max(arrows, key=attrgetter("log_evidence"))
        return SharedBaselinePosterior(
            rows={arm.name: k for k, arm in enumerate(arms)},
            weights=best.weights(),
            factors=[block.R for block in best.blocks],
            precisions=best.priors.precisions,
            shared_factor=best.shared_factor,
            noise_variance=best.noise_variance,
            typical_x=_typical_x(told, prior.typical_x),
            log_evidence=best.log_evidence,
            count=self.draws,
            seed=_seed(ratings),
        )

    def steps(
        self, ratings: Mapping[str, RatingStatistics], d: int, entry_prices: Mapping[str, float]
    ) -> Iterator[None]:
        """Arm by arm; see QualityModel."""
        _, arms, choices = self._choices(ratings, d, entry_prices)
        for priors, _ in choices:
            for k, arm in enumerate(arms):
                self._block(ratings.get(arm.name), priors, k)
                yield

    def _choices(
        self, ratings: Mapping[str, RatingStatistics], d: int, entry_prices: Mapping[str, float]
    ) -> tuple[QualityPrior, tuple[Arm, ...], list[tuple[ArmPriors, float]]]:
        """The arms, and the priors of them that the evidence chooses from, each with what it is lacking."""
        prior = self.prior or QualityPrior.flat(d)
        if (fitted := len(prior.mean)) != d:
            raise ValueError(f"the prior is for {fitted} features, the vectors have {d}: fit it anew")
        if not 1 <= self.draws <= NORMALS_MAX // d:
            raise ValueError(f"{d} features allow 1 to {NORMALS_MAX // d} draws, not {self.draws}")
        arms = self._known_and_rated(ratings, entry_prices)
        priors = prior.of(arms)
        factor = level_factor(prior, priors, [ratings.get(arm.name) for arm in arms])
        priors = priors.with_levels_spread(factor).with_slopes_spread(slope_factor(prior, ratings))
        slopes = self.slopes if ratings else AS_THE_PRIOR_SAYS
        return prior, arms, [(priors.with_slopes_spread(spread), lacking) for spread, lacking in slopes]

    def _all_blocks(
        self, priors: ArmPriors, ratings: Mapping[str, RatingStatistics], arms: Sequence[Arm]
    ) -> list[_Block]:
        """Of each arm, and of nobody: any arm of which nothing is known."""
        rated = [self._block(ratings.get(arm.name), priors, k) for k, arm in enumerate(arms)]
        return [*rated, self._block(None, priors, len(arms))]

    def _known_and_rated(
        self, ratings: Mapping[str, RatingStatistics], entry_prices: Mapping[str, float]
    ) -> tuple[Arm, ...]:
        """The route's arms at the prices they came with, then those that have ratings and are the route's no longer."""
        here = {arm.name for arm in self.arms}
        gone = tuple(Arm(name, 0.0, entry_prices.get(name, 0.0)) for name in ratings if name not in here)
        at_entry = (
            replace(arm, price_usd_per_mtok_out=entry_prices.get(arm.name, arm.price_usd_per_mtok_out))
            for arm in self.arms
        )
        return (*at_entry, *gone)

    def _block(self, s: RatingStatistics | None, priors: ArmPriors, k: int) -> _Block:
        mean, precision = priors.means[k], priors.precisions[k]
        if s is None:
            zeros = np.zeros(len(mean))
            return _Block(np.diag(1.0 / np.sqrt(precision)), zeros, 0.0, None, 0.0)
        key = mean.tobytes() + precision.tobytes()
        known = self._blocks.setdefault(s, {})
        if key in known:
            return known[key]
        b = s.xr - s.xx @ mean
        rr = s.rr - mean @ (s.xr + b)
        R, log_determinant = inverse_factor(s.xx + np.diag(precision))
        v, RD = R.T @ (R @ b), R * precision
        gain = np.diag(precision) - RD.T @ RD
        log_volume = log_determinant - float(np.log(precision).sum())
        if len(known) >= len(self.slopes):
            known.clear()  # of another prior
        known[key] = _Block(R, v, float(rr - b @ v), gain, log_volume)
        return known[key]


@dataclass(frozen=True, slots=True, eq=False)
class _Arrow:
    """The arrow solved for what all arms share: shared_factor (d, d) with S^-1 = R' R, theta (d,), noise_variance, and how
    probable it is.
    """

    priors: ArmPriors
    blocks: Sequence[_Block]
    shared_factor: Matrix
    theta: Vector
    noise_variance: float
    log_evidence: float

    def weights(self) -> Matrix:
        """(K + 1, d): what is expected of each arm's."""
        moved = self.priors.precisions * self.theta  # (K + 1, d)
        rows = [block.v + block.R.T @ (block.R @ y) for block, y in zip(self.blocks, moved, strict=True)]
        weights: Matrix = self.priors.means + np.stack(rows)
        return weights


def _arrow(
    prior: QualityPrior,
    priors: ArmPriors,
    blocks: Sequence[_Block],
    ratings: Sequence[RatingStatistics],
    lacking: float,
) -> _Arrow:
    """The last block is that of any other arm. lacking: taken from the evidence."""
    D = priors.precisions  # (K + 1, d)
    v = np.stack([block.v for block in blocks])
    S = np.diag(1.0 / prior.shared_variance)
    for block in blocks:
        if block.gain is not None:
            S += block.gain
    R, log_determinant = inverse_factor(S)
    theta = R.T @ (R @ (D * v).sum(axis=0))
    scatter = sum(block.left for block in blocks) - float((v * (D * theta)).sum())
    nu, n = prior.noise_weight, sum(s.n for s in ratings)
    s2 = (nu * prior.noise_variance + max(scatter, 0.0)) / (nu + n)
    log_volume = sum(block.log_volume for block in blocks) + log_determinant
    log_evidence = float(-0.5 * (log_volume + (nu + n) * np.log(s2)) - lacking)
    return _Arrow(priors, blocks, R, theta, float(s2), log_evidence)


def _seed(ratings: Mapping[str, RatingStatistics]) -> bytes:
    """Of the normals that a posterior's draws are made from: other ratings, other normals; the same on every replica."""
    digest = hashlib.blake2b(digest_size=16)
    for arm, s in sorted(ratings.items()):
        digest.update(arm.encode())
        digest.update(np.array([s.n, s.rr]).tobytes() + s.xr.tobytes())
    return digest.digest()


def _typical_x(ratings: Sequence[RatingStatistics], before: Vector) -> Vector:
    """The bias feature is 1, so the first row of sum w x x' is sum w x; `before` where there are no ratings."""
    if not ratings:
        return before
    total: Vector = np.sum([s.xx[0] for s in ratings], axis=0)
    return total / total[0] if total[0] > 0 else before
