"""The protocol, case by case: a real client's bytes, a real gateway, and upstreams that misbehave in every way known.

Each case is one sentence. `one` and `two` are the models of the route `auto`, asked in this order.
"""

import asyncio
import json
import socket

import pytest

HELLO = [{"role": "user", "content": "hi"}]
IMAGE = [
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}]}
]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
ENVELOPE = {"message", "type", "param", "code"}


def chat(**fields) -> bytes:
    return json.dumps({"model": "auto", "messages": HELLO} | fields).encode()


def table(cases):
    return pytest.mark.parametrize(
        [f"case{i}" for i in range(len(cases[0]) - 1)] if len(cases[0]) > 2 else "case0",
        [case[1:] if len(case) > 2 else case[1] for case in cases],
        ids=[case[0] for case in cases],
    )


REFUSED = [
    ("an empty body is no request", b"", None),
    ("null is no request", b"null", None),
    ("a list is no request", b"[]", None),
    ("a body that ends early is not JSON", b'{"model": "auto", "messages": [', None),
    ("what follows the object is garbage", chat() + b" trailing", None),
    ("UTF-16 is not what JSON is sent in", chat().decode().encode("utf-16"), None),
    ("a byte that is no UTF-8 is refused", b'{"model": "auto\xff"}', None),
    ("a hundred thousand brackets overflow nothing", b'{"model":"auto","messages":' + b"[" * 100_000, None),
    ("NaN is not JSON", b'{"model": "auto", "messages": [{"role": "user"}], "temperature": NaN}', None),
    ("Infinity is not JSON", b'{"model": "auto", "messages": [{"role": "user"}], "temperature": Infinity}', None),
    ("a model named twice could be read in two ways", b'{"model":"auto","messages":[{"role":"user"}],"model":"two"}', "model"),
    ("messages given twice could be read in two ways", b'{"model":"auto","messages":[{"role":"user"}],"messages":[{"role":"user"}]}', "messages"),
    ("a key hidden by an escape is still given twice", b'{"model":"auto","messages":[{"role":"user"}],"\\u006dodel":"two"}', "model"),
    ("a request names its model", b'{"messages": [{"role": "user", "content": "x"}]}', "model"),
    ("an empty model is none", chat(model=""), "model"),
    ("a request has messages", b'{"model": "auto"}', "messages"),
    ("an empty list of messages asks nothing", chat(messages=[]), "messages"),
    ("a message is an object", chat(messages=["hi"]), "messages[0]"),
    ("a message has a role", chat(messages=[*HELLO, {"content": "x"}]), "messages[1]"),
    ("stream is true or false", chat(stream="yes"), "stream"),
    ("max_tokens of zero is no answer", chat(max_tokens=0), "max_tokens"),
    ("max_tokens below zero is none", chat(max_tokens=-1), "max_tokens"),
    ("max_tokens is a number", chat(max_tokens="10"), "max_tokens"),
    ("true is no number of tokens", chat(max_tokens=True), "max_tokens"),
    ("max_tokens has an end", chat(max_tokens=2**63), "max_tokens"),
    ("max_completion_tokens is held to the same", chat(max_tokens=5, max_completion_tokens=0), "max_completion_tokens"),
    ("an integer of a hundred thousand digits is refused", chat()[:-1] + b', "max_tokens": ' + b"9" * 100_000 + b"}", None),
    ("tools are a list", chat(tools={}), "tools"),
    ("stream_options are an object", chat(stream_options=[1]), "stream_options"),
    ("response_format has a type", chat(response_format={"schema": {}}), "response_format"),
    ("api_base at the root is forbidden", chat(api_base="http://evil.test"), "api_base"),
    ("base_url at the root is forbidden", chat(base_url="http://evil.test"), "base_url"),
    ("api_key at the root is forbidden", chat(api_key="sk-mine"), "api_key"),
    ("extra_headers are forbidden", chat(extra_headers={"x": "y"}), "extra_headers"),
    ("extra_body is forbidden", chat(extra_body={"api_base": "x"}), "extra_body"),
    ("custom_llm_provider is forbidden", chat(custom_llm_provider="evil"), "custom_llm_provider"),
    ("api_base in metadata is forbidden", chat(metadata={"a": [{"api_base": "x"}]}), "metadata.a[0].api_base"),
    ("base_url in a message is forbidden", chat(messages=[{"role": "user", "content": [{"type": "text", "base_url": "x"}]}]), "messages[0].content[0].base_url"),
    ("extra_body in a tool is forbidden", chat(tools=[TOOL | {"extra_body": {}}]), "tools[0].extra_body"),
    ("a forbidden name written with escapes is forbidden", chat()[:-1] + b', "\\u0061pi_base": "x"}', "api_base"),
    ("the router object knows its fields", chat(router={"objectiv": "cost"}), "router.objectiv"),
    ("an objective is one of three", chat(router={"objective": "best"}), "router.objective"),
    ("a floor is a share", chat(model="learned", router={"quality_floor": 2}), "router.quality_floor"),
    ("candidates are models of the route", chat(router={"candidates": ["three"]}), "router.candidates"),
    ("a route that weighs nothing takes no objective", chat(router={"objective": "cost"}), "router"),
]  # fmt: skip


