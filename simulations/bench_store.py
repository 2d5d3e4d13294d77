"""What learning costs the store: server CPU per feedback of our log, beside the same update done as a matrix in the store;
how soon another replica knows; how long a restart takes. On an embedded server of its own.

Both joins are the same: read the decision, know a duplicate, keep the event. Then ours is done, and the replicas fold; the
matrix script reads the arm's packed statistics, adds w x x' and w r x, and writes them back.
"""

import asyncio
import random
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from threadpoolctl import threadpool_limits

from bandit.features import DIMENSION, TAG
from bandit.quality import SharedBaseline
from feedback.embedded import EmbeddedServer
from feedback.events import RATED
from feedback.learning import TICK_S
from feedback.records import DecisionPrefix, encode_record
from feedback.redis_client import RedisClient
from feedback.redis_store import RedisLog, RedisStore
from feedback.replica import Replica, catch_up
from feedback.state import START
from feedback.store import Feedback
from simulations.tables import plain

CASES: Final = (
    (DIMENSION, 4),
    (DIMENSION, 16),
    (DIMENSION, 64),
    (32, 8),
    (64, 8),
    (128, 8),
)  # features, models
FEEDBACKS: Final = 3000
AT_ONCE: Final = 16
EVENTS: Final = 100_000
PATIENT_S: Final = 30.0
ARMS: Final = 8
MATRIX: Final = """
-- KEYS  decision, ratings, log, statistics of the arm      ARGV  key, value f64, number of features
local record = redis.call('GET', KEYS[1])
if not record then return 0 end
if redis.call('HSETNX', KEYS[2], ARGV[1], ARGV[2]) == 0 then return 0 end
local d = tonumber(ARGV[3])
local x, r = {}, struct.unpack('<d', ARGV[2])
for i = 1, d do x[i] = struct.unpack('<f', record, 4 * i - 3) end
local held, new, k = redis.call('GET', KEYS[4]), {}, 1
for i = 1, d do
  for j = i, d do
    new[k] = struct.pack('<d', struct.unpack('<d', held, 8 * k - 7) + x[i] * x[j])
    k = k + 1
  end
end
for i = 1, d do
  new[k] = struct.pack('<d', struct.unpack('<d', held, 8 * k - 7) + r * x[i])
  k = k + 1
end
redis.call('SET', KEYS[4], table.concat(new))
redis.call('XADD', KEYS[3], '*', 'e', record .. ARGV[2])
return 1
"""


def run() -> None:
    """Print three tables as text."""
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):  # as the gateway runs
        server = EmbeddedServer.start(Path(folder))
        try:
            asyncio.run(_run(server.url))
        finally:
            server.stop()


async def _run(url: str) -> None:
    client = RedisClient(url, timeout_s=PATIENT_S)
    store = RedisStore(url, decision_ttl_ms=3_600_000, timeout_s=PATIENT_S)
    try:
        print(
            f"\nServer CPU per feedback, {DIMENSION} features, {FEEDBACKS} feedbacks {AT_ONCE} at a time:\n"
        )
        head = ["features x models", "our log, µs", "matrix in the store, µs", "ratio"]
        print(plain([head, *[await _costs(client, store, d, models) for d, models in CASES]]))
        waits = sorted(await _staleness(store))
        print(f"\nFeedback of one replica is in the posterior of another, polling every {TICK_S:g} s +- 25 %: median "
              f"{1000 * waits[len(waits) // 2]:.0f} ms, p99 {1000 * waits[int(0.99 * len(waits))]:.0f} ms")  # fmt: skip
        whole, cpu, begun = await _restarts(store)
        print(f"\nA replica that begins with {EVENTS} events is ready in {whole:.1f} s ({cpu:.1f} s of CPU); with a "
              f"snapshot of them in {begun:.2f} s")  # fmt: skip
    finally:
        await store.close()
        await client.close()


async def _costs(client: RedisClient, store: RedisStore, d: int, models: int) -> list[str]:
    log = store.log(f"bench.ours-{d}-{models}")
    await Replica(log, SharedBaseline()).poll()
    await log.put_decisions({f"d{n}": _record(n, models, d) for n in range(FEEDBACKS)})
    ours = await _server_us(client, partial(_give, log))
    theirs = await _server_us(client, await _matrix(client, d, models))
    return [f"{d} x {models}", f"{ours:.0f}", f"{theirs:.0f}", f"{theirs / ours:.1f}"]


