"""`python -m simulations fit-prior DIR... --out FILE`: a population prior from recorded outcomes (empirical Bayes).

Every source is a route that was recorded in full, so each arm's weights are known there but for their noise, and what
varies between arms and between routes can be told apart from it. Two steps:

1. Expectation maximisation for the model of `bandit.quality`, all sources at once: the mean, its price slope, and the
   variances of a route's and of an arm's weights. Variances are tied within a group of features (each fact by itself, all
   words, all tasks); a source's noise is its own.
2. Levels. L_sa, the mean quality of model a in source s, is laid out as  source + price + model + rest, with models and rest
   random (restricted maximum likelihood). What a model's level says in the next source is its best linear unbiased
   prediction; how surely, the spread of the rest with the uncertainty of the prediction.

The prior of an arm's slopes is then narrowed by SLOPES: sources differ in what they ask, and a few odd models widen it.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from bandit.features import NAMES
from bandit.prior import KnownModel, QualityPrior, canonical, relative_log_prices
from simulations.datasets import NANO_DOLLARS, Dataset, load
from simulations.fit_embedder import features_of
from simulations.sources import overlaps
from simulations.world import Facts, Features, contexts_of

Floats = NDArray[np.float64]
ITERATIONS: Final = 80
SLOPES: Final = 0.3  # of the fitted variance of an arm's slopes
KNOWN_SD_MIN: Final = 0.1  # points / 100: a known model may surprise by so much
NOISE_VARIANCE: Final = 0.2  # where a new route's noise starts: right or wrong at 0.28 or 0.72
NOISE_WEIGHT: Final = 20.0
LEAST_VARIANCE: Final = 1e-4
LEAST_LEVEL_VARIANCE: Final = 1e-7  # levels that lie exactly on the price line leave none
UNSEEN_VARIANCES: Final = (0.05, 0.05)  # shared and arm: of a feature that no source ever shows


def run(options: argparse.Namespace) -> None:
    datasets = [load(where) for where in dict.fromkeys(options.data)]
    prior = fit(datasets, features_of(options, datasets))
    options.out.write_text(prior.to_json())
    sources = prior.provenance["sources"]
    print(
        f"{options.out}: {len(sources)} sources, {sum(s['models'] for s in sources)} arms; models known by name:"
    )
    for name, known in sorted(prior.known.items(), key=lambda item: -item[1].level):
        print(f"  {name:<36} {100 * known.level:+6.1f} points beside its price, ± {100 * known.sd:.1f}")


def leave_out(datasets: Sequence[Dataset], features: Features | None = None) -> dict[str, QualityPrior]:
    """By name of data set: the prior fitted on all that do not tell its outcomes. ValueError where none is left."""
    features = features or Facts()
    priors = {}
    for held_out, overlapping in zip(datasets, overlaps(datasets), strict=True):
        others = [data for data, same in zip(datasets, overlapping, strict=True) if not same]
        if not others:
            raise ValueError(
                f"--prior leave-out: nothing to fit a prior on without {held_out.name}; "
                "name a folder of another source too, or use --prior shipped"
            )
        priors[held_out.name] = fit(others, features)
    return priors


def fit(datasets: Sequence[Dataset], features: Features) -> QualityPrior:
    """The prior from these sources; of those that share prompts only the largest counts."""
    sources = [_source(data, features) for data in independent(datasets)]
    groups = _groups(features.d)
    population = _expectation_maximisation(sources, groups)
    typical_x = np.mean([s.mean_x for s in sources], axis=0)
    slope = float(typical_x @ population.price_slope)
    known, between, rest = known_models(sources, slope)
    arm = population.arm_variance * np.where(np.arange(features.d) > 0, SLOPES, 1.0)
    arm[0] = (between**2 + rest**2) / NOISE_VARIANCE
    return QualityPrior(
        mean=population.mean,
        price_slope=population.price_slope,
        shared_variance=population.shared_variance,
        arm_variance=arm,
        typical_x=typical_x,
        typical_square=np.mean([s.xx.diagonal() / s.n for s in sources], axis=0),
        noise_variance=NOISE_VARIANCE,
        noise_weight=NOISE_WEIGHT,
        features=features.tag,
        known=known,
        provenance={
            "command": "python -m simulations fit-prior",
            "sources": [{"name": s.name, "prompts": s.n, "models": len(s.models)} for s in sources],
        },
    )


def independent(datasets: Sequence[Dataset]) -> list[Dataset]:
    """The largest data sets of which no two tell the same outcomes."""
    taken: list[int] = []
    same = overlaps(datasets)
    for i in sorted(range(len(datasets)), key=lambda i: -datasets[i].quality.size):
        if not any(same[i][j] for j in taken):
            taken.append(i)
    return [datasets[i] for i in taken]


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """One source's sums over its n prompts, each answered by all K models. xx (d, d), xr (d, K), rr (K,); levels (K,).

    log_prices: (K,) log10 of USD per million tokens out, NaN without a price; z (K,): see bandit.prior.
    """

    name: str
    models: tuple[str, ...]
    n: int
    mean_x: Floats
    xx: Floats
    xr: Floats
    rr: Floats
    levels: Floats
    log_prices: Floats
    z: Floats


def _source(data: Dataset, features: Features) -> Source:
    X = np.array([context.x for context in contexts_of(data.prompts, features)])
    prices = [
        0.0
        if (arm.price_usd_per_mtok_in, arm.price_usd_per_mtok_out) == NANO_DOLLARS
        else arm.price_usd_per_mtok_out
        for arm in data.arms
    ]
    return Source(
        name=data.name,
        models=tuple(arm.name for arm in data.arms),
        n=len(X),
        mean_x=X.mean(axis=0),
        xx=X.T @ X,
        xr=X.T @ data.quality,
        rr=(data.quality**2).sum(axis=0),
        levels=data.quality.mean(axis=0),
        log_prices=np.log10([price if price > 0 else np.nan for price in prices]),
        z=relative_log_prices(prices),
    )


def _groups(d: int) -> NDArray[np.int64]:
    """(d,) which variance each feature has: each its own, but words and tasks one each."""
    if d != len(NAMES):
        return np.minimum(np.arange(d), 1)  # another feature map: the bias, and the rest
    named = [name.split("-")[0] if name.startswith(("words-", "task-")) else name for name in NAMES]
    order = list(dict.fromkeys(named))
    return np.array([order.index(name) for name in named])


@dataclass(slots=True)
class _Population:
    mean: Floats
    price_slope: Floats
    shared_variance: Floats
    arm_variance: Floats


@dataclass(slots=True)
class _Moments:
    """Sums of an E-step, per feature: second moments and how many they are of, and for the mean and its slope."""

    shared: Floats
    shared_n: Floats
    arm: Floats
    arm_n: Floats
    theta: Floats
    slope: Floats
    slope_n: float = 0.0


def _expectation_maximisation(sources: Sequence[Source], groups: NDArray[np.int64]) -> _Population:
    d = len(groups)
    bias = np.eye(1, d)[0]
    population = _Population(0.7 * bias, np.zeros(d), np.where(bias > 0, 1.0, 0.3), np.full(d, 0.1))
    anonymous = (
        np.array([name.startswith("task-") for name in NAMES]) if d == len(NAMES) else np.zeros(d, bool)
    )
    for _ in range(ITERATIONS):
        moments = _Moments(*np.zeros((6, d)))
        for source in sources:
            _expect(source, population, moments)
        population.shared_variance = _tied(moments.shared, moments.shared_n, groups, UNSEEN_VARIANCES[0])
        population.arm_variance = _tied(moments.arm, moments.arm_n, groups, UNSEEN_VARIANCES[1])
        # half steps, held at zero by one more source; a bucket of tasks means nothing in another route
        step = moments.theta / (moments.shared_n + 1.0)
        slope = moments.slope / (moments.slope_n + 1.0)
        population.mean = population.mean + 0.5 * np.where(anonymous, 0.0, step)
        population.price_slope = population.price_slope + 0.5 * np.where(anonymous, 0.0, slope)
    return population


def _expect(s: Source, population: _Population, moments: _Moments) -> None:
    """Adds the source's posterior moments of theta and of the arms' delta, each over the noise variance."""
    K = len(s.models)
    M = population.mean[:, None] + np.outer(population.price_slope, s.z)  # (d, K)
    b = s.xr - s.xx @ M
    D = np.diag(1.0 / population.arm_variance)
    B_inverse = np.linalg.inv(s.xx + D)
    S_inverse = np.linalg.inv(np.diag(1.0 / population.shared_variance) + K * (D - D @ B_inverse @ D))
    theta = S_inverse @ (D @ B_inverse @ b).sum(axis=1)
    delta = B_inverse @ (b - (s.xx @ theta)[:, None])  # (d, K)
    G = B_inverse @ s.xx  # delta is surer the less it trades with theta
    spread = np.diag(B_inverse + G @ S_inverse @ G.T)
    left = s.rr.sum() - (M * (s.xr + b)).sum() - (b * (theta[:, None] + delta)).sum()
    noise = (0.5 + max(float(left), 0.0)) / (10 + s.n * K)
    seen = (s.xx.diagonal() > 0).astype(np.float64)
    moments.shared += seen * (theta**2 / noise + S_inverse.diagonal())
    moments.shared_n += seen
    moments.arm += seen * ((delta**2).sum(axis=1) / noise + K * spread)
    moments.arm_n += seen * K
    moments.theta += seen * theta
    moments.slope += seen * (delta @ s.z)
    moments.slope_n += float(s.z @ s.z)


def _tied(total: Floats, count: Floats, groups: NDArray[np.int64], unseen: float) -> Floats:
    """(d,) the mean within each group of features, LEAST_VARIANCE where it is less."""
    sums, counts = np.bincount(groups, total), np.bincount(groups, count)
    means = np.where(counts > 0, np.maximum(sums / np.maximum(counts, 1e-9), LEAST_VARIANCE), unseen)
    tied: Floats = means[groups]
    return tied


def known_models(
    sources: Sequence[Source], price_slope: float
) -> tuple[Mapping[str, KnownModel], float, float]:
    """(model -> its level beside its price, sd of that between models, sd of the rest), in quality.

    price_slope: quality per factor of ten in price, taken as given.
    """
    cells = [
        (s, name, float(L), float(p))
        for s in sources
        for name, L, p in zip(s.models, s.levels, s.log_prices, strict=True)
    ]
    names = sorted({canonical(name) for _, name, _, _ in cells})
    y = np.array([L - (price_slope * p if np.isfinite(p) else 0.0) for _, _, L, p in cells])
    X = np.array([[float(s is source) for source in sources] for s, _, _, _ in cells])  # (n, sources)
    Z = np.array([[float(canonical(name) == other) for other in names] for _, name, _, _ in cells])

    def solved(log_variances: Floats) -> tuple[float, Floats, float, float]:
        between, rest = np.maximum(np.exp(log_variances), LEAST_LEVEL_VARIANCE)
        V_inverse = np.linalg.inv(between * Z @ Z.T + rest * np.eye(len(y)))
        A = X.T @ V_inverse @ X
        left = y - X @ np.linalg.solve(A, X.T @ V_inverse @ y)
        criterion = 0.5 * (
            -np.linalg.slogdet(V_inverse)[1] + np.linalg.slogdet(A)[1] + left @ V_inverse @ left
        )
        return float(criterion), V_inverse @ left, float(between), float(rest)

    def penalised(log_variances: Floats) -> float:
        """A weak pull towards sd 0.14 keeps both variances finite where models are few."""
        return solved(log_variances)[0] + 0.01 * float(((log_variances + 4.0) ** 2).sum())

    best = minimize(penalised, np.array([-4.0, -4.0]), method="Nelder-Mead").x
    _, left, between, rest = solved(best)
    levels = between * Z.T @ left
    V_inverse = np.linalg.inv(between * Z @ Z.T + rest * np.eye(len(y)))
    variances = between - between**2 * np.einsum("nk,nm,mk->k", Z, V_inverse, Z)
    known = {
        name: KnownModel(float(level), max(float(np.sqrt(rest + variance)), KNOWN_SD_MIN))
        for name, level, variance in zip(names, levels, variances, strict=True)
    }
    return known, float(np.sqrt(between)), float(np.sqrt(rest))
