"""The clients that applications use, against a real gateway: the official `openai` package, sync and async, and LangChain.

Every scenario runs with every client that can play it; the README's conformance table is made of exactly these.
"""

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

ROOT = Path(__file__).parents[2]
HELLO = [{"role": "user", "content": "hi"}]
PIXEL = "data:image/png;base64,iVBORw0KGgo="
IMAGE = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "what is it?"},
            {"type": "image_url", "image_url": {"url": PIXEL}},
        ],
    }
]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALLS = [
    {"id": f"call_{city}", "type": "function", "function": {"name": "weather", "arguments": json.dumps({"city": city})}}
    for city in ("Rome", "Oslo")
]  # fmt: skip


class City(BaseModel):
    name: str
    people: int


class SyncOpenAI:
    """The official client, blocking."""

    def __init__(self, url: str, **options) -> None:
        self.client = OpenAI(base_url=f"{url}/v1", **{"api_key": "sk-client", "max_retries": 0} | options)

    def chat(self, **fields):
        return self.client.chat.completions.create(**{"model": "auto", "messages": HELLO} | fields)

    def stream(self, **fields) -> list:
        return list(self.chat(stream=True, **fields))

    def parsed(self, **fields):
        return self.client.chat.completions.parse(**{"model": "auto", "messages": HELLO} | fields)

    def raw(self, **fields):
        return self.client.chat.completions.with_raw_response.create(model="auto", messages=HELLO, **fields)

    def models(self) -> list:
        return list(self.client.models.list())

    def leave(self, **fields) -> None:
        """Read one event of a stream and go."""
        with self.chat(stream=True, **fields) as stream:
            next(iter(stream))

    def close(self) -> None:
        self.client.close()


class AsyncOpenAIClient:
    """The official client, on asyncio."""

    def __init__(self, url: str, **options) -> None:
        self.runner = asyncio.Runner()
        self.client = AsyncOpenAI(
            base_url=f"{url}/v1", **{"api_key": "sk-client", "max_retries": 0} | options
        )

    def chat(self, **fields):
        return self.runner.run(self._create(**fields))

    async def _create(self, **fields):
        return await self.client.chat.completions.create(**{"model": "auto", "messages": HELLO} | fields)

    def stream(self, **fields) -> list:
        async def read() -> list:
            return [chunk async for chunk in await self._create(stream=True, **fields)]

        return self.runner.run(read())

    def parsed(self, **fields):
        return self.runner.run(
            self.client.chat.completions.parse(**{"model": "auto", "messages": HELLO} | fields)
        )

    def raw(self, **fields):
        return self.runner.run(
            self.client.chat.completions.with_raw_response.create(model="auto", messages=HELLO, **fields)
        )

    def models(self) -> list:
        async def read() -> list:
            return [model async for model in self.client.models.list()]

        return self.runner.run(read())

    def leave(self, **fields) -> None:
        """Be cancelled while a stream is read."""

        async def read(first: asyncio.Event) -> None:
            async for _ in await self._create(stream=True, **fields):
                first.set()

        async def cancelled() -> None:
            first = asyncio.Event()
            reading = asyncio.create_task(read(first))
            await first.wait()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

        self.runner.run(cancelled())

    def close(self) -> None:
        self.runner.run(self.client.close())
        self.runner.close()


class LangChain:
    """ChatOpenAI, which speaks through the official client and reads what it returns in its own way."""

    def __init__(self, url: str, **options) -> None:
        self.url, self.options = url, options

    def model(self, **fields) -> ChatOpenAI:
        defaults = {"model": "auto", "api_key": "sk-client", "max_retries": 0, "base_url": f"{self.url}/v1"}
        return ChatOpenAI(**defaults | self.options | fields)

    def close(self) -> None:
        """Its connections end with the process."""


OPENAI = (SyncOpenAI, AsyncOpenAIClient)
CLIENTS = {SyncOpenAI: "openai", AsyncOpenAIClient: "openai async", LangChain: "LangChain ChatOpenAI"}
SCENARIOS: dict[tuple[str, type], Callable] = {}


