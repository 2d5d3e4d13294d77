"""A server that plays the recorded models in the OpenAI protocol: `python -m simulations.recorded_server --data wheel`.

A recorded prompt gets its recorded outcome; any other prompt gets that of the nearest recorded one, and the answer says so.
The text is the recorded response where the source has one, else a sentence that says that it has none. What stands before
the last question is billed too, and cached as providers do it: what the same model was asked before, if it is long enough.

    latency = (0.2 s + tokens_out / (60 per s)) / time_scale        of a stream: 0.2 s before the first chunk

Models fall ill by `PUT /illness` with {"MODEL": {"fails": 0.3}} (that share of its calls ends with 500) or
{"MODEL": {"frozen": true}} (no call of it ever ends), and are well again by a PUT that does not name them.
"""

import argparse
import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Final

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from bandit.prompt import prompt_of
from simulations.datasets import Dataset, DatasetError, load
from simulations.nearest import NearestPrompt

FIRST_TOKEN_S: Final = 0.2
TOKENS_PER_S: Final = 60.0
TOKENS_TIMED_MAX: Final = (
    16_384  # an arm metered in nano-dollars counts money as tokens: nobody waits for those
)
CHUNKS_MAX: Final = 20
LEAVE_S: Final = 1  # calls that never end are ended then, where the server is told to end
CHARS_PER_TOKEN: Final = 4
CACHED_TOKENS_MIN: Final = 1024  # a shorter beginning is not kept by any provider

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Recorded:
    """One answer as it was recorded: its text, its tokens, and its latency in seconds, unscaled. cached: of tokens_in."""

    model: str
    text: str
    tokens_in: int
    tokens_out: int
    cached: int = 0

    @property
    def latency_s(self) -> float:
        return FIRST_TOKEN_S + min(self.tokens_out, TOKENS_TIMED_MAX) / TOKENS_PER_S

    @property
    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.tokens_in,
            "completion_tokens": self.tokens_out,
            "total_tokens": self.tokens_in + self.tokens_out,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


class RequestError(ValueError):
    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


class PromptCache:
    """What each model was asked before, by the beginning that a later request may share."""

    def __init__(self) -> None:
        self._known: set[tuple[str, int]] = set()

    def cached_chars(self, model: str, messages: Sequence[dict[str, Any]]) -> int:
        """Of the longest beginning of these messages that the model was asked before; all of them are kept."""
        cached = chars = 0
        beginning = 0
        for message in messages:
            beginning = hash((beginning, message.get("role"), str(message.get("content"))))
            chars += len(str(message.get("content")))
            if (model, beginning) in self._known:
                cached = chars
            self._known.add((model, beginning))
        return cached


