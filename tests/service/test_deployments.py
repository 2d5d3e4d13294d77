"""Places of models over made-up times: who is called, who is left out, and that never everybody is."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit.arms import Arm
from service.breaker import FAILURES
from service.deployments import Deployments
from service.settings import Deployment, Model


def place(name: str, **fields) -> Deployment:
    return Deployment(name, f"http://{name}.test/v1", name, **fields)


def model(name: str, *places: Deployment) -> Model:
    return Model(Arm(name, 1, 1), places or (place(name),), 1.0)


def fleet(*models: Model) -> Deployments:
    return Deployments({model.arm.name: model for model in models})


def fail(deployments: Deployments, name: str, now_s: float = 0.0, times: int = FAILURES) -> None:
    for _ in range(times):
        visit = deployments.visit(name, now_s)
        deployments.failed(visit, now_s)
        deployments.left(visit)


def test_load_goes_to_the_place_with_the_fewest_calls_for_its_weight():
    deployments = fleet(model("m", place("a"), place("b", weight=3.0)))
    visits = [deployments.visit("m", 0.0) for _ in range(40)]
    counts = {name: sum(v.place.deployment.name == name for v in visits) for name in "ab"}
    assert counts == {"a": 10, "b": 30}
    for visit in visits:
        deployments.left(visit)
    assert all(place.outstanding == 0 for place in deployments.places)


def test_equal_places_take_turns_when_nothing_is_outstanding():
    deployments = fleet(model("m", place("a"), place("b"), place("c")))
    seen = []
    for _ in range(30):
        visit = deployments.visit("m", 0.0)
        seen.append(visit.place.deployment.name)
        deployments.left(visit)
    assert {name: seen.count(name) for name in "abc"} == {"a": 10, "b": 10, "c": 10}


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=5), st.integers(10, 200))
@settings(deadline=None)
def test_outstanding_calls_keep_to_the_weights(weights, calls):
    places = [place(f"p{i}", weight=w) for i, w in enumerate(weights)]
    deployments = fleet(model("m", *places))
    for _ in range(calls):
        deployments.visit("m", 0.0)
    loads = [p.outstanding / p.deployment.weight for p in deployments.places]
    assert max(loads) <= min((p.outstanding + 1) / p.deployment.weight for p in deployments.places) + 1e-9


def test_a_full_place_is_left_out_until_a_call_of_it_ends():
    deployments = fleet(model("m", place("m", max_concurrent=2)))
    first, _ = deployments.visit("m", 0.0), deployments.visit("m", 0.0)
    assert deployments.faults(["m"], 0.0) == {"m": "busy"}
    assert deployments.visit("m", 0.0) is None
    deployments.left(first)
    assert deployments.faults(["m"], 0.0) == {}


def test_a_429_is_capacity_the_place_rests_as_long_as_it_asked_and_its_breaker_stays_closed():
    deployments = fleet(model("m"), model("n"))
    for _ in range(20):
        visit = deployments.visit("m", 0.0)
        deployments.full(visit, 0.0, retry_after_s=7.0)
        deployments.left(visit)
        if visit.place.breaker.is_open:
            pytest.fail("a 429 opened the breaker")
        visit.place.busy_until_s = float("-inf")
    visit = deployments.visit("m", 0.0)
    deployments.full(visit, 0.0, retry_after_s=7.0)
    assert deployments.faults(["m", "n"], 6.9) == {"m": "busy"}
    assert deployments.free_in_s(["m"], 2.0) == pytest.approx(5.0)
    assert deployments.faults(["m", "n"], 7.0) == {}


def test_a_sick_model_is_left_out_while_another_can_be_called():
    deployments = fleet(model("m"), model("n"))
    fail(deployments, "m")
    assert deployments.faults(["m", "n"], 0.0) == {"m": "resting"}


def test_where_all_are_sick_all_are_called_all_the_same():
    deployments = fleet(model("m"), model("n"))
    fail(deployments, "m")
    fail(deployments, "n")
    assert deployments.faults(["m", "n"], 0.0) == {}
    assert deployments.visit("m", 0.0) is not None


def test_sickness_of_one_place_leaves_the_model_its_others():
    deployments = fleet(model("m", place("a"), place("b")))
    (sick,) = [p for p in deployments.places if p.deployment.name == "a"]
    for _ in range(FAILURES):
        sick.breaker.failed(0.0, probe=False)
    assert deployments.faults(["m"], 0.0) == {}
    assert {deployments.visit("m", 0.0).place.deployment.name for _ in range(10)} == {"b"}


def test_a_place_without_its_key_is_never_called():
    deployments = fleet(model("m", place("a", missing_key_env="KEY")))
    assert deployments.faults(["m"], 0.0) == {"m": "unavailable"}
    assert deployments.visit("m", 0.0) is None


def test_a_place_is_tried_once_in_a_request():
    deployments = fleet(model("m", place("a"), place("b")))
    one = deployments.visit("m", 0.0)
    two = deployments.visit("m", 0.0, not_again=[one.place])
    assert two.place is not one.place
    assert deployments.visit("m", 0.0, not_again=[one.place, two.place]) is None


def test_a_place_that_fails_three_times_in_ten_is_left_out_beside_one_that_never_fails():
    deployments = fleet(model("m"), model("n"))
    for i in range(60):
        for name in "mn":
            visit = deployments.visit(name, i * 0.1)
            if name == "m" and i % 10 in (0, 3, 6):
                deployments.failed(visit, i * 0.1)
            else:
                deployments.answered(visit, i * 0.1)
            deployments.left(visit)
        if deployments.faults(["m", "n"], i * 0.1):
            break
    assert deployments.faults(["m", "n"], i * 0.1) == {"m": "resting"}
    assert deployments.faults(["m", "n"], i * 0.1 + 60.0) == {}


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans(), st.floats(0, 1)), max_size=300))
@settings(deadline=None)
def test_whatever_fails_somebody_can_be_called(steps):
    deployments, now = fleet(*(model(name) for name in "abcd")), 0.0
    for name, works, pause in steps:
        now += pause
        visit = deployments.visit(name, now)
        assert visit is not None
        (deployments.answered if works else deployments.failed)(visit, now)
        deployments.left(visit)
        faults = deployments.faults("abcd", now)
        assert len(faults) < 4
    assert all(p.outstanding == 0 for p in deployments.places)


def test_a_reload_keeps_what_is_known_of_places_that_stay():
    kept, gone, new = model("m"), model("n"), model("o")
    deployments = fleet(kept, gone)
    fail(deployments, "m")
    deployments.adopt({"m": replace(kept, arm=Arm("m", 9, 9)), "o": new})
    assert deployments.faults(["m", "o"], 0.0) == {"m": "resting"}
    assert [p.deployment.name for p in deployments.places] == ["m", "o"]
