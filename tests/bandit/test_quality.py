"""The shared-baseline posterior against the same Gaussian written out as one big linear regression."""

import numpy as np
import pytest
from bandit.quality import QualityPrior, SharedBaseline, prior_from_json
from bandit.statistics import RatingStatistics
from hypothesis import given, settings
from hypothesis import strategies as st

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
            yield f"arm{k}", x, float(np.clip(rng.normal(0.3 + 0.2 * k, 0.2), 0, 1)), float(rng.uniform(0.5, 2))


def statistics(rows):
    out: dict[str, RatingStatistics] = {}
    for arm, x, r, w in rows:
        out[arm] = out.get(arm, RatingStatistics.empty(D)).added(x, r, w)
    return out


def one_big_regression(rows, arms):
    """Coefficients (theta, delta_1, ..., delta_K) of one conjugate regression on block features."""
    p, size = PRIOR, D * (1 + len(arms))
    prior = np.r_[p.shared_level, [p.shared_slope] * (D - 1), np.tile([p.arm_level] + [p.arm_slope] * (D - 1), len(arms))]
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
    unseen = [k for k, count in enumerate(counts) if count == 0]
    expected = Z @ covariance @ Z.T
    np.testing.assert_allclose(prediction.covariance(), expected, rtol=1e-8, atol=1e-10)
    assert posterior.noise_variance == pytest.approx(s2, rel=1e-9)
    assert len(unseen) == counts.count(0)


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
    rows = [("seen", np.r_[1.0, 1.0, 0.0, 0.0], 0.1, 1.0)] * 30 + [("seen", np.r_[1.0, -1.0, 0.0, 0.0], 0.9, 1.0)] * 30
    posterior = SharedBaseline(PRIOR).fit(statistics(rows), D)
    hard, easy = (posterior.predict(np.r_[1.0, side, 0.0, 0.0], ["seen", "new"]).mean for side in (1.0, -1.0))
    assert hard[0] < hard[1] < easy[1] < easy[0]


def test_prior_file_is_read_and_its_errors_name_the_field():
    assert prior_from_json('{"arm_level": 9}').arm_level == 9
    with pytest.raises(ValueError, match="unknown field 'arm_levle'"):
        prior_from_json('{"arm_levle": 9}')
    with pytest.raises(ValueError, match="noise_variance must be a number above 0"):
        prior_from_json('{"noise_variance": 0}')
