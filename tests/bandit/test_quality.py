"""The shared-baseline posterior against the same Gaussian written out as one big linear regression."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bandit import quality, quality_posterior
from bandit.arms import Arm
from bandit.feature_scale import slope_factor
from bandit.level_spread import level_factor
from bandit.prior import KnownModel, QualityPrior
from bandit.quality import AS_THE_PRIOR_SAYS, SharedBaseline
from bandit.statistics import RatingStatistics

D = 4
PRIOR = QualityPrior(
    mean=np.array([0.6, 0.05, -0.1, 0.0]),
    price_slope=np.array([0.2, 0.0, 0.05, -0.02]),
    shared_variance=1 / np.array([2.0, 3.0, 4.0, 2.5]),
    arm_variance=1 / np.array([5.0, 7.0, 9.0, 6.0]),
    typical_x=np.array([1.0, 0.2, 0.0, -0.1]),
    typical_square=np.full(D, 2.0),
    noise_variance=0.1,
    noise_weight=4.0,
    known={"arm1": KnownModel(0.1, 0.05)},
)
ARMS = (
    Arm("arm0", 0.1, 0.4),
    Arm("arm1", 1.0, 2.0),
    Arm("arm2", 5.0, 15.0, expected_quality=0.9, expected_quality_ratings=8.0),
    Arm("arm3", 0.0, 0.0, sibling="arm1"),
    Arm("arm4", 1.0, 60.0),
)
MODEL = SharedBaseline(PRIOR, ARMS)


def data(seed: int, counts: list[int]):
    rng = np.random.default_rng(seed)
    for k, count in enumerate(counts):
        for _ in range(count):
            x = np.r_[1.0, rng.normal(size=D - 1)]
            yield (
                f"arm{k}",
                x,
                float(np.clip(rng.normal(0.3 + 0.2 * k, 0.2), 0, 1)),
                float(rng.uniform(0.5, 2)),
            )


def statistics(rows):
    out: dict[str, RatingStatistics] = {}
    for arm, x, r, w in rows:
        out[arm] = out.get(arm, RatingStatistics.empty(D)).added(x, r, w)
    return out


def one_big_regression(rows, arms, model=MODEL):
    """Coefficients (theta, delta_1, ..., delta_K) of one conjugate regression on block features, under the more probable of
    the priors that the model chooses from.
    """
    rated = statistics(rows)
    here = {arm.name for arm in model.arms}
    route = (*model.arms, *(Arm(name, 0.0, 0.0) for name in rated if name not in here))
    priors = model.prior.of(route)
    factor = level_factor(model.prior, priors, [rated.get(arm.name) for arm in route])
    scale = slope_factor(model.prior, rated)
    place = {arm.name: k for k, arm in enumerate(route)}
    of = [place.get(arm, len(route)) for arm in arms]
    fits = [
        (evidence - lacking, fit)
        for slopes, lacking in model.slopes
        for evidence, *fit in [
            _regression(
                rows,
                arms,
                model.prior,
                priors.with_slopes_spread(scale).with_levels_spread(factor).with_slopes_spread(slopes),
                of,
            )
        ]
    ]
    return max(fits, key=lambda found: found[0])[1]


def _regression(rows, arms, p, priors, of):
    """Log evidence up to a constant, mean, covariance, noise variance."""
    size = D * (1 + len(arms))
    prior = np.concatenate([1 / p.shared_variance, *priors.precisions[of]])
    m0 = np.concatenate([np.zeros(D), *priors.means[of]])
    precision, moment, rr, n = np.diag(prior), prior * m0, 0.0, 0.0
    for arm, x, r, w in rows:
        z = np.zeros(size)
        z[:D] = x
        start = D * (1 + arms.index(arm))
        z[start : start + D] = x
        precision, moment = precision + w * np.outer(z, z), moment + w * r * z
        rr, n = rr + w * r * r, n + w
    mean = np.linalg.solve(precision, moment)
    scatter = rr + m0 @ (prior * m0) - moment @ mean
    s2 = (p.noise_weight * p.noise_variance + scatter) / (p.noise_weight + n)
    volume = np.linalg.slogdet(precision)[1] - np.log(prior).sum()
    evidence = -0.5 * (volume + (p.noise_weight + n) * np.log(s2))
    return evidence, mean, s2 * np.linalg.inv(precision), s2


def blocks_at(x, arms):
    """(K, D (1 + K)): the features of the one big regression for each arm at x."""
    Z = np.zeros((len(arms), D * (1 + len(arms))))
    for k in range(len(arms)):
        Z[k, :D] = x
        Z[k, D * (1 + k) : D * (2 + k)] = x
    return Z


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), counts=st.lists(st.integers(0, 12), min_size=2, max_size=7))
def test_equals_one_big_regression(seed, counts):
    """Arms with prices, known by name, told by the registry, by their sibling, and (beyond five) of no route at all."""
    rows = list(data(seed, counts))
    arms = [f"arm{k}" for k in range(len(counts))]
    mean, covariance, s2 = one_big_regression(rows, arms)
    x = np.r_[1.0, np.random.default_rng(seed + 1).normal(size=D - 1)]
    Z = blocks_at(x, arms)

    posterior = MODEL.fit(statistics(rows), D)
    prediction = posterior.predict(x, arms)

    np.testing.assert_allclose(prediction.mean, Z @ mean, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(prediction.covariance, Z @ covariance @ Z.T, rtol=1e-9, atol=1e-10)
    assert posterior.noise_variance == pytest.approx(s2, rel=1e-10)


def test_equals_one_big_regression_in_as_many_dimensions_as_requests_have():
    d = 62
    rng = np.random.default_rng(7)
    prior = QualityPrior(
        mean=rng.normal(0, 0.1, d),
        price_slope=rng.normal(0, 0.1, d),
        shared_variance=rng.uniform(0.01, 1, d),
        arm_variance=rng.uniform(0.001, 0.5, d),
        typical_x=np.eye(d)[0],
        typical_square=np.full(d, 2.0),
        noise_variance=0.2,
        noise_weight=20.0,
    )
    model = SharedBaseline(prior, ARMS, slopes=AS_THE_PRIOR_SAYS)
    X = np.concatenate([np.ones((5, 30, 1)), rng.normal(size=(5, 30, d - 1))], axis=2)
    r = rng.uniform(size=(5, 30))
    posterior = model.fit({f"arm{k}": sums(X[k], r[k]) for k in range(5)}, d)
    priors = prior.of(ARMS)
    size = 6 * d
    P = np.concatenate([1 / prior.shared_variance, *priors.precisions[:5]])
    m0 = np.concatenate([np.zeros(d), *priors.means[:5]])
    Z = np.zeros((5, 30, size))
    for k in range(5):
        Z[k, :, :d] = Z[k, :, d * (k + 1) : d * (k + 2)] = X[k]
    Z, y = Z.reshape(-1, size), r.ravel()
    precision = np.diag(P) + Z.T @ Z
    mean = np.linalg.solve(precision, P * m0 + Z.T @ y)
    s2 = (4.0 + ((y - Z @ mean) ** 2).sum() + (P * (mean - m0) ** 2).sum()) / (20 + len(y))
    prediction = posterior.predict(X[0, 0], [f"arm{k}" for k in range(5)])
    at = np.stack([np.r_[X[0, 0], np.kron(np.eye(5)[k], X[0, 0])] for k in range(5)])
    np.testing.assert_allclose(prediction.mean, at @ mean, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(
        prediction.covariance, s2 * at @ np.linalg.solve(precision, at.T), rtol=1e-9, atol=1e-10
    )
    assert posterior.noise_variance == pytest.approx(s2, rel=1e-10)


def test_matches_bayesianbandits_for_one_arm():
    """With one arm, theta + delta is one coefficient vector whose prior covariance is the sum of the two."""
    from bayesianbandits import NormalInverseGammaRegressor

    rows = list(data(3, [60]))
    reference = NormalInverseGammaRegressor(
        mu=PRIOR.mean,
        lam=np.diag(1 / (PRIOR.shared_variance + PRIOR.arm_variance)),
        a=PRIOR.noise_weight / 2,
        b=PRIOR.noise_weight * PRIOR.noise_variance / 2,
    )
    X, y = np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
    reference.fit(X, y)
    unweighted = statistics((arm, x, r, 1.0) for arm, x, r, _ in rows)
    posterior = SharedBaseline(PRIOR).fit(unweighted, D)
    for x in X[:5]:
        prediction = posterior.predict(x, ["arm0"])
        assert prediction.mean[0] == pytest.approx(float(reference.predict(x[None])[0]), abs=1e-9)
        upper = np.triu(reference.cov_inv_)  # below lies what was there before
        variance = reference.b_ / reference.a_ * x @ np.linalg.solve(upper + np.triu(upper, 1).T, x)
        assert prediction.covariance[0, 0] == pytest.approx(variance, rel=1e-8)
    assert posterior.noise_variance == pytest.approx(reference.b_ / reference.a_, rel=1e-9)


def test_matches_mabwisers_ridge_for_one_arm():
    """A prior of mean 0 and total precision 1 is ridge regression with lambda 1: LinGreedy's without exploration.

    LinUCB adds alpha standard deviations, in units of the noise.
    """
    from mabwiser.mab import MAB, LearningPolicy

    half = np.full(D, 0.5)
    ridge = replace(
        PRIOR, mean=np.zeros(D), shared_variance=half, arm_variance=half, known={}, price_slope=np.zeros(D)
    )
    rows = [(arm, x, r, 1.0) for arm, x, r, _ in data(4, [60])]
    X, y = np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
    greedy = MAB(["arm0"], LearningPolicy.LinGreedy(epsilon=0.0, l2_lambda=1.0))
    optimist = MAB(["arm0"], LearningPolicy.LinUCB(alpha=1.5, l2_lambda=1.0))
    for mab in (greedy, optimist):
        mab.fit(["arm0"] * len(y), y, X)
    posterior = SharedBaseline(ridge, slopes=AS_THE_PRIOR_SAYS).fit(statistics(rows), D)
    for x in X[:5]:
        expected, upper = (float(mab.predict_expectations(x[None])["arm0"]) for mab in (greedy, optimist))
        prediction = posterior.predict(x, ["arm0"])
        assert prediction.mean[0] == pytest.approx(expected, abs=1e-9)
        sd = prediction.sd()[0] / np.sqrt(posterior.noise_variance)
        assert sd == pytest.approx((upper - expected) / 1.5, rel=1e-8)


def test_draws_are_of_the_gaussian_that_is_predicted():
    """Of arms with ratings, arms of the route without, and two that nobody has heard of, over many posteriors' draws."""
    names, x = ["arm0", "arm1", "arm2", "p", "q"], np.array([1.0, 0.5, -0.5, 1.0])
    for seed in range(3):
        posterior = SharedBaseline(PRIOR, ARMS, draws=8192).fit(statistics(data(seed, [3, 9, 0])), D)
        exact, drawn = posterior.predict(x, names), posterior.draws(x, names)
        np.testing.assert_allclose(drawn.mean, exact.mean, rtol=1e-12)
        np.testing.assert_allclose(drawn.deviations.mean(axis=0), 0.0, atol=0.01)
        sd = exact.sd()
        np.testing.assert_allclose(drawn.sd(), sd, rtol=0.04)
        np.testing.assert_allclose(
            np.cov(drawn.deviations.T) / np.outer(sd, sd), exact.covariance / np.outer(sd, sd), atol=0.06
        )
        for arm in drawn.deviations.T:
            assert stats.kstest(arm / arm.std(), "norm").pvalue > 1e-3


