"""The store protocol on Redis or Valkey, through feedback.redis_client.

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
"""

import hashlib
import logging
import struct
from collections.abc import Mapping
from typing import Any, Final

from feedback.ledgers import RedisLedger
from feedback.redis_client import Calls, RedisClient
from feedback.redis_scripts import APPEND, DECISIONS, FEEDBACK, MARKS, REPLACE, SEED, SNAPSHOT
from feedback.store import (
    RATINGS_PER_DECISION,
    Answer,
    Entry,
    Feedback,
    Marks,
    Settled,
    StoreError,
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
LOG_KEPT_MS: Final = (
    86_400_000  # entries that a snapshot covers stay this long, for slow replicas and for auditors
)
MARKS_AT_A_TIME: Final = 1000
START_TOKEN: Final = b"0-0:"
VERSION_MIN: Final = (6, 2)

log = logging.getLogger(__name__)


class RedisStore:
    def __init__(
        self, url: str, *, prefix: str = "lr", decision_ttl_ms: int, timeout_s: float = TIMEOUT_S
    ) -> None:
        """url: see feedback.store_url. decision_ttl_ms: how long decisions wait for feedback."""
        self._client = RedisClient(url, timeout_s=timeout_s)
        self._prefix, self._ttl_ms = prefix, decision_ttl_ms

    def log(self, scope: str) -> "RedisLog":
        return RedisLog(self._client.route(), f"{self._prefix}:{{{check_scope(scope)}}}", self._ttl_ms)

    def ledger(self, tenant: str) -> RedisLedger:
        """The tenant's budgets, all in the tenant's own slot."""
        return RedisLedger(self._client.route().run, f"{self._prefix}:{{{check_scope(tenant)}}}")

    async def probe(self) -> str:
        """The server's version, after showing that it can do and may do all that is asked of it.

        StoreError where it cannot be asked; StoreUnfitError says what is wrong and what would be right.
        """
        infos = await self._client.infos()
        for info in infos:
            self._check(info)
        await self._try_out()
        return _version(infos[0])

    def _check(self, info: Mapping[str, Any]) -> None:
        version, policy = _version(info), info.get("maxmemory_policy")
        if tuple(int(part) for part in version.split(".")[:2]) < VERSION_MIN:
            raise StoreUnfitError(
                f"the server is version {version}; Redis 6.2 or newer, or Valkey, is needed"
            )
        if policy not in (None, "noeviction"):
            raise StoreUnfitError(
                f"the server evicts ({policy}) and would drop what was learned: set maxmemory-policy noeviction"
            )
        if info.get("cluster_enabled") and self._client.address.kind != "cluster":
            raise StoreUnfitError("it is a node of a cluster: begin the URL with redis+cluster://")
        if info.get("role") not in (None, "master"):
            raise StoreError(
                "it is a read-only copy now; name its primary, or its Sentinels (redis+sentinel://)"
            )
        if info.get("aof_enabled") == 0:
            log.warning("the store keeps no append-only file and may forget on a restart: set appendonly yes")

    async def _try_out(self) -> None:
        """Every kind of command once, on keys of its own: a permission that is missing shows now."""
        base = f"{self._prefix}:{{probe}}"
        try:
            await self._client.attempt(
                lambda: self._client.commands.eval(_TRIED, 4, *(f"{base}:{n}" for n in "abcd"))
            )
        except StoreUnfitError:
            raise
        except StoreError as error:
            if not str(error).startswith("ResponseError"):
                raise
            raise StoreUnfitError(
                f"the server runs no scripts ({error}); allow EVAL, EVALSHA and Lua"
            ) from error
        pipeline = self._client.commands.pipeline(transaction=False)
        pipeline.hmget(f"{base}:b", "a", "b")
        pipeline.xrange(f"{base}:c", count=1)
        await self._client.attempt(pipeline.execute)
        await self._client.attempt(lambda: self._client.commands.xrevrange(f"{base}:c", count=1))

    async def close(self) -> None:
        await self._client.close()


_TRIED: Final = """
redis.sha1hex(struct.pack('<H', 1))
redis.call('SET', KEYS[1], 1, 'NX', 'PX', 1000)
redis.call('GET', KEYS[1])
redis.call('HSET', KEYS[2], 'a', 1)
redis.call('HINCRBY', KEYS[2], 'a', 1)
redis.call('HGET', KEYS[2], 'a')
redis.call('HDEL', KEYS[2], 'a')
local id = redis.call('XADD', KEYS[3], '*', 'a', 1)
redis.call('XRANGE', KEYS[3], id, id)
redis.call('XTRIM', KEYS[3], 'MINID', '~', id)
redis.call('XDEL', KEYS[3], id)
redis.call('ZADD', KEYS[4], 1, 'a')
redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', 1)
redis.call('ZREM', KEYS[4], 'a')
redis.call('EXISTS', KEYS[1])
redis.call('TIME')
for i = 1, 4 do redis.call('PEXPIRE', KEYS[i], 1000) end
return redis.call('DEL', unpack(KEYS))
"""


def _version(info: Mapping[str, Any]) -> str:
    return str(info.get("valkey_version") or info.get("redis_version") or "0")


class RedisLog:
    def __init__(self, calls: Calls, base: str, ttl_ms: int) -> None:
        self._calls, self._redis, self._ttl_ms = calls, calls.commands, ttl_ms
        self._decision, self._given = f"{base}:d:", f"{base}:f:"
        self._log, self._meta, self._snapshot = f"{base}:log", f"{base}:meta", f"{base}:snap"
        self._marks, self._beacons = f"{base}:marks", f"{base}:w"
        self._once = f"{base}:once"

    async def put_decisions(self, records: Mapping[str, bytes], beacon: tuple[str, int] | None = None) -> int:
        if not records and beacon is None:
            return -1
        keys = [self._beacons, *(self._decision + decision_id for decision_id in records)]
        worker, sequence = beacon or ("", 0)
        before = await self._calls.run(DECISIONS, keys, [worker, sequence, self._ttl_ms, *records.values()])
        return -1 if before is None else int(before)

    async def last_beacon(self, worker: str) -> int:
        sequence: bytes | None = await self._calls.ask(self._redis.hget, self._beacons, worker)
        return -1 if sequence is None else int(sequence)

    async def get_decision(self, decision_id: str) -> bytes | None:
        record: bytes | None = await self._calls.ask(self._redis.get, self._decision + decision_id)
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
        reply = await self._calls.run(FEEDBACK, keys, [*given, *more])
        token, prefix = (*reply[1:], b"", b"")[:2]
        return Settled(Answer(reply[0].decode()), token.decode(), prefix)

    async def append(self, entry: bytes, *, once: str = "") -> str | None:
        keys, arguments = [self._log, self._meta, self._once], [entry, once, 2 * self._ttl_ms]
        token: bytes | None = await self._calls.run(APPEND, keys, arguments)
        return _text(token)

    async def read(self, after: str, limit: int) -> Tail:
        pipeline = self._redis.pipeline(transaction=False)  # in this order: a `last` from before the entries
        pipeline.hmget(self._meta, "last", "snapshot", "seed", "digest")
        pipeline.xrange(self._log, min=f"({stream_id(after)}", max="+", count=limit)
        (last, snapshot, seed, digest), rows = await self._calls.ask(pipeline.execute)
        entries = [_entry(key, fields) for key, fields in rows]
        return Tail(_text(last), _text(snapshot), entries, _text(seed), _text(digest))

    async def seed(self, snapshot: bytes, token: str, marks: Marks | None = None) -> bool:
        keys = [self._snapshot, self._log, self._meta, self._marks]
        marks = marks or Marks(token, {})
        fields = [part for pair in marks.fields.items() for part in pair]
        return bool(
            await self._calls.run(SEED, keys, [snapshot, token, marks.since, 2 * self._ttl_ms, *fields])
        )

    async def replace(self, snapshot: bytes, token: str, marks: Marks | None, *, last: str | None) -> bool:
        """Begin the log again at `token`, whatever it holds: for an operator. False unless it still ends at `last`."""
        keys = [self._snapshot, self._log, self._meta, self._marks]
        marks = marks or Marks(token, {})
        fields = [part for pair in marks.fields.items() for part in pair]
        told = [snapshot, token, last or "", marks.since, 2 * self._ttl_ms, *fields]
        return bool(await self._calls.run(REPLACE, keys, told))

    async def marks(self, before: str, limit: int) -> Marks:
        flat, (seed, snapshot) = await self._calls.run(MARKS, [self._marks, self._meta], [])
        seeded = dict(zip(flat[::2], flat[1::2], strict=True))
        oldest, backwards = before, list[tuple[bytes, bytes]]()
        for _ in range(0, limit, MARKS_AT_A_TIME):
            if oldest.encode() in (seed, START_TOKEN):
                break
            upper = stream_id(oldest)
            rows = await self._calls.ask(self._redis.xrevrange, self._log, upper, "-", count=MARKS_AT_A_TIME)
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
        return bool(await self._calls.run(SNAPSHOT, keys, [snapshot, token, base, trim, digest]))

    async def load_snapshot(self) -> bytes | None:
        snapshot: bytes | None = await self._calls.ask(self._redis.get, self._snapshot)
        return snapshot


def _entry(key: bytes, fields: Mapping[bytes, bytes]) -> Entry:
    previous, data = fields.get(b"p", b"").decode(errors="replace"), fields.get(b"e", b"")
    mark = fields.get(b"m", b"")
    return Entry(previous, chained(key.decode(), previous, data + mark), data, mark)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="replace")
