"""The model that the gateway's bench calls: `python -m simulations.bench_upstream`, answers at once, always the same ones.

A whole answer is about 1 KB. A stream is CHUNKS events of about 190 bytes, GAP_S apart, the first with the head; then,
where it was asked for, the usage, and [DONE]. It must never be the bottleneck: the bench prints what it can do.
"""

import argparse
import asyncio
import sys
from typing import Any, Final

import httptools
import uvloop

CHUNKS: Final = 50
GAP_S: Final = 0.002
MODEL: Final = "bench-model"
USAGE: Final = b'{"prompt_tokens":60,"completion_tokens":180,"total_tokens":240}'

_WHOLE_BODY: Final = (
    b'{"id":"chatcmpl-upstream","object":"chat.completion","created":1700000000,"model":"%b","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"%b"},"logprobs":null,"finish_reason":"stop"}],"usage":%b}'
) % (MODEL.encode(), b"The sky scatters short waves more than long ones. " * 15, USAGE)
WHOLE: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_WHOLE_BODY)
) + _WHOLE_BODY
HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _framed(data: bytes) -> bytes:
    event = b"data: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


def _chunk(delta: bytes, finish: bytes = b"null") -> bytes:
    return _framed(
        b'{"id":"chatcmpl-upstream","object":"chat.completion.chunk","created":1700000000,"model":"%b","choices":'
        b'[{"index":0,"delta":{%b},"logprobs":null,"finish_reason":%b}]}' % (MODEL.encode(), delta, finish)
    )


EVENTS: Final = (
    _chunk(b'"role":"assistant","content":""'),
    *(_chunk(b'"content":" word-%d"' % n) for n in range(CHUNKS - 2)),
    _chunk(b"", b'"stop"'),
)
_USAGE_EVENT: Final = _framed(
    b'{"id":"chatcmpl-upstream","object":"chat.completion.chunk","created":1700000000,"model":"%b","choices":[],'
    b'"usage":%b}' % (MODEL.encode(), USAGE)
)
_DONE: Final = _framed(b"[DONE]") + b"0\r\n\r\n"


class Upstream(asyncio.Protocol):
    """One connection; requests follow each other."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._loop = asyncio.get_running_loop()
        self._body = b""
        self._due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.Transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def connection_lost(self, _: Exception | None) -> None:
        if self._due is not None:
            self._due.cancel()

    def on_message_begin(self) -> None:
        self._body = b""

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if b'"stream":true' not in self._body and b'"stream": true' not in self._body:
            self._transport.write(WHOLE)
            return
        usage = b'"include_usage"' in self._body
        self._transport.write(HEAD + EVENTS[0])
        self._next(1, self._loop.time(), usage=usage)

    def _next(self, n: int, begun: float, *, usage: bool) -> None:
        self._due = self._loop.call_at(begun + n * GAP_S, self._write, n, begun, usage)

    def _write(self, n: int, begun: float, usage: bool) -> None:
        if n < CHUNKS:
            self._transport.write(EVENTS[n])
            self._next(n + 1, begun, usage=usage)
            return
        self._due = None
        self._transport.write(_USAGE_EVENT + _DONE if usage else _DONE)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port)
    print(f"upstream on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m simulations.bench_upstream")
    parser.add_argument("--port", type=int, default=0)
    uvloop.run(_serve(parser.parse_args(arguments).port))


if __name__ == "__main__":
    main(sys.argv[1:])
