"""The shared-baseline posterior against the same Gaussian written out as one big linear regression."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit.quality import QualityPrior, SharedBaseline, prior_from_json
from bandit.statistics import RatingStatistics

D = 4
PRIOR = QualityPrior(
    mean=0.6,
    shared_level=2.0,
    shared_slope=3.0,
    arm_level=5.0,
    arm_slope=7.0,
    noise_variance=0.1,
    noise_weight=4.0,
)


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


def one_big_regression(rows, arms):
    """Coefficients (theta, delta_1, ..., delta_K) of one conjugate regression on block features."""
    p, size = PRIOR, D * (1 + len(arms))
    prior = np.r_[
        p.shared_level,
        [p.shared_slope] * (D - 1),
        np.tile([p.arm_level] + [p.arm_slope] * (D - 1), len(arms)),
    ]
    m0 = np.zeros(size)
    m0[0] = p.mean
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
    return mean, s2 * np.linalg.inv(precision), s2


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), counts=st.lists(st.integers(0, 12), min_size=2, max_size=5))
def test_equals_one_big_regression(seed, counts):
    rows = list(data(seed, counts))
    arms = [f"arm{k}" for k in range(len(counts))]
    mean, covariance, s2 = one_big_regression(rows, arms)
    x = np.r_[1.0, np.random.default_rng(seed + 1).normal(size=D - 1)]
    Z = np.zeros((len(arms), len(mean)))  # an arm without ratings is a block that only the prior has touched
    for k in range(len(arms)):
        Z[k, :D] = x
        Z[k, D * (1 + k) : D * (2 + k)] = x

    posterior = SharedBaseline(PRIOR).fit(statistics(rows), D)
    prediction = posterior.predict(x, arms)

    np.testing.assert_allclose(prediction.mean, Z @ mean, rtol=1e-9, atol=1e-10)
    expected = Z @ covariance @ Z.T
    np.testing.assert_allclose(prediction.covariance(), expected, rtol=1e-8, atol=1e-10)
    assert posterior.noise_variance == pytest.approx(s2, rel=1e-9)


def test_matches_bayesianbandits_for_one_arm():
    """With one arm, theta + delta is one coefficient vector whose prior covariance is the sum of the two."""
    from bayesianbandits import NormalInverseGammaRegressor

    rows = list(data(3, [60]))
    prior_precision = 1 / (1 / np.r_[2.0, [3.0] * (D - 1)] + 1 / np.r_[5.0, [7.0] * (D - 1)])
    reference = NormalInverseGammaRegressor(
        mu=np.r_[PRIOR.mean, np.zeros(D - 1)],
        lam=np.diag(prior_precision),
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
    assert posterior.noise_variance == pytest.approx(reference.b_ / reference.a_, rel=1e-9)


def test_draws_have_the_stated_moments():
    posterior = SharedBaseline(PRIOR).fit(statistics(data(5, [3, 9, 0])), D)
    prediction = posterior.predict(np.r_[1.0, 0.5, -0.5, 1.0], ["arm0", "arm1", "arm2"])
    count = 40_000
    normals = np.random.default_rng(0).normal(size=prediction.normals_needed(count))
    draws = prediction.draws(normals, count)
    np.testing.assert_allclose(draws.mean(axis=0), prediction.mean, atol=0.01)
    np.testing.assert_allclose(np.cov(draws.T), prediction.covariance(), rtol=0.06, atol=2e-4)


def test_arms_share_what_requests_have_in_common():
    """Hard requests seen by one arm only lower the belief in another arm too, but less."""
    rows = [("seen", np.r_[1.0, 1.0, 0.0, 0.0], 0.1, 1.0)] * 30 + [
        ("seen", np.r_[1.0, -1.0, 0.0, 0.0], 0.9, 1.0)
    ] * 30
    posterior = SharedBaseline(PRIOR).fit(statistics(rows), D)
    hard, easy = (posterior.predict(np.r_[1.0, side, 0.0, 0.0], ["seen", "new"]).mean for side in (1.0, -1.0))
    assert hard[0] < hard[1] < easy[1] < easy[0]


def test_prior_file_is_read_and_its_errors_name_the_field():
    assert prior_from_json('{"arm_level": 9}').arm_level == 9
    with pytest.raises(ValueError, match="unknown field 'arm_levle'"):
        prior_from_json('{"arm_levle": 9}')
    with pytest.raises(ValueError, match="noise_variance must be a number above 0"):
        prior_from_json('{"noise_variance": 0}')


def sums(X, r):
    return RatingStatistics(X.T @ X, X.T @ r, float(len(r)), float(r @ r))


def test_ninety_percent_intervals_hold_the_truth_nine_times_in_ten():
    """Truth drawn from the prior, ratings from the truth: intervals of an arm and of the difference of two arms.

    The difference is what a choice rests on; its interval is right only if the covariance between arms is.
    """
    problems, inside = 1500, np.zeros(2)
    variance = PRIOR.noise_variance
    known = replace(PRIOR, noise_weight=1e9)
    for seed in range(problems):
        rng = np.random.default_rng(seed)
        shared = np.sqrt(variance / np.r_[PRIOR.shared_level, [PRIOR.shared_slope] * (D - 1)])
        own = np.sqrt(variance / np.r_[PRIOR.arm_level, [PRIOR.arm_slope] * (D - 1)])
        theta = np.r_[PRIOR.mean, np.zeros(D - 1)] + shared * rng.normal(size=D)
        truth = theta + own * rng.normal(size=(3, D))
        ratings = {}
        for k, count in enumerate((15, 4, 1)):
            X = np.c_[np.ones(count), rng.normal(size=(count, D - 1))]
            ratings[f"arm{k}"] = sums(X, X @ truth[k] + rng.normal(0, np.sqrt(variance), count))
        x = np.r_[1.0, rng.normal(size=D - 1)]
        prediction = SharedBaseline(known).fit(ratings, D).predict(x, ["arm0", "arm1", "arm2"])
        for i, contrast in enumerate(np.array([[0.0, 1.0, 0.0], [1.0, 0.0, -1.0]])):
            error = contrast @ (truth @ x - prediction.mean)
            inside[i] += abs(error) <= 1.6449 * np.sqrt(contrast @ prediction.covariance() @ contrast)
    assert inside / problems == pytest.approx(0.9, abs=0.02)


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
        assert (np.diag(prediction.covariance()) > 0).all()
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
    np.testing.assert_allclose(there.covariance(), here.covariance(), rtol=1e-10, atol=1e-14)


def test_predictions_come_in_the_order_asked():
    posterior = SharedBaseline(PRIOR).fit(statistics(data(1, [5, 3, 9])), D)
    x = np.array([1.0, 0.5, -1.0, 2.0])
    there, back = posterior.predict(x, ["arm0", "arm2", "new"]), posterior.predict(x, ["new", "arm2", "arm0"])
    np.testing.assert_allclose(back.mean, there.mean[::-1], rtol=1e-12)
    np.testing.assert_allclose(back.covariance(), there.covariance()[::-1, ::-1], rtol=1e-12)


def test_an_arm_without_ratings_changes_no_other_and_is_as_good_as_unnamed():
    ratings = statistics(data(2, [5, 8]))
    x = np.array([1.0, 0.5, -1.0, 2.0])
    before = SharedBaseline(PRIOR).fit(ratings, D)
    after = SharedBaseline(PRIOR).fit({"new": RatingStatistics.empty(D), **ratings}, D)
    names = ["arm0", "arm1", "new"]
    np.testing.assert_allclose(after.predict(x, names).mean, before.predict(x, names).mean, rtol=1e-12)
    np.testing.assert_allclose(
        after.predict(x, names).covariance(), before.predict(x, names).covariance(), rtol=1e-12
    )
    np.testing.assert_allclose(after.typical(names), before.typical(names), rtol=1e-12)


def test_without_any_rating_the_prior_answers():
    posterior = SharedBaseline(PRIOR).fit({}, D)
    level = np.array([1.0, 0.0, 0.0, 0.0])
    prediction = posterior.predict(level, ["a", "b"])
    v = PRIOR.noise_variance
    assert prediction.mean.tolist() == pytest.approx([PRIOR.mean, PRIOR.mean])
    shared, own = v / PRIOR.shared_level, v / PRIOR.arm_level
    np.testing.assert_allclose(prediction.covariance(), [[shared + own, shared], [shared, shared + own]])
    assert posterior.noise_variance == pytest.approx(v)
    assert posterior.typical(["a"])[0] == pytest.approx(PRIOR.mean)


def test_two_unknown_arms_share_a_belief_but_not_a_draw():
    """Else a draw could never prefer one of two new arms to the other."""
    prediction = SharedBaseline(PRIOR).fit(statistics(data(1, [9])), D).predict(np.eye(D)[0], ["p", "q"])
    C = prediction.covariance()
    assert C[0, 0] == pytest.approx(C[1, 1])
    assert C[0, 1] < C[0, 0] * 0.99


def test_typical_is_the_mean_expectation_over_the_traffic_rated():
    rows = list(data(6, [6, 10]))
    posterior = SharedBaseline(PRIOR).fit(statistics(rows), D)
    x = np.array([x for _, x, _, _ in rows])
    weights = np.array([w for *_, w in rows])
    each = np.array([posterior.predict(one, ["arm0", "arm1"]).mean for one in x])
    np.testing.assert_allclose(posterior.typical(["arm0", "arm1"]), weights @ each / weights.sum())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[]", "one JSON object"),
        ("{", "Expecting"),
        ('{"mean": NaN}', "mean must be a number above 0"),
        ('{"mean": Infinity}', "mean must be a number above 0"),
        ('{"mean": true}', "mean must be a number above 0, not True"),
        ('{"mean": "0.7"}', "mean must be a number above 0, not '0.7'"),
    ],
)
def test_a_prior_file_that_is_none_says_why(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        prior_from_json(text)
