"""A gateway whose store stands still for half a minute: its callers must not notice."""

import asyncio
import os
import signal
import time
from pathlib import Path

import httpx
import pytest
import redis

from feedback.embedded import EmbeddedServer
from simulations import fleet
from simulations.datasets import load

HEALTHY_S, FROZEN_S, CALLERS = 15.0, 30.0, 4
SCOPE = "default.auto"


async def under_load(url: str, seconds: float) -> tuple[list[float], int]:
    """Sorted latencies of routed requests, in milliseconds, and how many ratings were accepted; every call succeeds."""
    prompts, end = [prompt.text for prompt in load("wheel").prompts[:500]], time.monotonic() + seconds
    latencies: list[float] = []
    accepted = 0

    async def caller(number: int) -> None:
        nonlocal accepted
        n = number
        async with httpx.AsyncClient(base_url=url, timeout=10) as client:
            while time.monotonic() < end:
                n += CALLERS
                body = {"model": "auto", "messages": [{"role": "user", "content": prompts[n % 500]}]}
                begun = time.monotonic()
                answer = await client.post("/v1/chat/completions", json=body)
                latencies.append(1000 * (time.monotonic() - begun))
                told = {"decision_id": answer.raise_for_status().json()["id"], "rating": (n % 5) / 4}
                (await client.post("/feedback", json=told)).raise_for_status()
                accepted += 1
                await asyncio.sleep(0.02)

    await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    return sorted(latencies), accepted


@pytest.mark.soak
async def test_requests_do_not_notice_a_store_that_is_frozen_for_thirty_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "gateway"
    folder.mkdir()
    with fleet.recorded_models(fleet.Plan(tmp_path, time_scale=1000)) as models:
        fleet.write_config(folder, models)
        with fleet.gateway_process(folder, folder / "gateway.yaml") as (_, url):
            with redis.Redis.from_url(EmbeddedServer(folder / "state").url) as client:
                server = int(client.info("server")["process_id"])
            healthy, before = await under_load(url, HEALTHY_S)
            os.kill(server, signal.SIGSTOP)
            try:
                frozen, during = await under_load(url, FROZEN_S)
            finally:
                os.kill(server, signal.SIGCONT)
            seconds = await settled(url, before + during)
    p99 = [latencies[int(0.99 * len(latencies))] for latencies in (healthy, frozen)]
    with capsys.disabled():
        print(f"\nstore frozen for {FROZEN_S:g} s: {len(frozen)} routed requests, 0 errors, p99 {p99[1]:.0f} ms "
              f"({p99[0]:.0f} ms healthy); {during} feedbacks accepted, settled {seconds:.1f} s after its return")  # fmt: skip
    assert p99[1] <= 2 * p99[0]
    assert seconds <= 5.0


async def settled(url: str, ratings: int) -> float:
    begun = time.monotonic()
    async with httpx.AsyncClient(base_url=url, timeout=10) as client, asyncio.timeout(30):
        while True:
            state = (await client.get("/readyz")).json()
            held = sum(arm["ratings"] for arm in state["routes"][SCOPE]["arms"].values())
            if state["feedback_unsettled"] == 0 and round(held) >= 0.99 * ratings:
                return time.monotonic() - begun
            await asyncio.sleep(0.05)
