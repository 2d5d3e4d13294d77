"""Two workers behind one port: what one is told both learn, what they count adds up, and one that is killed comes back."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

ROOT = Path(__file__).parents[2]
ADMIN = {"authorization": "Bearer the-operators-key"}
CONFIG = f"""
models:
  one: {{base_url: "UPSTREAM", price_usd_per_mtok_in: 0, price_usd_per_mtok_out: 2}}
routes:
  auto: {{models: [one], strategy: fixed}}
admin: {{port: 0, key_sha256: {hashlib.sha256(b"the-operators-key").hexdigest()}}}
server: {{port: 0, workers: 2}}
"""


@pytest.fixture
def config(tmp_path, answering):
    path = tmp_path / "gateway.yaml"
    path.write_text(CONFIG.replace("UPSTREAM", answering.url))
    return path


def workers_of(parent: int) -> list[int]:
    """Its living children that are workers."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, ppid = path.read_text().rpartition(")")[2].split()[:2]
            if (
                int(ppid) == parent
                and state != "Z"
                and b"--listen-on" in (path.parent / "cmdline").read_bytes()
            ):
                found.append(int(path.parent.name))
        except (OSError, ValueError):
            continue
    return found


def until(condition) -> None:
    for _ in range(2000):
        if condition():
            return
        threading.Event().wait(0.02)
    pytest.fail("it never came")


def ask(url: str) -> httpx.Response:
    """Over a connection of its own, so that either worker may take it."""
    body = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
    return httpx.post(f"{url}/v1/chat/completions", json=body, trust_env=False, timeout=30)


def counted(admin: str) -> float:
    lines = httpx.get(f"{admin}/metrics", trust_env=False).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("router_requests_total{"))


def rated(url: str) -> list[int]:
    """What workers say they have learned, asked until each has answered, or one often."""
    return [
        httpx.get(f"{url}/readyz", trust_env=False, timeout=30).json()["routes"]["default.auto"]["rated"]
        for _ in range(12)
    ]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="children are found in /proc")
def test_two_workers_answer_learn_count_and_come_back(config, gateway_process):
    with gateway_process(config) as (process, url, admin):
        assert len(workers_of(process.pid)) == 2
        ids = []
        for _ in range(20):
            response = ask(url)
            assert response.status_code == 200
            ids.append(response.headers["x-router-decision-id"])
        for decision_id in ids:
            given = httpx.post(
                f"{url}/feedback", json={"decision_id": decision_id, "rating": 1}, trust_env=False, timeout=30
            )
            assert given.status_code == 202
        assert counted(admin) == 20
        until(lambda: set(rated(url)) == {20})

        victim = workers_of(process.pid)[-1]
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(workers_of(process.pid)) == 2 and victim not in workers_of(process.pid))
        for _ in range(10):
            assert ask(url).status_code == 200
        assert counted(admin) == 30, "what the killed one had counted is counted still"
        until(lambda: set(rated(url)) == {20})


@pytest.mark.skipif(sys.platform != "linux", reason="connections are spread by Linux")
def test_connections_that_are_opened_together_are_spread_over_the_workers(config, gateway_process):
    """From a socket that they share one of them takes nearly all. Fewer than 5 of 40 by chance: once in 10^6."""

    def sockets(worker: int) -> int:
        held = []
        for path in Path(f"/proc/{worker}/fd").iterdir():
            with suppress(OSError):  # it is closed by now
                held.append(str(path.readlink()))
        return sum(what.startswith("socket:") for what in held)

    with gateway_process(config) as (process, url, _), ExitStack() as stack:
        workers = workers_of(process.pid)
        before = [sockets(worker) for worker in workers]
        where = urlsplit(url)
        for _ in range(40):
            stack.enter_context(socket.create_connection((where.hostname, where.port)))
        until(lambda: sum(map(sockets, workers)) >= sum(before) + 40)
        for worker, had in zip(workers, before, strict=True):
            assert sockets(worker) - had >= 5


@pytest.mark.skipif(sys.platform != "linux", reason="there the port is bound once more")
def test_a_port_that_somebody_has_is_not_shared_with_him(config, gateway_process):
    with gateway_process(config) as (_, url, _), socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for port in (taken.getsockname()[1], urlsplit(url).port):
            done = subprocess.run(
                [sys.executable, "-m", "service", "--config", str(config), "--port", str(port)],
                capture_output=True,
                text=True,
                cwd=ROOT,
                timeout=60,
                check=False,
            )
            assert done.returncode != 0
            assert "address already in use" in done.stderr.lower()


def test_workers_leave_when_the_process_that_started_them_is_killed(config, gateway_process):
    with gateway_process(config) as (process, url, _):
        workers = workers_of(process.pid)
        process.kill()
        process.wait(30)

        def gone() -> bool:
            return not any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers)

        until(gone)
        with pytest.raises(httpx.ConnectError):
            ask(url)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="children are found in /proc")
def test_a_file_that_is_broken_when_a_worker_dies_ends_nobody_else(config, gateway_process):
    right = config.read_text()
    with gateway_process(config) as (process, url, _):
        config.write_text("routes: nothing of the kind")
        victim, survivor = workers_of(process.pid)
        os.kill(victim, signal.SIGKILL)
        until(lambda: "another takes its place" in log_of(config) and "ended with 2" in log_of(config))
        assert ask(url).status_code == 200
        assert survivor in workers_of(process.pid)
        config.write_text(right)
        until(lambda: len(workers_of(process.pid)) == 2 and ask(url).status_code == 200)


def log_of(config: Path) -> str:
    return "".join(path.read_text() for path in config.parent.glob("log-*"))


def refused(config: Path, *options: str) -> str:
    """What a gateway says that does not begin."""
    done = subprocess.run(
        [sys.executable, "-m", "service", "--config", str(config), *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    return done.stderr


def test_workers_that_can_never_serve_end_the_whole_and_say_why(config):
    config.write_text(config.read_text() + 'store: {url: "redis://127.0.0.1:1/0", secret_env: NO_SUCH}\n')
    assert "NO_SUCH" in refused(config)


def test_what_is_learned_in_one_process_only_has_no_workers(config):
    assert "server.workers must be 1" in refused(config, "--ephemeral")
