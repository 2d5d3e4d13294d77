"""Empirical Bayes on populations whose truth is known: mean, price slope, spread of levels, and what is never mixed."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from bandit.arms import Arm
from bandit.features import DIMENSION
from bandit.prior import canonical, prior_from_json
from bandit.prompt import Prompt
from bandit.types import Context, Needs
from simulations import fit_prior
from simulations.__main__ import main
from simulations.datasets import Dataset, RecordedPrompt, take
from simulations.fit_prior import NOISE_VARIANCE, Source, fit, independent, known_models, leave_out

D = 4
MEAN = np.array([0.6, 0.1, -0.05, 0.0])
PRICE_SLOPE = np.array([0.15, 0.0, 0.05, -0.05])
MODEL_SD, REST_SD, SLOPE_SD, SHARED_SD, NOISE_SD = 0.12, 0.05, 0.03, 0.08, 0.3


@dataclass(frozen=True)
class Space:
    """Features read off the prompt's own text, so that a test knows them."""

    tag: bytes = b"numbers"
    d: int = D

    def context(self, prompt):
        x = np.array([1.0, *map(float, prompt.user.split()[1:])])
        return Context(x, Needs(10))


def population(sources=24, models=10, n=250, seed=0):
    """(data sets, levels of the models beside their price): all from one population."""
    rng = np.random.default_rng(seed)
    levels = rng.normal(0, MODEL_SD, 40)
    prices = 10 ** rng.uniform(-1, 1.5, 40)
    return [
        _recorded(f"source{s}", rng.choice(40, models, replace=False), levels, prices, n, rng)
        for s in range(sources)
    ], levels


def _recorded(name, chosen, levels, prices, n, rng):
    X = np.c_[np.ones(n), rng.normal(size=(n, D - 1))].round(3)
    z = np.log10(prices[chosen])
    z = z - z.mean()
    W = MEAN + np.outer(z, PRICE_SLOPE) + rng.normal(0, SHARED_SD, D)
    W += rng.normal(0, SLOPE_SD, W.shape) * (np.arange(D) > 0)
    W[:, 0] += levels[chosen] + rng.normal(0, REST_SD, len(chosen))
    quality = X @ W.T + rng.normal(0, NOISE_SD, (n, len(chosen)))
    prompts = tuple(
        RecordedPrompt(f"p{i}", f"{name} " + " ".join(map(str, x[1:])), "all", tools=False)
        for i, x in enumerate(X)
    )
    arms = tuple(Arm(f"maker/model{k}-instruct", 0.1, float(prices[k])) for k in chosen)
    tokens = np.full(quality.shape, 100)
    return Dataset(name, prompts, arms, quality, quality * 0 + 0.001, tokens, tokens, {})


@pytest.fixture(scope="module")
def fitted():
    datasets, levels = population()
    return fit(datasets, Space()), levels


def test_the_mean_and_the_price_slope_of_a_population_are_recovered(fitted):
    prior, _ = fitted
    # of a route's mean 24 sources tell to 0.08 / sqrt(24); levels of its ten models blur the bias further
    np.testing.assert_allclose(prior.mean, MEAN, atol=3 * np.hypot(SHARED_SD, 0.04) / np.sqrt(24))
    np.testing.assert_allclose(prior.price_slope, PRICE_SLOPE, atol=0.05)


def test_the_spread_of_levels_is_recovered(fitted):
    prior, _ = fitted
    sd = np.sqrt(prior.arm_variance[0] * NOISE_VARIANCE)
    assert sd == pytest.approx(np.hypot(MODEL_SD, REST_SD), rel=0.25)


def test_the_variances_of_slopes_are_recovered_but_for_the_narrowing(fitted):
    """Variances are in units of the rating's noise, an arm's slopes narrowed to SLOPES of it."""
    prior, _ = fitted
    expected = fit_prior.SLOPES * SLOPE_SD**2 / NOISE_SD**2
    np.testing.assert_allclose(prior.arm_variance[1:], expected, rtol=0.15)
    np.testing.assert_allclose(prior.shared_variance[1:], SHARED_SD**2 / NOISE_SD**2, rtol=0.5)


def test_an_arms_variances_are_recovered_from_routes_of_three_models_too():
    """Where few models share a route, what they share and what is each one's own are hard to tell apart."""
    datasets, _ = population(models=3)
    expected = fit_prior.SLOPES * SLOPE_SD**2 / NOISE_SD**2
    np.testing.assert_allclose(fit(datasets, Space()).arm_variance[1:], expected, rtol=0.15)


