"""`python -m simulations outage`: one model of three fails three times in ten and another is frozen; what clients notice.

Real requests through the real gateway with `strategy: uniform`, so that a model's share is what it would have if nothing
ailed it: HEALTHY_S of health, OUTAGE_S of the outage, then RECOVERY_S in which all are well. Every answer is rated.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import httpx
import numpy as np
import yaml

from simulations.datasets import WHEEL, Dataset, load
from simulations.fleet import Plan, gateway_process, recorded_models, write_config

FIRST_BYTE_TIMEOUT_S: Final = 1.0
HEALTHY_S, OUTAGE_S, RECOVERY_S = 15.0, 40.0, 60.0
AT_A_TIME: Final = 8
PAUSE_S: Final = 0.05  # of each of them between two requests
SHARE_BACK: Final = 0.8  # of a model's healthy share, over WINDOW_S
WINDOW_S: Final = 5.0
FLAKY, FROZEN = "mistral-large-2512", "gemini-2.5-pro"


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as its client saw it. at_s: when it was answered, since the beginning. error: what a refused one was told."""

    at_s: float
    ms: float
    status: int
    model: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Account:
    """rated: answers that clients rated; learned: ratings in the posterior afterwards."""

    seen: Sequence[Seen]
    rated: int
    learned: int


def run(options: argparse.Namespace) -> None:
    del options
    print(told(account(load(WHEEL))))


def account(
    dataset: Dataset, healthy_s: float = HEALTHY_S, outage_s: float = OUTAGE_S, recovery_s: float = RECOVERY_S
) -> Account:
    with TemporaryDirectory(prefix="outage-") as name:
        folder = Path(name)
        with recorded_models(Plan(folder, time_scale=200.0)) as models:
            config = write_config(folder, models)
            settings: dict[str, Any] = yaml.safe_load(config.read_text())
            settings["routes"]["auto"] = {
                "models": settings["routes"]["auto"]["models"],
                "strategy": "uniform",
            }
            settings["upstream"] = {"first_byte_timeout_s": FIRST_BYTE_TIMEOUT_S}
            config.write_text(yaml.safe_dump(settings))
            with gateway_process(folder, config) as (_, url):
                illness = models.removesuffix("/v1") + "/illness"
                return asyncio.run(_through(url, illness, dataset, (healthy_s, outage_s, recovery_s)))


async def _through(url: str, illness: str, dataset: Dataset, phases: tuple[float, float, float]) -> Account:
    began, seen, rated = time.monotonic(), list[Seen](), 0
    async with httpx.AsyncClient(base_url=url, timeout=60.0) as client, asyncio.TaskGroup() as group:

        async def caller(number: int) -> None:
            nonlocal rated
            row = number
            while time.monotonic() - began < sum(phases):
                row = (row + AT_A_TIME) % len(dataset.prompts)
                answered = await _ask(client, dataset.prompts[row].text, began)
                seen.append(answered[0])
                if answered[0].status == 200:
                    column = dataset.column(answered[0].model)
                    rating = {"decision_id": answered[1], "rating": float(dataset.quality[row, column])}
                    (await client.post("/feedback", json=rating)).raise_for_status()
                    rated += 1
                await asyncio.sleep(PAUSE_S)

        for number in range(AT_A_TIME):
            group.create_task(caller(number))
        await asyncio.sleep(phases[0])
        await client.put(illness, json={FLAKY: {"fails": 0.3}, FROZEN: {"frozen": True}})
        await asyncio.sleep(phases[1])
        await client.put(illness, json={})
    return Account(seen, rated, await _learned(url))


async def _ask(client: httpx.AsyncClient, text: str, began: float) -> tuple[Seen, str]:
    started = time.monotonic()
    body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
    reply = await client.post("/v1/chat/completions", json=body)
    now = time.monotonic()
    model = reply.headers.get("x-router-model", "")
    error = "" if reply.status_code == 200 else reply.text
    seen = Seen(now - began, 1000 * (now - started), reply.status_code, model, error)
    return seen, reply.headers.get("x-router-decision-id", "")


async def _learned(url: str) -> int:
    """Ratings in the posterior, once nothing waits any more."""
    async with httpx.AsyncClient(base_url=url) as client, asyncio.timeout(30.0):
        while True:
            state = (await client.get("/readyz")).json()
            if state["feedback_unsettled"] == 0:
                return int(state["routes"]["default.auto"]["rated"])
            await asyncio.sleep(0.1)


def told(
    found: Account, healthy_s: float = HEALTHY_S, outage_s: float = OUTAGE_S, recovery_s: float = RECOVERY_S
) -> str:
    """Markdown."""
    bounds = np.cumsum([0.0, healthy_s, outage_s, recovery_s + 60.0])
    lines = [
        f"| phase | requests | errors | p50 ms | p99 ms | slowest ms | share of {FLAKY} | share of {FROZEN} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for n, phase in enumerate(("healthy", "outage", "recovered")):
        own = [seen for seen in found.seen if bounds[n] <= seen.at_s < bounds[n + 1]]
        p50, p99, most = np.percentile([seen.ms for seen in own], [50, 99, 100])
        errors = sum(seen.status != 200 for seen in own)
        lines.append(
            f"| {phase} | {len(own)} | {errors} | {p50:.0f} | {p99:.0f} | {most:.0f} "
            f"| {share(own, FLAKY):.1%} | {share(own, FROZEN):.1%} |"
        )
    ended = float(bounds[2])
    healthy = [seen for seen in found.seen if seen.at_s < bounds[1]]
    back = [
        f"{model} after {back_s(found.seen, model, ended, SHARE_BACK * share(healthy, model)):.1f} s"
        for model in (FLAKY, FROZEN)
    ]
    first_byte = f"First byte within {FIRST_BYTE_TIMEOUT_S:g} s."
    returned = f"Back at {SHARE_BACK:.0%} of the healthy share: {', '.join(back)}."
    learned = f"Answers rated: {found.rated}, ratings learned: {found.learned}."
    return "\n".join([*lines, "", f"{first_byte} {returned} {learned}"])


def share(seen: Sequence[Seen], model: str) -> float:
    return sum(one.model == model for one in seen) / max(len(seen), 1)


def back_s(seen: Sequence[Seen], model: str, ended_s: float, wanted: float) -> float:
    """Seconds after the outage's end until the end of the first WINDOW_S in which the model's share is that; infinite if
    there is none.
    """
    for start in np.arange(ended_s, max((one.at_s for one in seen), default=0.0) - WINDOW_S, 0.5):
        if share([one for one in seen if start <= one.at_s < start + WINDOW_S], model) >= wanted:
            return float(start + WINDOW_S - ended_s)
    return float("inf")
