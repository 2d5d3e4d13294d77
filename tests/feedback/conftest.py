"""Real servers that tests may harm: killed, frozen, filled, paired and clustered; and a proxy that harms connections."""

import asyncio
import signal
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

START_S = 30.0


def free_port() -> int:
    """Also free ten thousand further up, where a cluster's nodes talk."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            with suppress(OSError, OverflowError):
                other.bind(("127.0.0.1", port + 10_000))
                return port


class Server:
    """One server process of ours, on loopback."""

    def __init__(self, folder: Path, binary: Path, **options: Any) -> None:
        self.folder, self.binary, self.port = folder, binary, free_port()
        self.options = {
            "bind": "127.0.0.1", "port": self.port, "dir": folder, "save": "", "appendonly": "yes",
            "appendfsync": "everysec", "maxmemory-policy": "noeviction", "logfile": folder / "log",
        } | {name.replace("_", "-"): value for name, value in options.items()}  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None
        self._clients: dict[str, Any] = {}

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> "Server":
        command = [str(self.binary)]
        for name, value in self.options.items():
            command += [f"--{name}", *(str(value).split(" ") if value != "" else [""])]
        self.folder.mkdir(exist_ok=True)
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.wait(lambda: self.client().ping())
        return self

    def wait(self, until: Callable[[], Any]) -> None:
        deadline = time.monotonic() + START_S
        while True:
            with suppress(redis.RedisError):
                if until():
                    return
            assert time.monotonic() < deadline, (self.folder / "log").read_text()[-1000:]
            time.sleep(0.01)

    def client(self, **options: Any) -> Any:
        """One for each password, closed with the server."""
        options = {"password": self.options.get("requirepass"), "socket_timeout": 5} | options
        key = repr(sorted(options.items()))
        if key not in self._clients:
            self._clients[key] = redis.Redis(host="127.0.0.1", port=self.port, **options)
        return self._clients[key]

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None
        for client in self._clients.values():
            client.close()  # it connects again if it is used again


class Cluster:
    """Masters and one copy of each, without any tool."""

    def __init__(self, folder: Path, binary: Path, *, masters: int = 3) -> None:
        options = {"cluster_enabled": "yes", "cluster_node_timeout": 1000, "cluster_config_file": "nodes.conf",
                   "repl_diskless_sync_delay": 0, "cluster_replica_validity_factor": 0}  # fmt: skip
        self.nodes = [Server(folder / f"{n}", binary, **options).start() for n in range(2 * masters)]
        self.clients = [node.client() for node in self.nodes]
        self.masters, self.ids = masters, [self.asked(n, "CLUSTER MYID") for n in range(2 * masters)]
        for n in range(masters):
            first, last = 16384 * n // masters, 16384 * (n + 1) // masters - 1
            self.clients[n].execute_command("CLUSTER ADDSLOTS", *range(first, last + 1))
            self.clients[n].execute_command("CLUSTER SET-CONFIG-EPOCH", n + 1)
        for node in self.nodes[1:]:
            self.clients[0].execute_command("CLUSTER MEET", "127.0.0.1", node.port)
        self.nodes[0].wait(lambda: all(len(c.cluster("NODES")) == 2 * masters for c in self.clients))
        for n in range(masters, 2 * masters):
            self.nodes[n].wait(lambda n=n: self.asked(n, "CLUSTER REPLICATE", self.ids[n % masters]))
        self.nodes[0].wait(lambda: all(c.cluster("INFO")["cluster_state"] == "ok" for c in self.clients))
        self.nodes[0].wait(self.copies_follow)

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def asked(self, node: int, *command: Any) -> str:
        answer = self.clients[node].execute_command(*command)
        return answer.decode() if isinstance(answer, bytes) else str(answer)

    def copies_follow(self) -> bool:
        copies = [client.info("replication") for client in self.clients[self.masters :]]
        return all(c["role"] == "slave" and c["master_link_status"] == "up" for c in copies)

    def slot_of(self, tag: str) -> int:
        return int(self.clients[0].cluster("KEYSLOT", tag))

    def owner(self, slot: int) -> int:
        for n, node in enumerate(self.nodes):
            if node.process is None:
                continue
            with suppress(redis.RedisError):
                slots = self.clients[n].execute_command("CLUSTER SLOTS")
                rows = slots if isinstance(slots, list) else [(*k, v["primary"]) for k, v in slots.items()]
                for first, last, primary, *_ in rows:
                    if first <= slot <= last:
                        return [node.port for node in self.nodes].index(int(primary[1]))
        raise AssertionError(f"nobody serves slot {slot}")

    def copy_of(self, master: int) -> int:
        for n, node in enumerate(self.nodes):
            with suppress(redis.RedisError):
                if (
                    node.process
                    and self.clients[n].info("replication").get("master_port") == self.nodes[master].port
                ):
                    return n
        raise AssertionError(f"node {master} has no copy")

    def move(self, slot: int, target: int) -> None:
        """Key by key, as any tool does it: for a while both nodes hold some of the slot's keys."""
        source = self.owner(slot)
        self.asked(target, "CLUSTER SETSLOT", slot, "IMPORTING", self.ids[source])
        self.asked(source, "CLUSTER SETSLOT", slot, "MIGRATING", self.ids[target])
        while keys := self.clients[source].execute_command("CLUSTER GETKEYSINSLOT", slot, 20):
            to = ("127.0.0.1", self.nodes[target].port, "", 0, 5000, "KEYS", *keys)
            self.clients[source].execute_command("MIGRATE", *to)
        for n in (target, source, *(n for n in range(self.masters) if n not in (source, target))):
            with suppress(redis.RedisError):
                self.asked(n, "CLUSTER SETSLOT", slot, "NODE", self.ids[target])

    def stop(self) -> None:
        for node in self.nodes:
            node.kill()


