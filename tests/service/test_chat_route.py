"""The chat route, end to end inside one process: real ASGI, real learning on the memory store, scripted upstreams."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from math import inf
from typing import ClassVar

import httpx
import pytest

from bandit.arms import Arm
from bandit.decide import decide
from bandit.features import DIMENSION, TAG
from bandit.newcomers import Newcomers
from bandit.objective import Balanced
from bandit.policy import Thompson
from bandit.types import Context, Needs
from feedback.ids import new_id
from feedback.learn import fold
from feedback.learning import Identity, Learning
from feedback.memory_store import MemoryStore
from feedback.records import decode_record
from feedback.spool import Spool
from feedback.state import START, State
from service.app import create_app
from service.calls import Shell
from service.config import parse_settings
from service.routes import quality_models
from service.upstream import UpstreamError

SECRET = b"s" * 32
NOW = 1_790_000_000.0
CONFIG = """
models:
  small: {base_url: "http://small.test/v1", price_usd_per_mtok_in: 0.1, price_usd_per_mtok_out: 0.1, upstream_model: vendor/small-1}
  large: {base_url: "http://large.test/v1", price_usd_per_mtok_in: 5, price_usd_per_mtok_out: 15}
  keyed: {base_url: "http://keyed.test/v1", price_usd_per_mtok_in: 1, price_usd_per_mtok_out: 1, api_key_env: KEYED_KEY}
  tiny: {base_url: "http://tiny.test/v1", price_usd_per_mtok_in: 1, price_usd_per_mtok_out: 1, context_window_tokens: 8, tools: false}
routes:
  auto: {models: [small, large], usd_per_quality: 0.05}
  first: {models: [keyed, small, large], strategy: fixed}
  cramped: {models: [tiny], strategy: uniform}