async def _give(log: RedisLog, n: int) -> object:
    return await log.give_feedback(_rating(n))


async def _matrix(client: RedisClient, d: int, models: int) -> Callable[[int], Awaitable[object]]:
    calls, base = client.route(), f"bench:{{matrix-{d}-{models}}}"
    for model in range(models):
        await calls.ask(calls.commands.set, f"{base}:{model}", bytes(8 * (d * (d + 1) // 2 + d)))
    for n in range(FEEDBACKS):
        await calls.ask(calls.commands.set, f"{base}:d{n}", _features(n, d).astype("<f4").tobytes())

    async def give(n: int) -> object:
        keys = [f"{base}:d{n}", f"{base}:f{n}", f"{base}:log", f"{base}:{n % models}"]
        return await calls.run(MATRIX, keys, [b"key", np.float64(_quality(n)).tobytes(), d])

    return give


async def _server_us(client: RedisClient, give: Callable[[int], Awaitable[object]]) -> float:
    """Server CPU of one call, in microseconds."""
    await give(0)  # so that the script is known
    before = await _cpu_s(client)
    for first in range(1, FEEDBACKS, AT_ONCE):
        await asyncio.gather(*(give(n) for n in range(first, min(first + AT_ONCE, FEEDBACKS))))
    return 1e6 * (await _cpu_s(client) - before) / (FEEDBACKS - 1)


async def _cpu_s(client: RedisClient) -> float:
    (info,) = await client.infos()
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


async def _staleness(store: RedisStore, ratings: int = 200) -> list[float]:
    """Seconds from the answer to a rating until a polling replica holds it."""
    log, rng = store.log("bench.staleness"), random.Random(0)  # noqa: S311 - when to rate
    reader = Replica(log, SharedBaseline())
    await reader.poll()
    given: list[float] = []
    held: list[float] = []

    async def poll() -> None:
        while len(held) < ratings:
            await asyncio.sleep(TICK_S * rng.uniform(0.75, 1.25))
            await reader.poll()
            held.extend([time.monotonic()] * (reader.state.rated - len(held)))

    polling = asyncio.create_task(poll())
    for n in range(ratings):
        await asyncio.sleep(rng.uniform(0.0, 0.1))
        await log.give_feedback(_rating(n, _record(n, ARMS)))
        given.append(time.monotonic())
    await polling
    return [seen - told for told, seen in zip(given, held, strict=True)]


async def _restarts(store: RedisStore) -> tuple[float, float, float]:
    log = store.log("bench.restart")
    await Replica(log, SharedBaseline()).poll()
    for first in range(0, EVENTS, 200):
        ratings = (_rating(n, _record(n, ARMS)) for n in range(first, first + 200))
        await asyncio.gather(*(log.give_feedback(rating) for rating in ratings))
    cpu = time.process_time()
    whole, replica = await _ready(log)
    cpu = time.process_time() - cpu
    state = replica.state
    await log.save_snapshot(state.to_bytes(), state.cursor, base=START, digest=state.digest())
    begun, _ = await _ready(log)
    return whole, cpu, begun


async def _ready(log: RedisLog) -> tuple[float, Replica]:
    begun = time.monotonic()
    replica = Replica(log, SharedBaseline(), clock=lambda: 0.0)  # no snapshot falls due
    await catch_up(replica)
    return time.monotonic() - begun, replica


def _features(n: int, d: int = DIMENSION) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    rng = np.random.default_rng(n % 64)
    return np.concatenate([[1.0], rng.normal(size=d - 1)]).astype(np.float16).astype(np.float64)


def _record(n: int, models: int, d: int = DIMENSION) -> bytes:
    prefix = DecisionPrefix(f"model-{n % models}", _features(n, d), 1.79e9 + n, 0.5, TAG, b"policy!!")
    return encode_record(prefix)


def _rating(n: int, record: bytes | None = None) -> Feedback:
    return Feedback(f"d{n}", RATED, "user", _quality(n), n.to_bytes(8, "little"), record)


def _quality(n: int) -> float:
    return n % 9 / 8
