"""A classifier as a quality model: closed forms, the same decisions as any policy makes, and files that are wrong."""

import json

import numpy as np
import pytest

from bandit.arms import Arm
from bandit.classifier import Classified, classifier_from_json
from bandit.decide import decide
from bandit.newcomers import Newcomers
from bandit.objective import Balanced, Cost, Quality
from bandit.policy import Thompson
from bandit.posterior import Posterior
from bandit.types import Context, Needs

TAG = b"numbers"
SMALL, LARGE, NEW = Arm("small", 1.0, 1.0), Arm("maker/large", 10.0, 10.0), Arm("new", 2.0, 2.0)


def content(**changes):
    return {
        "version": 1,
        "features": TAG.hex(),
        "kinds": [["code", "easy"], ["code", "hard"], ["sums", ""]],
        "shares": [0.25, 0.25, 0.5],
        "quality": {"small": [0.8, 0.2, 0.9], "large": [0.9, 0.8, 0.9]},
        "weights": [[0.0, 0.0, 0.0], [0.0, np.log(3.0), 0.0], [0.0, 0.0, 5.0]],
        "provenance": {"sources": {"made-up": 10}},
    } | changes


def read(**changes):
    return classifier_from_json(json.dumps(content(**changes)), TAG)


def posterior(*arms, told=None):
    return Posterior.of(Classified.of(read(), arms, told or {}), {}, {}, d=3, token="0-0")


def x(*rest):
    return Context(np.array([1.0, *rest]), Needs(100))


def test_the_quality_expected_is_the_mean_over_kinds_by_their_softmax_probabilities():
    p = np.array([1.0, 3.0, 1.0]) / 5.0
    belief = posterior(SMALL, LARGE).belief(x(1.0, 0.0), (LARGE, SMALL))
    assert belief.quality.mean == pytest.approx([p @ [0.9, 0.8, 0.9], p @ [0.8, 0.2, 0.9]])
    assert belief.typical == pytest.approx([0.875, 0.7])
    assert (belief.quality.deviations == 0).all()
    assert (belief.exactly().covariance == 0).all()


def test_a_decision_is_the_best_by_the_objective_with_the_exploration_floor_in_its_propensity():
    policy = Thompson(Quality(), floor=0.02, newcomers=Newcomers(share=0.0))
    decision = decide(policy, posterior(SMALL, LARGE), x(1.0, 0.0), (SMALL, LARGE), "rt-1")
    assert decision.probabilities.sum() == pytest.approx(1.0)
    assert 0 < decision.probabilities[0] < 0.02
    assert decision.propensity == decision.probabilities[decision.candidates.index(decision.arm)]


@pytest.mark.parametrize("objective", [Balanced(0.001), Cost(0.02), Cost(0.02, confidence=0.9)])
def test_requests_of_an_easy_kind_go_to_the_cheap_model_and_hard_ones_do_not(objective):
    policy = Thompson(objective if not isinstance(objective, Balanced) else Balanced(0.05))
    easy = decide(policy, posterior(SMALL, LARGE), x(0.0, 2.0), (SMALL, LARGE), "rt-1").probabilities
    hard = decide(policy, posterior(SMALL, LARGE), x(4.0, 0.0), (SMALL, LARGE), "rt-1").probabilities
    assert easy[0] > 0.98
    assert hard[1] > 0.98


def test_the_registrys_quality_for_a_task_shifts_both_of_its_levels_alike():
    told = {"small": {"code": 0.6}}
    assert Classified.of(read(), (SMALL,), told).quality[0] == pytest.approx((0.9, 0.3, 0.9))


def test_a_model_that_only_the_registry_knows_has_its_numbers_and_the_usual_gap_of_difficulty():
    told = {"new": {"code": 0.7, "sums": 0.4}}
    # over all models easy code is at 0.85 and hard code at 0.5, so 0.175 to either side of what is told
    assert Classified.of(read(), (NEW,), told).quality[0] == pytest.approx((0.875, 0.525, 0.4))


def test_a_model_that_nobody_knows_is_refused_with_what_would_be_right():
    with pytest.raises(
        ValueError, match=r"no quality of new; give the model `quality:` for sums, or a `sibling`"
    ):
        Classified.of(read(), (NEW,), {"new": {"code": 0.7}})
    with pytest.raises(ValueError, match="small has a quality for 'poems'; known: code, sums"):
        Classified.of(read(), (SMALL,), {"small": {"poems": 0.7}})


def test_a_sibling_may_be_known_better_than_the_name():
    twin = Arm("house-blend", 1.0, 1.0, sibling="maker/large")
    assert Classified.of(read(), (twin,), {}).quality[0] == pytest.approx((0.9, 0.8, 0.9))


def test_vectors_of_another_length_are_refused():
    with pytest.raises(ValueError, match="for 3 features, the vectors have 4"):
        Classified.of(read(), (SMALL,), {}).fit({}, 4, {})


def test_a_file_is_written_as_it_was_read_and_two_files_are_told_apart():
    one = read()
    again = classifier_from_json(one.to_json(), TAG)
    assert json.loads(one.to_json()) == json.loads(json.dumps(content()))
    assert again.quality["small"] == pytest.approx(one.quality["small"])
    assert read() == one
    assert read(shares=[0.5, 0.25, 0.25]) != one
    assert repr(Classified.of(read(shares=[0.5, 0.25, 0.25]), (SMALL,), {})) != repr(
        Classified.of(one, (SMALL,), {})
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "of version 1, as fit-classifier writes it"),
        ({"features": "00"}, "was fitted for features '00'.*fit-classifier again"),
        ({"kinds": []}, "kinds should be a list"),
        ({"kinds": [["code"]]}, "pairs"),
        ({"shares": [0.5, 0.5, 0.5]}, "sum to 1"),
        ({"shares": [1.0]}, "shares should be 3 finite numbers"),
        ({"quality": []}, "quality should map models"),
        ({"quality": {"small": [0.1, 2.0, 0.3]}}, "'small' should be numbers from 0 to 1"),
        ({"quality": {"small": [0.1]}}, "quality of 'small' should be 3 finite numbers"),
        ({"weights": [[1.0], [2.0]]}, "weights should be 3 x 1 finite numbers"),
        ({"weights": [[1.0], [2.0], ["x"]]}, "weights should be 3 x 1 finite numbers"),
        ({"weights": 5}, "weights should be 3 x 0"),
    ],
)
def test_a_file_that_is_wrong_is_told_by_field(changes, message):
    with pytest.raises(ValueError, match=message):
        read(**changes)


def test_what_is_no_json_is_told_so():
    with pytest.raises(ValueError, match="no JSON"):
        classifier_from_json("{", TAG)
