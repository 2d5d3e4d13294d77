"""The client behind feedback.redis_store, and the only module that imports redis: a single server, Sentinel or a cluster.

Nothing is retried: every wait on a socket ends with the timeout, a cluster's call with DEADLINE of them; then it is a StoreError
and the caller's own queue tries again. At most
CONNECTIONS calls are on their way at once, the rest wait for their turn. A breaker (feedback.breaker) answers in the
place of a store that has just failed several times in a row; each route has one of its own, since a cluster may lose one
shard and not the others.
"""

import asyncio
import hashlib
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    InvalidResponse,
    NoPermissionError,
    NoScriptError,
    ReadOnlyError,
    RedisClusterException,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from feedback.breaker import Breaker
from feedback.store import StoreError, StoreGoneError, StoreUnfitError
from feedback.store_url import StoreAddress, parse_store_url

CONNECTIONS: Final = 16  # of one process; in a burst of feedback the rest wait for their turn
DEADLINE: Final = (
    3.0  # timeouts, after which a call is given up whatever it is at: a cluster's client asks node after node
)
MESSAGE_CHARS: Final = 200

Commands = Any  # redis types every answer as one of the synchronous and of the asynchronous client


class RedisClient:
    def __init__(self, url: str, *, timeout_s: float) -> None:
        self.address = parse_store_url(url)
        self.commands: Commands = _connected(self.address, timeout_s)
        self._turns = asyncio.Semaphore(CONNECTIONS)
        # not a single server's: a call that is cut off while it waits for a connection would keep its place in the pool
        self._longest_s = DEADLINE * timeout_s if self.address.kind == "cluster" else None

    def route(self) -> "Calls":
        """Calls with a breaker of their own."""
        return Calls(self.commands, self._turns, Breaker(time.monotonic, _jitter), self._longest_s)

    async def infos(self) -> list[Mapping[str, Any]]:
        """INFO of the server, or of each of a cluster's primaries. StoreUnfitError where it can never answer."""
        if missing := _missing(self.address):
            raise StoreUnfitError(f"its URL names a file that is not there: {missing}")
        cluster = self.address.kind == "cluster"
        try:
            told = await self.commands.info(**({"target_nodes": RedisCluster.PRIMARIES} if cluster else {}))
        except Exception as error:
            raise _unfit(error) or unavailable(error) from error
        several = cluster and all(isinstance(info, dict) for info in told.values())
        return list(told.values()) if several else [told]

    async def attempt(self, what: Callable[[], Awaitable[Any]]) -> Any:
        """The result; StoreUnfitError where the server forbids it or does not know it."""
        try:
            return await what()
        except Exception as error:
            raise _unfit(error) or unavailable(error) from error

    async def close(self) -> None:
        await self.commands.aclose()