def test_the_same_ratings_give_the_same_draws_and_others_others():
    x, names = np.array([1.0, 0.5, -0.5, 1.0]), ["arm0", "arm1", "new"]
    rows = list(data(5, [3, 9]))
    here, again = (MODEL.fit(statistics(rows), D).draws(x, names).deviations for _ in range(2))
    assert np.array_equal(here, again)
    fewer = MODEL.fit(statistics(rows[:-1]), D).draws(x, names).deviations
    assert np.abs(np.corrcoef(here[:, 1], fewer[:, 1])[0, 1]) < 0.5
    some = MODEL.fit(statistics(rows), D).draws(x, names[::2]).deviations
    np.testing.assert_allclose(some, here[:, ::2], rtol=1e-5)


def test_arms_share_what_requests_have_in_common():
    """Hard requests seen by one arm only lower the belief in another arm too, but less."""
    rows = [("seen", np.r_[1.0, 1.0, 0.0, 0.0], 0.1, 1.0)] * 30 + [
        ("seen", np.r_[1.0, -1.0, 0.0, 0.0], 0.9, 1.0)
    ] * 30
    posterior = SharedBaseline(PRIOR).fit(statistics(rows), D)
    hard, easy = (posterior.predict(np.r_[1.0, side, 0.0, 0.0], ["seen", "new"]).mean for side in (1.0, -1.0))
    assert hard[0] < hard[1] < easy[1] < easy[0]


