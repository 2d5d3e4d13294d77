"""`bench path`: where the microseconds of a request go within the gateway. Prints Markdown.

One process and one request at a time, through the whole application: keys, features, posterior, record, metrics. The models
answer at once and the store is memory, so that what is left is the gateway's own work. Each step is under a clock, less the
steps within it; a floor is the least that the step could be, in a loop of its own. What servers and sockets take beside it,
`bench gateway` has.
"""

import asyncio
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from inspect import iscoroutinefunction
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import orjson
import uvloop
from threadpoolctl import threadpool_limits

import service.calls
import service.chat
import service.pipeline
from bandit.cost import CostModel
from bandit.features import DIMENSION
from bandit.policy import Thompson
from bandit.quality import DRAWS
from bandit.quality_posterior import SharedBaselinePosterior
from feedback.events import RATED
from feedback.intake import Value
from feedback.learning import Learning
from service.access import Access
from service.app import Gateway, create_app
from service.calls import Calls, Shell
from service.chat import PATH
from service.client_reply import ClientReply
from service.config import parse_settings
from service.home import Home, open_learning, shell_of
from service.pipeline import Pipeline
from service.reply import Splicer
from service.upstream import Reply
from simulations.bench_stacks import ARMS, KEY, MESSAGES

WARM: Final = 400  # requests, each rated
REQUESTS: Final = 3000
STREAMS: Final = 200
CHUNKS: Final = 50
REST: Final = "the rest: tasks, generators, tables"
SECRET: Final = bytes(32)

Owner = Any
# What is clocked: (step, where it stands, its name there). The order is that of the table.
STEPS: Final[Sequence[tuple[str, Owner, str]]] = (
    ("key and limits", Access, "admit"),
    ("body parsed and checked", service.chat, "parse_chat"),
    ("features", service.pipeline, "context_of"),
    ("route and candidates", Pipeline, "_request"),
    ("route and candidates", Pipeline, "_candidates"),
    ("decide: quality of every arm", SharedBaselinePosterior, "draws"),
    ("decide: cost of every arm", CostModel, "expected_usd"),
    ("decide: wins, floor, newcomers", Thompson, "weigh"),
    ("decide: sampling, the decision itself", service.pipeline, "decide"),
    ("record", Pipeline, "_record"),
    ("body to the model", service.calls, "_body"),
    ("reply read and spliced", service.calls, "whole"),
    ("outcome, statistics, metrics", Calls, "_finished"),
    ("reply to the client", ClientReply, "whole"),
    ("events spliced", Splicer, "feed"),
    ("events to the client", ClientReply, "piece"),
)


@dataclass(slots=True)
class Clocks:
    """Nanoseconds of each step in the request under way. open: of the steps begun, what was spent within them."""

    spent: dict[str, int] = field(default_factory=dict)
    open: list[int] = field(default_factory=list)

    def end(self, step: str, begun: int) -> None:
        took = time.perf_counter_ns() - begun
        self.spent[step] = self.spent.get(step, 0) + took - self.open.pop()
        if self.open:
            self.open[-1] += took

    def begin(self) -> int:
        self.open.append(0)
        return time.perf_counter_ns()


@contextmanager
def clocked(clocks: Clocks) -> Iterator[None]:
    """Every step under a clock while the block is open."""
    before = [(owner, name, owner.__dict__[name]) for _, owner, name in STEPS]
    for step, owner, name in STEPS:
        setattr(owner, name, _under_a_clock(clocks, step, owner.__dict__[name]))
    try:
        yield
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