def scenario(feature: str, *clients: type):
    def register(run: Callable) -> Callable:
        for client in clients:
            SCENARIOS[feature, client] = run
        return run

    return register


@scenario("chat", *OPENAI)
def _chat(client, lab, s):
    lab.says(one=s.says(200, s.completion("hello")))
    reply = client().chat(temperature=0.2, user="u", metadata={"k": "v"}, seed=3)
    assert (reply.choices[0].message.content, reply.model) == ("hello", "one")
    assert reply.id.startswith("chatcmpl-rt-")
    assert reply.usage.total_tokens == 18
    assert lab.upstreams.asked[0].body["metadata"] == {"k": "v"}


@scenario("chat", LangChain)
def _chat_langchain(client, lab, s):
    lab.says(one=s.says(200, s.completion("hello")))
    reply = client().model(temperature=0.2).invoke("hi")
    assert reply.content == "hello"
    assert reply.usage_metadata["total_tokens"] == 18
    assert reply.response_metadata["model_name"] == "one"
    assert asyncio.run(client().model().ainvoke([HumanMessage("hi")])).content == "hello"


@scenario("streaming", *OPENAI)
def _stream(client, lab, s):
    lab.says(one=s.streams(s.piece("he"), s.piece("l\u00f6"), s.piece(finish="stop"), s.USAGE, s.DONE))
    chunks = client().stream()
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "hel\u00f6"
    assert {c.model for c in chunks} == {"one"}
    assert all(c.usage is None for c in chunks)


@scenario("streaming", LangChain)
def _stream_langchain(client, lab, s):
    lab.says(one=s.streams(s.piece("he"), s.piece("l\u00f6"), s.piece(finish="stop"), s.USAGE, s.DONE))
    assert "".join(chunk.content for chunk in client().model(stream_usage=False).stream("hi")) == "hel\u00f6"


@scenario("usage in a stream", *OPENAI)
def _usage(client, lab, s):
    lab.says(one=s.streams(s.piece("a", "stop"), s.USAGE, s.DONE))
    chunks = client().stream(stream_options={"include_usage": True})
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 5)


@scenario("usage in a stream", LangChain)
def _usage_langchain(client, lab, s):
    lab.says(one=s.streams(s.piece("a", "stop"), s.USAGE, s.DONE))
    total = None
    for chunk in client().model(stream_usage=True).stream("hi"):
        total = chunk if total is None else total + chunk
    assert total.usage_metadata["output_tokens"] == 5


@scenario("tools and parallel calls", *OPENAI)
def _tools(client, lab, s):
    lab.says(one=s.says(200, s.completion(None, tool_calls=CALLS)))
    reply = client().chat(tools=[WEATHER], tool_choice="auto", parallel_tool_calls=True)
    called = [json.loads(call.function.arguments)["city"] for call in reply.choices[0].message.tool_calls]
    assert called == ["Rome", "Oslo"]
    assert reply.choices[0].finish_reason == "tool_calls"
    assert lab.upstreams.asked[0].body["tools"] == [WEATHER]
    answers = [{"role": "tool", "tool_call_id": call["id"], "content": "sun"} for call in CALLS]
    history = [*HELLO, {"role": "assistant", "tool_calls": CALLS, "content": None}, *answers]
    assert client().chat(messages=history).choices[0].message.tool_calls


@scenario("tools and parallel calls", LangChain)
def _tools_langchain(client, lab, s):
    lab.says(one=s.says(200, s.completion(None, tool_calls=CALLS)))
    reply = client().model().bind_tools([WEATHER]).invoke("hi")
    assert [call["args"]["city"] for call in reply.tool_calls] == ["Rome", "Oslo"]
    assert lab.upstreams.asked[0].body["tools"][0]["function"]["name"] == "weather"