class RecordedModels:
    """Finds the recorded answer to a request."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._cache = PromptCache()
        self._rows = {prompt.text: row for row, prompt in enumerate(dataset.prompts)}
        self._nearest = NearestPrompt([prompt.text for prompt in dataset.prompts])

    def answer(self, body: bytes) -> tuple[Recorded, dict[str, Any]]:
        """The answer, and the request it is for. Raises RequestError."""
        asked = _parsed(body)
        model = asked.get("model")
        if not any(arm.name == model for arm in self.dataset.arms):
            names = ", ".join(arm.name for arm in self.dataset.arms)
            message = f"the model {model!r} is not recorded; recorded are {names}"
            raise RequestError(404, message, param="model", code="model_not_found")
        text = prompt_of(asked["messages"]).user
        row = self._rows.get(text)
        label = ""
        if row is None:
            row = self._nearest.row(text)
            label = f"[nearest recorded prompt: {self.dataset.prompts[row].prompt_id}] "
        return self._in_its_place(self._recorded(row, str(model), label), asked["messages"]), asked

    def _in_its_place(self, recorded: Recorded, messages: Sequence[dict[str, Any]]) -> Recorded:
        """With what stands before the question."""
        cached = self._cache.cached_chars(recorded.model, messages) // CHARS_PER_TOKEN
        before = sum(len(str(message.get("content"))) for message in messages[:-1]) // CHARS_PER_TOKEN
        tokens_in = recorded.tokens_in + before
        return replace(
            recorded,
            tokens_in=tokens_in,
            cached=min(cached, tokens_in) if cached >= CACHED_TOKENS_MIN else 0,
        )

    def _recorded(self, row: int, model: str, label: str) -> Recorded:
        column, prompt = self.dataset.column(model), self.dataset.prompts[row]
        tokens_out = int(self.dataset.tokens_out[row, column])
        text = self.dataset.responses.get((prompt.prompt_id, model)) or (
            f"The recording of {model} on {prompt.prompt_id} holds its score and its cost, not its text."
        )
        return Recorded(model, label + text, int(self.dataset.tokens_in[row, column]), tokens_out)


def create_app(dataset: Dataset, *, time_scale: float, sleep: Sleep = asyncio.sleep) -> Starlette:
    models = RecordedModels(dataset)
    numbers, dice = count(1), random.Random(0)  # noqa: S311 - no secret
    ill: dict[str, dict[str, Any]] = {}

    async def falls_ill(request: Request) -> Response:
        ill.clear()
        ill.update(orjson.loads(await request.body()))
        return _json(ill)

    async def chat(request: Request) -> Response:
        try:
            answer, asked = models.answer(await request.body())
        except RequestError as error:
            return _error(error)
        illness = ill.get(answer.model, {})
        if illness.get("frozen"):
            await asyncio.Event().wait()
        if dice.random() < illness.get("fails", 0.0):
            return _error(RequestError(500, f"{answer.model} is ill"))
        head = {
            "id": f"chatcmpl-recorded-{next(numbers)}",
            "created": int(time.time()),
            "model": answer.model,
        }
        if asked.get("stream"):
            options = asked.get("stream_options")
            usage = isinstance(options, dict) and bool(options.get("include_usage"))
            events = _events(answer, head, lambda s: sleep(s / time_scale), with_usage=usage)
            return StreamingResponse(events, media_type="text/event-stream")
        await sleep(answer.latency_s / time_scale)
        return _json(
            head | {"object": "chat.completion", "choices": [_choice(answer)], "usage": answer.usage}
        )

    async def list_models(_: Request) -> Response:
        names = [arm.name for arm in dataset.arms]
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "recorded"} for name in names]
        return _json({"object": "list", "data": listed})

    async def live(_: Request) -> Response:
        return _json({"status": "ok"})

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", list_models),
            Route("/illness", falls_ill, methods=["PUT"]),
            Route("/healthz", live),
        ]
    )


async def _events(
    answer: Recorded, head: dict[str, Any], sleep: Sleep, *, with_usage: bool
) -> AsyncIterator[bytes]:
    """The answer word by word, its time after the first token spread evenly over the chunks."""
    pieces = _pieces(answer.text)
    pause_s = (answer.latency_s - FIRST_TOKEN_S) / len(pieces)

    def event(delta: dict[str, str], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return _event(head | {"object": "chat.completion.chunk", "choices": [choice]})

    await sleep(FIRST_TOKEN_S)
    yield event({"role": "assistant", "content": ""})
    for piece in pieces:
        await sleep(pause_s)
        yield event({"content": piece})
    yield event({}, "stop")
    if with_usage:
        yield _event(head | {"object": "chat.completion.chunk", "choices": [], "usage": answer.usage})
    yield b"data: [DONE]\n\n"


def _pieces(text: str) -> list[str]:
    """The text in at most CHUNKS_MAX runs of words; joined they are the text."""
    words = text.split(" ")
    size = -(-len(words) // CHUNKS_MAX)
    runs = [" ".join(words[i : i + size]) for i in range(0, len(words), size)]
    return [*(run + " " for run in runs[:-1]), runs[-1]]


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(400, f"the body is not valid JSON: {error}") from error
    messages = asked.get("messages") if isinstance(asked, dict) else None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise RequestError(400, "messages must be a list of objects", param="messages")
    request: dict[str, Any] = asked
    return request


def _choice(answer: Recorded) -> dict[str, Any]:
    return {"index": 0, "message": {"role": "assistant", "content": answer.text}, "finish_reason": "stop"}


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


def _json(data: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(data), status, media_type="application/json")


def _error(error: RequestError) -> Response:
    told = {"message": str(error), "type": "invalid_request_error", "param": error.param, "code": error.code}
    return _json({"error": told}, error.status)


class _Announcing(uvicorn.Server):
    async def startup(self, sockets: list[Any] | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers if self.started else ():
            host, port = server.sockets[0].getsockname()[:2]
            print(f"recorded models on http://{host}:{port}/v1", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m simulations.recorded_server", description=__doc__)
    parser.add_argument("--data", default="wheel", help='"wheel" or a folder of recorded outcomes')
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8101, help="0 for any free one")
    parser.add_argument(
        "--time-scale", type=_positive, default=200.0, help="recorded latency is divided by this"
    )
    options = parser.parse_args(arguments)
    try:
        dataset = load(options.data)
    except DatasetError as error:
        print(error, file=sys.stderr)
        return 1
    app = create_app(dataset, time_scale=options.time_scale)
    config = uvicorn.Config(
        app,
        host=options.host,
        port=options.port,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=LEAVE_S,
    )
    _Announcing(config).run()
    return 0


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError("must be above 0")
    return number


if __name__ == "__main__":
    sys.exit(main())
