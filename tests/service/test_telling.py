"""What is told of decisions: before they are made, after, and by whose key."""

import hashlib

import pytest

from feedback.records import prefix_bytes, without_explanation
from feedback.store import StoreError

HELLO = [{"role": "user", "content": "hi"}]


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def test_a_preview_tells_everything_and_does_nothing(lab):
    told = lab.client.post("/v1/decision", json={"model": "learned", "messages": HELLO}).json()
    assert told["decision_id"] is None
    assert told["model"] in ("one", "two")
    assert told["choice"] in ("explore", "exploit")
    assert {candidate["model"] for candidate in told["candidates"]} == {"one", "two"}
    for candidate in told["candidates"]:
        assert 0 < candidate["probability"] < 1
        assert 0 <= candidate["quality_mean"] <= 1
        assert candidate["quality_sd"] > 0
        assert candidate["cost_usd"] > 0
        believed = candidate["utility"] + candidate["cost_usd"] / 0.05  # of a linear model, shown within 0..1
        assert candidate["quality_mean"] == pytest.approx(min(max(believed, 0), 1), abs=1e-4)
        assert candidate["latency_s"] is None  # nobody was called yet
    assert sum(candidate["probability"] for candidate in told["candidates"]) == pytest.approx(1)
    assert told["snapshot"]
    assert lab.upstreams.asked == []
    assert lab.gateway.learning.routes["default.learned"].recorder.waiting == 0


def test_a_preview_gives_the_reason_for_every_exclusion_and_the_same_errors_as_a_request(lab):
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]
    told = lab.client.post("/v1/decision", json={"model": "limited", "messages": image}).json()
    assert told["excluded"] == [
        {
            "model": "blind",
            "code": "images",
            "reason": "the request shows images and this model cannot see them",
        }
    ]
    assert told["needs"]["images"] is True
    assert (told["model"], told["choice"]) == ("two", "only")
    for body in (
        {"model": "nobody", "messages": image},
        {"model": "gpt-9", "messages": HELLO},
        {"model": "auto"},
    ):
        asked, previewed = (
            lab.client.post(path, json=body) for path in ("/v1/chat/completions", "/v1/decision")
        )
        assert asked.status_code == previewed.status_code
        assert asked.json() == previewed.json()


def test_a_preview_takes_as_long_a_prompt_as_a_request_does(lab):
    messages = [{"role": "user", "content": "word " * 50_000}]
    told = lab.client.post("/v1/decision", json={"model": "limited", "messages": messages})
    assert told.json()["needs"]["tokens_in"] == 62_500
    long = [{"role": "user", "content": "word " * 1_000_000}]
    assert lab.client.post("/v1/decision", json={"model": "limited", "messages": long}).status_code == 413


def test_a_decision_is_read_by_the_id_of_its_answer_with_what_its_calls_took(lab, scripts):
    lab.says(one=scripts.fails(500), two=scripts.says(200, scripts.completion()))
    answer = lab.ask()
    told = lab.client.get(f"/v1/decisions/{answer.json()['id']}").json()
    assert told["decision_id"] == answer.headers["x-router-decision-id"]
    assert (told["route"], told["model"], told["attempt"]) == ("auto", "two", 1)
    assert told["excluded"] == [
        {
            "model": "one",
            "code": "unavailable",
            "reason": "it had no key here, or had failed in this request before",
        }
    ]
    (call,) = told["calls"]
    assert (call["status"], call["place"], call["tokens_out"]) == ("answered", "two", 11)
    assert call["cost_usd"] == pytest.approx((7 * 3 + 11 * 6) / 1e6)
    assert told["features"][0] == 1.0
    (candidate,) = told["candidates"]
    assert candidate["cost_usd"] == float(f"{candidate['cost_usd']:.6g}"), (
        "no digits that a record does not hold"
    )
    failed = next(iter(lab.gateway.outcomes._kept))
    assert lab.client.get(f"/v1/decisions/{failed}").json()["calls"][0]["status"] == "failed"


def test_a_decision_is_read_from_the_store_too(lab, scripts):
    lab.says(one=scripts.says(200, scripts.completion()))
    decision_id = lab.ask().json()["id"]
    recorder = lab.gateway.learning.routes["default.auto"].recorder
    lab.tick()
    recorder._written.clear()
    assert lab.client.get(f"/v1/decisions/{decision_id}").json()["model"] == "one"


