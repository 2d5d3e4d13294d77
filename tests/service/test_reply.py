"""Splicing a stream: the quick way against the careful one, over whatever an upstream may send."""

import json

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.reply import Splicer, Usage, as_stream, identity, whole
from service.splice import replace_values
from service.sse import data_of, with_data

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
OURS = identity("rt-x", "small")
texts = st.text(max_size=20) | st.sampled_from(
    ['"usage": {"a": 1}', '"error":', '"finish_reason": "stop"', "[DONE]", "\n\n", "null"]
)


@st.composite
def chunks(draw):
    delta = draw(st.sampled_from([{}, {"role": "assistant"}]) | st.builds(lambda t: {"content": t}, texts))
    choice = {"index": 0, "delta": delta, "finish_reason": draw(st.sampled_from([None, None, None, "stop"]))}
    body = {"choices": [choice] if draw(st.integers(0, 5)) else []}
    if draw(st.integers(0, 4)) == 0:
        body["usage"] = draw(st.sampled_from([None, {"prompt_tokens": 3, "completion_tokens": 4}]))
    if draw(st.integers(0, 9)) == 0:
        body["error"] = draw(st.sampled_from([None, {"message": "m"}]))
    return body


@st.composite
def streams(draw):
    """Events of one upstream, which opens them alike, mostly."""
    head = {"id": draw(texts), "object": "chat.completion.chunk", "created": 1, "model": draw(texts)}
    first = draw(st.booleans())
    spaced = draw(st.booleans())
    events = []
    for body in draw(st.lists(chunks(), max_size=8)):
        own = head if draw(st.integers(0, 5)) else head | {"created": 2}
        whole_ = own | body if first else body | own
        text = json.dumps(whole_, ensure_ascii=draw(st.booleans()), separators=None if spaced else (",", ":"))
        events.append(b"data: " + text.encode() + draw(st.sampled_from([b"\n\n", b"\r\n\r\n"])))
    return events


def carefully(event: bytes, usage: Usage, *, usage_asked: bool) -> bytes:
    """Every event by way of a parser: the reference."""
    data = data_of(event)
    chunk = orjson.loads(data)
    usage.read(chunk.get("usage"))
    usage.failed = usage.failed or bool(chunk.get("error"))
    if chunk["choices"]:
        usage.pieces += 1
        usage.finished = usage.finished or any(c["finish_reason"] for c in chunk["choices"])
    elif isinstance(chunk.get("usage"), dict):
        usage.finished = True
        if not usage_asked:
            return b""
    return with_data(event, replace_values(data, OURS))


@PATIENT
@given(streams(), st.booleans())
def test_the_quick_way_gives_the_bytes_and_the_knowledge_of_the_careful_one(events, usage_asked):
    quick, careful = Usage(), Usage()
    splicer = Splicer(OURS, quick, usage_asked=usage_asked)
    for event in events:
        assert splicer.event(event) == carefully(event, careful, usage_asked=usage_asked)
        assert quick == careful


def test_an_upstream_that_opens_its_events_alike_is_parsed_once(monkeypatch):
    parsed = []
    monkeypatch.setattr("service.reply.orjson.loads", lambda data: parsed.append(data) or json.loads(data))
    splicer = Splicer(OURS, usage := Usage(), usage_asked=False)
    event = b'data: {"id":"a","object":"c","model":"m","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n'
    seen = {splicer.event(event) for _ in range(50)}
    assert seen == {event.replace(b'"a"', b'"chatcmpl-rt-x"').replace(b'"m"', b'"small"')}
    assert (len(parsed), usage.pieces) == (1, 50)


@PATIENT
@given(streams(), st.lists(st.integers(1, 40), max_size=20))
def test_however_a_stream_is_cut_the_client_gets_the_same(events, sizes):
    data = b"".join(events)

    def play(pieces: list[bytes]) -> bytes:
        splicer = Splicer(OURS, Usage(), usage_asked=True)
        return b"".join(splicer.feed(piece) for piece in [*pieces, b""] if not splicer.is_done)

    cut, at = [], 0
    for size in sizes:
        cut.append(data[at : at + size])
        at += size
    assert play([*filter(None, cut), data[at:]]) == play([data])


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"3", b'{"error": {"message": "x"}}', b'{"a": '])
def test_what_is_no_answer_is_none_whole_or_streamed(body):
    with pytest.raises(ValueError):
        whole(body, OURS, Usage())
    with pytest.raises(ValueError):
        as_stream(body, usage_asked=False)


@pytest.mark.parametrize(
    ("usage", "told"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}, (10, 5, 4)),
        ({"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 40}}, (10, 5, 10)),
        ({"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": -1}}, (10, 5, 0)),
        ({"prompt_tokens": 10, "prompt_tokens_details": None}, (10, None, 0)),
        ({"prompt_tokens": True, "completion_tokens": 1e3}, (None, None, 0)),
        ("many", (None, None, 0)),
    ],
)  # fmt: skip
def test_usage_is_read_as_far_as_it_makes_sense(usage, told):
    seen = Usage()
    seen.read(usage)
    assert (seen.tokens_in, seen.tokens_out, seen.tokens_cached) == told