def test_a_known_model_is_known_under_its_canonical_name_by_how_much_it_beats_its_price(fitted):
    prior, levels = fitted
    known = np.array([prior.known[f"model{k}"].level for k in range(40) if f"model{k}" in prior.known])
    true = np.array([levels[k] for k in range(40) if f"model{k}" in prior.known])
    assert len(known) > 35
    assert np.corrcoef(known, true - true.mean())[0, 1] > 0.9
    assert np.abs(known - (true - true.mean())).mean() < 0.06
    assert all(k.sd >= fit_prior.KNOWN_SD_MIN for k in prior.known.values())


def test_the_file_says_what_it_was_made_of_and_is_read_back(fitted):
    prior, _ = fitted
    again = prior_from_json(prior.to_json())
    assert again.features == b"numbers"
    assert again.provenance["sources"][0] == {"name": "source0", "prompts": 250, "models": 10}
    np.testing.assert_allclose(again.mean, prior.mean, rtol=1e-4, atol=1e-12)


def source(name, levels, names, prices):
    zeros = np.zeros((D, D))
    log_prices = np.log10([p if p > 0 else np.nan for p in prices])
    return Source(
        name, names, 100, zeros[0], zeros, zeros, zeros[0], np.array(levels), log_prices, np.array(prices)
    )


def test_a_model_seen_often_is_shrunk_less_than_one_seen_once():
    rng = np.random.default_rng(0)
    names = ("steady", *(f"other{k}" for k in range(6)))
    sources = [source(f"s{i}", [0.8, *rng.normal(0.5, 0.05, 6)], names, [1.0] * 7) for i in range(8)] + [
        source("last", [0.8, *rng.normal(0.5, 0.05, 6)], ("once", *names[1:]), [1.0] * 7)
    ]
    known, between, rest = known_models(sources, 0.0)
    assert 0 < known["once"].level < known["steady"].level
    assert known["steady"].level == pytest.approx(0.3 * 6 / 7, abs=0.06)  # beside the mean of its seven
    assert between > 2 * rest


def test_what_a_price_explains_is_no_merit_of_the_model():
    """Levels exactly on the price line leave nothing to know; one model without a price counts as it stands."""
    names = tuple(f"m{k}" for k in range(5))
    prices = [0.1, 1.0, 10.0, 100.0, 1000.0]
    sources = [source(f"s{i}", 0.3 + 0.1 * np.log10(prices), names, prices) for i in range(4)]
    known, _, _ = known_models(sources, 0.1)
    assert max(abs(k.level) for k in known.values()) < 1e-6


def test_the_expectations_are_those_of_one_big_regression():
    """Posterior moments of what a route's arms share and of what is each one's own, written out in blocks."""
    rng, n, K, d = np.random.default_rng(3), 40, 3, D
    X = np.c_[np.ones(n), rng.normal(size=(n, d - 1))]
    X[:, 3] = 0.0  # a feature that this source never shows
    R = rng.uniform(size=(n, K))
    z = np.array([-1.0, 0.25, 0.75])
    s = Source(
        "s",
        ("a", "b", "c"),
        n,
        X.mean(axis=0),
        X.T @ X,
        X.T @ R,
        (R**2).sum(axis=0),
        R.mean(axis=0),
        10**z,
        z,
    )
    population = fit_prior._Population(MEAN, PRICE_SLOPE, rng.uniform(0.1, 1, d), rng.uniform(0.05, 0.5, d))
    moments = fit_prior._Moments(*np.zeros((6, d)))
    fit_prior._expect(s, population, moments)

    M = MEAN[:, None] + np.outer(PRICE_SLOPE, z)
    design = np.concatenate([np.c_[X, np.kron(np.eye(K)[k], X)] for k in range(K)])  # theta, delta_a ...
    y = (R - X @ M).T.ravel()
    prior = np.concatenate([1 / population.shared_variance, *[1 / population.arm_variance] * K])
    covariance = np.linalg.inv(np.diag(prior) + design.T @ design)
    mean = covariance @ design.T @ y
    noise = (0.5 + y @ (y - design @ mean)) / (10 + n * K)
    second = mean**2 / noise + covariance.diagonal()
    seen = np.array([1.0, 1.0, 1.0, 0.0])
    np.testing.assert_allclose(moments.shared, seen * second[:d], rtol=1e-9)
    np.testing.assert_allclose(moments.arm, seen * second[d:].reshape(K, d).sum(axis=0), rtol=1e-9)
    np.testing.assert_allclose(moments.theta, seen * mean[:d], rtol=1e-8, atol=1e-14)
    np.testing.assert_allclose(moments.slope, seen * (z @ mean[d:].reshape(K, d)), rtol=1e-8, atol=1e-14)
    assert moments.shared_n.tolist() == seen.tolist()
    assert moments.arm_n.tolist() == (K * seen).tolist()
    assert moments.slope_n == pytest.approx(z @ z)


