"""POST /v1/chat/completions as plain ASGI: the one route that every request pays for.

It reads the body, hands it to the pipeline and sends on what comes. While it works it listens for the client's leaving:
then the work is cancelled, and with it the upstream's connection is closed at once.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

from service.access import Access, Admission
from service.errors import ApiError, MethodNotAllowedError, PayloadTooLargeError, RequestTimeoutError
from service.pipeline import Pipeline
from service.request import parse_chat

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PATH: Final = "/v1/chat/completions"
BODY_TIMEOUT_S: Final = 30.0
JSON: Final = {"content-type": "application/json"}
log = logging.getLogger(__name__)


class ChatRoute:
    """body_timeout_s: how long a client may take to say what it wants."""

    def __init__(
        self,
        pipeline: Pipeline,
        access: Access,
        *,
        max_body_bytes: int,
        body_timeout_s: float = BODY_TIMEOUT_S,
    ) -> None:
        self._pipeline, self._access = pipeline, access
        self._max_body_bytes, self._body_timeout_s = max_body_bytes, body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowedError("POST")
            admission = self._access.admit(scope["headers"])
        except ApiError as error:
            await _send_error(send, error)
            return
        try:
            await self._serve(admission, receive, send)
        except ApiError as error:
            await _send_error(send, error)
        finally:
            admission.let_go()

    async def _serve(self, admission: Admission, receive: Receive, send: Send) -> None:
        """Raises ApiError while nothing is sent yet."""
        try:
            async with asyncio.timeout(self._body_timeout_s):
                body = await self._body(receive)
        except TimeoutError:
            raise RequestTimeoutError(self._body_timeout_s) from None
        if body is None:
            return  # the client left before it had said what it wants
        work, left = asyncio.current_task(), False

        def leave(_: asyncio.Task[None]) -> None:
            nonlocal left
            left = True
            if work is not None:
                work.cancel()

        gone = asyncio.create_task(_gone(receive))
        gone.add_done_callback(leave)
        try:
            await self._respond(body, admission, send)
        except asyncio.CancelledError:
            if not left or (work is not None and work.uncancel()):
                raise  # it is somebody else who ends us
        finally:
            gone.remove_done_callback(leave)
            gone.cancel()

    async def _body(self, receive: Receive) -> bytes | None:
        pieces: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > self._max_body_bytes:
                raise PayloadTooLargeError(self._max_body_bytes)
            if not message.get("more_body"):
                return b"".join(pieces)

    async def _respond(self, body: bytes, admission: Admission, send: Send) -> None:
        started = False
        try:
            async with self._pipeline.answer(parse_chat(body), admission.caller) as answer:
                started = True
                if isinstance(answer.content, bytes):
                    admission.let_go()
                    await _send_whole(send, answer.status, answer.headers, answer.content)
                    return
                await _start(send, answer.status, answer.headers)
                async for piece in answer.content:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            admission.let_go()
            await send({"type": "http.response.body", "body": b""})
        except ApiError as error:
            admission.let_go()
            await _send_error(send, error)
        except Exception:
            log.exception("a chat request failed within the gateway")
            if started:
                raise  # the server cuts the connection: a client must not take half an answer for a whole one
            await _send_error(send, _internal_error())


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _start(send: Send, status: int, headers: Mapping[str, str]) -> None:
    encoded = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})


async def _send_error(send: Send, error: ApiError) -> None:
    await _send_whole(send, error.status, JSON | dict(error.headers), error.body())


async def _send_whole(send: Send, status: int, headers: Mapping[str, str], body: bytes) -> None:
    await _start(send, status, {**headers, "content-length": str(len(body))})
    await send({"type": "http.response.body", "body": body})


def _internal_error() -> ApiError:
    message = "the gateway failed on this request; its log says why"
    return ApiError(message, status=500, type="server_error", code="internal_error")