def sums(X, r):
    return RatingStatistics(X.T @ X, X.T @ r, float(len(r)), float(r @ r))


def test_ninety_percent_intervals_hold_the_truth_nine_times_in_ten():
    """Truth drawn from the prior, ratings from the truth: intervals of an arm and of the difference of two arms.

    The difference is what a choice rests on; its interval is right only if the covariance between arms is.
    """
    problems, inside = 1500, np.zeros(2)
    variance = PRIOR.noise_variance
    known = SharedBaseline(replace(PRIOR, noise_weight=1e9), ARMS[:3])
    priors = PRIOR.of(ARMS[:3])
    for seed in range(problems):
        rng = np.random.default_rng(seed)
        shared = np.sqrt(variance * PRIOR.shared_variance)
        own = np.sqrt(variance / priors.precisions[:3])
        truth = shared * rng.normal(size=D) + priors.means[:3] + own * rng.normal(size=(3, D))
        ratings = {}
        for k, count in enumerate((15, 4, 1)):
            X = np.c_[np.ones(count), rng.normal(size=(count, D - 1))]
            ratings[f"arm{k}"] = sums(X, X @ truth[k] + rng.normal(0, np.sqrt(variance), count))
        x = np.r_[1.0, rng.normal(size=D - 1)]
        prediction = known.fit(ratings, D).predict(x, ["arm0", "arm1", "arm2"])
        for i, contrast in enumerate(np.array([[0.0, 1.0, 0.0], [1.0, 0.0, -1.0]])):
            error = contrast @ (truth @ x - prediction.mean)
            inside[i] += abs(error) <= 1.6449 * np.sqrt(contrast @ prediction.covariance @ contrast)
    assert inside / problems == pytest.approx(0.9, abs=0.02)