def test_a_decision_of_which_only_what_learning_needs_is_left_is_told_as_far_as_it_is_known(lab, scripts):
    lab.says(one=scripts.says(200, scripts.completion()), two=scripts.says(200, scripts.completion()))
    decision_id = lab.ask().json()["id"].removeprefix("chatcmpl-")
    recorder = lab.gateway.learning.routes["default.auto"].recorder
    prefix = prefix_bytes(recorder.record_of(decision_id))
    recorder._unwritten.clear()
    recorder._written.clear()
    recorder.joined(decision_id, prefix)
    told = lab.client.get(f"/v1/decisions/{decision_id}").json()
    assert (told["decision_id"], told["attempt"], 0 < told["propensity"] <= 1) == (decision_id, 0, True)
    assert told["model"] in ("one", "two")
    assert "candidates" not in told


def test_a_decision_whose_explanation_only_the_store_still_has_is_told_whole_from_there(lab, scripts):
    """And while the store is away, as far as it is known here."""
    lab.says(one=scripts.says(200, scripts.completion()), two=scripts.says(200, scripts.completion()))
    decision_id = lab.ask().json()["id"].removeprefix("chatcmpl-")
    route = lab.gateway.learning.routes["default.auto"]
    lab.tick()
    route.recorder._older[decision_id] = without_explanation(route.recorder._written.pop(decision_id))
    assert len(lab.client.get(f"/v1/decisions/{decision_id}").json()["candidates"]) == 2

    async def away(_):
        raise StoreError("away")

    route.log.get_decision = away
    told = lab.client.get(f"/v1/decisions/{decision_id}").json()
    assert told["model"] in ("one", "two")
    assert "candidates" not in told


@pytest.mark.parametrize(
    "decision_id", ["x", "rt-" + "a" * 40, "chatcmpl-rt-" + "a" * 40, "%00", "rt-" + "A" * 40]
)
def test_an_id_that_nobody_made_is_404(lab, decision_id):
    response = lab.client.get(f"/v1/decisions/{decision_id}")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "decision_not_found")


def test_the_cost_of_cached_tokens_is_told_at_their_price(start_lab, scripts):
    lab = start_lab(
        """
models:
  m: {base_url: "URL", price_usd_per_mtok_in: 10, price_usd_per_mtok_out: 0, price_usd_per_mtok_cached_in: 1}
routes:
  auto: {models: [m], strategy: fixed}
"""
    )
    reply = scripts.completion()
    reply["usage"] = {
        "prompt_tokens": 1000,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 900},
    }
    lab.says(m=scripts.says(200, reply))
    lab.ask()
    assert lab.last().cost_usd == pytest.approx((100 * 10 + 900 * 1) / 1e6)


KEYED = f"""
models:
  one: {{base_url: "URL", price_usd_per_mtok_in: 1, price_usd_per_mtok_out: 2}}
routes:
  auto: {{models: [one], strategy: fixed}}
access:
  keys:
    - {{sha256: {digest("key-a")}, tenant: acme}}
    - {{sha256: {digest("key-b")}, tenant: beta, requests_per_minute: 2}}
    - {{sha256: {digest("key-c")}, tenant: acme, max_concurrent: 1}}
"""


def bearer(key: str) -> dict:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        "Basic key-a",
        "key-a",
        "Bearer key-",
        "Bearer " + "x" * 10_000,
        "Bearer k\u00e9y",
    ],
)
def test_without_a_known_key_nothing_is_served_and_nothing_is_told(start_lab, header):
    lab = start_lab(KEYED)
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    for method, path in (
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/decision"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/auto"),
        ("POST", "/feedback"),
        ("GET", "/v1/decisions/rt-x"),
    ):
        response = lab.client.request(method, path, headers=headers, json={} if method == "POST" else None)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key"), path
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert lab.client.get("/healthz").status_code == 200
    assert "routes" not in lab.client.get("/readyz").json()
    assert lab.client.get("/metrics").status_code == 404