server: {max_body_bytes: 4096}
"""


@dataclass
class ScriptedReply:
    status: int
    headers: Mapping[str, str]
    pieces: list[bytes | UpstreamError | asyncio.Event]

    close: Callable[[], None] = lambda: None

    async def read(self) -> bytes:
        body = b""
        while chunk := await self.chunk():
            body += chunk
        return body

    async def chunk(self) -> bytes:
        while self.pieces:
            piece = self.pieces.pop(0)
            if isinstance(piece, UpstreamError):
                raise piece
            if isinstance(piece, bytes):
                return piece
            await piece.wait()
        return b""


@dataclass
class ScriptedUpstream:
    """host -> what it does; sent: what it was asked; open: replies not yet left."""

    script: dict[str, Callable[[dict], ScriptedReply | UpstreamError]]
    sent: list[tuple[str, dict, dict]] = field(default_factory=list)
    open: int = 0

    async def send(self, url, headers, body):
        asked = json.loads(body)
        self.sent.append((url, dict(headers), asked))
        reply = self.script[httpx.URL(url).host.removesuffix(".test")](asked)
        if isinstance(reply, UpstreamError):
            raise reply
        self.open += 1
        reply.close = self.closed
        return reply

    def closed(self) -> None:
        self.open -= 1

    async def close(self) -> None:
        """Nothing is held open."""


def completion(text: str = "hello", usage: dict | None = None, **more) -> Callable[[dict], ScriptedReply]:
    usage = {"prompt_tokens": 7, "completion_tokens": 11, "total_tokens": 18} if usage is None else usage

    def reply(asked: dict) -> ScriptedReply:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        body = {"id": "upstream-1", "object": "chat.completion", "model": asked["model"], "choices": [choice]}
        data = json.dumps(body | {"usage": usage} | more, indent=1).encode()
        return ScriptedReply(200, {"content-type": "application/json"}, [data])

    return reply


def events(*pieces, status: int = 200) -> Callable[[dict], ScriptedReply]:
    return lambda _: ScriptedReply(status, {"content-type": "text/event-stream; charset=utf-8"}, list(pieces))


def chunk(**fields) -> bytes:
    body = {"id": "up", "object": "chat.completion.chunk", "model": "vendor", "choices": []} | fields
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def failing(status: int, message: str = "no", **headers) -> Callable[[dict], ScriptedReply]:
    body = json.dumps(
        {"error": {"message": message, "type": "some_error", "param": None, "code": "c"}}
    ).encode()
    head = {"content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    return lambda _: ScriptedReply(status, head, [body])


@dataclass
class Setup:
    client: httpx.AsyncClient
    upstream: ScriptedUpstream
    learning: Learning

    def records(self, route: str = "auto"):
        recorder = self.learning.routes[f"default.{route}"].recorder
        return [decode_record(record) for record in recorder._unwritten.values()]

    def calls(self, route: str = "auto"):
        return self.learning.routes[f"default.{route}"].recorder.calls

    async def ask(self, model: str = "auto", **fields) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]} | fields
        return await self.client.post("/v1/chat/completions", json=body)


@pytest.fixture
async def gateway(tmp_path):
    settings = parse_settings(CONFIG, source="test.yaml", folder=tmp_path, environ={})
    spool = await Spool.open(tmp_path / "spool", worker="w", clock=lambda: NOW)
    learning = Learning(
        MemoryStore(),
        spool,
        quality_models(settings),
        identity=Identity("w", [SECRET], 3600.0),
        clock=lambda: NOW,
    )
    numbers = count()
    upstream = ScriptedUpstream({name: completion(name) for name in ("small", "large", "keyed", "tiny")})
    shell = Shell(
        upstream=upstream,
        now=lambda: NOW,
        ticks=lambda: next(numbers) * 1_000_000,
        new_id=lambda scope: new_id(SECRET, scope, now_s=NOW, entropy=next(numbers).to_bytes(8, "big")),
    )
    app = create_app(settings, learning, shell, background=False)
    await learning.start()
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway.test") as client:
        yield Setup(client, upstream, learning)
    await learning.close()


async def test_reply_carries_the_decision_and_the_real_model(gateway):
    response = await gateway.ask(seed=7, unknown_field={"kept": [1, 2]})
    body = response.json()
    assert response.status_code == 200
    decision_id = response.headers["x-router-decision-id"]
    assert body["id"] == f"chatcmpl-{decision_id}"
    assert response.headers["x-router-route"] == "auto"
    url, headers, asked = gateway.upstream.sent[0]
    assert url == f"http://{body['model']}.test/v1/chat/completions"
    assert asked["unknown_field"] == {"kept": [1, 2]}
    assert asked["seed"] == 7
    assert asked["model"] == {"small": "vendor/small-1", "large": "large"}[body["model"]]
    assert "authorization" not in headers


async def test_record_holds_what_was_decided(gateway):
    response = await gateway.ask()
    ((prefix, explanation),) = gateway.records()
    assert prefix.arm == response.json()["model"]
    assert prefix.decided_at == NOW
    assert explanation.told["route"] == "auto"
    names = [name for name, *_ in explanation.told["candidates"]]
    probabilities = dict(zip(names, explanation.probabilities.tolist(), strict=True))
    assert set(probabilities) == {"small", "large"}
    assert sum(probabilities.values()) == pytest.approx(1.0, abs=1e-12)
    assert prefix.propensity == probabilities[prefix.arm]
    assert min(probabilities.values()) > 0.0005


async def test_any_decision_can_be_made_again_from_its_record_and_the_log(gateway):
    """Nothing but the stored bytes and the log is used: context, candidates, prices and policy come out of the record."""
    route = gateway.learning.routes["default.auto"]
    made = []
    for n in range(30):
        response = await gateway.ask(
            messages=[{"role": "user", "content": f"{n} " * (1 + 7 * n)}], max_tokens=50 + n
        )
        made.append(response.headers["x-router-decision-id"])
        body = {"decision_id": made[-1], "rating": n % 5 / 4}
        assert (await gateway.client.post("/feedback", json=body)).json()["status"] == "applied"
        await gateway.learning.tick()
    chosen = set()
    for decision_id in made:
        prefix, explanation = decode_record(await route.log.get_decision(decision_id))
        state, model = State(TAG, DIMENSION), route.replica.model
        for entry in (await route.log.read(START, 10_000)).entries:
            if state.cursor == explanation.told["log"]:
                break
            state = fold(state, entry.token, entry.data)
        again = decide(
            eval(
                explanation.told["policy"],
                {"Thompson": Thompson, "Balanced": Balanced, "Newcomers": Newcomers, "inf": inf},
            ),
            state.posterior(model),
            Context(prefix.x, Needs(*explanation.told["needs"])),
            [Arm(name, *prices) for name, *prices in explanation.told["candidates"]],
            decision_id,
        )
        assert (again.arm.name, again.propensity) == (prefix.arm, prefix.propensity)
        assert again.probabilities.tolist() == explanation.probabilities.tolist()
        chosen.add(again.arm.name)
    assert chosen == {"small", "large"}


async def test_tokens_of_the_call_are_learned(gateway):
    model = (await gateway.ask()).json()["model"]
    calls = gateway.calls()[model]
    assert (calls.calls, calls.tokens_in, calls.tokens_out, calls.timed) == (1, 7, 11, 1)
    assert calls.latency_us > 0
    await gateway.learning.tick()
    state = gateway.learning.routes["default.auto"].replica.state
    assert state.calls[model] == calls
    assert state.latencies[model].first_byte.n == 1


async def test_usage_without_numbers_is_timed_but_not_counted(gateway):
    gateway.upstream.script |= {"small": completion(usage={}), "large": completion(usage={})}
    model = (await gateway.ask()).json()["model"]
    assert (gateway.calls()[model].calls, gateway.calls()[model].timed) == (0, 1)


async def test_stream_is_spliced_event_by_event_and_usage_is_kept_back(gateway):
    answer = events(
        b": keep-alive\n\n",
        chunk(choices=[{"index": 0, "delta": {"content": "hé"}}], usage=None)[:20],
        chunk(choices=[{"index": 0, "delta": {"content": "hé"}}], usage=None)[20:],
        chunk(usage={"prompt_tokens": 3, "completion_tokens": 5}) + b"data: [DONE]\n\n",
    )
    gateway.upstream.script |= {"small": answer, "large": answer}
    response = await gateway.ask(stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    parts = response.text.split("\n\n")
    assert parts[0] == ": keep-alive"
    first = json.loads(parts[1].removeprefix("data: "))
    assert first["id"] == f"chatcmpl-{response.headers['x-router-decision-id']}"
    assert first["model"] == response.headers["x-router-model"]
    assert first["choices"][0]["delta"]["content"] == "hé"
    assert parts[2:] == ["data: [DONE]", ""]  # the usage chunk was ours, not the client's
    assert gateway.upstream.sent[0][2]["stream_options"] == {"include_usage": True}
    assert gateway.calls()[first["model"]].tokens_out == 5


async def test_usage_chunk_reaches_a_client_that_asked_for_it(gateway):
    answer = events(
        chunk(choices=[{"index": 0, "delta": {}}]), chunk(usage={"prompt_tokens": 3, "completion_tokens": 5})
    )
    gateway.upstream.script |= {"small": answer, "large": answer}
    options = {"include_usage": True, "other": 1}
    response = await gateway.ask(stream=True, stream_options=options)
    assert (
        json.loads(response.text.split("\n\n")[1].removeprefix("data: "))["usage"]["completion_tokens"] == 5
    )
    assert gateway.upstream.sent[0][2]["stream_options"] == options


@pytest.mark.parametrize(
    "broken",
    [
        failing(500),
        failing(429, retry_after="3"),
        failing(401),
        failing(302),
        failing(402, "Insufficient credits for key sk-abc"),
        failing(405),
        failing(413),
        lambda _: ScriptedReply(
            400, {}, [b'{"error": {"message": "too long", "code": "context_length_exceeded"}}']
        ),
        lambda _: ScriptedReply(
            200, {"content-type": "application/json"}, [b'{"error": {"message": "overloaded"}}']
        ),
        events(b'data: {"error": {"message": "overloaded"}}\n\n'),
        events(b": PROCESSING\n\n", UpstreamError("reset", "gone")),
        events(b": PROCESSING\n\n", b'data: {"id": "x", "cho'),
        lambda _: UpstreamError("connect", "refused"),
        events(),
        events(UpstreamError("reset", "gone")),
        *(
            lambda _, body=body: ScriptedReply(200, {"content-type": "application/json"}, [body])
            for body in (
                b"<html>",
                b"",
                b"[]",
                b'{"id":',
                b'{"id": "x", "choices": [{"message": {"cont',
                b"{} and more",
            )
        ),
    ],
)
async def test_a_model_that_fails_before_its_first_byte_gives_way_to_the_next(gateway, broken):
    gateway.upstream.script |= {"small": broken, "large": completion("saved")}
    for _ in range(6):  # whichever is chosen first
        response = await gateway.ask("auto", stream=False)
        assert (response.status_code, response.json()["model"]) == (200, "large")
    attempts = [(p.arm, p.attempt, [name for name, *_ in e.told["candidates"]]) for p, e in gateway.records()]
    assert ("large", 1, ["large"]) in attempts or all(arm == "large" for arm, *_ in attempts)
    if "small" in gateway.calls():
        assert gateway.calls()["small"].failures > 0
    assert gateway.upstream.open == 0


async def test_comments_before_the_first_answer_are_kept(gateway):
    answer = events(b": PROCESSING\n\n", b"data:   " + chunk(choices=[{"index": 0}])[6:], b"data: [DONE]\n\n")
    gateway.upstream.script |= {"small": answer, "large": answer}
    response = await gateway.ask(stream=True)
    assert response.text.startswith(": PROCESSING\n\n")
    assert f"chatcmpl-{response.headers['x-router-decision-id']}" in response.text
    assert response.text.endswith("data: [DONE]\n\n")


async def test_an_error_that_the_upstream_tells_in_mid_stream_counts_as_a_failure(gateway):
    answer = events(chunk(choices=[{"index": 0}]), b'data: {"error": {"message": "overloaded"}}\n\n')
    gateway.upstream.script |= {"small": answer, "large": answer}
    response = await gateway.ask(stream=True)
    assert "overloaded" in response.text
    (calls,) = gateway.calls().values()
    assert (calls.failures, calls.timed) == (1, 0)


async def test_a_header_that_is_none_is_not_sent_on(gateway):
    gateway.upstream.script |= {name: failing(429, retry_after="\x01x") for name in ("small", "large")}
    response = await gateway.ask()
    assert response.status_code == 429
    assert "retry-after" not in response.headers


async def test_where_no_model_has_its_key_the_gateway_is_at_fault(gateway):
    response = await gateway.ask("keyed")
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "no_model_available"
    assert "KEYED_KEY" not in response.text
    ready = await gateway.client.get("/readyz")
    assert (ready.status_code, ready.json()["routes_without_a_key"]) == (503, ["keyed"])


async def test_feedback_needs_no_content_type_and_names_what_it_ignores(gateway):
    decision_id = (await gateway.ask()).json()["id"]
    body = json.dumps({"decision_id": decision_id, "rating": 1, "judge_scor": 0.5, "weight": 9})
    form = {"content-type": "application/x-www-form-urlencoded"}
    response = await gateway.client.post("/feedback", content=body, headers=form)
    assert response.status_code == 202
    assert response.json()["ignored"] == ["judge_scor", "weight"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"null", b"[]", b"3", b"\xff", b"{}", b'{"decision_id": 3, "rating": 1}']
)
async def test_a_feedback_that_is_none_is_refused_in_the_envelope(gateway, body):
    response = await gateway.client.post("/feedback", content=body)
    assert response.status_code in (400, 422)
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


async def test_fixed_route_fails_over_in_order_and_skips_a_model_without_key(gateway):
    gateway.upstream.script["small"] = failing(503)
    response = await gateway.ask("first")
    assert response.json()["model"] == "large"
    (_, small), (_, large) = gateway.records("first")
    assert small.told["excluded"] == {"keyed": "unavailable"}
    assert large.told["excluded"] == {"keyed": "unavailable", "small": "unavailable"}


async def test_last_error_is_told_in_the_openai_envelope_when_all_fail(gateway):
    gateway.upstream.script |= {
        "small": failing(429, "slow down", retry_after="9"),
        "large": failing(429, "slow down", retry_after="9"),
    }
    response = await gateway.ask()
    assert response.status_code == 429
    assert response.headers["retry-after"] == "9"
    assert response.json() == {
        "error": {"message": "slow down", "type": "some_error", "param": None, "code": "c"}
    }
    assert response.headers["x-request-id"]


async def test_the_operators_broken_key_is_not_told_as_the_clients(gateway):
    gateway.upstream.script |= {"small": failing(401, "bad key sk-1"), "large": failing(401, "bad key sk-1")}
    response = await gateway.ask()
    assert response.status_code == 502
    assert "sk-1" not in response.text


async def test_the_clients_own_mistake_is_passed_on_and_not_tried_elsewhere(gateway):
    gateway.upstream.script |= {name: failing(400, "temperature too high") for name in ("small", "large")}
    response = await gateway.ask()
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "temperature too high"
    assert len(gateway.upstream.sent) == 1


async def test_after_the_first_byte_a_failure_is_told_in_the_stream_and_counted(gateway):
    broken = events(
        chunk(choices=[{"index": 0, "delta": {"content": "a"}}]),
        UpstreamError("reset", "the connection broke"),
    )
    gateway.upstream.script |= {"small": broken, "large": broken}
    response = await gateway.ask(stream=True)
    assert response.status_code == 200
    last = json.loads(response.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["code"] == "upstream_failed"
    (calls,) = gateway.calls().values()
    assert (calls.failures, calls.calls) == (1, 0)
    assert len(gateway.upstream.sent) == 1


async def test_named_model_bypasses_routing_and_is_still_metered(gateway):
    response = await gateway.ask("large")
    assert response.json()["model"] == "large"
    ((prefix, explanation),) = gateway.records()
    assert (prefix.propensity, explanation.probabilities.tolist()) == (1.0, [1.0])
    assert explanation.told["candidates"] == [["large", 5.0, 15.0]]
    gateway.upstream.script["large"] = failing(500)
    assert (await gateway.ask("large")).status_code == 500


async def test_unknown_model_is_404_and_names_what_there_is(gateway):
    response = await gateway.ask("gpt-9")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert "auto" in response.json()["error"]["message"]


async def test_no_model_that_can_serve_is_400_with_each_reason(gateway):
    response = await gateway.ask("cramped", max_tokens=100)
    assert response.json()["error"]["code"] == "no_eligible_model"
    assert "window holds 8" in response.json()["error"]["message"]
    response = await gateway.ask("cramped", tools=[{"type": "function", "function": {"name": "f"}}])
    assert "tools" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"null", None),
        (b"[]", None),
        (b'{"model": "auto"', None),
        (b'{"model": "auto", "messages": [{"role": "user"}]} trailing', None),
        (b'\xff\xfe{"model"', None),
        (b'{"messages": [{"role": "user", "content": "x"}]}', "model"),
        (b'{"model": "a", "messages": [{"role": "user"}], "model": "auto"}', "model"),
        (b'{"model": 3, "messages": [{"role": "user", "content": "x"}]}', "model"),
        (b'{"model": "auto"}', "messages"),
        (b'{"model": "auto", "messages": []}', "messages"),
        (b'{"model": "auto", "messages": "x"}', "messages"),
        (b'{"model": "auto", "messages": [3]}', "messages[0]"),
        (b'{"model": "auto", "messages": [{"role": "user"}], "stream": "yes"}', "stream"),
        (b'{"model": "auto", "messages": [{"role": "user"}], "max_tokens": 0}', "max_tokens"),
        (b'{"model": "auto", "messages": [{"role": "user"}], "max_tokens": true}', "max_tokens"),
        (
            b'{"model": "auto", "messages": [{"role": "user"}], "max_completion_tokens": "9"}',
            "max_completion_tokens",
        ),
        (b'{"model": "auto", "messages": [{"role": "user"}], "tools": {}}', "tools"),
        (b'{"model": "auto", "messages": [{"role": "user"}], "stream_options": 1}', "stream_options"),
    ],
)
async def test_bad_bodies_get_their_exact_error_and_change_nothing(gateway, body, param):
    response = await gateway.client.post("/v1/chat/completions", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert response.json()["error"]["param"] == param
    assert gateway.upstream.sent == []
    assert gateway.records() == []


@pytest.mark.parametrize(
    "content", [None, 5, [1, [2]], [{"type": "text"}], [{"type": "text", "text": "x" * 50}], "\x00"]
)
async def test_odd_content_is_the_models_business(gateway, content):
    response = await gateway.client.post(
        "/v1/chat/completions", json={"model": "auto", "messages": [{"role": "user", "content": content}]}
    )
    assert response.status_code == 200


async def test_body_over_the_limit_is_413(gateway):
    response = await gateway.ask(padding="x" * 5000)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "payload_too_large")


@pytest.mark.parametrize("tokens", [2**63, 10**30, -1, 1.5, True, "7", None])
async def test_an_absurd_usage_is_as_good_as_none_and_stops_nothing(gateway, tokens):
    usage = {"prompt_tokens": tokens, "completion_tokens": 5}
    gateway.upstream.script |= {name: completion(usage=usage) for name in ("small", "large")}
    model = (await gateway.ask()).json()["model"]
    assert (gateway.calls()[model].calls, gateway.calls()[model].timed) == (0, 1)
    await gateway.learning.tick()
    assert gateway.learning.routes["default.auto"].replica.state.skipped == 0


async def test_garbage_within_a_stream_is_passed_on_as_it_is(gateway):
    answer = events(
        b'data: {"id": \n\n', b'data: {"id": "x", "choices": [\n\n', chunk(choices=[{"index": 0}])
    )
    gateway.upstream.script |= {"small": answer, "large": answer}
    response = await gateway.ask(stream=True)
    parts = response.text.split("\n\n")
    assert parts[:2] == ['data: {"id": ', 'data: {"id": "x", "choices": [']
    assert "chatcmpl-rt-" in parts[2]


async def test_a_refused_value_does_not_hide_what_became_of_the_others(gateway):
    decision_id = (await gateway.ask()).json()["id"]
    first = {"decision_id": decision_id, "judge_score": 0.5}
    assert (await gateway.client.post("/feedback", json=first)).json()["results"] == {
        "judge_score": "applied"
    }
    both = {"decision_id": decision_id, "judge_score": 0.7, "rating": 1}
    response = await gateway.client.post("/feedback", json=both)
    assert (response.status_code, response.json()["error"]["param"]) == (409, "judge_score")
    assert "rating: applied" in response.json()["error"]["message"]


async def test_a_rating_is_taken_back_and_counts_as_never_given(gateway):
    decision_id = (await gateway.ask()).json()["id"]
    bare = decision_id.removeprefix("chatcmpl-")
    given = {"decision_id": decision_id, "rating": 0.25, "judge_score": 0.5}
    assert (await gateway.client.post("/feedback", json=given)).status_code == 202
    response = await gateway.client.delete(f"/feedback/{decision_id}")
    assert response.status_code == 202
    assert response.json() == {
        "decision_id": bare,
        "status": "withdrawn",
        "results": {"rating": "withdrawn"},
    }
    await gateway.learning.tick()
    state = gateway.learning.routes["default.auto"].replica.state
    ratings = {source: s.n for (_, source), s in state.ratings.items()}
    assert ratings["user"] == pytest.approx(0, abs=1e-12)
    assert ratings["judge:judge"] > 0.5
    ready = (await gateway.client.get("/readyz")).json()["routes"]["default.auto"]
    assert (ready["alarms"], ready["resets"]) == ([], [])

    response = await gateway.client.delete(f"/feedback/{decision_id}")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "nothing_to_withdraw")
    response = await gateway.client.delete(f"/feedback/{decision_id}?judge=judge")
    assert response.json()["results"] == {"judge_score": "withdrawn"}
    again = {"decision_id": decision_id, "rating": 1, "idempotency_key": "second thoughts"}
    assert (await gateway.client.post("/feedback", json=again)).json()["status"] == "applied"


async def test_operators_read_what_makes_a_judges_scores_those_of_users(gateway):
    for n in range(40):
        asked = (await gateway.ask()).json()
        rating = 0.9 if asked["model"] == "small" else 0.6
        given = {"decision_id": asked["id"], "judge_score": rating - 0.3}
        if n % 2:
            given["rating"] = rating
        assert (await gateway.client.post("/feedback", json=given)).status_code == 202
    await gateway.learning.tick()
    ready = (await gateway.client.get("/readyz")).json()["routes"]["default.auto"]
    users, judged = ready["sources"]["user"], ready["sources"]["judge:judge"]
    assert sum(arm["ratings"] for arm in judged.values()) == pytest.approx(40, abs=0.1)
    assert sum(arm["ratings"] for arm in users.values()) == pytest.approx(20, abs=0.1)
    assert {frozenset(arm) for arm in users.values()} == {frozenset({"ratings"})}
    for name, arm in judged.items():
        quality = 0.9 if name == "small" else 0.6
        assert (quality - 0.3 - arm["offset"]) / arm["clarity"] == pytest.approx(quality, abs=0.15)
        assert ready["arms"][name]["mean_quality"] == pytest.approx(quality, abs=0.1)


async def test_a_withdrawal_with_a_key_is_done_once(gateway):
    decision_id = (await gateway.ask()).json()["id"]
    key = {"idempotency-key": "undo-1"}
    await gateway.client.post("/feedback", json={"decision_id": decision_id, "rating": 0.25})
    statuses = []
    for rating in (None, 0.75, None):
        if rating is not None:
            body = {"decision_id": decision_id, "rating": rating, "idempotency_key": "again"}
            statuses.append((await gateway.client.post("/feedback", json=body)).json()["status"])
        else:
            response = await gateway.client.delete(f"/feedback/{decision_id}", headers=key)
            statuses.append(response.json()["status"])
    assert statuses == ["withdrawn", "applied", "duplicate"]


async def test_null_is_no_withdrawal(gateway):
    """Clients write null for what they do not give."""
    decision_id = (await gateway.ask()).json()["id"]
    await gateway.client.post("/feedback", json={"decision_id": decision_id, "rating": 0.25})
    body = {"decision_id": decision_id, "rating": None, "judge_score": 0.5}
    response = await gateway.client.post("/feedback", json=body)
    assert response.json()["results"] == {"judge_score": "applied"}


@pytest.mark.parametrize(
    ("path", "status"), [("rt-" + "a" * 40, 404), ("rt-x?judge=no%20name", 422), ("x" * 300, 422)]
)
async def test_a_withdrawal_of_what_is_not_ours_is_refused(gateway, path, status):
    response = await gateway.client.delete(f"/feedback/{path}")
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


async def test_zero_and_minus_zero_are_one_value(gateway):
    decision_id = (await gateway.ask()).json()["id"]
    statuses = [
        (await gateway.client.post("/feedback", json={"decision_id": decision_id, "rating": zero})).json()[
            "status"
        ]
        for zero in (0.0, -0.0, 0)
    ]
    assert statuses == ["applied", "duplicate", "duplicate"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rating", 2),
        ("rating", -0.1),
        ("rating", "1"),
        ("rating", True),
        ("judge_score", [1]),
        ("cost_usd", -1),
        ("cost_usd", 1e7),
    ],
)
async def test_a_value_out_of_range_is_422_naming_field_and_range(gateway, field, value):
    body = {"decision_id": "rt-x", field: value}
    response = await gateway.client.post("/feedback", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (422, field)
    assert error["message"].startswith(f"{field}: must be a number from 0 to ")


async def test_a_feedback_longer_than_any_feedback_is_413(gateway):
    body = {"decision_id": "rt-x", "rating": 1, "comment": "x" * 70_000}
    response = await gateway.client.post("/feedback", json=body)
    assert response.status_code == 413
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


async def test_a_client_that_leaves_closes_the_upstream(gateway):
    """Spoken in bare ASGI: the disconnect arrives while the model is silent in the middle of its stream."""
    silent = asyncio.Event()
    answer = events(chunk(choices=[{"index": 0, "delta": {"content": "a"}}]), silent)
    gateway.upstream.script |= {"small": answer, "large": answer}
    app = gateway.client._transport.app
    first_byte, body = (
        asyncio.Event(),
        json.dumps(
            {"model": "auto", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
        ).encode(),
    )
    messages = iter([{"type": "http.request", "body": body}])

    async def receive():
        if message := next(messages, None):
            return message
        await first_byte.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        if message["type"] == "http.response.body":
            first_byte.set()

    scope = {"type": "http", "path": "/v1/chat/completions", "method": "POST", "headers": []}
    async with asyncio.timeout(5):
        await app(scope, receive, send)
    assert gateway.upstream.open == 0
    assert len(gateway.upstream.sent) == 1
    assert not gateway.calls()  # aborted: neither good nor bad


async def test_request_id_is_echoed_if_sane_and_made_if_not(gateway):
    for given, kept in [("abc-123", True), ("bad id\twith tab", False), ("x" * 200, False)]:
        response = await gateway.client.get("/healthz", headers={"x-request-id": given})
        assert (response.headers["x-request-id"] == given) is kept
        assert response.headers["x-request-id"]


async def test_models_are_listed_with_a_window_they_can_honour(gateway):
    assert (await gateway.client.get("/v1/models/auto")).json()["id"] == "auto"
    assert (await gateway.client.get("/v1/models/none")).json()["error"]["code"] == "model_not_found"
    listed = {m["id"]: m for m in (await gateway.client.get("/v1/models")).json()["data"]}
    assert {"auto", "first", "cramped", "small", "large", "keyed", "tiny"} == set(listed)
    assert listed["cramped"]["context_window"] == 8
    assert listed["auto"]["context_window"] == 128_000


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/nowhere"), ("GET", "/v1/chat/completions"), ("PUT", "/feedback")]
)
async def test_other_errors_come_in_the_envelope_too(gateway, method, path):
    response = await gateway.client.request(method, path)
    assert response.status_code == (404 if path == "/nowhere" else 405)
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


async def test_no_piece_of_a_stream_is_held_back(gateway):
    """The model says a word only after the client has the one before: whatever is kept back ends in a timeout."""
    has = [asyncio.Event() for _ in range(30)]
    words = [chunk(choices=[{"index": 0, "delta": {"content": f"word-{n} "}}]) for n in range(len(has))]
    gated = [part for word, event in zip(words, has, strict=True) for part in (word, event)]
    gateway.upstream.script |= dict.fromkeys(gateway.upstream.script, events(*gated, b"data: [DONE]\n\n"))
    body = json.dumps({"model": "auto", "stream": True, "messages": [{"role": "user", "content": "hi"}]})
    asked = iter([{"type": "http.request", "body": body.encode(), "more_body": False}])
    seen = b""

    async def receive():
        return next(asked, None) or await asyncio.Event().wait()

    async def send(message):
        nonlocal seen
        seen += message.get("body", b"")
        for n, event in enumerate(has):
            if f"word-{n} ".encode() in seen:
                event.set()

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    async with asyncio.timeout(5):
        await gateway.client._transport.app(scope, receive, send)
    assert seen.endswith(b"data: [DONE]\n\n")
    assert seen.count(b"word-") == len(has)


class FrozenLog:
    """A store that has stopped answering: every call is noted, and waits for ever."""

    asked: ClassVar[list[str]] = []

    def __getattr__(self, name):
        async def never(*_, **__):
            self.asked.append(name)
            await asyncio.Event().wait()

        return never


class FrozenStore:
    def log(self, scope):
        return FrozenLog()

    async def close(self):
        """Nothing is held open."""


async def test_no_request_waits_for_the_store(tmp_path):
    """Decisions, answers and streams come while the store is frozen and the learning loop hangs in it."""
    settings = parse_settings(CONFIG, source="test.yaml", folder=tmp_path, environ={})
    spool = await Spool.open(tmp_path / "spool", worker="w", clock=lambda: NOW)
    identity = Identity("w", [SECRET], 3600.0)
    learning = Learning(FrozenStore(), spool, quality_models(settings), identity=identity, clock=lambda: NOW)
    upstream = ScriptedUpstream({name: completion(name) for name in ("small", "large")})
    numbers = count()
    shell = Shell(
        upstream=upstream,
        now=lambda: NOW,
        ticks=lambda: next(numbers),
        new_id=lambda scope: new_id(SECRET, scope, now_s=NOW, entropy=next(numbers).to_bytes(8, "big")),
    )
    app = create_app(settings, learning, shell, background=False)
    hanging = asyncio.create_task(learning.tick())
    await asyncio.sleep(0)
    asked = len(FrozenLog.asked)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://g.test") as client:
        async with asyncio.timeout(5):
            for n in range(20):
                body = {
                    "model": "auto",
                    "stream": n % 2 == 1,
                    "messages": [{"role": "user", "content": "hi"}],
                }
                assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    assert len(FrozenLog.asked) == asked, "a request asked the store for something"
    assert learning.routes["default.auto"].recorder.waiting == 20
    hanging.cancel()
    await asyncio.gather(hanging, return_exceptions=True)
    await spool.close()