def test_a_better_prior_in_likelihood_is_what_the_fit_ends_at():
    """The fitted variances tell the data better than variances twice or half as large do: the marginal likelihood says so."""
    datasets, _ = population(sources=10, models=6, n=120, seed=5)
    sources = [fit_prior._source(data, Space()) for data in datasets]
    found = fit_prior._expectation_maximisation(sources, fit_prior._groups(D))

    def evidence(shared, arm):
        """Log marginal likelihood, the noise that the data were made with given."""
        total = 0.0
        M = found.mean[:, None]
        for data, s in zip(datasets, sources, strict=True):
            X = np.array([Space().context(_asked(p)).x for p in data.prompts])
            K = len(s.models)
            y = (data.quality - X @ (M + np.outer(found.price_slope, s.z))).T.ravel()
            design = np.concatenate([np.c_[X, np.kron(np.eye(K)[k], X)] for k in range(K)])
            variances = NOISE_SD**2 * np.concatenate([shared, np.tile(arm, K)])
            A = np.diag(1 / variances) + design.T @ design / NOISE_SD**2
            b = design.T @ y / NOISE_SD**2
            total -= 0.5 * (np.linalg.slogdet(A)[1] + np.log(variances).sum() - b @ np.linalg.solve(A, b))
        return total

    best = evidence(found.shared_variance, found.arm_variance)
    for factor in (0.5, 2.0):
        assert evidence(factor * found.shared_variance, found.arm_variance) < best
        assert evidence(found.shared_variance, factor * found.arm_variance) < best


def _asked(prompt):
    return Prompt(user=prompt.text)


def test_leave_out_never_fits_on_overlapping_data():
    datasets, _ = population(sources=3, models=5, n=40, seed=1)
    part = replace(take(datasets[0], np.arange(20)), name="part")
    joined = [*datasets, part]
    priors = leave_out(joined, Space())
    assert set(priors) == {data.name for data in joined}

    def sources_of(name):
        return {s["name"] for s in priors[name].provenance["sources"]}

    assert sources_of("source0") == sources_of("part") == {"source1", "source2"}
    assert sources_of("source1") == {"source0", "source2"}  # the whole and its part count once, the larger
    alone = fit([datasets[1], datasets[2]], Space())
    assert priors["part"].to_json() == alone.to_json()


def test_leave_out_of_one_source_says_what_to_do():
    datasets, _ = population(sources=1, models=4, n=30)
    part = replace(take(datasets[0], np.arange(20)), name="part")
    with pytest.raises(
        ValueError, match="nothing to fit a prior on without source0; name a folder of another source"
    ):
        leave_out([datasets[0], part], Space())


def test_of_what_overlaps_the_largest_is_kept():
    datasets, _ = population(sources=2, models=4, n=30)
    part = replace(take(datasets[0], np.arange(20)), name="part")
    assert [d.name for d in independent([part, *datasets])] == ["source0", "source1"]


def test_the_order_of_the_sources_does_not_matter():
    datasets, _ = population(sources=4, models=5, n=40)
    here, there = fit(datasets, Space()), fit(datasets[::-1], Space())
    np.testing.assert_allclose(there.mean, here.mean, atol=1e-9)
    np.testing.assert_allclose(there.arm_variance, here.arm_variance, rtol=1e-6)


def test_the_command_writes_a_file_for_these_features(tmp_path, capsys):
    out = tmp_path / "prior.json"
    assert main(["fit-prior", "wheel", "--out", str(out)]) == 0
    prior = prior_from_json(out.read_text())
    assert len(prior.mean) == DIMENSION
    assert np.isfinite(prior.mean).all()
    assert not prior.mean[-32:].any()
    printed = capsys.readouterr().out
    assert "1 sources, 3 arms" in printed
    assert all(canonical(name) == name for name in prior.known)