def test_two_keys_at_once_are_none(start_lab):
    lab = start_lab(KEYED)
    headers = [("authorization", "Bearer key-a"), ("authorization", "Bearer key-b")]
    assert lab.client.get("/v1/models", headers=headers).status_code == 401


def test_a_tenant_sees_and_rates_its_own_decisions_only(start_lab, scripts):
    lab = start_lab(KEYED)
    lab.says(one=scripts.says(200, scripts.completion()))
    decision = lab.ask(headers=bearer("key-a")).json()["id"]
    rating = {"decision_id": decision, "rating": 1}
    foreign = lab.client.post("/feedback", json=rating, headers=bearer("key-b"))
    forged = lab.client.post(
        "/feedback", json=rating | {"decision_id": "rt-" + "a" * 40}, headers=bearer("key-b")
    )
    assert (
        (foreign.status_code, foreign.json()) == (forged.status_code, forged.json()) == (404, foreign.json())
    )
    assert lab.client.delete(f"/feedback/{decision}", headers=bearer("key-b")).json() == forged.json()
    assert lab.client.delete(f"/feedback/{decision}").status_code == 401
    assert lab.client.get(f"/v1/decisions/{decision}", headers=bearer("key-b")).status_code == 404
    assert lab.client.get(f"/v1/decisions/{decision}", headers=bearer("key-c")).status_code == 200
    assert lab.client.post("/feedback", json=rating, headers=bearer("key-c")).json()["status"] == "applied"
    lab.tick()
    events = {scope: route.replica.state.events for scope, route in lab.gateway.learning.routes.items()}
    assert events == {"acme.auto": 2, "beta.auto": 0}  # the rating, and what the call took


def test_a_key_may_send_so_many_requests_a_minute_and_is_told(start_lab, scripts):
    lab = start_lab(KEYED)
    lab.says(one=scripts.says(200, scripts.completion()))
    remaining = [lab.ask(headers=bearer("key-b")).headers["x-ratelimit-remaining-requests"] for _ in range(2)]
    assert remaining == ["1", "0"]
    response = lab.ask(headers=bearer("key-b"))
    assert (response.status_code, response.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(response.headers["retry-after"]) <= 30
    assert response.headers["x-ratelimit-limit-requests"] == "2"
    assert lab.ask(headers=bearer("key-a")).status_code == 200


def test_a_key_may_have_so_many_requests_at_once(start_lab, scripts):
    from concurrent.futures import ThreadPoolExecutor

    lab = start_lab(KEYED)
    lab.says(one=scripts.held(scripts.says(200, scripts.completion())))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lab.ask, headers=bearer("key-c"))
        lab.until(lambda: len(lab.upstreams.asked) == 1)
        assert lab.ask(headers=bearer("key-c")).status_code == 429
        lab.upstreams.asked[0].released.set()
        assert first.result().status_code == 200
    lab.says(one=scripts.says(200, scripts.completion()))
    assert lab.ask(headers=bearer("key-c")).status_code == 200


def test_metrics_count_requests_calls_tokens_and_money_with_labels_from_closed_lists(lab, scripts):
    lab.says(one=scripts.fails(500), two=scripts.says(200, scripts.completion()))
    lab.ask()
    lab.ask("no-such-model\nx 1")
    lab.ask(user="u-1", router={"session": "s-1"})
    page = lab.client.get("/metrics").text
    lines = set(page.splitlines())
    assert 'router_requests_total{status="200"} 2.0' in lines
    assert 'router_requests_total{status="404"} 1.0' in lines
    assert 'router_calls_total{model="one",outcome="failed",route="auto"} 2.0' in lines
    assert 'router_calls_total{model="two",outcome="answered",route="auto"} 2.0' in lines
    assert 'router_tokens_total{direction="out",model="two"} 22.0' in lines
    assert 'router_call_duration_seconds_count{model="two"} 2.0' in lines
    (cost,) = [line for line in lines if line.startswith('router_cost_usd_total{model="two"')]
    assert float(cost.split()[-1]) == pytest.approx(2 * (7 * 3 + 11 * 6) / 1e6)
    assert 'router_places_resting{model="one"} 0.0' in lines
    for secret in ("no-such-model", "u-1", "s-1", "sk-upstream"):
        assert secret not in page
