"""Two workers behind one port: what one is told both learn, what they count adds up, and one that is killed comes back."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

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
ANSWER = {
    "id": "up",
    "object": "chat.completion",
    "created": 1,
    "model": "vendor",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 6, "total_tokens": 7},
}


class Upstream(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps(ANSWER).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def config(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    path = tmp_path / "gateway.yaml"
    path.write_text(CONFIG.replace("UPSTREAM", f"http://127.0.0.1:{server.server_port}/v1"))
    yield path
    server.shutdown()
    server.server_close()
    thread.join()


@contextmanager
def gateway(config: Path):
    log = config.with_name("log")
    environ = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    command = [sys.executable, "-m", "service", "--config", str(config)]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=environ
        ) as process,
    ):
        try:
            said = dict(reversed(process.stdout.readline().strip().split(" on ")) for _ in range(2))
            urls = {what: url for url, what in said.items()}
            assert set(urls) == {"gateway", "admin"}, log.read_text()
            yield process, urls["gateway"], urls["admin"]
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 0
    assert not workers_of(process.pid)


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
def test_two_workers_answer_learn_count_and_come_back(config):
    with gateway(config) as (process, url, admin):
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


def test_workers_leave_when_the_process_that_started_them_is_killed(config):
    with gateway(config) as (process, url, _):
        workers = workers_of(process.pid)
        process.kill()
        process.wait(30)

        def gone() -> bool:
            return not any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers)

        until(gone)
        with pytest.raises(httpx.ConnectError):
            ask(url)


def test_workers_that_can_never_serve_end_the_whole_and_say_why(config):
    config.write_text(config.read_text() + 'store: {url: "redis://127.0.0.1:1/0", secret_env: NO_SUCH}\n')
    done = subprocess.run(
        [sys.executable, "-m", "service", "--config", str(config)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "NO_SUCH" in done.stderr


def test_what_is_learned_in_one_process_only_has_no_workers(config):
    done = subprocess.run(
        [sys.executable, "-m", "service", "--config", str(config), "--ephemeral"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "server.workers must be 1" in done.stderr
