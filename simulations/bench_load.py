"""The load of the gateway's bench: requests over kept connections, one at a time on each, and how long they took.

Closed by default: each connection asks again as soon as it is answered. With a rate, requests are due at fixed times
whether or not earlier ones were answered, and a request's time counts from when it was due: waiting is not hidden.
"""

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import httptools

from simulations.bench_upstream import CHUNKS, GAP_S

DRAIN_S: Final = 3.0
STREAM_S: Final = CHUNKS * GAP_S  # that a stream takes
_ID: Final = re.compile(rb'"id":"([^"]{1,200})"')


@dataclass(frozen=True, slots=True)
class Target:
    """url: of the chat endpoint. whole, stream: request bodies. rated_every: of so many answers one is rated at
    /feedback of the same server, 0 for none.
    """

    url: str
    whole: bytes
    stream: bytes
    key: str = ""
    rated_every: int = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """connections at once, for seconds after a warm-up; rate: requests a second, None for as many as it takes."""

    connections: int
    seconds: float
    stream: bool = False
    warm_s: float = 0.3
    rate: float | None = None


@dataclass(slots=True)
class Sample:
    """What was seen within the measured time. latency_us: of whole answers; first_us: to the first event of a stream, or
    the first byte of a body. used: by the meter. rated: feedback that was taken.
    """

    seconds: float = 0.0
    failed: int = 0
    chunks: int = 0
    rated: int = 0
    used: float = 0.0
    latency_us: list[float] = field(default_factory=list)
    first_us: list[float] = field(default_factory=list)

    @property
    def per_s(self) -> float:
        return len(self.latency_us) / self.seconds


async def load(target: Target, shape: Shape, meter: Callable[[], float] = lambda: 0.0) -> Sample:
    """meter: read when the measured time begins and ends, such as a server's CPU seconds."""
    run = _Run(target, shape)
    await asyncio.gather(*(run.connect(_Chat) for _ in range(shape.connections)))
    if target.rated_every:
        await run.connect(_Feedback)
    run.begin()
    await asyncio.sleep(shape.warm_s)
    before, begun = meter(), time.perf_counter()
    run.measuring = True
    await asyncio.sleep(shape.seconds)
    run.measuring = False
    run.sample.seconds, run.sample.used = time.perf_counter() - begun, meter() - before
    await run.end()
    return run.sample


