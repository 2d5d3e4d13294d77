"""What the gateway is measured against: `python -m simulations.bench_passthrough bare|naive --upstream URL`.

bare    the same server, loop and upstream client as the gateway, and nothing between them: bytes in, bytes out
naive   what a first draft looks like: a FastAPI route, a validated body, one shared httpx client, JSONResponse
"""

import argparse
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, Final

import aiohttp
import httpx
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict

HEADERS: Final = {"content-type": "application/json", "accept-encoding": "identity"}
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


class Bare:
    """upstream: URL of the chat endpoint."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._session: aiohttp.ClientSession | None = None

    async def __call__(
        self, scope: MutableMapping[str, Any], receive: Callable[[], Awaitable[Message]], send: Send
    ) -> None:
        session = self._session
        if session is None:
            session = self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
            )
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        async with session.post(self._upstream, data=body, headers=HEADERS) as reply:
            kind = reply.headers.get("content-type", "application/json")
            if kind.startswith("text/event-stream"):
                await _start(send, reply.status, [(b"content-type", kind.encode())])
                while piece := await reply.content.readany():
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
                return
            whole = await reply.read()
        length = (b"content-length", str(len(whole)).encode())
        await _start(send, reply.status, [(b"content-type", kind.encode()), length])
        await send({"type": "http.response.body", "body": whole})


async def _start(send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


class _Message(BaseModel):
    model_config = ConfigDict(extra="allow")
    role: str
    content: Any = None


class _Chat(BaseModel):
    model_config = ConfigDict(extra="allow")
    model: str
    messages: list[_Message]
    stream: bool = False


def naive(upstream: str) -> FastAPI:
    app = FastAPI()
    client = httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=1000))

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(request: _Chat) -> Response:
        asked = request.model_dump(exclude_none=True)
        if not request.stream:
            answer = await client.post(upstream, json=asked)
            return JSONResponse(answer.json(), answer.status_code)

        async def lines() -> AsyncIterator[str]:
            async with client.stream("POST", upstream, json=asked) as reply:
                async for line in reply.aiter_lines():
                    yield line + "\n"

        return StreamingResponse(lines(), media_type="text/event-stream")

    return app


class _Announcing(uvicorn.Server):
    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        for server in self.servers if self.started else ():
            host, port = server.sockets[0].getsockname()[:2]
            print(f"pass-through on http://{host}:{port}", flush=True)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m simulations.bench_passthrough")
    parser.add_argument("what", choices=["bare", "naive"])
    parser.add_argument("--upstream", required=True, metavar="URL", help="of the chat endpoint")
    options = parser.parse_args(arguments)
    app: Any = Bare(options.upstream) if options.what == "bare" else naive(options.upstream)
    config = uvicorn.Config(
        app, port=0, loop="uvloop", http="httptools", access_log=False, log_config=None, lifespan="off"
    )
    _Announcing(config).run()


if __name__ == "__main__":
    main(sys.argv[1:])