@table(REFUSED)
def test_a_bad_request_is_400_in_the_envelope_and_names_its_field(lab, case0, case1):
    response = lab.client.post("/v1/chat/completions", content=case0)
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == ENVELOPE
    assert (error["type"], error["param"]) == ("invalid_request_error", case1)
    assert response.headers["x-request-id"]
    assert lab.upstreams.asked == []
    assert lab.outcomes() == []


PASSED_ON = [
    ("a parameter of a tool may be called base_url", {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"base_url": {"type": "string"}, "deep": {"type": "object", "properties": {"api_key": {}}}}}}}]}),
    ("a property of an answer's schema may be called api_key", {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object", "properties": {"api_key": {"type": "string"}}}}}}),
    ("text may speak of api_base", {"messages": [{"role": "user", "content": 'what is "api_base": in LiteLLM?'}]}),
    ("unknown fields", {"brand_new_field": {"a": [1, 2.5, None]}, "top_k": 4}),
    ("tools, tool_choice and parallel calls", {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False}),
    ("images", {"messages": IMAGE}),
    ("an image that no gateway should fetch", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]}]}),
    ("a JSON schema", {"response_format": SCHEMA}),
    ("a JSON object", {"response_format": {"type": "json_object"}}),
    ("sampling and logprobs", {"n": 2, "seed": 1, "logprobs": True, "top_logprobs": 3, "temperature": 0.0, "stop": ["a"], "logit_bias": {"5": -100}}),
    ("user, metadata, store and cache key", {"user": "u", "metadata": {"k": "v"}, "store": False, "prompt_cache_key": "c"}),
    ("both fields for the longest answer", {"max_tokens": 10, "max_completion_tokens": 20}),
    ("lone surrogates, NUL, bidi and zero-width text", {"messages": [{"role": "user", "content": "\u202e\u200b\x00é"}]}),
    ("a role that nobody knows", {"messages": [{"role": "critic", "content": "x"}]}),
    ("content that is null, a number or nested lists", {"messages": [{"role": "user", "content": c} for c in (None, 5, [1, [2]])]}),
]  # fmt: skip


@table(PASSED_ON)
def test_passed_on_to_the_model_as_sent(lab, scripts, case0):
    lab.says(one=scripts.says(200, scripts.completion()))
    response = lab.ask(**case0)
    assert response.status_code == 200
    (asked,) = lab.upstreams.asked
    assert asked.body == {"model": "one", "messages": HELLO} | case0


