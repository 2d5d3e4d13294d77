"""One budget, two gateways, one store: real processes, asked side by side until both refuse."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
ADMIN = {"authorization": "Bearer the-operators-key"}
LIMIT_USD, LEASE_USD, CALL_USD = 0.05, 0.005, 0.0012  # a call: 600 tokens at 2 USD per million
CONFIG = f"""
models:
  one: {{base_url: "UPSTREAM", price_usd_per_mtok_in: 0, price_usd_per_mtok_out: 2}}
routes:
  auto: {{models: [one], strategy: fixed}}
budgets:
  all: {{usd: {LIMIT_USD}, lease_usd: {LEASE_USD}, period: total}}
admin: {{port: 0, key_sha256: {hashlib.sha256(b"the-operators-key").hexdigest()}}}
server: {{port: 0}}
"""
ANSWER = {
    "id": "up",
    "object": "chat.completion",
    "created": 1,
    "model": "vendor",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 0, "completion_tokens": 600, "total_tokens": 600},
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
        self.server.answered.append(1)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def upstream():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    server.answered = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@contextmanager
def gateway(config: Path):
    command = [sys.executable, "-m", "service", "--config", str(config)]
    log = config.with_name(f"log-{os.urandom(3).hex()}")
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT) as process,
    ):
        try:
            said = [process.stdout.readline().split()[-1:] for _ in range(2)]
            assert all(said), log.read_text()
            yield process, said[1][0], said[0][0]
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                assert process.wait(30) == 0


def ask_until_refused(url: str) -> int:
    """How many were answered before three refusals in a row; a lease that is being filled up refuses for a moment."""
    answered, refused = 0, 0
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        while refused < 3:
            response = client.post(
                "/v1/chat/completions",
                json={"model": "auto", "messages": [{"role": "user", "content": "hi"}]},
            )
            if response.status_code == 200:
                answered, refused = answered + 1, 0
            elif response.json()["error"]["code"] == "insufficient_quota":
                refused += 1
            else:
                assert response.json()["error"]["code"] == "rate_limit_exceeded", response.text
                threading.Event().wait(0.02)
    return answered


def test_two_gateways_overspend_by_no_more_than_a_lease_each_and_every_call_is_billed_once(
    tmp_path, upstream
):
    config = tmp_path / "gateway.yaml"
    config.write_text(CONFIG.replace("UPSTREAM", f"http://127.0.0.1:{upstream.server_port}/v1"))
    with ExitStack() as stack:
        first = stack.enter_context(gateway(config))
        second = stack.enter_context(gateway(config))
        with ThreadPoolExecutor(4) as pool:
            urls = [url for _, url, _ in (first, second, first, second)]
            answered = sum(pool.map(ask_until_refused, urls))
        assert answered == len(upstream.answered)
        for _ in range(600):
            told = httpx.get(f"{first[2]}/admin/budgets", headers=ADMIN).json()["all"]
            if told["spent_usd"] == pytest.approx(answered * CALL_USD):
                break
            threading.Event().wait(0.02)
        assert told["spent_usd"] == pytest.approx(answered * CALL_USD)
        assert LIMIT_USD - 2 * LEASE_USD <= told["spent_usd"] <= LIMIT_USD + 2 * LEASE_USD


def test_what_a_killed_gateway_had_spent_is_billed_by_the_one_that_comes_after_it(tmp_path, upstream):
    config = tmp_path / "gateway.yaml"
    config.write_text(CONFIG.replace("UPSTREAM", f"http://127.0.0.1:{upstream.server_port}/v1"))
    with ExitStack() as stack:
        keeper = stack.enter_context(gateway(config))  # the store is its child, and lives
        process, url, admin = stack.enter_context(gateway(config))
        with httpx.Client(base_url=url, trust_env=False) as client:
            for _ in range(3):
                body = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
                assert client.post("/v1/chat/completions", json=body).status_code == 200
            for _ in range(600):  # until they are settled, or on disk at least
                told = httpx.get(f"{admin}/admin/budgets", headers=ADMIN).json()["all"]
                if told["spent_usd"]:
                    break
                threading.Event().wait(0.02)
        process.kill()
        process.wait(30)
        with gateway(config) as (_, _, admin):
            for _ in range(600):
                told = httpx.get(f"{admin}/admin/budgets", headers=ADMIN).json()["all"]
                if told["spent_usd"] == pytest.approx(3 * CALL_USD):
                    break
                threading.Event().wait(0.02)
            assert told["spent_usd"] == pytest.approx(3 * CALL_USD)
        assert httpx.get(f"{keeper[2]}/healthz").status_code == 200