@scenario("tool calls in a stream", *OPENAI)
def _tools_streamed(client, lab, s):
    lab.says(one=_streamed_calls(s))
    arguments = {0: "", 1: ""}
    for chunk in client().stream(tools=[WEATHER]):
        for call in chunk.choices[0].delta.tool_calls or () if chunk.choices else ():
            arguments[call.index] += call.function.arguments
    assert [json.loads(text)["city"] for text in arguments.values()] == ["Rome", "Oslo"]


@scenario("tool calls in a stream", LangChain)
def _tools_streamed_langchain(client, lab, s):
    lab.says(one=_streamed_calls(s))
    total = None
    for chunk in client().model().bind_tools([WEATHER]).stream("hi"):
        total = chunk if total is None else total + chunk
    assert [call["args"]["city"] for call in total.tool_calls] == ["Rome", "Oslo"]


def _streamed_calls(s):
    deltas = []
    for index, call in enumerate(CALLS):
        arguments = call["function"]["arguments"]
        head = {
            "index": index,
            "id": call["id"],
            "type": "function",
            "function": {"name": "weather", "arguments": ""},
        }
        parts = [{"index": index, "function": {"arguments": a}} for a in (arguments[:4], arguments[4:])]
        deltas += [{"tool_calls": [part]} for part in (head, *parts)]
    events = [s.piece(choices=[{"index": 0, "delta": d, "finish_reason": None}]) for d in deltas]
    return s.streams(*events, s.piece(finish="tool_calls"), s.DONE)


@scenario("JSON schema", *OPENAI)
def _schema(client, lab, s):
    lab.says(one=s.says(200, s.completion('{"name": "Rome", "people": 3}')))
    reply = client().parsed(response_format=City)
    assert reply.choices[0].message.parsed == City(name="Rome", people=3)
    assert lab.upstreams.asked[0].body["response_format"]["type"] == "json_schema"


@scenario("JSON schema", LangChain)
def _schema_langchain(client, lab, s):
    lab.says(one=s.says(200, s.completion('{"name": "Rome", "people": 3}')))
    structured = client().model().with_structured_output(City, method="json_schema")
    assert structured.invoke("hi") == City(name="Rome", people=3)


@scenario("images", *OPENAI)
def _images(client, lab, s):
    lab.says(one=s.says(200, s.completion("a dot")))
    assert client().chat(messages=IMAGE).choices[0].message.content == "a dot"
    assert lab.upstreams.asked[0].body["messages"] == IMAGE


@scenario("images", LangChain)
def _images_langchain(client, lab, s):
    lab.says(one=s.says(200, s.completion("a dot")))
    assert client().model().invoke([HumanMessage(content=IMAGE[0]["content"])]).content == "a dot"
    assert lab.upstreams.asked[0].body["messages"][0]["content"][1]["image_url"]["url"] == PIXEL


@scenario("several choices and log probabilities", *OPENAI)
def _logprobs(client, lab, s):
    reply = s.completion("a")
    token = {"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": []}
    reply["choices"] = [
        c | {"index": i, "logprobs": {"content": [token]}} for c in reply["choices"] for i in (0, 1)
    ]
    lab.says(one=s.says(200, reply))
    choices = client().chat(n=2, logprobs=True, top_logprobs=1).choices
    assert [choice.logprobs.content[0].logprob for choice in choices] == [-0.1, -0.1]


@scenario("several choices and log probabilities", LangChain)
def _logprobs_langchain(client, lab, s):
    reply = s.completion("a")
    token = {"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": []}
    reply["choices"] = [
        c | {"index": i, "logprobs": {"content": [token]}} for c in reply["choices"] for i in (0, 1)
    ]
    lab.says(one=s.says(200, reply))
    (generations,) = client().model(n=2, logprobs=True).generate([[HumanMessage("hi")]]).generations
    told = [g.generation_info["logprobs"]["content"][0]["logprob"] for g in generations]
    assert told == [-0.1, -0.1]


