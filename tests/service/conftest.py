"""A real gateway on a real port, before upstreams that do as they are told: raw HTTP over TCP, byte for byte."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

import httpx
import pytest
import uvicorn

from feedback.ids import new_id
from feedback.learning import Identity, Learning
from feedback.memory_store import MemoryStore
from feedback.spool import Spool
from service.app import create_app
from service.calls import Shell
from service.config import parse_settings
from service.home import Home, open_budgets
from service.routes import quality_models
from service.upstream import AiohttpUpstream

ROOT = Path(__file__).parents[2]
SECRET = b"s" * 32
GUARD_S = 30.0
HEAD = b"HTTP/1.1 %d Scripted\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass(eq=False)
class Asked:
    """One request as an upstream got it."""

    model: str
    head: bytes
    raw: bytes
    left: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def body(self) -> dict:
        return json.loads(self.raw)


@dataclass(eq=False)
class Peer:
    """One connection of the gateway's, as an upstream sees it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    asked: Asked | None = None

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def chunk(self, data: bytes) -> None:
        await self.say(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.say(b"0\r\n\r\n")

    async def until_left(self) -> None:
        with contextlib.suppress(ConnectionError):
            await self.reader.read(1)
        self.asked.left.set()

    def reset(self) -> None:
        linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # closing sends RST
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


Behaviour = Callable[[Peer], Awaitable[None]]


def says(status: int, body: bytes | dict | list | str, **headers: str) -> Behaviour:
    """A whole reply."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode()
    reply = HEAD % status + lines + b"content-length: %d\r\n\r\n" % len(raw) + raw

    async def behave(peer: Peer) -> None:
        await peer.say(reply)

    return behave


def fails(status: int, message: str = "no", code: str | None = None, **headers: str) -> Behaviour:
    error = {"message": message, "type": "some_error", "param": None, "code": code}
    return says(status, {"error": error}, **headers)


def completion(text: str | None = "hello", **message) -> dict:
    said = {"role": "assistant", "content": text} | message
    finish = "tool_calls" if "tool_calls" in message else "stop"
    return {
        "id": "upstream-1",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": "vendor",
        "choices": [{"index": 0, "message": said, "finish_reason": finish}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 11, "total_tokens": 18},
    }


def piece(text: str | None = None, finish: str | None = None, **fields) -> bytes:
    """One event of a stream."""
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    body = {
        "id": "up",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "vendor",
        "choices": [choice],
    }
    return b"data: " + json.dumps(body | fields, ensure_ascii=False).encode() + b"\n\n"


HOLD = b"wait until the test lets go"
USAGE = piece(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8})
DONE = b"data: [DONE]\n\n"


def streams(*pieces: bytes, then: str = "end") -> Behaviour:
    """Each piece in a chunk of its own; then the stream ends, goes silent, or is reset."""

    async def behave(peer: Peer) -> None:
        await peer.say(CHUNKED)
        for data in pieces:
            if data == HOLD:
                await asyncio.to_thread(peer.asked.released.wait, GUARD_S)
            else:
                await peer.chunk(data)
        if then == "end":
            await peer.end()
        elif then == "reset":
            peer.reset()
        elif then == "close":
            peer.writer.close()
        else:
            await peer.until_left()

    return behave


def silent(data: bytes = b"") -> Behaviour:
    """Says this much and then nothing, with the connection open."""

    async def behave(peer: Peer) -> None:
        await peer.say(data)
        await peer.until_left()

    return behave


def slams(data: bytes = b"") -> Behaviour:
    """Says this much and resets the connection."""

    async def behave(peer: Peer) -> None:
        await peer.say(data)
        peer.reset()

    return behave


def held(behaviour: Behaviour) -> Behaviour:
    """Answers once the test lets go."""

    async def behave(peer: Peer) -> None:
        await asyncio.to_thread(peer.asked.released.wait, GUARD_S)
        await behaviour(peer)

    return behave


class Upstreams:
    """behaviour: by the model's name at the upstream; asked: every request, the oldest first."""

    def __init__(self) -> None:
        self.behaviour: dict[str, Behaviour] = {}
        self.asked: list[Asked] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                raw = await reader.readexactly(length)
                peer.asked = Asked(json.loads(raw)["model"], head, raw)
                self.asked.append(peer.asked)
                await self.behaviour[peer.asked.model](peer)
        writer.close()

    def models_asked(self) -> list[str]:
        return [asked.model for asked in self.asked]


@dataclass
class Lab:
    """url: the gateway's; gateway: the application itself; upstreams: what it talks to."""

    url: str
    gateway: object
    upstreams: Upstreams
    client: httpx.Client
    thread: "LoopThread"

    def tick(self) -> None:
        """One round of learning and of budgets: what was left behind is written, what is new is folded."""
        self.thread.run(self.gateway.learning.tick())
        self.thread.run(self.gateway.budgets.tick())
        if self.gateway.decision_log is not None:
            self.thread.run(self.gateway.decision_log.tick())

    def says(self, **behaviours: Behaviour) -> None:
        self.upstreams.behaviour.update(behaviours)

    def ask(self, model: str = "auto", headers: dict | None = None, **fields) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]} | fields
        return self.client.post("/v1/chat/completions", json=body, headers=headers)

    def stream(self, **fields) -> str:
        """A stream's text; whatever the upstream holds back is let go once its first event has been read."""
        body = {"model": "auto", "stream": True, "messages": [{"role": "user", "content": "hi"}]} | fields
        with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200
            pieces = response.iter_text()
            first = next(pieces)
            self.upstreams.asked[-1].released.set()
            return first + "".join(pieces)

    def outcomes(self) -> list[tuple[str, str]]:
        """(model, what became of the call), the oldest first."""
        kept = self.gateway.outcomes._kept
        return [(o.model, o.status) for outcomes in kept.values() for o in outcomes]

    def last(self):
        return [o for outcomes in self.gateway.outcomes._kept.values() for o in outcomes][-1]

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what the gateway does after its client has gone."""
        deadline = time.monotonic() + GUARD_S
        while not condition():
            assert time.monotonic() < deadline, "it never came"
            threading.Event().wait(0.005)


class LoopThread:
    """An event loop that runs beside the tests, so that blocking clients can be tested too."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def run(self, work: Awaitable) -> object:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(GUARD_S)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(GUARD_S)
        self.loop.close()