FAILS_OVER = [
    ("500", lambda s: s.fails(500)),
    ("502 with HTML", lambda s: s.says(502, b"<html>bad gateway</html>", content_type="text/html")),
    ("503 without a word", lambda s: s.says(503, b"")),
    ("529 overloaded", lambda s: s.fails(529, "overloaded")),
    ("408", lambda s: s.fails(408)),
    ("409", lambda s: s.fails(409)),
    ("425", lambda s: s.fails(425)),
    ("401 on the gateway's own key", lambda s: s.fails(401, "Incorrect API key: sk-upstream-secret")),
    ("402 on the gateway's own account", lambda s: s.fails(402)),
    ("403", lambda s: s.fails(403)),
    ("404 on the gateway's own URL", lambda s: s.fails(404)),
    ("a redirect, which is not followed", lambda s: s.says(302, b"", location="http://169.254.169.254/")),
    ("204 without an answer", lambda s: s.says(204, b"")),
    ("200 with HTML", lambda s: s.says(200, b"<html>", content_type="text/html")),
    ("200 with nothing", lambda s: s.says(200, b"")),
    ("200 with a list", lambda s: s.says(200, [])),
    ("200 with half an object", lambda s: s.says(200, b'{"id": "x", "choices": [{"mess')),
    ("200 with an error in it", lambda s: s.says(200, {"error": {"message": "overloaded"}})),
    ("200 with an error beside its choices", lambda s: s.says(200, s.completion() | {"error": {"message": "x"}})),
    ("a stream where none was asked for", lambda s: s.streams(s.piece("a"), s.DONE)),
    ("not HTTP at all", lambda s: s.slams(b"220 mail ready\r\n\r\n")),
    ("a connection that is reset before the head", lambda s: s.slams()),
    ("a connection that is reset in the head", lambda s: s.slams(b"HTTP/1.1 200")),
    ("a connection that is reset in the body", lambda s: s.slams(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{")),
    ("silence before the head", lambda s: s.silent()),
    ("silence in the body", lambda s: s.silent(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{")),
    ("a chunk size that nobody could hold", lambda s: s.silent(s.CHUNKED + b"FFFFFFFFFFFFFFFFF\r\n")),
]  # fmt: skip


@table(FAILS_OVER)
def test_the_next_model_answers_where_the_first_gives(lab, scripts, case0):
    lab.says(one=case0(scripts), two=scripts.says(200, scripts.completion("saved")))
    response = lab.ask()
    assert (response.status_code, response.json()["model"]) == (200, "two")
    assert response.headers["x-router-attempts"] == "2"
    assert lab.outcomes() == [("one", "failed"), ("two", "answered")]
    assert "sk-upstream" not in response.text
    calls = lab.gateway.learning.routes["default.auto"].recorder.calls
    assert calls["one"].failures == 1


STREAMS_OVER = [
    ("the stream ends before its first event", lambda s: s.streams()),
    ("only [DONE] comes", lambda s: s.streams(s.DONE)),
    ("only comments come and then the end", lambda s: s.streams(b": keep-alive\n\n", b": keep-alive\n\n")),
    ("comments come and then a reset", lambda s: s.streams(b": keep-alive\n\n", then="reset")),
    ("comments come and then silence", lambda s: s.streams(b": keep-alive\n\n", then="silence")),
    ("the first event is an error", lambda s: s.streams(b'data: {"error": {"message": "overloaded"}}\n\n')),
    ("the first event is half an object", lambda s: s.streams(b'data: {"id": "x", "cho', then="close")),
    ("the head comes and then silence", lambda s: s.silent(s.CHUNKED)),
    ("it answers with an error that is no stream", lambda s: s.fails(503)),
]


@table(STREAMS_OVER)
def test_a_stream_goes_to_the_next_model_when(lab, scripts, case0):
    lab.says(
        one=case0(scripts),
        two=scripts.streams(scripts.piece("saved"), scripts.piece(finish="stop"), scripts.DONE),
    )
    response = lab.ask(stream=True)
    assert response.status_code == 200
    assert response.headers["x-router-model"] == "two"
    assert '"saved"' in response.text
    assert response.text.endswith("data: [DONE]\n\n")
    assert lab.outcomes() == [("one", "failed"), ("two", "answered")]


BREAKS_OFF = [
    ("a reset", lambda s: s.streams(s.piece("a"), s.HOLD, then="reset")),
    ("a connection closed without the last chunk", lambda s: s.streams(s.piece("a"), s.HOLD, then="close")),
    ("silence", lambda s: s.streams(s.piece("a"), s.HOLD, then="silence")),
    ("an end with neither a finish nor [DONE]", lambda s: s.streams(s.piece("a"), s.HOLD)),
    ("an error told by the upstream", lambda s: s.streams(s.piece("a"), s.HOLD, b'data: {"error": {"message": "sk-upstream-secret is overloaded"}}\n\n')),
    ("an error told beside a choice", lambda s: s.streams(s.piece("a"), s.HOLD, s.piece(finish="error", error={"message": "m", "code": 502}))),
    ("an event without an end", lambda s: s.streams(s.piece("a"), s.HOLD, *[b"data: " + b"x" * 1_000_000] * 9)),
]  # fmt: skip


@table(BREAKS_OFF)
def test_after_the_first_byte_it_is_told_in_the_stream_counted_as_failure_and_billed(lab, scripts, case0):
    lab.says(one=case0(scripts))
    text = lab.stream()
    told = [json.loads(line[6:]) for line in text.splitlines() if line.startswith('data: {"')]
    assert told[0]["choices"][0]["delta"]["content"] == "a"
    assert told[-1]["error"]["message"]
    assert "[DONE]" not in text
    assert "sk-upstream" not in text
    assert lab.outcomes() == [("one", "failed")]
    assert lab.upstreams.models_asked() == ["one"]
    assert (lab.last().estimated, lab.last().cost_usd > 0) == (True, True)


STREAMED = [
    ("characters that are split between chunks", lambda s: [s.piece("h\u00e9\U0001f600")[:-7] [:78], s.piece("h\u00e9\U0001f600")[78:], s.piece(finish="stop"), s.DONE], "h\u00e9\U0001f600"),
    ("one byte per chunk", lambda s: [*(bytes([b]) for b in s.piece("\u00fc")), s.piece(finish="stop"), s.DONE], "\u00fc"),
    ("CRLF line ends", lambda s: [s.piece("a").replace(b"\n", b"\r\n"), s.piece(finish="stop").replace(b"\n", b"\r\n"), b"data: [DONE]\r\n\r\n"], "a"),
    ("CR line ends", lambda s: [s.piece("a").replace(b"\n", b"\r"), s.piece(finish="stop").replace(b"\n", b"\r"), s.DONE], "a"),
    ("data without a space behind its colon", lambda s: [s.piece("a").replace(b"data: ", b"data:"), s.piece(finish="stop"), s.DONE], "a"),
    ("data on two lines", lambda s: [s.piece("a").replace(b', "object"', b',\ndata: "object"'), s.piece(finish="stop"), s.DONE], "a"),
    ("comments between events", lambda s: [b": one\n\n", s.piece("a"), b": two\n\n", s.piece("b", "stop"), s.DONE], "ab"),
    ("fields that are none of ours", lambda s: [b"event: chunk\nid: 7\n" + s.piece("a"), s.piece(finish="stop"), s.DONE], "a"),
    ("many events in one chunk", lambda s: [s.piece("a") + s.piece("b") + s.piece("c", "stop") + s.DONE], "abc"),
    ("a missing [DONE]", lambda s: [s.piece("a"), s.piece("b", "stop")], "ab"),
    ("a missing [DONE] behind the usage", lambda s: [s.piece("a"), s.piece("b", "stop"), s.USAGE], "ab"),
    ("a last event without its blank line", lambda s: [s.piece("a", "stop"), b"data: [DONE]"], "a"),
    ("garbage between events", lambda s: [s.piece("a"), b'data: {"id": \n\n', s.piece("b", "stop"), s.DONE], "ab"),
]  # fmt: skip


@table(STREAMED)
def test_a_stream_reaches_the_client_whole_with(lab, scripts, case0, case1):
    lab.says(one=scripts.streams(*case0(scripts)))
    response = lab.ask(stream=True)
    text, identities = "", set()
    for event in response.content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n\n"):
        data = b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
        if data.startswith(b"{") and data.endswith(b"}"):
            chunk = json.loads(data)
            identities.add((chunk["id"], chunk["model"]))
            text += "".join(choice["delta"].get("content", "") for choice in chunk["choices"])
    assert text == case1
    assert identities == {(f"chatcmpl-{response.headers['x-router-decision-id']}", "one")}
    assert response.content.replace(b"\r", b"\n").rstrip().endswith(b"data: [DONE]")
    assert lab.outcomes() == [("one", "answered")]


def test_an_endless_stream_ends_with_its_done(lab, scripts):
    lab.says(
        one=scripts.streams(scripts.piece("a", "stop"), scripts.DONE, scripts.piece("more"), then="silence")
    )
    response = lab.ask(stream=True)
    assert response.text.endswith("data: [DONE]\n\n")
    assert "more" not in response.text
    assert lab.outcomes() == [("one", "answered")]


def test_the_usage_is_asked_for_and_kept_from_a_client_that_did_not_ask(lab, scripts):
    lab.says(one=scripts.streams(scripts.piece("a", "stop"), scripts.USAGE, scripts.DONE))
    assert '"usage"' not in lab.ask(stream=True).text
    assert lab.upstreams.asked[0].body["stream_options"] == {"include_usage": True}
    assert '"completion_tokens": 5' in lab.ask(stream=True, stream_options={"include_usage": True}).text
    assert (lab.last().tokens_in, lab.last().tokens_out, lab.last().estimated) == (3, 5, False)
    assert lab.last().cost_usd == pytest.approx((3 * 1 + 5 * 2) / 1e6)


def test_an_upstream_that_does_not_stream_is_streamed_for(lab, scripts):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    lab.says(one=scripts.says(200, scripts.completion("a", tool_calls=[call])))
    response = lab.ask(stream=True, stream_options={"include_usage": True})
    first, usage, done = response.text.strip().split("\n\n")
    chunk = json.loads(first[6:])
    assert chunk["choices"] == [
        {"index": 0, "finish_reason": "tool_calls", "delta": {"role": "assistant", "content": "a", "tool_calls": [{"index": 0} | call]}}
    ]  # fmt: skip
    assert json.loads(usage[6:])["usage"]["completion_tokens"] == 11
    assert done == "data: [DONE]"


@pytest.mark.parametrize("stream", [False, True], ids=["before the first byte", "in mid-stream"])
def test_a_client_that_leaves_closes_the_upstream_is_billed_and_blames_nobody(lab, scripts, stream):
    """Spoken over a bare socket, which is closed while the model is at work."""
    lab.upstreams.behaviour["one"] = (
        scripts.streams(scripts.piece("a"), scripts.piece("b"), then="silence")
        if stream
        else scripts.silent()
    )
    body = chat(stream=stream)
    host, port = lab.url.removeprefix("http://").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection((host, int(port))) as client:
        client.sendall(head + body)
        if stream:
            received = b""
            while b'"b"' not in received:
                received += client.recv(4096)
        else:
            lab.until(lambda: len(lab.upstreams.asked) == 1)
    assert lab.upstreams.asked[0].left.wait(30)
    lab.until(lambda: len(lab.outcomes()) == 1)
    assert lab.outcomes() == [("one", "aborted")]
    outcome = lab.last()
    assert (outcome.estimated, outcome.tokens_out) == (True, 2 if stream else 0)
    assert outcome.cost_usd == pytest.approx((1 * 1 + outcome.tokens_out * 2) / 1e6)
    assert "one" not in lab.gateway.learning.routes["default.auto"].recorder.calls
    (place, _, _) = lab.gateway.pipeline.deployments.places
    assert (place.outstanding, place.record.tally(0.0).failures) == (0, 0)


TOLD = [
    ("the last upstream's own error", lambda s: s.fails(500, "first"), lambda s: s.fails(503, "second"), 503, {"message": "second", "type": "some_error", "param": None, "code": None}),
    ("a timeout as 504", lambda s: s.fails(500), lambda s: s.silent(), 504, {"code": "upstream_timeout"}),
    ("a broken connection as 502", lambda s: s.fails(500), lambda s: s.slams(), 502, {"code": "upstream_failed"}),
    ("a refused key as 502, without the key", lambda s: s.fails(401, "sk-upstream-secret"), lambda s: s.fails(403, "sk-upstream-secret"), 502, {"code": "upstream_failed"}),
    ("an error of another shape in OpenAI's", lambda s: s.fails(500), lambda s: s.says(500, {"detail": "out of memory"}), 500, {"message": "out of memory", "type": "server_error"}),
    ("an error that is a bare string", lambda s: s.fails(500), lambda s: s.says(500, {"error": "sorry"}), 500, {"message": "sorry"}),
    ("an error that is no JSON", lambda s: s.fails(500), lambda s: s.says(500, b"<html>"), 500, {"message": "two answered with status 500"}),
    ("a gzip bomb as 502", lambda s: s.fails(500), lambda s: s.says(200, GZIP_BOMB, content_encoding="gzip"), 502, {"code": "upstream_failed"}),
]  # fmt: skip


def _bomb() -> bytes:
    import gzip

    return gzip.compress(bytes(70 << 20), 9)


GZIP_BOMB = _bomb()


@table(TOLD)
def test_when_every_model_failed_the_client_is_told(lab, scripts, case0, case1, case2, case3):
    lab.says(one=case0(scripts), two=case1(scripts))
    response = lab.ask()
    error = response.json()["error"]
    assert response.status_code == case2
    assert set(error) == ENVELOPE
    assert error.items() >= case3.items()
    assert "sk-upstream" not in response.text
    assert response.headers["x-should-retry"] == "false"  # the gateway has tried again itself
    assert response.headers["x-router-attempts"] == "2"


LIMITED = [
    ("seconds", {"retry_after": "7"}, {"retry-after": "7"}),
    ("milliseconds", {"retry_after_ms": "250"}, {"retry-after-ms": "250"}),
    ("a date of 1970", {"retry_after": "Thu, 01 Jan 1970 00:00:00 GMT"}, {}),
    ("more seconds than a lifetime has", {"retry_after": "1000000000"}, {}),
    ("rate-limit headers", {"x_ratelimit_remaining_tokens": "0", "retry_after": "1"}, {"x-ratelimit-remaining-tokens": "0"}),
]  # fmt: skip


@table(LIMITED)
def test_a_429_of_every_model_is_passed_on_as_capacity_with(lab, scripts, case0, case1):
    lab.says(one=scripts.fails(429, "slow", **case0), two=scripts.fails(429, "slow", **case0))
    response = lab.ask()
    assert (response.status_code, response.json()["error"]["message"]) == (429, "slow")
    assert response.headers.items() >= case1.items()
    assert "x-should-retry" not in response.headers
    assert lab.outcomes() == [("one", "full"), ("two", "full")]
    assert lab.gateway.learning.routes["default.auto"].recorder.calls == {}


def test_a_model_that_asked_for_time_is_left_alone_and_then_nobody_is_asked_in_vain(lab, scripts):
    lab.says(one=scripts.fails(429, retry_after="100"), two=scripts.says(200, scripts.completion()))
    assert [lab.ask().json()["model"] for _ in range(3)] == ["two"] * 3
    assert lab.upstreams.models_asked() == ["one", "two", "two", "two"]
    lab.says(two=scripts.fails(429, retry_after="50"))
    lab.ask()
    asked = len(lab.upstreams.asked)
    response = lab.ask()
    assert (response.status_code, response.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 45 <= int(response.headers["retry-after"]) <= 50
    assert len(lab.upstreams.asked) == asked


CLIENTS_OWN = [
    ("400", 400),
    ("422", 422),
    ("415", 415),
]


@table(CLIENTS_OWN)
def test_the_clients_own_mistake_is_passed_on_and_tried_nowhere_else(lab, scripts, case0):
    lab.says(one=scripts.fails(case0, "temperature must be below 2", "bad_value"))
    response = lab.ask(temperature=5)
    assert response.status_code == case0
    assert response.json()["error"]["message"] == "temperature must be below 2"
    assert lab.outcomes() == [("one", "refused")]
    assert lab.gateway.learning.routes["default.auto"].recorder.calls == {}


TOO_LONG = [
    ("by code", lambda s: s.fails(400, "no", "context_length_exceeded")),
    ("in words", lambda s: s.fails(400, "This model's maximum context length is 1000 tokens.")),
    ("as 413", lambda s: s.fails(413)),
]


@table(TOO_LONG)
def test_a_prompt_too_long_for_one_model_goes_to_a_larger_window_when_it_says_so(lab, scripts, case0):
    lab.says(one=case0(scripts), two=scripts.says(200, scripts.completion()))
    assert lab.ask().json()["model"] == "two"
    assert lab.outcomes() == [("one", "refused"), ("two", "answered")]
    lab.says(two=case0(scripts))
    response = lab.ask()
    assert response.status_code in (400, 413)


def test_no_smaller_window_is_tried_once_a_larger_one_was_too_small(lab, scripts):
    lab.says(
        two=scripts.fails(400, "no", "context_length_exceeded"), one=scripts.says(200, scripts.completion())
    )
    response = lab.ask("learned", router={"candidates": ["two", "one"]})
    if lab.upstreams.models_asked()[0] == "two":
        assert response.json()["error"]["code"] == "context_length_exceeded"
        assert lab.upstreams.models_asked() == ["two"]


UNFIT = [
    ("images", {"messages": IMAGE}, "cannot see"),
    ("a JSON schema", {"response_format": SCHEMA}, "keeps to none"),
    ("tools", {"tools": [TOOL]}, "cannot call"),
]


@table(UNFIT)
def test_a_model_that_cannot_is_not_asked_for(lab, scripts, case0, case1):
    lab.says(two=scripts.says(200, scripts.completion()))
    assert lab.ask("limited", **case0).json()["model"] == "two"
    response = lab.ask("nobody", **case0)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "no_eligible_model")
    assert case1 in response.json()["error"]["message"]


def test_a_prompt_longer_than_a_window_skips_that_model(lab, scripts):
    lab.says(two=scripts.says(200, scripts.completion()))
    assert lab.ask(messages=[{"role": "user", "content": "word " * 2000}]).json()["model"] == "two"
    assert lab.ask(max_tokens=2000).json()["model"] == "two"
    assert lab.ask(max_tokens=1, max_completion_tokens=2000).json()["model"] == "two"


LITELLM_HEADERS = {
    "x-litellm-timeout": "5",
    "x-litellm-stream-timeout": "5",
    "x-litellm-num-retries": "9",
    "x-litellm-tags": "a,b",
    "x-litellm-customer-id": "c",
    "x-litellm-end-user-id": "e",
    "x-litellm-spend-logs-metadata": "{}",
}


def test_headers_of_the_client_stay_with_the_gateway(lab, scripts):
    """LiteLLM's change nothing, a client's key is not the upstream's, and nothing can be smuggled past."""
    lab.says(one=scripts.says(200, scripts.completion()))
    extra = {
        "authorization": "Bearer sk-client",
        "x-forwarded-for": "1.2.3.4",
        "openai-organization": "o",
        "cookie": "c=1",
    }
    assert lab.ask(headers=LITELLM_HEADERS | extra).status_code == 200
    head = lab.upstreams.asked[0].head.lower()
    assert b"authorization: bearer sk-upstream-secret\r\n" in head
    for unwanted in (b"litellm", b"sk-client", b"1.2.3.4", b"organization", b"cookie"):
        assert unwanted not in head


def test_headers_of_the_upstream_are_let_through_by_name_only(lab, scripts):
    lab.says(
        one=scripts.says(
            200,
            scripts.completion(),
            set_cookie="a=b",
            x_secret="1",
            x_ratelimit_limit_requests="5",
            server="nginx",
        )
    )
    headers = lab.ask().headers
    assert headers["x-ratelimit-limit-requests"] == "5"
    assert not {"set-cookie", "x-secret"} & set(headers)
    assert headers["server"] == "uvicorn"


def test_the_router_object_is_kept_from_the_model(lab, scripts):
    lab.says(one=scripts.says(200, scripts.completion()), two=scripts.says(200, scripts.completion()))
    assert lab.ask(router={"candidates": ["two"], "task": "sum", "session": "s"}).json()["model"] == "two"
    assert lab.upstreams.asked[0].body == {"model": "two", "messages": HELLO}


def test_models_are_listed_with_a_window_that_they_can_honour(lab):
    listed = {m["id"]: m["context_window"] for m in lab.client.get("/v1/models").json()["data"]}
    assert listed == {"auto": 9000, "learned": 9000, "limited": 128_000, "nobody": 128_000, "one": 1000, "two": 9000, "blind": 128_000}  # fmt: skip
    assert lab.client.get("/v1/models/auto").json()["object"] == "model"
    assert lab.client.get("/v1/models/no").json()["error"]["code"] == "model_not_found"


RAW = [
    ("two lengths", b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 5\r\n\r\n{}abc"),
    ("a length below zero", b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n{}"),
    ("a length that is a word", b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: two\r\n\r\n{}"),
    ("a chunk size without end", b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\n"),
    ("a head that is no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"),
]  # fmt: skip


@table(RAW)
def test_a_request_that_could_be_read_in_two_ways_is_refused_and_the_gateway_lives(lab, scripts, case0):
    host, port = lab.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(case0)
        assert client.recv(4096).startswith(b"HTTP/1.1 400")
    lab.says(one=scripts.says(200, scripts.completion()))
    assert lab.ask().status_code == 200


def test_a_body_beyond_the_limit_is_413(lab):
    response = lab.ask(padding="x" * (5 << 20))
    assert (response.status_code, response.json()["error"]["code"]) == (413, "payload_too_large")


def test_a_model_that_nobody_knows_is_404_and_its_name_is_not_repeated_at_length(lab):
    for name in ("gpt-9", "../x", "x" * 3000, "a\r\nb: c", "{auto}"):
        response = lab.ask(name)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
        assert len(response.text) < 500


def test_requests_beyond_what_the_gateway_can_serve_are_turned_away_with_503(start_lab, scripts):
    from concurrent.futures import ThreadPoolExecutor

    lab = start_lab(LAB_TINY)
    lab.says(one=scripts.held(scripts.says(200, scripts.completion())))
    with ThreadPoolExecutor(2) as pool:
        held = [pool.submit(lab.ask) for _ in range(2)]
        lab.until(lambda: len(lab.upstreams.asked) == 2)
        response = lab.ask()
        assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
        assert response.headers["retry-after"] == "1"
        assert lab.client.get("/healthz").status_code == 200
        for asked in lab.upstreams.asked:
            asked.released.set()
        assert [f.result().status_code for f in held] == [200, 200]
    assert lab.gateway.access.at_once == 0


LAB_TINY = """
models:
  one: {base_url: "URL", price_usd_per_mtok_in: 1, price_usd_per_mtok_out: 2}
routes:
  auto: {models: [one], strategy: fixed}
server: {max_concurrent: 2}
"""


async def test_a_client_that_never_says_what_it_wants_is_told_so():
    """One byte a second, or none: in bare ASGI, where the limit can be short."""
    from service.access import ANYBODY, Admission
    from service.chat import ChatRoute

    class Everybody:
        at_once = 1

        def clock(self):
            return 0.0

        def admit(self, _):
            return Admission(self, None, ANYBODY)

    sent, forever = [], asyncio.Event()
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}])

    async def receive():
        if (message := next(messages, None)) is None:
            await forever.wait()
        return message

    async def send(message):
        sent.append(message)

    access = Everybody()
    route = ChatRoute(None, access, max_body_bytes=100, body_timeout_s=0.01)
    await route({"method": "POST", "headers": []}, receive, send)
    assert (sent[0]["status"], json.loads(sent[1]["body"])["error"]["code"]) == (408, "request_timeout")
    assert access.at_once == 0


def test_the_table_is_long_enough():
    tables = [
        REFUSED,
        PASSED_ON,
        FAILS_OVER,
        STREAMS_OVER,
        BREAKS_OFF,
        STREAMED,
        TOLD,
        LIMITED,
        CLIENTS_OWN,
        TOO_LONG,
        UNFIT,
        RAW,
    ]
    assert sum(map(len, tables)) >= 120
