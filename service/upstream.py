"""The connections to the models: the only module that opens them, and where every failure of theirs gets its name.

A reply is read as it arrives and never ahead of its reader (beyond the transport's own buffer). Closing it before its end
closes its connection at once; a reply read to its end gives the connection back to the pool.
"""

import asyncio
import math
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal, Protocol, Self

import aiohttp

from service.settings import UpstreamSettings

MAX_REPLY_BYTES: Final = 64 * 1024 * 1024
KEEP_ALIVE_S: Final = 60.0
# They describe the hop from the upstream to us; the body that we hand on is decoded and framed anew.
HOP_HEADERS: Final = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "trailer", "content-encoding", "content-length"}
)

FailureKind = Literal[
    "connect",  # no connection: refused, unreachable, name not found
    "tls",  # the handshake failed or the certificate was not accepted
    "timeout_connect",  # the connection did not stand in time
    "timeout_first_byte",  # the head of the reply did not come in time
    "timeout_idle",  # the body fell silent
    "reset",  # the connection broke before the reply was complete, or what came was not HTTP
    "too_large",  # the reply is longer than we read
]

FAILURES: Final[tuple[tuple[type[aiohttp.ClientError], FailureKind, str], ...]] = (  # the first that fits
    (aiohttp.ConnectionTimeoutError, "timeout_connect", "the connection did not stand in time"),
    (aiohttp.ClientConnectorCertificateError, "tls", "the certificate was not accepted"),
    (aiohttp.ClientSSLError, "tls", "the TLS handshake failed"),
    (aiohttp.ClientConnectorDNSError, "connect", "the host's name could not be resolved"),
    (aiohttp.ClientConnectorError, "connect", "the connection was refused or the host cannot be reached"),
    (aiohttp.InvalidURL, "connect", "the URL cannot be called"),
    (aiohttp.ClientResponseError, "reset", "what came back is not HTTP"),
    (aiohttp.ClientError, "reset", "the connection broke before the reply was complete"),
)


class UpstreamError(Exception):
    """A call to a model failed. The message is fit for a client: no address, no key, no part of the reply."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class Reply(Protocol):
    """headers: names in lower case, a repeated header joined by commas; without those that only describe the hop."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    async def read(self) -> bytes:
        """The whole body. Raises UpstreamError."""
        ...

    async def chunk(self) -> bytes:
        """What has arrived of the body, at least one byte, nothing held back; empty at its end. Raises UpstreamError."""
        ...

    def close(self) -> None:
        """To be called when no more of it is wanted."""
        ...


class Upstream(Protocol):
    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """POST; the reply when its head is there, to be closed. headers: names in lower case. Raises UpstreamError."""
        ...

    async def close(self) -> None: ...


class AiohttpUpstream:
    """Pooled keep-alive connections: no redirects, no cookies, no proxies from the environment, no compression asked for.

    A pooled connection may have been closed by the other side while it lay idle. A request that finds it so, before the
    head of a reply, is sent once more on a new connection. A new connection that breaks is never tried again.
    max_reply_bytes: what `Reply.read` reads at most, after decompression.
    """

    def __init__(self, settings: UpstreamSettings, *, max_reply_bytes: int = MAX_REPLY_BYTES) -> None:
        self._settings = settings
        self._max_reply_bytes = max_reply_bytes
        self._sessions: _Sessions | None = None  # made inside the running loop, which they belong to

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        call = _Call(url, {**headers, "accept-encoding": "identity"}, body)
        response = await self._response(call)
        return _AiohttpReply(response, self._settings.idle_timeout_s, self._max_reply_bytes)

    async def close(self) -> None:
        if self._sessions is not None:
            await self._sessions.pooled.close()
            await self._sessions.single.close()

    async def _response(self, call: "_Call") -> aiohttp.ClientResponse:
        if self._sessions is None:
            self._sessions = _Sessions(_session(self._settings), _session(self._settings, force_close=True))
        try:
            try:
                return await self._post(self._sessions.pooled, call)
            except aiohttp.ClientConnectionError:
                if not call.on_reused_connection:
                    raise
                return await self._post(self._sessions.single, call)
        except aiohttp.ClientError as error:
            raise _named(error) from None

    async def _post(self, session: aiohttp.ClientSession, call: "_Call") -> aiohttp.ClientResponse:
        timeout_s = self._settings.first_byte_timeout_s
        _CALL.set(call)
        try:
            async with asyncio.timeout(timeout_s):
                return await session.post(
                    call.url,
                    headers=call.headers,
                    data=call.body,
                    allow_redirects=False,
                )
        except aiohttp.ServerTimeoutError:
            raise  # a TimeoutError too, but with its own name
        except TimeoutError:
            raise UpstreamError("timeout_first_byte", f"no reply within {timeout_s:g} s") from None


