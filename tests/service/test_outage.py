"""The outage that the design is held to: of three models one fails three times in ten and one is frozen."""

import asyncio
import random
from collections import Counter
from dataclasses import replace

import httpx
import pytest

from service.retry_budget import RetryBudget

CONFIG = """
models:
  sound: {base_url: "URL", price_usd_per_mtok_in: 1, price_usd_per_mtok_out: 2}
  flaky: {base_url: "URL", price_usd_per_mtok_in: 1, price_usd_per_mtok_out: 2}
  frozen: {base_url: "URL", price_usd_per_mtok_in: 1, price_usd_per_mtok_out: 2}
routes:
  auto: {models: [sound, flaky, frozen], strategy: uniform}
upstream: {connect_timeout_s: 2, first_byte_timeout_s: 1.5, idle_timeout_s: 5}
"""


async def ask_all(url: str, requests: int, at_once: int) -> list[httpx.Response]:
    gate = asyncio.Semaphore(at_once)
    body = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
    async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False, verify=False) as client:

        async def one() -> httpx.Response:
            async with gate:
                return await client.post("/v1/chat/completions", json=body)

        return await asyncio.gather(*(one() for _ in range(requests)))


@pytest.mark.parametrize("seed", range(2))
def test_clients_see_no_error_and_what_is_known_of_quality_is_untouched(start_lab, scripts, seed):
    lab, dice = start_lab(CONFIG), random.Random(seed)

    async def flaky(peer):
        await (scripts.fails(500) if dice.random() < 0.3 else scripts.says(200, scripts.completion()))(peer)

    lab.says(sound=scripts.says(200, scripts.completion()), flaky=flaky, frozen=scripts.silent())
    responses = asyncio.run(ask_all(lab.url, 400, 8))
    assert {response.status_code for response in responses} == {200}
    attempts = [int(response.headers["x-router-attempts"]) for response in responses]
    assert max(attempts) <= 3
    budget = 0.1 * 400 + 20 + 60  # a share, the reserve, and a trickle for longer than this can take
    assert sum(attempts) - len(attempts) <= budget
    asked = lab.upstreams.models_asked()
    assert asked[200:].count("frozen") <= 10  # its breaker lets a probe through now and then
    for response in responses:
        rating = {"decision_id": response.json()["id"], "rating": 1}
        assert lab.client.post("/feedback", json=rating).status_code == 202
    lab.tick()
    state = lab.gateway.learning.routes["default.auto"].replica.state
    assert state.calls["frozen"].failures > 0
    assert state.calls["flaky"].failures > 0
    answered = Counter(response.json()["model"] for response in responses)
    rated = {arm: sums.n for arm, sums in state.ratings_per_arm().items()}
    # those answers and nothing else; ratings are counted back to a grid of 1/256 of their half-life
    assert rated == pytest.approx(answered, rel=4e-3)
    assert {round(sums.xr[0] / sums.n, 9) for sums in state.ratings_per_arm().values()} == {1.0}


def test_a_model_that_has_recovered_is_called_again_once_a_probe_has_found_it_well(
    start_lab, scripts, monkeypatch
):
    """The gateway's clock stands still but for what it is moved on by hand."""
    lab, seconds = start_lab(CONFIG), {"now": 1000.0}
    calls = lab.gateway.pipeline.calls
    by_hand = replace(calls._shell, ticks=lambda: int(seconds["now"] * 1e9))
    monkeypatch.setattr(calls, "_shell", by_hand)
    lab.gateway.pipeline.budget = RetryBudget(0.1, now_s=1000.0)
    lab.says(
        **{name: scripts.says(200, scripts.completion()) for name in ("sound", "flaky")},
        frozen=scripts.silent(),
    )
    asyncio.run(ask_all(lab.url, 60, 4))
    asked = len(lab.upstreams.asked)
    asyncio.run(ask_all(lab.url, 60, 4))
    assert "frozen" not in lab.upstreams.models_asked()[asked:]
    lab.says(frozen=scripts.says(200, scripts.completion()))
    seconds["now"] += 20.0  # the longest pause there is
    asked = len(lab.upstreams.asked)
    asyncio.run(ask_all(lab.url, 120, 4))
    assert lab.upstreams.models_asked()[asked:].count("frozen") > 20


def test_when_everything_is_down_every_request_is_answered_and_upstreams_are_spared(start_lab, scripts):
    lab = start_lab(CONFIG)
    lab.says(**{name: scripts.fails(500) for name in ("sound", "flaky", "frozen")})
    responses = asyncio.run(ask_all(lab.url, 300, 8))
    assert {response.status_code for response in responses} == {500}
    assert len(lab.upstreams.asked) <= 300 * 1.1 + 20 + 60
    lab.says(**{name: scripts.says(200, scripts.completion()) for name in ("sound", "flaky", "frozen")})
    assert {r.status_code for r in asyncio.run(ask_all(lab.url, 50, 8))} == {200}
