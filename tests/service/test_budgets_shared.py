"""One budget, two gateways, one store: real processes, asked side by side until both refuse."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest

from feedback.ids import bare_id

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


@pytest.fixture
def config(tmp_path, answering):
    path = tmp_path / "gateway.yaml"
    path.write_text(CONFIG.replace("UPSTREAM", answering.url))
    return path


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
    config, answering, gateway_process
):
    with ExitStack() as stack:
        first = stack.enter_context(gateway_process(config))
        second = stack.enter_context(gateway_process(config))
        with ThreadPoolExecutor(4) as pool:
            urls = [url for _, url, _ in (first, second, first, second)]
            answered = sum(pool.map(ask_until_refused, urls))
        assert answered == len(answering.answered)
        for _ in range(600):
            told = httpx.get(f"{first[2]}/admin/budgets", headers=ADMIN).json()["all"]
            if told["spent_usd"] == pytest.approx(answered * CALL_USD):
                break
            threading.Event().wait(0.02)
        assert told["spent_usd"] == pytest.approx(answered * CALL_USD)
        assert LIMIT_USD - 2 * LEASE_USD <= told["spent_usd"] <= LIMIT_USD + 2 * LEASE_USD


def test_what_a_killed_gateway_had_spent_is_billed_by_the_one_that_comes_after_it(config, gateway_process):
    with ExitStack() as stack:
        keeper = stack.enter_context(gateway_process(config))  # the store is its child, and lives
        process, url, _ = stack.enter_context(gateway_process(config))
        with httpx.Client(base_url=url, trust_env=False) as client:
            body = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
            answers = [client.post("/v1/chat/completions", json=body).json() for _ in range(3)]
        called = [bare_id(answer["id"]).encode() for answer in answers]
        for _ in range(600):  # until all three are on disk, and settled or not
            journals = b"".join(
                path.read_bytes() for path in config.parent.glob(".state/spool/*/spent/*.spool")
            )
            if all(decision_id in journals for decision_id in called):
                break
            threading.Event().wait(0.02)
        assert all(decision_id in journals for decision_id in called)
        process.kill()
        process.wait(30)
        with gateway_process(config) as (_, _, admin):
            for _ in range(600):
                told = httpx.get(f"{admin}/admin/budgets", headers=ADMIN).json()["all"]
                if told["spent_usd"] == pytest.approx(3 * CALL_USD):
                    break
                threading.Event().wait(0.02)
            assert told["spent_usd"] == pytest.approx(3 * CALL_USD)
        assert httpx.get(f"{keeper[2]}/healthz").status_code == 200