def separate(seed, slopes, n=800, K=4, d=14):
    """Ratings of K arms whose slopes are their own (sd `slopes`), each asked at random."""
    rng = np.random.default_rng(seed)
    W = np.c_[0.6 + rng.normal(0, 0.1, K), rng.normal(0, slopes, (K, d - 1))]
    X = np.c_[np.ones(n), rng.normal(size=(n, d - 1))]
    k, noise = rng.integers(0, K, n), rng.normal(0, 0.3, n)
    return {f"arm{a}": sums(X[k == a], (X @ W[a] + noise)[k == a]) for a in range(K)}, d


def test_features_that_tell_nothing_of_the_best_arm_are_believed_to_tell_nothing():
    for seed in range(5):
        ratings, d = separate(seed, slopes=0.0)
        names = sorted(ratings)
        believed = SharedBaseline().fit(ratings, d)
        certain = SharedBaseline(slopes=AS_THE_PRIOR_SAYS).fit(ratings, d)
        x = np.r_[1.0, np.random.default_rng(seed).normal(size=d - 1)]
        assert believed.predict(x, names).sd().mean() < 0.75 * certain.predict(x, names).sd().mean()


def test_features_that_tell_are_believed():
    for seed in range(5):
        ratings, d = separate(seed, slopes=0.1)
        x = np.r_[1.0, np.random.default_rng(seed).normal(size=d - 1)]
        here = SharedBaseline().fit(ratings, d).predict(x, sorted(ratings))
        there = SharedBaseline(slopes=AS_THE_PRIOR_SAYS).fit(ratings, d).predict(x, sorted(ratings))
        np.testing.assert_array_equal(here.mean, there.mean)


