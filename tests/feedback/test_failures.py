"""Gateways' learning over real servers that are killed, frozen, emptied, full, read-only, failing over and moving.

Every test ends with the same account: all replicas hold one digest, and each feedback counts exactly once.
"""

import asyncio
import gc
import ssl
import time
import uuid
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import trustme

from bandit.features import DIMENSION, TAG
from bandit.quality import SharedBaseline
from bandit.statistics import CallStatistics
from feedback.events import RATED
from feedback.ids import new_id
from feedback.intake import Value
from feedback.learning import Identity, Learning
from feedback.records import DecisionPrefix, encode_record
from feedback.redis_store import TIMEOUT_S, RedisStore
from feedback.spool import Spool
from feedback.store import Answer

SECRET = b"a secret of thirty-two bytes, at least"
WINDOW_S = 3600.0
SETTLED_WITHIN_S = 30.0
ServerOf = Callable[..., Any]
ProxyTo = Callable[..., Any]


class Gateway:
    """One process's learning as the service runs it: its own connection, its own spool, its loop running."""

    def __init__(self, url: str, folder: Path, scopes: list[str], timeout_s: float) -> None:
        self.url, self.folder, self.scopes, self.timeout_s = url, folder, scopes, timeout_s
        self.answers: Counter[str] = Counter()
        self.latencies_s: list[float] = []

    async def start(self) -> "Gateway":
        name = uuid.uuid4().hex
        store = RedisStore(self.url, decision_ttl_ms=int(WINDOW_S * 1000), timeout_s=self.timeout_s)
        self.spool = await Spool.open(self.folder, worker=name, clock=time.time)
        self.learning = Learning(
            store,
            self.spool,
            dict.fromkeys(self.scopes, SharedBaseline()),
            identity=Identity(name, [SECRET], WINDOW_S),
            clock=time.time,
            patience_s=1.0,
        )
        await self.learning.start()
        self.loop = asyncio.create_task(self.learning.run())
        return self

    def decide(self, scope: str) -> str:
        decision_id = new_id(SECRET, scope, now_s=time.time(), entropy=uuid.uuid4().bytes[:8])
        x = np.eye(1, DIMENSION)[0]
        prefix = DecisionPrefix("small", x, time.time(), 0.5, TAG, b"policy!!")
        recorder = self.learning.routes[scope].recorder
        recorder.decided(decision_id, encode_record(prefix))
        recorder.called("small", CallStatistics(calls=1))
        return decision_id

    async def rate(self, decision_id: str, value: float) -> str:
        begun = time.monotonic()
        (answer,) = await self.learning.intake.give(decision_id, [Value("rating", RATED, "user", value)])
        self.latencies_s.append(time.monotonic() - begun)
        told = "queued" if answer is None else answer.value
        self.answers[told] += 1
        return told

    def ratings(self, scope: str) -> int:
        return self.learning.routes[scope].replica.state.rated

    async def stop(self) -> None:
        self.loop.cancel()
        await asyncio.gather(self.loop, return_exceptions=True)
        await self.learning.close()