@scenario("errors by class", *OPENAI)
def _errors(client, lab, s):
    speaker = client()
    with pytest.raises(openai.NotFoundError) as missing:
        speaker.chat(model="gpt-9")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        speaker.chat(extra_body={"api_base": "x"})
    assert bad.value.param == "api_base"
    lab.says(one=s.fails(500), two=s.fails(500, "out of order"))
    with pytest.raises(openai.InternalServerError, match="out of order"):
        speaker.chat()
    lab.says(one=s.fails(429, retry_after="9"), two=s.fails(429, retry_after="9"))
    with pytest.raises(openai.RateLimitError) as limited:
        speaker.chat()
    assert limited.value.response.headers["retry-after"] == "9"
    assert limited.value.request_id


@scenario("errors by class", LangChain)
def _errors_langchain(client, lab, s):
    with pytest.raises(openai.NotFoundError):
        client().model(model="gpt-9").invoke("hi")
    lab.says(one=s.fails(500), two=s.fails(500))
    with pytest.raises(openai.InternalServerError):
        client().model().invoke("hi")


@scenario("an error in mid-stream", *OPENAI)
def _error_in_stream(client, lab, s):
    lab.says(one=s.streams(s.piece("a"), s.HOLD, then="reset"))
    got = []
    with pytest.raises(openai.APIError, match="in the middle"):
        _read_and_release(client(), lab, got)
    assert got == ["a"]


@scenario("an error in mid-stream", LangChain)
def _error_in_stream_langchain(client, lab, s):
    lab.says(one=s.streams(s.piece("a"), s.HOLD, then="reset"))
    got = []
    with pytest.raises(openai.APIError, match="in the middle"):
        _read_langchain(client().model(stream_usage=False), lab, got)
    assert "".join(got) == "a"


def _read_langchain(model: ChatOpenAI, lab, got: list) -> None:
    for chunk in model.stream("hi"):
        got.append(chunk.content)
        lab.upstreams.asked[-1].released.set()


def _read_and_release(speaker, lab, got: list) -> None:
    if isinstance(speaker, SyncOpenAI):
        for chunk in speaker.chat(stream=True):
            got.append(chunk.choices[0].delta.content)
            lab.upstreams.asked[-1].released.set()
        return

    async def read() -> None:
        async for chunk in await speaker._create(stream=True):
            got.append(chunk.choices[0].delta.content)
            lab.upstreams.asked[-1].released.set()

    speaker.runner.run(read())


@scenario("the client's own timeout", *OPENAI)
def _timeout(client, lab, s):
    lab.says(one=s.silent(), two=s.silent())
    with pytest.raises(openai.APITimeoutError):
        client(timeout=0.1).chat()
    assert lab.upstreams.asked[0].left.wait(30)


@scenario("the client's own timeout", LangChain)
def _timeout_langchain(client, lab, s):
    lab.says(one=s.silent(), two=s.silent())
    with pytest.raises(openai.APITimeoutError):
        client().model(timeout=0.1).invoke("hi")
    assert lab.upstreams.asked[0].left.wait(30)


@scenario("the client's own retries", *OPENAI)
def _retries(client, lab, s):
    """A full model is asked again by the SDK when the gateway says so; what the gateway has tried itself is not."""
    answers = iter(
        [s.fails(429, retry_after_ms="1"), s.fails(429, retry_after_ms="1"), s.says(200, s.completion("now"))]
    )

    async def first_full_then_free(peer):
        await next(answers)(peer)

    lab.says(one=first_full_then_free, two=first_full_then_free)
    assert client(max_retries=5).chat().choices[0].message.content == "now"
    lab.says(one=s.fails(500), two=s.fails(500))
    asked = len(lab.upstreams.asked)
    with pytest.raises(openai.InternalServerError):
        client(max_retries=5).chat()
    assert len(lab.upstreams.asked) == asked + 2