def test_the_noise_is_learned():
    rng = np.random.default_rng(0)
    X = np.c_[np.ones(100_000), rng.normal(size=(100_000, D - 1))]
    r = X @ np.array([0.5, 0.1, -0.1, 0.0]) + rng.normal(0, 0.3, len(X))
    assert SharedBaseline().fit({"a": sums(X, r)}, D).noise_variance == pytest.approx(0.09, rel=0.02)


def degenerate(rows):
    rng = np.random.default_rng(1)
    x = rng.normal(size=rows)
    zeros, ones = np.zeros(rows), np.ones(rows)
    return {
        "collinear": np.c_[ones, x, 2 * x, -x],
        "nearly collinear": np.c_[ones, x, x + 1e-7 * rng.normal(size=rows), x],
        "duplicated rows": np.tile([1.0, 0.5, -0.25, 3.0], (rows, 1)),
        "a constant feature": np.c_[ones, 4 * ones, x, rng.normal(size=rows)],
        "features that never occur": np.c_[ones, zeros, zeros, zeros],
    }


@pytest.mark.parametrize("weight", [1e-12, 1.0, 1e9])
@pytest.mark.parametrize("kind", degenerate(1))
def test_features_without_information_leave_the_posterior_sound(kind, weight):
    X = degenerate(200)[kind]
    r = 0.4 + 0.1 * X[:, 1] + np.random.default_rng(2).normal(0, 0.05, len(X))
    s = sums(X, r).times(weight)
    posterior = SharedBaseline(PRIOR).fit({"a": s, "b": s}, D)
    for x in (*X[:5], np.array([1.0, -4.0, 4.0, 4.0])):
        prediction = posterior.predict(x, ["a", "b", "new"])
        assert np.isfinite(prediction.mean).all()
        assert (np.diag(prediction.covariance) > 0).all()
        assert prediction.mean[0] == pytest.approx(prediction.mean[1], abs=1e-6)
    if weight >= 1:
        seen = np.array([posterior.predict(x, ["a"]).mean[0] for x in X[:50]])
        assert np.abs(seen - (0.4 + 0.1 * X[:50, 1])).max() < 0.06
    assert np.isfinite(posterior.noise_variance)
    assert posterior.noise_variance > 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(3)))