class Calls:
    """Every call of one route to the store: StoreError, whatever the client raises."""

    def __init__(
        self, commands: Commands, turns: asyncio.Semaphore, breaker: Breaker, longest_s: float | None
    ) -> None:
        self.commands, self.breaker = commands, breaker
        self._turns, self._longest_s = turns, longest_s
        self._last = StoreError("the store has not been asked yet")

    async def ask(self, call: Callable[..., Awaitable[Any]], *arguments: Any, **named: Any) -> Any:
        before = _cancellations()
        try:
            return await self._ask(call, *arguments, **named)
        finally:
            if _cancellations() > before:  # Python 3.11 forgets one that comes as the client's write is done
                raise asyncio.CancelledError

    async def _ask(self, call: Callable[..., Awaitable[Any]], *arguments: Any, **named: Any) -> Any:
        async with self._turns:
            if not self.breaker.allows():
                raise type(self._last)(f"the store is left alone for a moment after: {self._last}")
            try:
                async with asyncio.timeout(self._longest_s):
                    answer = await call(*arguments, **named)
            except (
                Exception
            ) as error:  # the client leaks AttributeError and the like when a connection dies under it
                await self._failed(error)
                raise self._last from error
            self.breaker.succeeded()
            return answer

    async def run(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        return await self.ask(self._evaluate, script, keys, arguments)

    async def _evaluate(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        digest = hashlib.sha1(script.encode()).hexdigest()  # noqa: S324 - the name that the server gives to a script
        try:
            return await self.commands.evalsha(digest, len(keys), *keys, *arguments)
        except NoScriptError:  # a new server, or one that restarted
            return await self.commands.eval(script, len(keys), *keys, *arguments)

    async def _failed(self, error: Exception) -> None:
        self._last = unavailable(error)
        if isinstance(error, ReadOnlyError) and isinstance(self.commands, Redis):
            await self.commands.connection_pool.disconnect(
                inuse_connections=False
            )  # its name may lead elsewhere now
        if isinstance(error, ResponseError):
            self.breaker.succeeded()  # it answers, and at once: reads and what it knows already go on
        else:
            self.breaker.failed()


def _cancellations() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task else 0


def _jitter() -> float:
    return random.uniform(0.75, 1.25)  # noqa: S311 - only so that processes do not march in step


def unavailable(error: Exception) -> StoreError:
    if isinstance(error, StoreError):
        return error
    kind = StoreGoneError if isinstance(error, RedisConnectionError) else StoreError
    return kind(f"{type(error).__name__}: {error}"[:MESSAGE_CHARS])


def _unfit(error: Exception) -> StoreUnfitError | None:
    """What no waiting will mend, with what would; None for everything else."""
    said = str(error)[:MESSAGE_CHARS]
    if isinstance(error, NoPermissionError) or "ACL failure" in said:  # the latter from within a script
        return StoreUnfitError(f"its user lacks a permission ({said}); see the ACL line in the documentation")
    if isinstance(error, AuthenticationError) or "NOAUTH" in said:
        return StoreUnfitError("it refuses the name or password in the URL; correct them there")
    if isinstance(error, InvalidResponse):
        return StoreUnfitError("what listens there does not speak Redis' protocol; check host, port and TLS")
    if "SSL: " in said:
        return _unfit_tls(said)
    if isinstance(error, RedisClusterException) and "enabled" in said:
        return StoreUnfitError("it is no cluster: begin the URL with redis:// instead of redis+cluster://")
    return None


def _missing(address: StoreAddress) -> str:
    return ", ".join(f"{option}={path}" for option, path in address.files if not Path(path).is_file())


def _unfit_tls(said: str) -> StoreUnfitError | None:
    if "WRONG_VERSION_NUMBER" in said:
        return StoreUnfitError(
            "it speaks no TLS on that port; begin the URL with redis:// or correct the port"
        )
    if "CERTIFICATE_VERIFY_FAILED" not in said:
        return None
    why = said.partition("verify failed: ")[2].partition(" (_ssl")[0].rstrip(".")
    return StoreUnfitError(
        f"its certificate is not accepted ({why}); name its authority with ?ssl_ca_certs=/path, "
        "and the host as the certificate does"
    )


def _connected(address: StoreAddress, timeout_s: float) -> Commands:
    patience: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 15,
        "protocol": 2,
    }
    if address.kind == "single":
        pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
            address.url, max_connections=CONNECTIONS, timeout=timeout_s, **patience
        )
        return Redis.from_pool(pool)
    identity: dict[str, Any] = {"username": address.username, "password": address.password}
    tls: dict[str, Any] = {"ssl": True, **dict(address.files)} if address.tls else {}
    if address.kind == "sentinel":
        known: Any = Sentinel  # its constructor carries no types
        watchers = known(list(address.hosts), sentinel_kwargs=patience | tls, **patience, **tls)
        return watchers.master_for(address.service, db=address.db, **identity)
    nodes = [ClusterNode(host, port) for host, port in address.hosts]
    once = {
        "retry": Retry(NoBackoff(), 1)
    }  # the map of slots is read again, and the call sent where it belongs
    return RedisCluster(
        startup_nodes=nodes, require_full_coverage=False, **patience | once, **identity, **tls
    )
