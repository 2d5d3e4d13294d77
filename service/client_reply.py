"""What is sent to one client, as ASGI messages; every reply carries the id of its request."""

import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, Final

from service.errors import ApiError

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

REQUEST_ID: Final = b"x-request-id"
JSON: Final = {"content-type": "application/json"}
_SANE: Final = re.compile(rb"[A-Za-z0-9._:/-]{1,128}")


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The client's own, if it is sane; else a new one."""
    given = next((value for name, value in headers if name == REQUEST_ID), b"")
    return given if _SANE.fullmatch(given) else os.urandom(16).hex().encode()


class ClientReply:
    """status: 0 until it is sent; is_whole: the last byte was sent too."""

    __slots__ = ("_request_id", "_send", "is_whole", "status")

    def __init__(self, send: Send, request_id: bytes) -> None:
        self._send, self._request_id = send, request_id
        self.status, self.is_whole = 0, False

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        encoded = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        encoded.append((REQUEST_ID, self._request_id))
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})

    async def piece(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self, body: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": body})
        self.is_whole = True

    async def whole(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        await self.start(status, {**headers, "content-length": str(len(body))})
        await self.end(body)

    async def error(self, error: ApiError) -> None:
        await self.whole(error.status, JSON | dict(error.headers), error.body())
