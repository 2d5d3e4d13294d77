"""The store protocol on Redis or Valkey: the only module that imports redis.

Keys of a route, all in one slot (the braces are the hash tag):

    PREFIX:{tenant.route}:d:ID   string   decision record, kept for the feedback window
    PREFIX:{tenant.route}:f:ID   hash     feedback given to that decision: value by idempotency key, and by source;
                                          kept for twice the window, so that what is sent again is always recognised
    PREFIX:{tenant.route}:log    stream   entries: p = the token before, e = the event, m = its mark
    PREFIX:{tenant.route}:meta   hash     tokens: last = the log's end, snapshot, seed = where it began;
                                          digest of the snapshot's state
    PREFIX:{tenant.route}:snap   string   feedback.state bytes
    PREFIX:{tenant.route}:marks  hash     which feedback the log was seeded with, after the store had lost everything
    PREFIX:{tenant.route}:w      hash     beacons: the last sequence by worker, written after its decisions
    PREFIX:{tenant.route}:once   hash     token by the key of an event that is to be appended once; kept like f:ID

Nothing here is retried: a call takes at most `timeout_s`, then it is a StoreError and the caller's own queue tries again.
"""

import hashlib
import struct
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from feedback.ledgers import RedisLedger
from feedback.redis_scripts import APPEND, FEEDBACK, SEED, SNAPSHOT
from feedback.store import (
    RATINGS_PER_DECISION,
    Answer,
    Entry,
    Feedback,
    Marks,
    Settled,
    StoreError,
    StoreGoneError,
    StoreUnfitError,
    Tail,
    chained,
    check_scope,
    fields_of,
    mark_of,
    position,
    stream_id,
)

TIMEOUT_S: Final = 0.25
CONNECTIONS: Final = 16  # of one process; in a burst of feedback the rest wait for their turn
LOG_KEPT_MS: Final = (
    86_400_000  # entries that a snapshot covers stay this long, for slow replicas and for auditors
)


MESSAGE_CHARS: Final = 200
MARKS_AT_A_TIME: Final = 1000
START_TOKEN: Final = b"0-0:"


class RedisStore:
    def __init__(
        self, url: str, *, prefix: str = "lr", decision_ttl_ms: int, timeout_s: float = TIMEOUT_S
    ) -> None:
        """url: redis://, rediss:// or unix://. decision_ttl_ms: how long decisions wait for feedback."""
        pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=15,
            protocol=2,
        )
        self._redis: Redis = Redis.from_pool(pool)
        self._prefix, self._ttl_ms = prefix, decision_ttl_ms

    def log(self, scope: str) -> "RedisLog":
        return RedisLog(self._redis, f"{self._prefix}:{{{check_scope(scope)}}}", self._ttl_ms)

    def ledger(self, tenant: str) -> RedisLedger:
        """The tenant's budgets, all in the tenant's own slot."""
        return RedisLedger(partial(_run, self._redis), f"{self._prefix}:{{{check_scope(tenant)}}}")

    async def probe(self) -> str:
        """The server's version, after showing that it can run the scripts.

        StoreError where it cannot be asked; StoreUnfitError says what is missing and what would be right.
        """
        info = await _asked(self._redis.info())
        try:
            await self._redis.eval("return redis.sha1hex('') .. struct.pack('<H', 1)", 0)
        except ResponseError as error:
            raise StoreUnfitError(
                f"the server runs no scripts ({error}); allow EVAL, EVALSHA and Lua"
            ) from error
        except Exception as error:
            raise _unavailable(error) from error
        version = str(info.get("valkey_version") or info.get("redis_version") or "0")
        if tuple(int(part) for part in version.split(".")[:2]) < (6, 2):
            raise StoreUnfitError(
                f"the server is version {version}; Redis 6.2 or newer, or Valkey, is needed"
            )
        policy = info.get("maxmemory_policy")
        if policy not in (None, "noeviction"):
            raise StoreUnfitError(
                f"the server evicts ({policy}) and would drop what was learned: set maxmemory-policy noeviction"
            )
        return version

    async def close(self) -> None:
        await self._redis.aclose()