@scenario("the client's own retries", LangChain)
def _retries_langchain(client, lab, s):
    lab.says(one=s.fails(500), two=s.fails(500))
    with pytest.raises(openai.InternalServerError):
        client().model(max_retries=5).invoke("hi")
    assert lab.upstreams.models_asked() == ["one", "two"]


@scenario("leaving in mid-stream", *OPENAI)
def _leave(client, lab, s):
    lab.says(one=s.streams(s.piece("a"), then="silence"))
    client().leave()
    assert lab.upstreams.asked[0].left.wait(30)
    lab.until(lambda: lab.outcomes() == [("one", "aborted")])


@scenario("leaving in mid-stream", LangChain)
def _leave_langchain(client, lab, s):
    lab.says(one=s.streams(s.piece("a"), then="silence"))
    stream = client().model(stream_usage=False).stream("hi")
    assert next(stream).content == "a"
    stream.close()
    assert lab.upstreams.asked[0].left.wait(30)
    lab.until(lambda: lab.outcomes() == [("one", "aborted")])


@scenario("models are listed", *OPENAI)
def _models(client, lab, s):  # noqa: ARG001
    assert {"auto", "one", "two"} <= {model.id for model in client().models()}


@scenario("decision id and headers", *OPENAI)
def _headers(client, lab, s):
    lab.says(one=s.says(200, s.completion()))
    raw = client().raw(extra_headers={"x-request-id": "mine-1"})
    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.parse().id == f"chatcmpl-{raw.headers['x-router-decision-id']}"
    rated = lab.client.post("/feedback", json={"decision_id": raw.parse().id, "rating": 1})
    assert rated.status_code == 202


@scenario("decision id and headers", LangChain)
def _headers_langchain(client, lab, s):
    lab.says(one=s.says(200, s.completion()))
    reply = client().model(include_response_headers=True).invoke("hi")
    assert isinstance(reply, AIMessage)
    assert (
        reply.response_metadata["id"]
        == f"chatcmpl-{reply.response_metadata['headers']['x-router-decision-id']}"
    )


@scenario("wishes for the router", *OPENAI)
def _wishes(client, lab, s):
    lab.says(two=s.says(200, s.completion()))
    reply = client().chat(extra_body={"router": {"candidates": ["two"]}})
    assert reply.model == "two"


@scenario("wishes for the router", LangChain)
def _wishes_langchain(client, lab, s):
    lab.says(two=s.says(200, s.completion()))
    reply = client().model(extra_body={"router": {"candidates": ["two"]}}).invoke("hi")
    assert reply.response_metadata["model_name"] == "two"


@pytest.fixture
def speaker_of(lab):
    opened = []

    def make(kind: type):
        def client(**options):
            opened.append(kind(lab.url, **options))
            return opened[-1]

        return client

    yield make
    for speaker in opened:
        speaker.close()


@pytest.mark.parametrize(
    ("feature", "kind"),
    list(SCENARIOS),
    ids=[f"{feature} with {CLIENTS[kind]}" for feature, kind in SCENARIOS],
)
def test_a_client_plays(feature, kind, lab, scripts, speaker_of):
    SCENARIOS[feature, kind](speaker_of(kind), lab, scripts)


def conformance_table() -> str:
    """The README's table: what each client was seen to do here."""
    features = list(dict.fromkeys(feature for feature, _ in SCENARIOS))
    lines = [f"| | {' | '.join(CLIENTS.values())} |", f"|---|{'---|' * len(CLIENTS)}"]
    for feature in features:
        cells = ["yes" if (feature, kind) in SCENARIOS else "" for kind in CLIENTS]
        lines.append(f"| {feature} | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_conformance_table_of_the_readme_is_what_is_tested_here():
    readme = (ROOT / "README.md").read_text()
    told = re.search(r"<!-- conformance:begin -->\n(.*?)\n<!-- conformance:end -->", readme, flags=re.DOTALL)
    if told is None:
        pytest.skip("the README has no conformance table")
    assert told[1] == conformance_table()
