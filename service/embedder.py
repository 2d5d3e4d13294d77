"""The embedder: asked where a request points before its model is chosen, and never waited for beyond its time.

Where it is late, fails, or is given a rest after failures, the words guess (bandit.embedding) and the request goes on. A
call that is late is left to end by itself, for a while: its connection, which may be what took so long, serves the next
request. POST {base_url}/embeddings, as OpenAI has it.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import orjson

from bandit.features import excerpt
from bandit.types import Vector
from service.breaker import Breaker
from service.calls import Shell
from service.settings import EmbedderSettings, Settings
from service.upstream import Upstream, UpstreamError

How = Literal["embedded", "timeout", "failed", "resting", "no_text"]
LATE_S: Final = 10.0  # a call that nobody waits for any more is ended then
LATE_MAX: Final = 8  # such calls at once; further ones are ended at once
TOLD_EVERY_S: Final = 30.0
log = logging.getLogger(__name__)


class _RefusedError(Exception):
    """An answer that is no embedding of ours; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Pointed:
    """directions (DIRECTIONS,), None where the words have to tell. how: what became of asking."""

    directions: Vector | None
    how: How


class Embedder:
    """now_s: monotonic seconds. told: hears what became of each request."""

    def __init__(
        self,
        settings: EmbedderSettings,
        upstream: Upstream,
        *,
        now_s: Callable[[], float],
        told: Callable[[How], object] = lambda _: None,
    ) -> None:
        self._settings, self._upstream, self._now_s, self._told = settings, upstream, now_s, told
        self._url = f"{settings.base_url}/embeddings"
        self._headers = {"content-type": "application/json"}
        if settings.api_key:
            self._headers["authorization"] = f"Bearer {settings.api_key}"
        self._breaker = Breaker()
        self._late: set[asyncio.Task[Vector]] = set()
        self._tell_from_s = float("-inf")

    @property
    def is_resting(self) -> bool:
        return self._breaker.is_open

    async def pointed(self, text: str) -> Pointed:
        """Where a message points, within the time allowed. Whatever goes wrong, the words are left."""
        pointed = await self._asked(text)
        self._told(pointed.how)
        return pointed

    async def _asked(self, text: str) -> Pointed:
        text = excerpt(text)
        if not text.strip():
            return Pointed(None, "no_text")
        if not self._breaker.allows(self._now_s()):
            return Pointed(None, "resting")
        probe = self._breaker.begin(self._now_s())
        call = asyncio.create_task(self._call(text))
        call.add_done_callback(self._ended)
        try:
            await asyncio.wait({call}, timeout=self._settings.timeout_s)
        except BaseException:  # the client left
            self._breaker.abandoned(probe=probe)
            raise
        finally:
            self._let_go(call)
        if not call.done():
            return self._failed(probe, "timeout", f"no answer within {self._settings.timeout_s * 1000:g} ms")
        if (error := call.exception()) is not None:
            known = isinstance(error, UpstreamError | _RefusedError)
            return self._failed(probe, "failed", str(error) if known else repr(error))
        self._breaker.succeeded(probe=probe)
        return Pointed(call.result(), "embedded")

    def _let_go(self, call: asyncio.Task[Vector]) -> None:
        """Nobody waits for it any more."""
        if call.done():
            return
        if len(self._late) < LATE_MAX:
            self._late.add(call)
        else:
            call.cancel()

    def _ended(self, call: asyncio.Task[Vector]) -> None:
        self._late.discard(call)
        if not call.cancelled():
            call.exception()  # whoever waited has it; of a late one it was told that it is late

    async def _call(self, text: str) -> Vector:
        async with asyncio.timeout(LATE_S):
            return await self._directions(text)

    async def _directions(self, text: str) -> Vector:
        asked = {
            "model": self._settings.projection.model,
            "input": text.encode("utf-8", "replace").decode(),
            "encoding_format": "float",
        }
        reply = await self._upstream.send(self._url, self._headers, orjson.dumps(asked))
        try:
            body = await reply.read()
        finally:
            reply.close()
        if reply.status != 200:
            raise _RefusedError(f"it answered with status {reply.status}")
        try:
            return self._settings.projection.directions(orjson.loads(body)["data"][0]["embedding"])
        except (orjson.JSONDecodeError, LookupError, TypeError):
            raise _RefusedError("its answer has no data[0].embedding") from None
        except ValueError as error:
            raise _RefusedError(str(error)) from None

    def _failed(self, probe: bool, how: How, why: str) -> Pointed:
        now_s = self._now_s()
        self._breaker.failed(now_s, probe=probe, timeout=how == "timeout")
        if now_s >= self._tell_from_s:
            log.warning("the embedder %s: %s; words guess where requests point", self._url, why)
            self._tell_from_s = now_s + TOLD_EVERY_S
        return Pointed(None, how)


def embedder_of(
    settings: Settings, shell: Shell, told: Callable[[How], object] = lambda _: None
) -> Embedder | None:
    """told: hears what became of each request to it."""
    if settings.embedder is None:
        return None
    return Embedder(settings.embedder, shell.upstream, now_s=lambda: shell.ticks() * 1e-9, told=told)
