"""POST /v1/chat/completions as plain ASGI: the one route that every request pays for.

It reads the body, hands it to the pipeline and sends on what comes. While it works it listens for the client's leaving:
then the work is cancelled, and with it the upstream's connection is closed at once.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from service.access import Access, Admission
from service.client_reply import ClientReply, Message, Send, request_id_of
from service.errors import ApiError, MethodNotAllowedError, PayloadTooLargeError, RequestTimeoutError
from service.pipeline import Pipeline
from service.request import parse_chat

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Count = Callable[[int, float | None], None]

PATH: Final = "/v1/chat/completions"
BODY_TIMEOUT_S: Final = 30.0
log = logging.getLogger(__name__)


def _uncounted(status: int, duration_s: float | None) -> None:
    """For who does not count."""


class ChatRoute:
    """body_timeout_s: how long a client may take to say what it wants. count: told of each request the status that its
    client saw, and the seconds to the last byte, None where that was not sent.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        access: Access,
        *,
        max_body_bytes: int,
        body_timeout_s: float = BODY_TIMEOUT_S,
        count: Count = _uncounted,
    ) -> None:
        self._pipeline, self._access, self._count = pipeline, access, count
        self._max_body_bytes, self._body_timeout_s = max_body_bytes, body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun_s = self._access.clock()
        reply = ClientReply(send, request_id_of(scope["headers"]))
        try:
            await self._admitted(scope, receive, reply)
        finally:
            if reply.status:
                self._count(reply.status, self._access.clock() - begun_s if reply.is_whole else None)

    async def _admitted(self, scope: Scope, receive: Receive, reply: ClientReply) -> None:
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowedError("POST")
            admission = self._access.admit(scope["headers"])
        except ApiError as error:
            await reply.error(error)
            return
        try:
            await self._serve(admission, receive, reply)
        except ApiError as error:
            await reply.error(error)
        finally:
            admission.let_go()

    async def _serve(self, admission: Admission, receive: Receive, reply: ClientReply) -> None:
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
            await self._respond(body, admission, reply)
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

    async def _respond(self, body: bytes, admission: Admission, reply: ClientReply) -> None:
        try:
            answer, line = await self._pipeline.answer(parse_chat(body), admission.caller)
            with line:
                if isinstance(answer.content, bytes):
                    admission.let_go()
                    await reply.whole(answer.status, answer.headers, answer.content)
                    return
                await reply.start(answer.status, answer.headers)
                async for piece in answer.content:
                    await reply.piece(piece)
            admission.let_go()
            await reply.end()
        except ApiError as error:
            admission.let_go()
            await reply.error(error)
        except Exception:
            log.exception("a chat request failed within the gateway")
            if reply.status:
                raise  # the server cuts the connection: a client must not take half an answer for a whole one
            await reply.error(_internal_error())


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _internal_error() -> ApiError:
    message = "the gateway failed on this request; its log says why"
    return ApiError(message, status=500, type="server_error", code="internal_error")
