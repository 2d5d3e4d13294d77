"""The prior in the package fits the features in the package, and says what it was made from."""

from dataclasses import replace

import numpy as np
import pytest

from bandit.arms import Arm
from bandit.features import DIMENSION, POINTING, TAG
from bandit.prior import QualityPrior
from bandit.quality import SharedBaseline
from feedback import priors
from feedback.priors import prior_of, shipped_prior


@pytest.fixture(autouse=True)
def read_anew():
    priors._shipped.cache_clear()
    yield
    priors._shipped.cache_clear()


def test_the_shipped_prior_is_for_these_features_and_names_its_sources():
    prior = shipped_prior()
    assert prior.features == TAG
    assert len(prior.mean) == DIMENSION
    assert prior.provenance["command"] == "python -m simulations fit-prior"
    assert all(source["prompts"] > 0 and source["models"] > 1 for source in prior.provenance["sources"])
    assert prior.known
    assert all(0 < known.sd < 1 and -1 < known.level < 1 for known in prior.known.values())


def test_a_fresh_route_believes_probabilities_and_the_dear_model_better():
    arms = (Arm("unknown-cheap", 0.1, 0.4), Arm("unknown-dear", 5.0, 15.0))
    prior = shipped_prior()
    mean = (
        SharedBaseline(prior, arms).fit({}, DIMENSION).predict(prior.typical_x, [a.name for a in arms]).mean
    )
    assert 0 < mean[0] < mean[1] < 1


def test_a_task_says_nothing_before_the_first_rating():
    """A bucket means another task on every route."""
    prior = shipped_prior()
    assert not prior.mean[-32:].any()
    assert not prior.price_slope[-32:].any()
    assert np.isfinite(prior.arm_variance).all()


def test_of_other_directions_it_knows_nothing_and_of_all_else_the_same():
    """A usual request is worth as much as before, to a model of any price; tasks and facts mean what they did."""
    prior, other = shipped_prior(), shipped_prior(b"embedded")
    assert other.features == b"embedded"
    for slope in ("mean", "price_slope"):
        before, after = getattr(prior, slope), getattr(other, slope)
        assert before @ prior.typical_x == pytest.approx(after @ other.typical_x)
        assert not after[POINTING].any()
        rest = np.setdiff1d(np.arange(1, DIMENSION), np.arange(DIMENSION)[POINTING])
        assert np.array_equal(before[rest], after[rest])
    assert np.array_equal(prior.arm_variance, other.arm_variance)
    assert (other.typical_square[POINTING] == 1.0).all()
    assert shipped_prior() is prior  # and it is not changed


@pytest.mark.parametrize(
    ("prior", "told"),
    [
        (
            replace(QualityPrior.flat(DIMENSION), features=b"another!"),
            f"these are {TAG.hex()}: run fit-prior again",
        ),
        (
            replace(QualityPrior.flat(3), features=TAG),
            f"for 3 features, these are {DIMENSION}: run fit-prior again",
        ),
    ],
)
def test_a_prior_of_other_features_is_refused_and_says_what_to_do(prior, told):
    with pytest.raises(ValueError, match=told):
        prior_of(prior.to_json())


def test_a_prior_that_was_fitted_for_no_version_fits_any():
    assert prior_of(QualityPrior.flat(DIMENSION).to_json(), b"whatever").features == b""