@dataclass(slots=True)
class _Call:
    url: str
    headers: Mapping[str, str]
    body: bytes
    on_reused_connection: bool = False


_CALL: ContextVar[_Call | None] = ContextVar("call", default=None)  # that this task's next connection is for


@dataclass(frozen=True, slots=True)
class _Sessions:
    pooled: aiohttp.ClientSession
    single: aiohttp.ClientSession  # a new connection for every request


class _AiohttpReply:
    """Its silence is watched by one timer that looks now and then, not by one for each of its chunks."""

    def __init__(self, response: aiohttp.ClientResponse, idle_timeout_s: float, max_reply_bytes: int) -> None:
        self._response = response
        self._idle_timeout_s = idle_timeout_s
        self._max_reply_bytes = max_reply_bytes
        self._loop = asyncio.get_running_loop()
        self._waits_since_s = math.inf  # on the loop's clock; infinite while nobody waits for a chunk
        self._timer = self._loop.call_later(idle_timeout_s, self._look)
        self.status = response.status
        self.headers: Mapping[str, str] = _headers(response)

    async def read(self) -> bytes:
        body = bytearray()
        while chunk := await self.chunk():
            body += chunk
            if len(body) > self._max_reply_bytes:
                raise UpstreamError("too_large", f"the reply is longer than {self._max_reply_bytes} bytes")
        return bytes(body)

    async def chunk(self) -> bytes:
        self._waits_since_s = self._loop.time()
        try:
            return await self._response.content.readany()
        except aiohttp.ClientError as error:
            raise _named(error) from None
        finally:
            self._waits_since_s = math.inf

    def close(self) -> None:
        self._timer.cancel()
        self._response.close()  # nothing is left to close once the reply was read to its end

    def _look(self) -> None:
        now_s = self._loop.time()
        left_s = min(self._waits_since_s - now_s, 0.0) + self._idle_timeout_s
        if left_s > 0.0:
            self._timer = self._loop.call_later(left_s, self._look)
            return
        told = f"the reply was silent for {self._idle_timeout_s:g} s"
        self._response.content.set_exception(UpstreamError("timeout_idle", told))


class _Connector(aiohttp.TCPConnector):
    """Tells a call whether its connection had served before. (Tracing would tell too, for a tenth of a request's cost.)"""

    async def connect(self, *request: Any, **told: Any) -> Any:
        connection = await super().connect(*request, **told)
        protocol: Any = connection.protocol
        call = _CALL.get()
        if call is not None:
            call.on_reused_connection = getattr(protocol, "has_served", False)
        protocol.has_served = True
        return connection


def _session(settings: UpstreamSettings, *, force_close: bool = False) -> aiohttp.ClientSession:
    if force_close:
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
    else:
        connector = _Connector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, connect=settings.connect_timeout_s),
        trust_env=False,
    )


def _headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in response.headers.items():
        lower = name.lower()
        if lower not in HOP_HEADERS:
            headers[lower] = f"{headers[lower]}, {value}" if lower in headers else value
    return headers


def _named(error: aiohttp.ClientError) -> UpstreamError:
    kind, message = next((kind, message) for cause, kind, message in FAILURES if isinstance(error, cause))
    return UpstreamError(kind, message)