def _under_a_clock(clocks: Clocks, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def plain(*given: Any, **named: Any) -> Any:
        begun = clocks.begin()
        try:
            return function(*given, **named)
        finally:
            clocks.end(step, begun)

    @wraps(function)
    async def awaited(*given: Any, **named: Any) -> Any:
        begun = clocks.begin()
        try:
            return await function(*given, **named)
        finally:
            clocks.end(step, begun)

    return awaited if iscoroutinefunction(function) else plain


class _Instant:
    """A reply that is there at once."""

    status = 200

    def __init__(self, pieces: Sequence[bytes], kind: str) -> None:
        self.headers: Mapping[str, str] = {"content-type": kind}
        self._pieces = iter(pieces)

    async def read(self) -> bytes:
        return b"".join(self._pieces)

    async def chunk(self) -> bytes:
        return next(self._pieces, b"")

    def close(self) -> None:
        """Nothing is held open."""


class InstantModels:
    """Answers of 1 KB, whole or in CHUNKS events."""

    def __init__(self) -> None:
        usage = {"prompt_tokens": 45, "completion_tokens": CHUNKS, "total_tokens": 45 + CHUNKS}
        head: dict[str, Any] = {"id": "up-1", "object": "chat.completion", "created": 1, "model": "vendor"}
        message = {"role": "assistant", "content": "word " * 200}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self.whole = orjson.dumps(head | {"choices": [choice], "usage": usage})
        piece = {"index": 0, "delta": {"content": "word word word "}, "finish_reason": None}
        event = b"data: " + orjson.dumps(head | {"choices": [piece]}) + b"\n\n"
        last = b"data: " + orjson.dumps(head | {"choices": [], "usage": usage}) + b"\n\n"
        self.events = [*[event] * CHUNKS, last, b"data: [DONE]\n\n"]

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        if b'"stream":true' in body:
            return _Instant(self.events, "text/event-stream")
        return _Instant([self.whole], "application/json")

    async def close(self) -> None:
        """Nothing is held open."""


@dataclass(slots=True)
class Client:
    """Speaks ASGI to the gateway, one request at a time."""

    gateway: Gateway

    async def ask(self, *, stream: bool = False) -> str:
        """The decision's id."""
        body = orjson.dumps({"model": "auto", "messages": MESSAGES, "stream": stream})
        arriving, gone = iter([{"type": "http.request", "body": body}]), asyncio.Event()
        decision_id = ""

        async def receive() -> Any:
            if (message := next(arriving, None)) is None:
                await gone.wait()
            return message

        async def send(message: Any) -> None:
            nonlocal decision_id
            if message["type"] == "http.response.start":
                assert message["status"] == 200, "the gateway under the clocks answers"
                decision_id = dict(message["headers"])[b"x-router-decision-id"].decode()

        headers = [(b"authorization", b"Bearer " + KEY.encode()), (b"content-type", b"application/json")]
        scope = {"type": "http", "path": PATH, "method": "POST", "headers": headers}
        await self.gateway(scope, receive, send)
        await asyncio.sleep(0)  # the task that listened for the client's leaving ends
        return decision_id


def path() -> None:
    with threadpool_limits(1), tempfile.TemporaryDirectory() as folder:
        whole, streamed = uvloop.run(_measured(Path(folder)))
    print(table(whole, streamed), flush=True)


async def _measured(folder: Path) -> tuple[list[dict[str, int]], list[dict[str, int]]]:
    """Of each whole answer and of each stream, nanoseconds by step; "" is all of it."""
    models = InstantModels()
    learning, gateway = await _gateway(folder, models)
    client = Client(gateway)
    for n in range(WARM):
        decision_id = await client.ask()
        await learning.intake.give(decision_id, [Value("rating", RATED, "user", (0.2, 0.9, 0.7)[n % 3])])
        if n % 50 == 0:
            await learning.tick()
    await learning.tick()
    return await _clock(client, REQUESTS, stream=False), await _clock(client, STREAMS, stream=True)


async def _clock(client: Client, count: int, *, stream: bool) -> list[dict[str, int]]:
    clocks, seen = Clocks(), []
    with clocked(clocks):
        for _ in range(count):
            clocks.spent = {}
            begun = time.perf_counter_ns()
            await client.ask(stream=stream)
            seen.append(clocks.spent | {"": time.perf_counter_ns() - begun})
    return seen


async def _gateway(folder: Path, models: InstantModels) -> tuple[Learning, Gateway]:
    names = [f"model-{k}" for k in range(ARMS)]
    config = {
        "models": {
            name: {
                "base_url": "http://models.invalid/v1",
                "price_usd_per_mtok_in": round(0.1 * (k + 1), 3),
                "price_usd_per_mtok_out": round(0.4 * (k + 1), 3),
            }
            for k, name in enumerate(names)
        },
        "routes": {"auto": {"models": names, "usd_per_quality": 0.05}},
        "access": {"keys": [{"sha256": hashlib.sha256(KEY.encode()).hexdigest()}]},
    }
    settings = parse_settings(orjson.dumps(config).decode(), source="bench", folder=folder, environ={})
    learning = await open_learning(settings, SECRET, Home(None, folder / "spool"))
    real = shell_of(settings, SECRET)
    shell = Shell(models, real.now, real.ticks, real.new_id)
    await learning.start()
    return learning, create_app(settings, learning, shell, background=False)


def table(whole: Sequence[Mapping[str, int]], streamed: Sequence[Mapping[str, int]]) -> str:
    """Medians over requests; of a stream's steps, for each of its events."""
    floors = _floors()
    lines = ["| step | µs | floor |", "|---|---:|---|"]
    steps = [step for step in dict.fromkeys(step for step, _, _ in STEPS) if step in whole[0]]
    in_steps = 0.0
    for step in steps:
        us = _median_us(whole, step)
        in_steps += us
        lines.append(f"| {step} | {us:.1f} | {floors.get(step, '-')} |")
    all_us = _median_us(whole, "")
    lines += [
        f"| {REST} | {all_us - in_steps:.1f} | - |",
        f"| **a whole answer, all of it** | **{all_us:.1f}** | |",
    ]
    for step in ("events spliced", "events to the client"):
        lines.append(f"| an event of a stream: {step} | {_median_us(streamed, step) / CHUNKS:.1f} | - |")
    more = (_median_us(streamed, "") - all_us) / CHUNKS
    return "\n".join([*lines, f"| **an event of a stream, beyond the request itself** | **{more:.1f}** | |"])


def _median_us(seen: Sequence[Mapping[str, int]], step: str) -> float:
    return 1e-3 * median(one.get(step, 0) for one in seen)


def _floors() -> dict[str, str]:
    """What each step cannot do without, hot."""
    rng = np.random.default_rng(0)
    body = orjson.dumps({"model": "auto", "messages": MESSAGES})
    text, reply = str(MESSAGES[-1]["content"]), InstantModels().whole
    x = rng.normal(size=DIMENSION).astype(np.float32)
    drawn = rng.normal(size=(DIMENSION, DRAWS * ARMS)).astype(np.float32)
    quality = rng.normal(size=(DRAWS, ARMS))
    told = [[f"model-{k}", 0.1 * k, 0.4 * k] for k in range(ARMS)]
    floors: dict[str, tuple[Callable[[], object], str]] = {
        "body parsed and checked": (lambda: orjson.loads(body), "the JSON parser"),
        "features": (text.split, "one split of the text"),
        "decide: quality of every arm": (lambda: x @ drawn, f"the product with {DRAWS} draws"),
        "decide: wins, floor, newcomers": (lambda: quality.argmax(axis=1), "the best of each draw"),
        "record": (lambda: orjson.dumps(told), "the JSON writer"),
        "reply read and spliced": (lambda: orjson.loads(reply), "the JSON parser"),
    }
    return {step: f"{_hot_us(work):.1f}: {what}" for step, (work, what) in floors.items()}


def _hot_us(work: Callable[[], object], calls: int = 500, rounds: int = 15) -> float:
    took = []
    for _ in range(rounds):
        begun = time.perf_counter_ns()
        for _ in range(calls):
            work()
        took.append((time.perf_counter_ns() - begun) / calls)
    return 1e-3 * median(took)