LAB_CONFIG = """
models:
  one: {base_url: "URL", api_key_env: UPSTREAM_KEY, price_usd_per_mtok_in: 1, price_usd_per_mtok_out: 2, context_window_tokens: 1000}
  two: {base_url: "URL", price_usd_per_mtok_in: 3, price_usd_per_mtok_out: 6, context_window_tokens: 9000}
  blind: {base_url: "URL", price_usd_per_mtok_in: 1, price_usd_per_mtok_out: 1, images: false, json_schema: false, tools: false}
routes:
  auto: {models: [one, two], strategy: fixed}
  learned: {models: [one, two], usd_per_quality: 0.05}
  limited: {models: [blind, two], strategy: fixed}
  nobody: {models: [blind], strategy: fixed}
upstream: {connect_timeout_s: 2, first_byte_timeout_s: 1, idle_timeout_s: 1}
"""


class Street:
    """Two servers that live as long as the tests: one for upstreams, one for whichever gateway is being tested."""

    def __init__(self) -> None:
        self.thread = LoopThread()
        self.app = None
        self.upstreams = Upstreams()
        self.url, self.upstream_url = self.thread.run(self._open())

    async def __call__(self, scope, receive, send) -> None:
        await self.app(scope, receive, send)

    async def _open(self) -> tuple[str, str]:
        self._upstream = await asyncio.start_server(self._serve_upstream, "127.0.0.1", 0)
        listening = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(self, http="httptools", access_log=False, log_config=None, lifespan="off")
        self._server = uvicorn.Server(config)
        self._server.capture_signals = contextlib.nullcontext
        self._serving = asyncio.create_task(self._server.serve(sockets=[listening]))
        ports = (s.getsockname()[1] for s in (listening, self._upstream.sockets[0]))
        gateway, upstream = (f"http://127.0.0.1:{port}" for port in ports)
        return gateway, f"{upstream}/v1"

    async def _serve_upstream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.upstreams.serve(reader, writer)

    async def close(self) -> None:
        self._server.should_exit = True
        await self._serving
        self._upstream.close()

    async def move_in(self, config: str, folder) -> tuple[object, Callable[[], Awaitable[None]]]:
        """A gateway of this configuration, and what closes it."""
        self.upstreams = Upstreams()
        settings = parse_settings(
            config.replace("URL", self.upstream_url),
            source="lab.yaml",
            folder=folder,
            environ={"UPSTREAM_KEY": "sk-upstream-secret"},
        )
        learning = Learning(
            MemoryStore(),
            await Spool.open(folder / "spool", worker="w", clock=time.time),
            quality_models(settings),
            identity=Identity("w", [SECRET], 3600.0),
            clock=time.time,
            features=settings.features.tag,
        )
        numbers = count()
        shell = Shell(
            upstream=AiohttpUpstream(settings.upstream),
            now=time.time,
            ticks=time.monotonic_ns,
            new_id=lambda scope: new_id(
                SECRET, scope, now_s=time.time(), entropy=next(numbers).to_bytes(8, "big")
            ),
        )
        budgets = await open_budgets(settings, learning, Home(None, folder / "spool"))
        app = self.app = create_app(settings, learning, shell, budgets, background=False)
        await learning.start()
        await budgets.tick()

        async def close() -> None:
            await shell.upstream.close()
            await budgets.close()
            await learning.close()
            if app.decision_log is not None:
                await app.decision_log.close()

        return app, close