def test_the_order_in_which_arms_are_known_changes_nothing(seed, order):
    ratings = statistics(data(seed, [5, 9, 2]))
    names = list(ratings)
    permuted = {names[k]: ratings[names[k]] for k in order}
    x = np.r_[1.0, np.random.default_rng(seed).normal(size=D - 1)]
    here = SharedBaseline(PRIOR).fit(ratings, D).predict(x, names)
    there = SharedBaseline(PRIOR).fit(permuted, D).predict(x, names)
    np.testing.assert_allclose(there.mean, here.mean, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(there.covariance, here.covariance, rtol=1e-10, atol=1e-14)


def test_predictions_come_in_the_order_asked():
    posterior = SharedBaseline(PRIOR).fit(statistics(data(1, [5, 3, 9])), D)
    x = np.array([1.0, 0.5, -1.0, 2.0])
    there, back = posterior.predict(x, ["arm0", "arm2", "new"]), posterior.predict(x, ["new", "arm2", "arm0"])
    np.testing.assert_allclose(back.mean, there.mean[::-1], rtol=1e-12)
    np.testing.assert_allclose(back.covariance, there.covariance[::-1, ::-1], rtol=1e-12)


def test_an_arm_without_ratings_changes_no_other_and_is_as_good_as_unnamed():
    ratings = statistics(data(2, [5, 8]))
    x = np.array([1.0, 0.5, -1.0, 2.0])
    before = SharedBaseline(PRIOR).fit(ratings, D)
    after = SharedBaseline(PRIOR).fit({"new": RatingStatistics.empty(D), **ratings}, D)
    names = ["arm0", "arm1", "new"]
    np.testing.assert_allclose(after.predict(x, names).mean, before.predict(x, names).mean, rtol=1e-12)
    np.testing.assert_allclose(
        after.predict(x, names).covariance, before.predict(x, names).covariance, rtol=1e-12
    )
    np.testing.assert_allclose(after.typical(names), before.typical(names), rtol=1e-12)


def test_without_any_rating_the_prior_answers():
    posterior = SharedBaseline(PRIOR).fit({}, D)
    level = np.array([1.0, 0.0, 0.0, 0.0])
    prediction = posterior.predict(level, ["a", "b"])
    v = PRIOR.noise_variance
    assert prediction.mean.tolist() == pytest.approx([0.6, 0.6])
    shared, own = v * PRIOR.shared_variance[0], v * PRIOR.arm_variance[0]
    np.testing.assert_allclose(prediction.covariance, [[shared + own, shared], [shared, shared + own]])
    assert posterior.noise_variance == pytest.approx(v)
    assert posterior.typical(["a"])[0] == pytest.approx(PRIOR.mean @ PRIOR.typical_x)


def test_two_unknown_arms_share_a_belief_but_not_a_draw():
    """Else a draw could never prefer one of two new arms to the other."""
    prediction = SharedBaseline(PRIOR).fit(statistics(data(1, [9])), D).predict(np.eye(D)[0], ["p", "q"])
    C = prediction.covariance
    assert C[0, 0] == pytest.approx(C[1, 1])
    assert C[0, 1] < C[0, 0] * 0.99


def test_typical_is_the_mean_expectation_over_the_traffic_rated():
    rows = list(data(6, [6, 10]))
    posterior = SharedBaseline(PRIOR).fit(statistics(rows), D)
    x = np.array([x for _, x, _, _ in rows])
    weights = np.array([w for *_, w in rows])
    each = np.array([posterior.predict(one, ["arm0", "arm1"]).mean for one in x])
    np.testing.assert_allclose(posterior.typical(["arm0", "arm1"]), weights @ each / weights.sum())


def test_the_block_cache_changes_nothing():
    """Growing statistics arm by arm, one model fits again and again; a fresh one fits the end once."""
    model, rows = SharedBaseline(PRIOR, ARMS), list(data(9, [5, 6, 7]))
    np.random.default_rng(0).shuffle(rows)
    ratings = {}
    for arm, x, r, w in rows:
        ratings[arm] = ratings.get(arm, RatingStatistics.empty(D)).added(x, r, w)
        cached = model.fit(ratings, D)
    fresh = SharedBaseline(PRIOR, ARMS).fit(ratings, D)
    assert_same_bits(cached, fresh)
    assert_same_bits(model.fit(ratings, D), fresh)


def test_a_cached_block_is_not_used_under_another_prior():
    """Another price at entry is another prior mean for the very same statistics."""
    ratings = statistics(data(9, [5, 6, 7]))
    model = SharedBaseline(PRIOR, ARMS)
    model.fit(ratings, D)
    entry = {"arm0": 30.0}
    assert_same_bits(model.fit(ratings, D, entry), SharedBaseline(PRIOR, ARMS).fit(ratings, D, entry))


def test_after_its_steps_a_fit_inverts_nothing_but_what_is_shared(monkeypatch):
    ratings, model, inverted = statistics(data(9, [5, 6, 7])), SharedBaseline(PRIOR, ARMS), []
    inverse = quality.inverse_factor

    def counting(B):
        inverted.append(B)
        return inverse(B)

    monkeypatch.setattr(quality, "inverse_factor", counting)
    steps = sum(1 for _ in model.steps(ratings, D, {}))
    assert (steps, len(inverted)) == (2 * len(ARMS), 2 * len(ratings)), (
        "one for each of two choices of slopes"
    )
    inverted.clear()
    assert_same_bits(model.fit(ratings, D), SharedBaseline(PRIOR, ARMS).fit(ratings, D))
    assert len(inverted) == 2 + 2 + 2 * len(ratings), "two of its own; the rest are the fresh model's"


def test_after_its_steps_a_posterior_draws_nothing_more_for_the_arms_of_its_route(monkeypatch):
    ratings, x, names = (
        statistics(data(9, [5, 6, 7])),
        np.array([1.0, 0.5, -1.0, 2.0]),
        [a.name for a in ARMS],
    )
    lazily = MODEL.fit(ratings, D).draws(x, names)
    posterior = MODEL.fit(ratings, D)
    assert sum(1 for _ in posterior.steps()) == len(ARMS)
    monkeypatch.setattr(quality_posterior, "normals_of", None)
    assert np.array_equal(posterior.draws(x, names).deviations, lazily.deviations)


def assert_same_bits(here, there):
    for name in ("weights", "precisions", "shared_factor", "typical_x"):
        assert getattr(here, name).tobytes() == getattr(there, name).tobytes(), name
    assert [R.tobytes() for R in here.factors] == [R.tobytes() for R in there.factors]
    assert (here.noise_variance, here.seed) == (there.noise_variance, there.seed)


def test_a_price_change_after_the_first_rating_leaves_the_quality_posterior_as_it_is():
    ratings = statistics(data(1, [5, 6, 7, 2, 1]))
    entry = {arm.name: arm.price_usd_per_mtok_out for arm in ARMS}
    now = tuple(
        replace(arm, price_usd_per_mtok_out=arm.price_usd_per_mtok_out * 7 + k) for k, arm in enumerate(ARMS)
    )
    assert_same_bits(SharedBaseline(PRIOR, now).fit(ratings, D, entry), MODEL.fit(ratings, D, entry))
    moved = SharedBaseline(PRIOR, now).fit(ratings, D)  # without the entry prices it would have moved
    assert not np.allclose(moved.weights, MODEL.fit(ratings, D).weights)


def test_an_inverted_prior_is_unlearned():
    """The prior takes the worst arm for the best, as surely as fifty ratings of each; the ratings say otherwise."""
    wrong = replace(PRIOR, price_slope=np.array([0.3, 0, 0, 0]), arm_variance=np.full(D, 1 / 50), known={})
    arms = (Arm("bad", 1.0, 100.0), Arm("good", 1.0, 1.0))
    model = SharedBaseline(wrong, arms)
    names, at = ["bad", "good"], np.eye(D)[0]
    before = model.fit({}, D).predict(at, names).mean
    assert before[0] > before[1] + 0.3
    rng = np.random.default_rng(0)
    X = np.c_[np.ones(600), rng.normal(size=(600, D - 1))]
    ratings = {
        name: sums(X, level + rng.normal(0, 0.3, 600)) for name, level in (("bad", 0.4), ("good", 0.8))
    }
    after = model.fit(ratings, D).predict(at, names).mean
    np.testing.assert_allclose(after, [0.4, 0.8], atol=0.06)


def test_what_is_expected_of_two_arms_tells_their_difference_as_surely_as_it_says():
    """Var(q_a - q_b) = s2 (1 / m_a + 1 / m_b) at a usual level: what they share is none of the registry's business."""
    level, slopes = np.eye(D)[0], np.array([0.0, 1.0, 1.0, 1.0])
    flat = replace(PRIOR, typical_x=level)
    arms = (
        Arm("a", 1.0, 1.0, expected_quality=0.9, expected_quality_ratings=10.0),
        Arm("b", 1.0, 50.0, expected_quality=0.4, expected_quality_ratings=40.0),
        Arm("c", 1.0, 1.0, sibling="arm1"),
    )
    C = SharedBaseline(flat, arms).fit({}, D).predict(level, ["a", "b", "c"]).covariance
    assert C[0, 0] + C[1, 1] - 2 * C[0, 1] == pytest.approx(PRIOR.noise_variance * (1 / 10 + 1 / 40))
    assert C[2, 2] - C[2, 0] == pytest.approx(PRIOR.known["arm1"].sd ** 2)
    posterior = SharedBaseline(flat, arms).fit({}, D)
    mean = posterior.predict(level, ["a", "b", "c", "unheard of"]).mean
    assert mean.tolist() == pytest.approx([0.9, 0.4, PRIOR.mean[0] + mean_price(arms, 2) + 0.1, 0.6])
    bare = SharedBaseline(flat, tuple(replace(arm, expected_quality=None) for arm in arms)).fit({}, D)
    np.testing.assert_allclose(  # of slopes it says nothing
        posterior.predict(slopes, ["a", "b"]).mean, bare.predict(slopes, ["a", "b"]).mean
    )


def mean_price(arms, k):
    """What the price of arm k says of its level."""
    return PRIOR.price_slope[0] * (
        np.log10([arm.price_usd_per_mtok_out for arm in arms])[k] - np.log10(50) / 3
    )


def test_permuting_the_routes_arms_permutes_their_beliefs():
    ratings, names = statistics(data(3, [5, 6, 0, 2, 1])), [arm.name for arm in ARMS]
    x = np.array([1.0, 0.5, -1.0, 2.0])
    here, there = MODEL.fit(ratings, D), SharedBaseline(PRIOR, ARMS[::-1]).fit(ratings, D)
    np.testing.assert_allclose(there.predict(x, names).mean, here.predict(x, names).mean, rtol=1e-10)
    np.testing.assert_allclose(
        there.predict(x, names).covariance, here.predict(x, names).covariance, rtol=1e-9, atol=1e-14
    )


@pytest.mark.parametrize("factor", [1e-3, 7.0, 1e6])
def test_all_prices_in_another_currency_change_no_belief(factor):
    dear = tuple(replace(arm, price_usd_per_mtok_out=factor * arm.price_usd_per_mtok_out) for arm in ARMS)
    ratings = statistics(data(3, [5, 6, 0, 2, 1]))
    here, there = MODEL.fit(ratings, D), SharedBaseline(PRIOR, dear).fit(ratings, D)
    np.testing.assert_allclose(there.weights, here.weights, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("draws", [0, 8193])
def test_more_draws_than_there_are_normals_are_refused_before_anything_is_decided(draws):
    with pytest.raises(ValueError, match=f"4 features allow 1 to 8192 draws, not {draws}"):
        SharedBaseline(draws=draws).fit({}, 4)


def test_a_prior_for_other_features_is_refused():
    with pytest.raises(ValueError, match="the prior is for 4 features, the vectors have 5: fit it anew"):
        SharedBaseline(PRIOR).fit({}, 5)
