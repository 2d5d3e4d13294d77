"""The router within an application: the same decisions and records as the gateway's, without a server."""

import gc

import orjson
import pytest
from pydantic import ValidationError

from feedback.intake import FeedbackRefusedError
from feedback.records import decode_record
from service.errors import ApiError
from service.router import Router

HELLO = [{"role": "user", "content": "hi"}]
CONFIG = """
models:
  small: {base_url: "http://127.0.0.1:9/v1", upstream_model: vendor/small, api_key_env: KEY, price_usd_per_mtok_in: 1, price_usd_per_mtok_out: 2, max_concurrent: 2}
  large: {base_url: "http://127.0.0.1:9/v1", price_usd_per_mtok_in: 10, price_usd_per_mtok_out: 20, reasoning_effort: high}
routes:
  auto: {models: [small, large], usd_per_quality: 0.05}
  first: {models: [small, large], strategy: fixed}
"""


@pytest.fixture
async def router(tmp_path):
    path = tmp_path / "gateway.yaml"
    path.write_text(CONFIG)
    async with Router.open(path, environ={"KEY": "sk-1"}, ephemeral=True) as router:
        yield router


def outcomes(router):
    return [(o.model, o.status) for kept in router.pipeline.outcomes._kept.values() for o in kept]


async def test_a_choice_is_a_recorded_decision_and_says_whom_to_ask(router):
    choice = router.route(HELLO, model="first", max_tokens=9)
    assert (choice.model, choice.upstream_model, choice.api_key) == ("small", "vendor/small", "sk-1")
    assert choice.base_url == "http://127.0.0.1:9/v1"
    assert "sk-1" not in repr(choice)
    record = router.learning.routes["default.first"].recorder.record_of(choice.decision_id)
    prefix, explanation = decode_record(record)
    assert (prefix.arm, prefix.propensity, explanation.told["needs"][1]) == ("small", choice.propensity, 9)
    assert router.route(HELLO, model="large").reasoning_effort == "high"


async def test_what_a_call_took_and_how_it_was_rated_is_learned(router):
    choice = router.route(HELLO)
    router.record(choice, tokens_in=7, tokens_out=11, tokens_cached=2)
    assert (await router.feedback(choice.decision_id, rating=1))["status"] == "applied"
    await router.learning.tick()
    state = router.learning.routes["default.auto"].replica.state
    assert state.calls[choice.model].tokens_out == 11
    assert sum(s.n for s in state.ratings_per_arm().values()) == pytest.approx(1, abs=0.01)
    assert outcomes(router) == [(choice.model, "answered")]


async def test_a_model_that_failed_is_left_out_when_the_application_asks_again(router):
    choice = router.route(HELLO, model="first")
    router.record(choice, failed="connection refused")
    again = router.route(HELLO, model="first", without=[choice.model])
    assert (choice.model, again.model) == ("small", "large")
    record = router.learning.routes["default.first"].recorder.record_of(again.decision_id)
    prefix, explanation = decode_record(record)
    assert (prefix.attempt, explanation.told["excluded"]) == (1, {"small": "unavailable"})
    with pytest.raises(ApiError) as nobody:
        router.route(HELLO, model="first", without=["small", "large"])
    assert nobody.value.status == 503


async def test_a_model_that_times_out_is_given_a_rest(router):
    for _ in range(2):
        router.record(router.route(HELLO, model="first"), timeout=True)
    assert router.route(HELLO, model="first").model == "large"
    assert outcomes(router)[:2] == [("small", "failed")] * 2


async def test_a_choice_that_is_let_go_gives_its_place_back_and_blames_nobody(router):
    held = [router.route(HELLO, model="first") for _ in range(2)]
    assert router.route(HELLO, model="first").model == "large"  # small takes two at once
    del held
    gc.collect()
    assert router.route(HELLO, model="first").model == "small"
    assert ("small", "aborted") in outcomes(router)
    assert ("small", "failed") not in outcomes(router)


async def test_a_call_is_recorded_once_and_nonsense_is_refused_as_by_the_gateway(router):
    choice = router.route(HELLO)
    router.record(choice, tokens_in=1, tokens_out=1)
    with pytest.raises(ValueError, match="recorded before"):
        router.record(choice, tokens_in=1, tokens_out=1)
    with pytest.raises(ApiError, match="messages"):
        router.route([])
    with pytest.raises(ApiError) as unknown:
        router.route(HELLO, model="gpt-9")
    assert unknown.value.status == 404
    with pytest.raises(ValidationError, match="from 0 to 1"):
        await router.feedback(choice.decision_id, rating=2)
    with pytest.raises(FeedbackRefusedError, match="no decision of this router"):
        await router.feedback("rt-" + "a" * 40, rating=1)


async def test_tools_images_and_wishes_act_as_in_a_request(router):
    choice = router.route(HELLO, router={"candidates": ["large"]}, tools=[{"type": "function"}])
    assert choice.model == "large"
    with pytest.raises(ApiError, match="candidates names 'x'"):
        router.route(HELLO, router={"candidates": ["x"]})


async def test_a_decision_log_is_kept_of_an_applications_own_calls_too(tmp_path):
    path = tmp_path / "gateway.yaml"
    path.write_text(CONFIG + "decision_log: {folder: log}\n")
    async with Router.open(path, environ={"KEY": "sk-1"}, ephemeral=True) as router:
        choice = router.route(HELLO)
        router.record(choice, tokens_in=7, tokens_out=11)
        await router.feedback(choice.decision_id, rating=1)
    (file,) = (tmp_path / "log").iterdir()
    lines = [orjson.loads(line) for line in file.read_bytes().splitlines()]
    assert [(line["kind"], line["decision_id"]) for line in lines] == [
        (kind, choice.decision_id) for kind in ("decision", "call", "rating")
    ]