@pytest.fixture(scope="session")
def street():
    street = Street()
    yield street
    street.thread.run(street.close())
    street.thread.stop()


@pytest.fixture
def start_lab(street, tmp_path):
    """Start a gateway with this configuration; URL in it is the upstreams' address. One at a time."""
    open_ones = []

    def start(config: str = LAB_CONFIG) -> Lab:
        gateway, close = street.thread.run(street.move_in(config, tmp_path / str(len(open_ones))))
        client = httpx.Client(base_url=street.url, timeout=GUARD_S, trust_env=False, verify=False)
        open_ones.append((client, close))
        return Lab(street.url, gateway, street.upstreams, client, street.thread)

    yield start
    for client, close in open_ones:
        client.close()
        street.thread.run(close())


@pytest.fixture
def lab(start_lab) -> Lab:
    return start_lab()


@pytest.fixture
def scripts():
    """What upstreams can be told to do."""
    from types import SimpleNamespace

    return SimpleNamespace(
        says=says,
        fails=fails,
        completion=completion,
        piece=piece,
        streams=streams,
        silent=silent,
        held=held,
        slams=slams,
        HOLD=HOLD,
        USAGE=USAGE,
        DONE=DONE,
        CHUNKED=CHUNKED,
    )


ONE_ANSWER = completion() | {"usage": {"prompt_tokens": 1, "completion_tokens": 600, "total_tokens": 601}}


class _Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps(ONE_ANSWER).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.server.answered.append(1)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def answering():
    """An upstream for gateways in processes of their own: 1 token in, 600 out, every time. answered: how often; url."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answering)
    server.answered, server.url = [], f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@contextlib.contextmanager
def _gateway_process(config: Path, **environ: str):
    log = config.with_name(f"log-{os.urandom(3).hex()}")
    inherited = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    command = [sys.executable, "-m", "service", "--config", str(config)]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=inherited | environ
        ) as process,
    ):
        try:
            lines = [process.stdout.readline().strip().split(" on ") for _ in range(2)]
            assert all(len(line) == 2 for line in lines), log.read_text()
            urls = dict(lines)
            yield process, urls["gateway"], urls["admin"]
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 0


@pytest.fixture
def gateway_process():
    """Context manager: a gateway of this file as a process, with its URL and its operator's."""
    return _gateway_process