class RedisLog:
    def __init__(self, redis: Redis, base: str, ttl_ms: int) -> None:
        self._redis, self._ttl_ms = redis, ttl_ms
        self._decision, self._given = f"{base}:d:", f"{base}:f:"
        self._log, self._meta, self._snapshot = f"{base}:log", f"{base}:meta", f"{base}:snap"
        self._marks, self._beacons = f"{base}:marks", f"{base}:w"
        self._once = f"{base}:once"

    async def put_decisions(self, records: Mapping[str, bytes], beacon: tuple[str, int] | None = None) -> int:
        pipeline = self._redis.pipeline(transaction=False)
        if beacon is not None:
            pipeline.hget(self._beacons, beacon[0])
        for decision_id, record in records.items():
            pipeline.set(self._decision + decision_id, record, px=self._ttl_ms, nx=True)
        if beacon is not None:
            pipeline.hset(self._beacons, *beacon)
            pipeline.pexpire(self._beacons, self._ttl_ms)
        results = await _asked(pipeline.execute(raise_on_error=False))
        for refused in (result for result in results if isinstance(result, Exception)):
            raise _unavailable(refused)
        return -1 if beacon is None or results[0] is None else int(results[0])

    async def last_beacon(self, worker: str) -> int:
        sequence: bytes | None = await _asked(self._redis.hget(self._beacons, worker))
        return -1 if sequence is None else int(sequence)

    async def get_decision(self, decision_id: str) -> bytes | None:
        record: bytes | None = await _asked(self._redis.get(self._decision + decision_id))
        return record

    async def give_feedback(self, feedback: Feedback) -> Settled:
        keys = [
            self._decision + feedback.decision_id,
            self._given + feedback.decision_id,
            self._log,
            self._meta,
            self._marks,
        ]
        kind = bytes([feedback.kind])
        slot = hashlib.blake2b(kind + feedback.source.encode(), digest_size=8).digest()
        value = b"" if feedback.value is None else struct.pack("<d", feedback.value)
        given = [kind, slot, feedback.key, value, feedback.source, feedback.record or b""]
        more = [2 * self._ttl_ms, RATINGS_PER_DECISION, mark_of(feedback), struct.pack("<d", feedback.at)]
        reply = await self._script(FEEDBACK, keys, [*given, *more])
        token, prefix = (*reply[1:], b"", b"")[:2]
        return Settled(Answer(reply[0].decode()), token.decode(), prefix)

    async def append(self, entry: bytes, *, once: str = "") -> str | None:
        keys, arguments = [self._log, self._meta, self._once], [entry, once, 2 * self._ttl_ms]
        token: bytes | None = await self._script(APPEND, keys, arguments)
        return _text(token)

    async def read(self, after: str, limit: int) -> Tail:
        pipeline = self._redis.pipeline(transaction=False)  # in this order: a `last` from before the entries
        pipeline.hmget(self._meta, "last", "snapshot", "seed", "digest")
        pipeline.xrange(self._log, min=f"({stream_id(after)}", max="+", count=limit)
        (last, snapshot, seed, digest), rows = await _asked(pipeline.execute())
        entries = [_entry(key, fields) for key, fields in rows]
        return Tail(_text(last), _text(snapshot), entries, _text(seed), _text(digest))

    async def seed(self, snapshot: bytes, token: str, marks: Marks | None = None) -> bool:
        keys = [self._snapshot, self._log, self._meta, self._marks]
        marks = marks or Marks(token, {})
        fields = [part for pair in marks.fields.items() for part in pair]
        return bool(await self._script(SEED, keys, [snapshot, token, marks.since, 2 * self._ttl_ms, *fields]))

    async def marks(self, before: str, limit: int) -> Marks:
        pipeline = self._redis.pipeline(transaction=True)  # all of one history
        pipeline.hgetall(self._marks)
        pipeline.hmget(self._meta, "seed", "snapshot")
        seeded, (seed, snapshot) = await _asked(pipeline.execute())
        oldest, backwards = before, list[tuple[bytes, bytes]]()
        for _ in range(0, limit, MARKS_AT_A_TIME):
            if oldest.encode() in (seed, START_TOKEN):
                break
            upper = stream_id(oldest)
            rows = await _asked(self._redis.xrevrange(self._log, upper, "-", count=MARKS_AT_A_TIME))
            for entry in (_entry(key, fields) for key, fields in rows):
                if entry.token != oldest:
                    raise StoreError("the log's entries are not of the history that was asked for")
                oldest = entry.previous
                backwards += reversed(fields_of(entry).items())
        if oldest == before and before.encode() not in (seed, snapshot, START_TOKEN):
            raise StoreError("the log does not hold the history that was asked for")
        since = seeded.pop(b"since", None)
        whole = since is not None and oldest.encode() == seed
        return Marks(since.decode() if whole else oldest, seeded | dict(reversed(backwards)))

    async def save_snapshot(self, snapshot: bytes, token: str, *, base: str, digest: str = "") -> bool:
        milliseconds = min(position(base)[0], position(token)[0] - LOG_KEPT_MS)
        trim = f"{milliseconds}-0" if milliseconds > 0 else ""
        keys = [self._snapshot, self._log, self._meta]
        return bool(await self._script(SNAPSHOT, keys, [snapshot, token, base, trim, digest]))

    async def load_snapshot(self) -> bytes | None:
        snapshot: bytes | None = await _asked(self._redis.get(self._snapshot))
        return snapshot

    async def _script(self, source: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        return await _run(self._redis, source, keys, arguments)


async def _run(redis: Redis, source: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
    digest = hashlib.sha1(source.encode()).hexdigest()  # noqa: S324 - the name that the server gives to a script
    try:
        return await redis.evalsha(digest, len(keys), *keys, *arguments)
    except NoScriptError:  # a new server, or one that restarted
        return await _asked(redis.eval(source, len(keys), *keys, *arguments))
    except Exception as error:
        raise _unavailable(error) from error


async def _asked(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except Exception as error:  # the client leaks AttributeError and the like when a connection dies under it
        raise _unavailable(error) from error


def _unavailable(error: Exception) -> StoreError:
    kind = StoreGoneError if isinstance(error, RedisConnectionError) else StoreError
    return kind(f"{type(error).__name__}: {error}"[:MESSAGE_CHARS])


def _entry(key: bytes, fields: Mapping[bytes, bytes]) -> Entry:
    previous, data = fields.get(b"p", b"").decode(errors="replace"), fields.get(b"e", b"")
    return Entry(previous, chained(key.decode(), previous, data), data, fields.get(b"m", b""))


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="replace")
