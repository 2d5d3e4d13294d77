"""What is believed of models before the first rating: by hand, by name, and from a file that may be wrong."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.arms import Arm
from bandit.prior import (
    KnownModel,
    QualityPrior,
    canonical,
    prior_from_json,
    relative_log_prices,
)

PRIOR = QualityPrior(
    mean=np.array([0.6, 0.05]),
    price_slope=np.array([0.1, -0.05]),
    shared_variance=np.array([0.5, 0.25]),
    arm_variance=np.array([0.2, 0.01]),
    typical_x=np.array([1.0, 0.4]),
    typical_square=np.array([1.0, 0.5]),
    noise_variance=0.2,
    noise_weight=20.0,
    features=b"\x01\xab",
    known={"gpt-4o": KnownModel(0.12, 0.1)},
    provenance={"command": "by hand"},
)


def test_the_price_moves_the_mean_by_its_slope():
    """Prices 1, 10 and 100: the log10 is -1, 0 and 1 beside the mean of the route."""
    priors = PRIOR.of([Arm(str(p), 0.0, p) for p in (1.0, 10.0, 100.0)])
    np.testing.assert_allclose(priors.means, [[0.5, 0.1], [0.6, 0.05], [0.7, 0.0], [0.6, 0.05]])
    np.testing.assert_allclose(priors.precisions, np.tile([5.0, 100.0], (4, 1)))


def test_an_arm_without_a_price_is_taken_for_one_of_usual_price():
    assert relative_log_prices([1.0, 0.0, 100.0]).tolist() == [-1.0, 0.0, 1.0]
    assert relative_log_prices([0.0, 0.0]).tolist() == [0.0, 0.0]
    assert relative_log_prices([]).tolist() == []


@given(prices=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8), factor=st.floats(1e-3, 1e3))
def test_relative_prices_know_no_currency_and_sum_to_zero(prices, factor):
    z = relative_log_prices(prices)
    assert abs(z.sum()) < 1e-9
    np.testing.assert_allclose(relative_log_prices([factor * p for p in prices]), z, atol=1e-9)


def test_a_model_known_by_name_starts_at_its_level():
    priors = PRIOR.of([Arm("openai/GPT-4o-2024-08-06", 0.0, 0.0), Arm("other", 0.0, 0.0)])
    assert priors.means[0].tolist() == pytest.approx([0.72, 0.05])
    assert priors.precisions[0].tolist() == pytest.approx([0.2 / 0.1**2, 100.0])
    assert priors.means[1].tolist() == pytest.approx([0.6, 0.05])


def test_a_sibling_lends_its_name():
    siblings = PRIOR.of([Arm("my-finetune", 0.0, 0.0, sibling="gpt-4o"), Arm("gpt-4o", 0.0, 0.0)])
    assert np.array_equal(siblings.means[0], siblings.means[1])
    assert np.array_equal(siblings.precisions[0], siblings.precisions[1])


def test_a_sibling_of_no_fame_hides_even_a_known_name():
    priors = PRIOR.of([Arm("gpt-4o", 0.0, 0.0, sibling="unheard-of")])
    assert priors.means[0, 0] == pytest.approx(0.6)


@given(quality=st.floats(0, 1), ratings=st.floats(0.5, 500), price=st.floats(0, 100))
def test_what_the_operator_expects_holds_at_a_usual_request_with_its_weight(quality, ratings, price):
    arm = Arm("gpt-4o", 0.0, price, expected_quality=quality, expected_quality_ratings=ratings)
    priors = PRIOR.of([arm, Arm("x", 0.0, 1.0)])
    assert priors.means[0] @ PRIOR.typical_x == pytest.approx(quality, abs=1e-12)
    assert priors.precisions[0, 0] == pytest.approx(ratings)
    assert priors.precisions[0, 1] == priors.precisions[1, 1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt-4o", "gpt-4o"),
        ("openai/GPT-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("gpt-4-1106-preview", "gpt-4"),
        ("gpt-3.5-turbo-0125", "gpt-3.5-turbo"),
        ("claude-3-haiku-20240307", "claude-3-haiku"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("together/meta-llama/llama-3-8b-chat", "llama-3-8b"),
        ("google/gemma-2-9b-it", "gemma-2-9b"),
        ("mistralai/Mistral-7B-Instruct-v0.2", "mistral-7b"),
        ("mistralai/mixtral-8x7b-instruct-v0.1", "mixtral-8x7b"),
        ("open-mixtral-8x7b", "mixtral-8x7b"),
        ("gemini-1.5-pro-latest", "gemini-1.5-pro"),
        ("deepseek-ai/DeepSeek-V3", "deepseek-v3"),
        ("", ""),
    ],
)
def test_a_models_many_names_are_one(name, expected):
    assert canonical(name) == expected


@pytest.mark.parametrize(
    "pair",
    [
        ("gpt-4", "gpt-4o"),
        ("llama-3-8b", "llama-3-70b"),
        ("gpt-4o", "gpt-4o-mini"),
        ("deepseek-v2", "deepseek-v3"),
        ("accounts/fireworks/models/llama-v2-70b-chat", "accounts/fireworks/models/llama-v3-70b-instruct"),
    ],
)
def test_models_that_differ_keep_different_names(pair):
    assert canonical(pair[0]) != canonical(pair[1])


@given(name=st.text())
def test_any_name_has_a_canonical_one(name):
    assert canonical("provider/" + name) == canonical(name)


def test_a_flat_prior_takes_all_arms_alike_whatever_their_prices():
    priors = QualityPrior.flat(5).of([Arm("gpt-4o", 1.0, 1.0), Arm("b", 1.0, 100.0)])
    assert (priors.means == priors.means[0]).all()
    assert (priors.precisions == priors.precisions[0]).all()
    assert (priors.means[0] @ QualityPrior.flat(5).typical_x) == pytest.approx(0.7)


def test_a_prior_file_is_read_back_as_it_was_written():
    again = prior_from_json(PRIOR.to_json())
    for name in ("mean", "price_slope", "shared_variance", "arm_variance", "typical_x", "typical_square"):
        assert np.array_equal(getattr(again, name), getattr(PRIOR, name)), name
    for name in ("noise_variance", "noise_weight", "features", "known", "provenance"):
        assert getattr(again, name) == getattr(PRIOR, name), name
    assert again.to_json() == PRIOR.to_json()


positive = st.floats(1e-9, 1e9)


@st.composite
def priors(draw):
    d = draw(st.integers(1, 5))

    def vector(numbers):
        return np.array(draw(st.lists(numbers, min_size=d, max_size=d)))

    finite = st.floats(-1e9, 1e9)
    return QualityPrior(
        mean=vector(finite),
        price_slope=vector(finite),
        shared_variance=vector(positive),
        arm_variance=vector(positive),
        typical_x=vector(finite),
        typical_square=vector(positive),
        noise_variance=draw(positive),
        noise_weight=draw(positive),
        features=draw(st.binary(max_size=9)),
        known=draw(st.dictionaries(st.text(), st.builds(KnownModel, st.floats(-1, 1), positive), max_size=3)),
        provenance=draw(st.dictionaries(st.text(), st.text() | st.integers(), max_size=2)),
    )


@given(prior=priors())
def test_any_prior_is_read_back_to_five_digits_however_small_its_numbers(prior):
    again = prior_from_json(prior.to_json())
    for name in ("mean", "price_slope", "shared_variance", "arm_variance", "typical_x", "typical_square"):
        np.testing.assert_allclose(getattr(again, name), getattr(prior, name), rtol=1e-4)
    assert again.noise_variance == pytest.approx(prior.noise_variance, rel=1e-4)
    assert (again.features, again.noise_weight, again.provenance) == (
        prior.features,
        prior.noise_weight,
        prior.provenance,
    )
    assert again.known.keys() == prior.known.keys()
    for name, model in prior.known.items():
        assert again.known[name].level == pytest.approx(model.level, abs=1e-4)
        assert again.known[name].sd == pytest.approx(model.sd, rel=1e-4)
    assert prior_from_json(again.to_json()).to_json() == again.to_json()


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(change=st.dictionaries(st.sampled_from(sorted(json.loads(PRIOR.to_json()))), anything, max_size=3))
def test_whatever_stands_in_a_file_it_is_a_prior_or_an_error_of_one_sentence(change):
    complaint, prior = "", PRIOR
    try:
        prior = prior_from_json(json.dumps(json.loads(PRIOR.to_json()) | change))
    except ValueError as error:
        complaint = str(error)
    assert complaint == "" or (complaint.startswith("prior: ") and len(complaint) < 400)
    assert prior_from_json(prior.to_json()).to_json() == prior.to_json()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": 1}, "prior: should be one JSON object of version 2, as fit-prior writes it"),
        ({"mean": None}, "prior: mean should be a list of numbers"),
        ({"mean": []}, "prior: mean should be a list of numbers"),
        ({"mean": [0.1, True]}, "prior: mean should be a list of numbers"),
        ({"price_slope": [0.1, float("nan")]}, "prior: price_slope should be a list of numbers"),
        ({"typical_x": [0.1, float("inf")]}, "prior: typical_x should be a list of numbers"),
        ({"mean": [0.1]}, "should be of one length, not {'mean': 1, 'price_slope': 2"),
        ({"shared_variance": [1, 0]}, "prior: shared_variance should hold numbers above 0 only"),
        ({"arm_variance": [1, -1]}, "prior: arm_variance should hold numbers above 0 only"),
        ({"noise_variance": 0}, "prior: noise_variance should be a number above 0, not 0"),
        ({"noise_variance": "1"}, "prior: noise_variance should be a number above 0, not '1'"),
        ({"noise_weight": True}, "prior: noise_weight should be a number above 0, not True"),
        ({"noise_weight": None}, "prior: noise_weight should be a number above 0, not None"),
        ({"features": "xyz"}, "prior: features should be a tag in hexadecimal"),
        ({"features": 7}, "prior: features should be a tag in hexadecimal"),
        ({"mean": [10**400, 1]}, "prior: mean should be a list of numbers"),
        ({"noise_variance": 10**400}, "prior: noise_variance should be a number above 0, not 1000"),
        ({"known": []}, "prior: known should be an object, not []"),
        ({"known": None}, "prior: known should be an object, not None"),
        ({"provenance": ["x"]}, "prior: provenance should be an object, not ['x']"),
        ({"provenance": None}, "prior: provenance should be an object, not None"),
        *(
            ({"known": {"a": pair}}, "prior: known 'a' should be [level, sd], numbers with sd above 0, not ")
            for pair in (
                [0.1],
                [0.1, 0.1, 0.1],
                3,
                "12",
                {"1": 1, "2": 2},
                ["0.1", "0.2"],
                [True, True],
                [0.1, 0.0],
                [0.1, -0.1],
                [float("nan"), 0.1],
                [10**400, 0.1],
            )
        ),
    ],
)
def test_a_prior_file_that_is_none_says_why(change, complaint):
    text = json.dumps(json.loads(PRIOR.to_json()) | change)
    with pytest.raises(ValueError, match=re.escape(complaint)):
        prior_from_json(text)


@pytest.mark.parametrize("name", [name for name in json.loads(PRIOR.to_json()) if name != "provenance"])
def test_a_prior_file_that_lacks_a_field_names_it(name):
    given = json.loads(PRIOR.to_json())
    del given[name]
    with pytest.raises(ValueError, match=f"prior: .*{name}"):
        prior_from_json(json.dumps(given))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[]", "one JSON object"),
        ("{", "prior: no JSON: "),
        ("", "prior: no JSON: "),
        ("[" * 100_000, "prior: no JSON: "),
        ("9" * 5000, "prior: no JSON: "),
    ],
)
def test_what_is_no_object_is_no_prior(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        prior_from_json(text)