class Proxy:
    """Loopback connections that a test may stall, cut, or lead elsewhere. mode: pass, stall, cut_reply or refuse; tls: what
    those who come speak, the server behind does not.
    """

    def __init__(self, target: int, tls: ssl.SSLContext | None = None) -> None:
        self.target, self.tls, self.mode, self.port = target, tls, "pass", 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def start(self) -> "Proxy":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self.mode == "refuse":
                return
            upstream, to = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers |= {writer, to}
            pumps = [self._pump(reader, to, reply=False), self._pump(upstream, writer, reply=True)]
            await asyncio.gather(*pumps, return_exceptions=True)
            to.close()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, reply: bool) -> None:
        while data := await reader.read(65536):
            while self.mode == "stall":
                await asyncio.sleep(0.005)
            if self.mode == "cut_reply" and reply:  # it has happened, and nobody hears of it
                self._reset(writer)
                return
            writer.write(data)
            await writer.drain()
        writer.close()

    def _reset(self, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, AttributeError):  # it may be closed already
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()

    def reset_all(self) -> None:
        for writer in self._writers:
            self._reset(writer)
        self._writers.clear()

    async def stop(self) -> None:
        self._server.close()
        self.reset_all()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
def server_of(server_binary: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Makes servers; all of them end with the test."""
    made: list[Server] = []

    def make(**options: Any) -> Server:
        made.append(Server(tmp_path / f"server-{len(made)}", server_binary, **options))
        return made[-1].start()

    yield make
    for server in made:
        server.kill()


@pytest.fixture
def cluster(server_binary: Path, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path, server_binary)
    yield cluster
    cluster.stop()


@pytest.fixture
async def proxy_to() -> AsyncIterator[Callable[..., Any]]:
    made: list[Proxy] = []

    async def make(port: int, **options: Any) -> Proxy:
        made.append(await Proxy(port, **options).start())
        return made[-1]

    yield make
    for proxy in made:
        await proxy.stop()
