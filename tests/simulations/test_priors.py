"""What a router knows beforehand, by name; and the prior that is surely wrong."""

from dataclasses import replace

import numpy as np
import pytest

from bandit.feature_scale import slope_factor
from bandit.features import DIMENSION
from bandit.prior import QualityPrior
from bandit.statistics import RatingStatistics
from feedback.priors import shipped_prior
from simulations.datasets import load
from simulations.priors import SURELY, prior_of_all, priors_of_each, upside_down
from simulations.world import Facts, contexts_of


def test_a_prior_turned_upside_down_expects_each_model_as_far_on_the_other_side_of_the_mean(outcomes):
    data, prior = outcomes(60), replace(QualityPrior.flat(DIMENSION), price_slope=0.2 * np.eye(DIMENSION)[0])
    levels = data.quality.mean(axis=0)
    wrong = upside_down(prior, data).of(data.arms)
    expected = wrong.means[: len(levels)] @ prior.typical_x
    np.testing.assert_allclose(expected + levels, 2 * levels.mean())
    assert np.argmax(expected) == np.argmin(levels)
    np.testing.assert_allclose(wrong.precisions[: len(levels), 0], prior.noise_variance / SURELY**2)


def test_recorded_prompts_vary_no_more_than_those_that_the_shipped_prior_was_fitted_with():
    X = np.array([context.x for context in contexts_of(load("wheel").prompts[:800], Facts())])
    told = {"a": RatingStatistics(X.T @ X, X.T @ np.full(len(X), 0.5), float(len(X)), len(X) / 4)}
    assert slope_factor(shipped_prior(), told) == 1.0


def test_each_name_has_its_prior_and_a_file_is_read(tmp_path):
    assert prior_of_all("none") is priors_of_each("none") is None
    path = tmp_path / "prior.json"
    path.write_text(QualityPrior.flat(DIMENSION).to_json())
    assert len(prior_of_all(str(path)).mean) == DIMENSION
    assert prior_of_all("shipped").known


@pytest.mark.parametrize("where", ["leave-out", "upside-down"])
def test_what_is_fitted_on_other_folders_needs_them(where, outcomes):
    with pytest.raises(ValueError, match="several folders"):
        prior_of_all(where)
    with pytest.raises(ValueError, match="nothing to fit a prior on"):
        priors_of_each(where)([outcomes(20)])