class Fleet:
    def __init__(self, gateways: list[Gateway], scopes: list[str]) -> None:
        self.gateways, self.scopes, self.given = gateways, scopes, Counter[str]()

    async def load(self, *, seconds: float, pause_s: float = 0.01, workers: int = 6) -> None:
        """Callers who ask one gateway and rate there or, by turns, at the next, as fast as the pause lets them."""
        end = time.monotonic() + seconds

        async def caller(number: int) -> None:
            n = number
            while time.monotonic() < end:
                n += workers
                await self.one(n)
                await asyncio.sleep(pause_s)

        await asyncio.gather(*(caller(number) for number in range(workers)))

    async def one(self, n: int) -> str:
        scope, gateways = self.scopes[n % len(self.scopes)], self.gateways
        decision = gateways[n % len(gateways)].decide(scope)
        self.given[scope] += 1
        return await gateways[(n + n // 3 % 2) % len(gateways)].rate(decision, (n % 5) / 4)

    async def settled(self, within_s: float = SETTLED_WITHIN_S) -> float:
        """Seconds until nothing waits anywhere and all hold the same."""
        begun = time.monotonic()
        async with asyncio.timeout(within_s):
            while not self.at_rest():
                await asyncio.sleep(0.02)
        return time.monotonic() - begun

    def at_rest(self) -> bool:
        routes = [route for g in self.gateways for route in g.learning.routes.values()]
        waiting = sum(g.learning.intake.unsettled for g in self.gateways)
        unwritten = sum(route.recorder.waiting for route in routes)
        digests = {(route.scope, route.replica.state.digest()) for route in routes}
        counted = all(g.ratings(s) >= self.given[s] for g in self.gateways for s in self.scopes)
        return waiting == 0 and unwritten == 0 and len(digests) == len(self.scopes) and counted

    def seeds(self) -> int:
        routes = [route for g in self.gateways for route in g.learning.routes.values()]
        return sum(route.replica.counters.seeds for route in routes)

    def hold_account(self) -> None:
        for scope in self.scopes:
            for gateway in self.gateways:
                assert gateway.ratings(scope) == self.given[scope]
        assert sum(gateway.spool.dead_letters() for gateway in self.gateways) == 0
        counters = [route.replica.counters for g in self.gateways for route in g.learning.routes.values()]
        assert sum(c.digests_differing for c in counters) == 0


@asynccontextmanager
async def fleet(
    url: str, folder: Path, *, count: int = 3, scopes: int = 1, timeout_s: float = TIMEOUT_S
) -> AsyncIterator[Fleet]:
    names = [f"tenant-{n}.{uuid.uuid4().hex}" for n in range(scopes)]
    gateways = [await Gateway(url, folder / f"gateway-{n}", names, timeout_s).start() for n in range(count)]
    running = Fleet(gateways, names)
    async with asyncio.timeout(SETTLED_WITHIN_S):
        while not (running.at_rest() and running.seeds()):
            await asyncio.sleep(0.02)
    try:
        yield running
    finally:
        for gateway in gateways:
            await gateway.stop()


@pytest.fixture(autouse=True)
def _swept():
    """Connections to servers that were killed, frozen or cut off are let go of here, not in the middle of another test.

    Some of them end with their event loop and warn that nobody closed them: which ones is not found yet.
    """
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


async def test_a_server_killed_under_load_and_started_again(server_of: ServerOf, tmp_path: Path) -> None:
    server = server_of()
    async with fleet(server.url, tmp_path) as running:
        load = asyncio.create_task(running.load(seconds=2.0))
        await asyncio.sleep(0.6)
        server.kill()
        await asyncio.sleep(0.4)
        await asyncio.to_thread(server.start)
        await load
        await running.settled()
        running.hold_account()
        assert sum(g.answers["queued"] for g in running.gateways) > 0


async def test_a_frozen_server_holds_up_nobody_for_longer_than_its_timeouts(
    server_of: ServerOf, tmp_path: Path
) -> None:
    """Feedback is answered `queued`; after a few timeouts the breaker answers in the store's place, at once."""
    server = server_of()
    async with fleet(server.url, tmp_path) as running:
        await running.load(seconds=0.5)
        server.pause()
        for gateway in running.gateways:
            gateway.latencies_s.clear()
        await running.load(seconds=2.0)
        server.resume()
        frozen = sorted(latency for g in running.gateways for latency in g.latencies_s)
        await running.settled(within_s=10.0)
        running.hold_account()
        assert sum(g.answers["queued"] for g in running.gateways) > 50
        assert frozen[len(frozen) // 2] < TIMEOUT_S, "the breaker answers, not the timeout"


async def test_a_flushed_server_is_refilled_under_load(server_of: ServerOf, tmp_path: Path) -> None:
    server = server_of()
    async with fleet(server.url, tmp_path) as running:
        load = asyncio.create_task(running.load(seconds=2.0))
        await asyncio.sleep(1.0)
        server.client().flushall()
        await load
        await running.settled()
        running.hold_account()
        assert running.seeds() == 2


@pytest.mark.parametrize("harm", ["full", "read-only", "no copies left", "scripts forgotten"])
async def test_a_server_that_refuses_for_a_while(server_of: ServerOf, tmp_path: Path, harm: str) -> None:
    server = server_of()
    client = server.client()

    def harmed() -> None:
        match harm:
            case "full":
                client.config_set("maxmemory", 1)
            case "read-only":
                client.execute_command("REPLICAOF", "127.0.0.1", "1")
            case "no copies left":
                client.config_set("min-replicas-to-write", 1)
            case _:
                client.script_flush()

    def mended() -> None:
        client.config_set("maxmemory", 0)
        client.execute_command("REPLICAOF", "NO", "ONE")
        client.config_set("min-replicas-to-write", 0)

    async with fleet(server.url, tmp_path) as running:
        load = asyncio.create_task(running.load(seconds=1.5))
        await asyncio.sleep(0.5)
        harmed()
        await asyncio.sleep(0.5)
        mended()
        await load
        await running.settled()
        running.hold_account()
        queued = sum(g.answers["queued"] for g in running.gateways)
        assert queued > 0 or harm == "scripts forgotten"


@pytest.mark.soak
async def test_a_server_that_is_still_loading_is_waited_for(server_of: ServerOf, tmp_path: Path) -> None:
    server = server_of()
    slowly = {"key-load-delay": 100, "loading-process-events-interval-bytes": 1024}
    if not server.client().config_get("loading-process-events-interval-bytes"):  # Redis 6.2
        del slowly["loading-process-events-interval-bytes"]
    filler = server.client().pipeline(transaction=False)
    for n in range(20_000):
        filler.set(f"filler:{n}", b"x" * 100)
    filler.execute()
    async with fleet(server.url, tmp_path) as running:
        await running.load(seconds=0.3)
        await running.settled()
        server.kill()
        server.options |= slowly
        load = asyncio.create_task(running.load(seconds=1.0))
        await asyncio.to_thread(server.start)
        await load
        await running.settled()
        running.hold_account()


async def test_answers_that_never_arrive(server_of: ServerOf, proxy_to: ProxyTo, tmp_path: Path) -> None:
    """Every call happens and looks failed; what is sent again must not count again."""
    server = server_of()
    proxy = await proxy_to(server.port)
    async with fleet(proxy.url, tmp_path) as running:
        load = asyncio.create_task(running.load(seconds=2.0))
        for mode in ("cut_reply", "pass", "cut_reply", "pass"):
            await asyncio.sleep(0.3)
            proxy.mode = mode
        await load
        await running.settled()
        running.hold_account()


async def test_a_failover_with_stalled_replication_loses_writes_of_the_store_and_none_of_ours(
    server_of: ServerOf, proxy_to: ProxyTo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    primary = server_of()
    link, door = await proxy_to(primary.port), await proxy_to(primary.port)
    copy = server_of(replicaof=f"127.0.0.1 {link.port}")
    await asyncio.to_thread(
        copy.wait, lambda: copy.client().info("replication")["master_link_status"] == "up"
    )
    async with fleet(door.url, tmp_path) as running:
        await running.load(seconds=0.7)
        await running.settled()
        link.mode = "stall"
        acknowledged = _acknowledged(running)
        load = asyncio.create_task(running.load(seconds=6.0, pause_s=0.004))
        while _acknowledged(running) - acknowledged < 500 and not load.done():
            await asyncio.sleep(0.02)
        primary.kill()
        acknowledged = _acknowledged(running)
        link.mode = "refuse"
        link.reset_all()
        copy.client().execute_command("REPLICAOF", "NO", "ONE")
        held = sum(len(copy.client().xrange(f"lr:{{{scope}}}:log")) for scope in running.scopes)
        calls = sum(_calls(copy, scope) for scope in running.scopes)
        missing = acknowledged - (held - calls)
        door.target = copy.port
        door.reset_all()
        await load
        seconds = await running.settled()
        running.hold_account()
    with capsys.disabled():
        print(
            f"\nstalled replication, primary killed: of {acknowledged} feedbacks answered `applied` the store alone lost "
            f"{missing}; we lost 0 of {sum(running.given.values())}, settled {seconds:.1f} s later"
        )
    assert missing >= 100


def _acknowledged(running: Fleet) -> int:
    words = [answer.value for answer in (Answer.APPLIED, Answer.REVISED, Answer.DUPLICATE)]
    return sum(g.answers[word] for g in running.gateways for word in words)


def _calls(server: Any, scope: str) -> int:
    entries = server.client().xrange(f"lr:{{{scope}}}:log")
    return sum(fields[b"e"][:1] != bytes([RATED]) for _, fields in entries)


@pytest.mark.soak
async def test_a_cluster_moves_slots_fails_over_and_freezes_under_load(cluster: Any, tmp_path: Path) -> None:
    async with fleet(cluster.url, tmp_path, scopes=4) as running:
        load = asyncio.create_task(running.load(seconds=9.0, pause_s=0.02))
        await asyncio.sleep(1.0)
        slot = cluster.slot_of(running.scopes[0])
        target = (cluster.owner(slot) + 1) % cluster.masters
        await asyncio.to_thread(cluster.move, slot, target)
        await asyncio.sleep(0.5)
        master = cluster.owner(cluster.slot_of(running.scopes[1]))
        taker = await asyncio.to_thread(cluster.copy_of, master)
        cluster.nodes[master].kill()
        await asyncio.to_thread(cluster.asked, taker, "CLUSTER FAILOVER TAKEOVER")
        await asyncio.sleep(1.0)
        await asyncio.to_thread(cluster.nodes[master].start)
        frozen = cluster.owner(cluster.slot_of(running.scopes[2]))
        cluster.nodes[frozen].pause()
        await asyncio.sleep(0.7)  # shorter than the cluster's own patience
        cluster.nodes[frozen].resume()
        await load
        await running.settled()
        running.hold_account()
        assert min(running.given.values()) > 20  # each call to a shard that is away takes up to its deadline


@pytest.mark.soak
async def test_all_of_a_route_is_in_one_slot_of_a_cluster_and_a_tenants_budgets_too(
    cluster: Any, tmp_path: Path
) -> None:
    async with fleet(cluster.url, tmp_path, count=2, scopes=3) as running:
        await running.load(seconds=0.5)
        await running.settled()
        running.hold_account()
        for scope in running.scopes:
            owner = cluster.clients[cluster.owner(cluster.slot_of(scope))]
            assert owner.exists(*(f"lr:{{{scope}}}:{name}" for name in ("log", "meta", "snap"))) == 3


# ---- the store is chosen by its URL, and refused in one sentence


@pytest.mark.soak
async def test_sentinels_lead_to_the_new_primary(server_of: ServerOf, tmp_path: Path) -> None:
    primary = server_of()
    copy = server_of(replicaof=f"127.0.0.1 {primary.port}")
    await asyncio.to_thread(
        copy.wait, lambda: copy.client().info("replication")["master_link_status"] == "up"
    )
    watcher = _sentinel(tmp_path, primary)
    try:
        url = f"redis+sentinel://127.0.0.1:{watcher.port}/ours"
        async with fleet(url, tmp_path) as running:
            await running.load(seconds=0.5)
            killed = next(server for server in (primary, copy) if server.port == _named(watcher))
            killed.kill()
            load = asyncio.create_task(running.load(seconds=2.0))
            await asyncio.to_thread(watcher.wait, lambda: _named(watcher) != killed.port)
            await load
            await running.settled()
            running.hold_account()
    finally:
        watcher.kill()


def _named(watcher: Any) -> int:
    return int(watcher.client().execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", "ours")[1])


def _sentinel(folder: Path, primary: Any) -> Any:
    """The server's own binary, watching."""
    watcher = type(primary)(folder / "sentinel", primary.binary)
    watcher.folder.mkdir()
    config, script = watcher.folder / "sentinel.conf", watcher.folder / "start"
    config.write_text(
        f"port {watcher.port}\nbind 127.0.0.1\ndir {watcher.folder}\nlogfile {watcher.folder}/log\n"
        f"sentinel monitor ours 127.0.0.1 {primary.port} 1\nsentinel down-after-milliseconds ours 1500\n"
        "sentinel failover-timeout ours 5000\n"
    )
    script.write_text(f'#!/bin/sh\nexec "{primary.binary}" "{config}" --sentinel\n')
    script.chmod(0o700)
    watcher.options, watcher.binary = {}, script
    return watcher.start()


async def _refusal(url: str) -> str:
    store = RedisStore(url, decision_ttl_ms=1000, timeout_s=5.0)
    try:
        await store.probe()
    except Exception as error:  # noqa: BLE001 - which one it is, is asked below
        return f"{type(error).__name__}: {error}"
    finally:
        await store.close()
    return "fit"


async def test_the_probe_refuses_in_one_sentence_what_can_never_do(server_of: ServerOf) -> None:
    server = server_of(requirepass="a-password")
    client = server.client()
    with_password = f"redis://:a-password@127.0.0.1:{server.port}"
    assert await _refusal(with_password) == "fit"
    assert "StoreUnfitError: it refuses the name or password" in await _refusal(server.url)
    assert "StoreUnfitError: it refuses the name or password" in await _refusal(
        server.url.replace("//", "//:x@")
    )
    client.acl_setuser(
        "narrow", enabled=True, passwords=["+p"], keys=["lr:*"], commands=["+get", "+set", "+info"]
    )
    narrow = f"redis://narrow:p@127.0.0.1:{server.port}"
    assert "StoreUnfitError: its user lacks a permission" in await _refusal(narrow)
    client.config_set("maxmemory-policy", "allkeys-lru")
    assert "set maxmemory-policy noeviction" in await _refusal(with_password)
    assert "StoreUnfitError: it is no cluster" in await _refusal(
        with_password.replace("redis:", "redis+cluster:")
    )


async def test_the_documented_permissions_are_enough(server_of: ServerOf, tmp_path: Path) -> None:
    """What the README tells an operator to grant, and nothing more."""
    server = server_of()
    server.client().execute_command("ACL", "SETUSER", "router", "on", ">p", *ACL.split())
    url = f"redis://router:p@127.0.0.1:{server.port}"
    assert await _refusal(url) == "fit"
    async with fleet(url, tmp_path, count=2) as running:
        await running.load(seconds=0.5)
        await running.settled()
        running.hold_account()
    with redis.Redis.from_url(url) as client, pytest.raises(redis.ResponseError):
        client.flushall()


ACL = "~lr:* +@read +@write +@scripting +@connection -@dangerous +info +time"


@pytest.mark.soak
async def test_a_node_of_a_cluster_is_refused_as_a_single_server(cluster: Any) -> None:
    assert "begin the URL with redis+cluster://" in await _refusal(cluster.nodes[0].url)
    assert await _refusal(cluster.url) == "fit"


async def test_a_store_behind_tls_wants_its_authority_named_and_each_mistake_is_told(
    server_of: ServerOf, proxy_to: ProxyTo, tmp_path: Path
) -> None:
    ours, theirs = trustme.CA(), trustme.CA()
    ours.cert_pem.write_to_path(str(tmp_path / "ours.pem"))
    theirs.cert_pem.write_to_path(str(tmp_path / "theirs.pem"))
    ours.issue_cert("a-client").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "client.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.verify_mode = ssl.CERT_REQUIRED
    ours.configure_trust(tls)
    ours.issue_cert("127.0.0.1").configure_cert(tls)
    server = server_of()
    end = await proxy_to(server.port, tls=tls)
    client = f"&ssl_certfile={tmp_path}/client.pem&ssl_keyfile={tmp_path}/client.pem"
    url = f"rediss://127.0.0.1:{end.port}?ssl_ca_certs={tmp_path}/ours.pem{client}"
    async with fleet(url, tmp_path, count=2) as running:
        await running.load(seconds=0.5)
        await running.settled()
        running.hold_account()
    assert await _refusal(url) == "fit"
    assert "StoreUnfitError: its certificate is not accepted (" in await _refusal(
        url.replace("ours", "theirs")
    )
    assert "(Hostname mismatch" in await _refusal(url.replace("127.0.0.1", "localhost"))
    assert "its URL names a file that is not there: ssl_ca_certs=" in await _refusal(
        url.replace("ours.pem", "nowhere.pem")
    )
    assert "Error: " in await _refusal(url.replace(client, "")), "it wants to know who comes"


async def test_what_speaks_another_protocol_is_said_so() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert "does not speak Redis' protocol" in await _refusal(f"redis://127.0.0.1:{port}")
        assert "it speaks no TLS on that port" in await _refusal(f"rediss://127.0.0.1:{port}")


# ---- what takes minutes


@pytest.mark.soak
async def test_a_store_frozen_for_thirty_seconds_under_load(
    server_of: ServerOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = server_of()
    async with fleet(server.url, tmp_path) as running:
        await running.load(seconds=10.0, pause_s=0.02)
        healthy = sorted(x for g in running.gateways for x in g.latencies_s)
        for gateway in running.gateways:
            gateway.latencies_s.clear()
        server.pause()
        await running.load(seconds=30.0, pause_s=0.02)
        frozen = sorted(x for g in running.gateways for x in g.latencies_s)
        server.resume()
        seconds = await running.settled()
        running.hold_account()
    with capsys.disabled():
        p99 = [1000 * x[int(0.99 * len(x))] for x in (healthy, frozen)]
        print(f"\nfrozen for 30 s: {len(frozen)} feedbacks accepted, settled {seconds:.1f} s after its return; p99 of "
              f"POST /feedback {p99[0]:.0f} ms healthy, {p99[1]:.0f} ms frozen")  # fmt: skip
