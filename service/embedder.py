"""The embedder: asked where a request points before its model is chosen, and never waited for beyond its time.

What it says is better than what the words alone tell, and no more than that: where it is late, fails, or is given a rest
after failures, the words guess (bandit.embedding) and the request goes on. POST {base_url}/embeddings, as OpenAI has it.
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
from service.settings import EmbedderSettings
from service.upstream import Upstream, UpstreamError

How = Literal["embedded", "timeout", "failed", "resting", "no_text"]
TOLD_EVERY: Final = 100  # of failures in a row every so many is logged, and the first
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
        self._failures = 0  # in a row

    @property
    def is_resting(self) -> bool:
        return self._breaker.is_open

    async def pointed(self, text: str) -> Pointed:
        """Where a message points, within the time allowed. Raises nothing."""
        pointed = await self._asked(text)
        self._told(pointed.how)
        return pointed

    async def _asked(self, text: str) -> Pointed:
        if not text.strip():
            return Pointed(None, "no_text")
        if not self._breaker.allows(self._now_s()):
            return Pointed(None, "resting")
        probe = self._breaker.begin(self._now_s())
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                directions = await self._directions(text)
        except TimeoutError:
            return self._failed(probe, "timeout", f"no answer within {self._settings.timeout_s * 1000:g} ms")
        except (UpstreamError, _RefusedError) as error:
            return self._failed(probe, "failed", str(error))
        except BaseException:  # the client left
            self._breaker.abandoned(probe=probe)
            raise
        self._breaker.succeeded(probe=probe)
        self._failures = 0
        return Pointed(directions, "embedded")

    async def _directions(self, text: str) -> Vector:
        asked = {
            "model": self._settings.projection.model,
            "input": excerpt(text).encode("utf-8", "replace").decode(),
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
        self._breaker.failed(self._now_s(), probe=probe, timeout=how == "timeout")
        if self._failures % TOLD_EVERY == 0:
            log.warning("the embedder %s: %s; words guess where requests point", self._url, why)
        self._failures += 1
        return Pointed(None, how)