class _Run:
    def __init__(self, target: Target, shape: Shape) -> None:
        self.target, self.shape, self.sample = target, shape, Sample()
        self.measuring = self.ended = False
        self.free: deque[_Chat] = deque()  # connections without a request, where there is a rate
        self.waiting: deque[float] = deque()  # requests without a connection, by when they were due
        self.to_rate: deque[bytes] = deque()
        self.rater: _Feedback | None = None
        self.answers = 0
        self._all: list[_Connection] = []
        self._loop = asyncio.get_running_loop()
        where = urlsplit(target.url)
        self._host, self._port = where.hostname or "127.0.0.1", where.port or 80
        authorization = f"authorization: Bearer {target.key}\r\n" if target.key else ""
        self.head = f"host: {where.netloc}\r\ncontent-type: application/json\r\n{authorization}".encode()
        body = target.stream if shape.stream else target.whole
        self.request = b"POST %b HTTP/1.1\r\n%bcontent-length: %d\r\n\r\n%b" % (
            where.path.encode(), self.head, len(body), body,
        )  # fmt: skip

    async def connect(self, kind: "type[_Connection]") -> None:
        _, connection = await self._loop.create_connection(lambda: kind(self), self._host, self._port)
        self._all.append(connection)

    def begin(self) -> None:
        chats = [connection for connection in self._all if isinstance(connection, _Chat)]
        if self.shape.rate is None:
            apart_s = STREAM_S / len(chats) if self.shape.stream else 0.0  # streams do not march in step
            for n, connection in enumerate(chats):
                self._loop.call_later(n * apart_s, connection.begin)
            return
        self.free.extend(chats)
        self._due(time.monotonic(), 0, 1.0 / self.shape.rate)

    def _due(self, begun: float, n: int, every: float) -> None:
        """The requests from the n-th on that are due by now; then again in a millisecond, a loop's shortest wait."""
        if self.ended:
            return
        while begun + n * every <= time.monotonic():
            self.waiting.append(begun + n * every)
            n += 1
        self.serve()
        self._loop.call_later(0.001, self._due, begun, n, every)

    def serve(self) -> None:
        while self.free and self.waiting:
            self.free.popleft().ask(self.waiting.popleft())

    def answered(self, connection: "_Chat", body: bytes) -> None:
        self.answers += 1
        every = self.target.rated_every
        if every and self.answers % every == 0 and (found := _ID.search(body)):
            self.to_rate.append(found[1])
            if self.rater is not None:
                self.rater.next()
        if self.ended:
            return
        if self.shape.rate is None:
            connection.ask(time.monotonic())
        else:
            self.free.append(connection)
            self.serve()

    def lost(self, connection: "_Connection") -> None:
        """A server may close a kept connection; one that was busy has failed."""
        self._all.remove(connection)
        if connection.busy and not self.ended:
            self.sample.failed += 1
        if not self.ended:
            self._loop.create_task(self._again(type(connection)))

    async def _again(self, kind: "type[_Connection]") -> None:
        await self.connect(kind)
        fresh = self._all[-1]
        if isinstance(fresh, _Chat) and self.shape.rate is None:
            fresh.ask(time.monotonic())
        elif isinstance(fresh, _Chat):
            self.free.append(fresh)
            self.serve()

    async def end(self) -> None:
        """No more requests; those under way may end."""
        self.ended = True
        until = self._loop.time() + DRAIN_S
        while any(c.busy for c in self._all) and self._loop.time() < until:  # noqa: ASYNC110 - of many, any may be last
            await asyncio.sleep(0.005)
        for connection in list(self._all):
            connection.transport.abort()
        await asyncio.sleep(0)


class _Connection(asyncio.Protocol):
    def __init__(self, run: _Run) -> None:
        self._run = run
        self._parser = httptools.HttpResponseParser(self)
        self._loop = asyncio.get_running_loop()
        self.busy = False

    def connection_made(self, transport: Any) -> None:
        self.transport: asyncio.Transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, _: Exception | None) -> None:
        self._run.lost(self)


class _Chat(_Connection):
    def begin(self) -> None:
        self.ask(time.monotonic())

    def ask(self, due: float) -> None:
        self._asked, self._first, self._body, self.busy = due, 0.0, b"", True
        self.transport.write(self._run.request)

    def on_body(self, body: bytes) -> None:
        run = self._run
        if not self._first:
            if run.shape.stream and b"data:" not in body:
                return  # a comment that keeps the connection alive is no answer
            self._first = time.monotonic()
            if run.measuring:
                run.sample.first_us.append(1e6 * (self._first - self._asked))
        if run.shape.stream:
            if run.measuring:
                run.sample.chunks += body.count(b"data:")
        elif run.target.rated_every:
            self._body += body

    def on_message_complete(self) -> None:
        run = self._run
        self.busy = False
        if run.measuring:
            if self._parser.get_status_code() == 200:
                run.sample.latency_us.append(1e6 * (time.monotonic() - self._asked))
            else:
                run.sample.failed += 1
        run.answered(self, self._body)


class _Feedback(_Connection):
    """Rates answers, one at a time: all alike, for what is measured is the cost of learning."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._run.rater = self

    def next(self) -> None:
        if self.busy or not self._run.to_rate:
            return
        self.busy = True
        body = b'{"decision_id":"%b","rating":0.75}' % self._run.to_rate.popleft()
        head = b"POST /feedback HTTP/1.1\r\n%bcontent-length: %d\r\n\r\n" % (self._run.head, len(body))
        self.transport.write(head + body)

    def on_message_complete(self) -> None:
        self.busy = False
        if self._run.measuring:
            taken = self._parser.get_status_code() == 202
            self._run.sample.rated += taken
            self._run.sample.failed += not taken
        self.next()
