"""The gateway as a process: its operator's listener, its signals, and a configuration that changes under it."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
ADMIN = {"authorization": "Bearer the-operators-key"}
CONFIG = f"""
models:
  small: {{base_url: "http://127.0.0.1:9/v1", price_usd_per_mtok_in: 1, price_usd_per_mtok_out: 2}}
  large: {{base_url: "http://127.0.0.1:9/v1", price_usd_per_mtok_in: 10, price_usd_per_mtok_out: 20}}  # dear
routes:
  auto: {{models: [small], strategy: fixed}}
admin: {{port: 0, key_sha256: {hashlib.sha256(b"the-operators-key").hexdigest()}}}
server: {{port: 0}}
"""


@dataclass
class Running:
    process: subprocess.Popen
    url: str
    admin: str
    log: Path

    def prices(self) -> float:
        return httpx.get(f"{self.admin}/admin/models", headers=ADMIN).json()["small"]["price_usd_per_mtok_in"]

    def until(self, condition) -> None:
        for _ in range(3000):
            if condition():
                return
            threading.Event().wait(0.01)
        pytest.fail(f"it never came; the gateway said: {self.log.read_text()}")


@contextmanager
def gateway(folder: Path, **environ: str):
    config, log = folder / "gateway.yaml", folder / f"log-{os.urandom(3).hex()}"
    if not config.exists():
        config.write_text(CONFIG)
    command = [sys.executable, "-m", "service", "--config", str(config), "--ephemeral"]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env={**os.environ, **environ}
        ) as process,
    ):
        try:
            said = [process.stdout.readline().split()[-1:] for _ in range(2)]
            assert all(said), log.read_text()
            (admin,), (url,) = said
            yield Running(process, url, admin, log)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with gateway(tmp_path_factory.mktemp("gateway")) as up:
        yield up


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/admin/models"),
        ("GET", "/admin/status"),
        ("POST", "/admin/reload"),
        ("PUT", "/admin/models/small"),
    ],
)
def test_the_operators_pages_take_the_operators_key_in_its_header_and_nothing_else(running, method, path):
    for headers, query in (({}, ""), ({"authorization": "Bearer other"}, ""), ({}, "?key=the-operators-key")):
        response = httpx.request(method, f"{running.admin}{path}{query}", headers=headers, json={})
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    "path", ["/admin/models", "/admin/status", "//admin/models", "/admin/..;/", "/%61dmin/models"]
)
def test_the_clients_listener_knows_nothing_of_the_operators_pages(running, path):
    assert httpx.get(f"{running.url}{path}", headers=ADMIN).status_code == 404


def test_the_operator_sees_models_places_and_what_was_learned(running):
    models = httpx.get(f"{running.admin}/admin/models", headers=ADMIN).json()
    assert models["large"]["price_usd_per_mtok_out"] == 20
    assert models["small"]["deployments"][0]["has_key"] is True
    status = httpx.get(f"{running.admin}/admin/status", headers=ADMIN).json()
    assert status["places"]["small"]["state"] == "ready"
    assert status["routes"]["default.auto"]["events"] == 0
    assert "router_requests_total" in httpx.get(f"{running.admin}/metrics").text
    assert httpx.get(f"{running.admin}/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize("how", ["SIGHUP", "the operator", "the file"])
def test_a_changed_file_is_taken_over_and_a_broken_one_changes_nothing(tmp_path, how):
    with gateway(tmp_path) as up:
        config = tmp_path / "gateway.yaml"

        def change(text: str) -> httpx.Response | None:
            config.write_text(text)
            if how == "SIGHUP":
                up.process.send_signal(signal.SIGHUP)
            return httpx.post(f"{up.admin}/admin/reload", headers=ADMIN) if how == "the operator" else None

        change(CONFIG.replace("price_usd_per_mtok_in: 1,", "price_usd_per_mtok_in: 0.5,"))
        up.until(lambda: up.prices() == 0.5)
        refused = change(CONFIG.replace("price_usd_per_mtok_in: 1,", "price_usd_per_mtok_in: -1,"))
        if refused is not None:
            assert refused.status_code == 400
            assert "gateway.yaml:3: models.small.price_usd_per_mtok_in" in refused.json()["error"]["message"]
        else:
            up.until(lambda: "models.small.price_usd_per_mtok_in" in up.log.read_text())
        assert up.prices() == 0.5
        change(CONFIG + "  \n".replace(" ", "") + "store: {key_prefix: x}\n")
        up.until(lambda: up.prices() == 1)


def test_models_are_added_changed_and_withdrawn_while_the_gateway_runs(tmp_path):
    with gateway(tmp_path) as up:
        config = tmp_path / "gateway.yaml"

        def put(name: str, **fields) -> httpx.Response:
            return httpx.put(f"{up.admin}/admin/models/{name}", headers=ADMIN, json=fields)

        assert put("small", price_usd_per_mtok_in=0.25).json()["price_usd_per_mtok_in"] == 0.25
        place = {"base_url": "http://127.0.0.1:9/v1", "price_usd_per_mtok_in": 3, "price_usd_per_mtok_out": 4}
        assert put("vendor/new", **place, routes=["auto"]).status_code == 200
        told = httpx.post(
            f"{up.url}/v1/decision", json={"model": "auto", "messages": [{"role": "user", "content": "x"}]}
        )
        assert {c["model"] for c in told.json()["candidates"]} == {"small", "vendor/new"}
        assert httpx.delete(f"{up.admin}/admin/models/small", headers=ADMIN).json()["withdrawn"] is True
        told = httpx.post(
            f"{up.url}/v1/decision", json={"model": "auto", "messages": [{"role": "user", "content": "x"}]}
        )
        assert [c["model"] for c in told.json()["candidates"]] == ["vendor/new"]
        assert "# dear" in config.read_text()

        before = config.read_text()
        for name, wrong, says in (
            ("small", {"price_usd_per_mtok_in": -1}, "price_usd_per_mtok_in"),
            ("small", {"pirce": 1}, "unknown field"),
            ("new", {"price_usd_per_mtok_in": 1}, "base_url: missing"),
            ("vendor/new", {"withdrawn": True}, "every model that the route lists is withdrawn"),
            ("small", {"routes": ["nowhere"]}, "auto"),
        ):
            response = put(name, **wrong)
            assert response.status_code == 400
            assert says in response.json()["error"]["message"]
        assert httpx.delete(f"{up.admin}/admin/models/nobody", headers=ADMIN).status_code == 404
        assert config.read_text() == before
    with gateway(tmp_path) as again:
        assert again.prices() == 0.25


def test_a_new_route_waits_for_a_restart_and_says_so(tmp_path):
    with gateway(tmp_path) as up:
        config = tmp_path / "gateway.yaml"
        config.write_text(
            CONFIG.replace("routes:\n", "routes:\n  other: {models: [large], strategy: fixed}\n")
        )
        response = httpx.post(f"{up.admin}/admin/reload", headers=ADMIN)
        assert response.status_code == 400
        assert (
            "default.other: a new route or tenant begins with a restart"
            in response.json()["error"]["message"]
        )
        assert httpx.get(f"{up.url}/v1/models/other").status_code == 404


def test_gateways_that_share_a_folder_answer_for_each_other_in_metrics(tmp_path):
    (tmp_path / "metrics").mkdir()
    body = {"model": "no", "messages": [{"role": "user", "content": "x"}]}
    shared = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics")}
    with gateway(tmp_path, **shared) as one:
        with gateway(tmp_path, **shared) as two:
            for up in (one, two, two):
                httpx.post(f"{up.url}/v1/chat/completions", json=body)
            for up in (one, two):
                assert 'router_requests_total{status="404"} 3.0' in httpx.get(f"{up.admin}/metrics").text
        page = httpx.get(f"{one.admin}/metrics").text
        assert 'router_requests_total{status="404"} 3.0' in page  # counters outlive their process
        assert "router_requests_in_flight 0.0" in page
