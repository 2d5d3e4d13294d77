"""The main job on real input: recorded prompts through the real gateway, with feedback, and what came of it.

Sends prompts with the official openai client (every fifth as a stream), returns each answer's recorded quality by
POST /feedback, then compares the router with each fixed model, chance, the best mix of fixed models at the router's own
cost, and the per-prompt oracle, on exactly these prompts; and what the gateway's own log tells of that, with the truth.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import httpx
import numpy as np
from numpy.typing import NDArray
from openai import AsyncOpenAI
from tqdm import tqdm

from simulations.datasets import Dataset, load, take
from simulations.fleet import Plan, running, usd_per_quality
from simulations.metrics import Goal, best_fixed, goal_for, oracle, static_mix
from simulations.page import Section, write_page
from simulations.pictures import Course, draw_courses
from simulations.tables import Row, as_html, as_text
from simulations.told import beside_the_truth, savings_of

AT_A_TIME: Final = 16
STREAM_EVERY: Final = 5
SETTLE_S: Final = 30.0


class DemoError(RuntimeError):
    """Something did not go as it should; the command ends with a code that is not 0."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One request as its client saw it. status: what POST /feedback said."""

    row: int
    model: str
    status: str


def run(*, requests: int, data: str, time_scale: float, seed: int, report: Path) -> None:
    """Play the demo, print the table, write the report. Raises DemoError."""
    everything = load(data)
    rows = np.random.default_rng(seed).permutation(len(everything.prompts))[:requests]
    dataset = take(everything, rows)
    report.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="demo-") as folder:  # a cold start, whatever an earlier demo has learned
        with running(Plan(Path(folder), data=data, time_scale=time_scale)) as fleet:
            started = time.perf_counter()
            answered = asyncio.run(_send_all(fleet.url, dataset))
            elapsed_s = time.perf_counter() - started
            state, worth = asyncio.run(_settled(fleet.url)), usd_per_quality(fleet.config)
        savings = savings_of(fleet.config)
    chosen = _chosen(dataset, answered)
    _check(answered, state)
    goal = goal_for(dataset, "balanced", worth, 0.02)
    rows_of_table = compare(dataset, goal, chosen)
    print(as_text(rows_of_table, [arm.name for arm in dataset.arms]))
    notes = _notes(dataset, answered, elapsed_s, state)
    print("\n".join(notes))
    print(f"\n{beside_the_truth(savings, rows_of_table)}\n")
    _write_report(report, dataset, goal, chosen, rows_of_table, notes)
    print(f"picture: {report / 'demo.png'}\npage:    {report / 'index.html'}")


async def _send_all(url: str, dataset: Dataset) -> list[Answered]:
    """Every prompt once, AT_A_TIME at a time, each followed by its feedback."""
    waiting = iter(range(len(dataset.prompts)))
    answered: list[Answered] = []
    with tqdm(total=len(dataset.prompts), unit="request", desc="routing") as bar:
        async with (
            AsyncOpenAI(base_url=f"{url}/v1", api_key="none-needed", max_retries=0) as client,
            httpx.AsyncClient(base_url=url) as feedback,
        ):

            async def worker() -> None:
                for row in waiting:
                    answered.append(await _ask_and_rate(client, feedback, dataset, row))
                    bar.update()

            async with asyncio.TaskGroup() as group:
                for _ in range(AT_A_TIME):
                    group.create_task(worker())
    return answered


async def _ask_and_rate(
    client: AsyncOpenAI, feedback: httpx.AsyncClient, dataset: Dataset, row: int
) -> Answered:
    text = dataset.prompts[row].text
    if row % STREAM_EVERY == 0:
        identifier, model = await _stream(client, text)
    else:
        reply = await client.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": text}]
        )
        identifier, model = reply.id, reply.model
    score = float(dataset.quality[row, dataset.column(model)])
    body = {"decision_id": identifier, "judge_score": score, "judge": "recorded"}
    answer = await feedback.post("/feedback", json=body)
    if answer.status_code != 202:
        raise DemoError(f"POST /feedback answered {answer.status_code}: {answer.text}")
    return Answered(row, model, answer.json()["status"])


async def _stream(client: AsyncOpenAI, text: str) -> tuple[str, str]:
    identifier = model = ""
    stream = await client.chat.completions.create(
        model="auto", messages=[{"role": "user", "content": text}], stream=True
    )
    async for chunk in stream:
        identifier, model = chunk.id, chunk.model
    return identifier, model


async def _settled(url: str) -> dict[str, Any]:
    """The gateway's own account once every feedback is in the log."""
    async with httpx.AsyncClient(base_url=url) as client:
        async with asyncio.timeout(SETTLE_S):
            while True:
                state: dict[str, Any] = (await client.get("/readyz")).json()
                route = state["routes"]["default.auto"]
                if state["feedback_unsettled"] == 0 and route["decisions_unwritten"] == 0:
                    return state
                await asyncio.sleep(0.1)


def _check(answered: Sequence[Answered], state: dict[str, Any]) -> None:
    rated = state["routes"]["default.auto"]["rated"]
    if rated != len(answered) or state["feedback_dead_letters"]:
        raise DemoError(f"{len(answered)} feedbacks were sent and {rated} ratings were learned: {state}")


def compare(dataset: Dataset, goal: Goal, chosen: NDArray[np.int64]) -> list[Row]:
    """The table: the router beside everything that could have been done instead on the same prompts."""
    n, K = dataset.quality.shape
    every = np.arange(n)
    cost = float(dataset.cost_usd[every, chosen].mean())
    weighed = [("router", np.eye(K)[chosen])]
    weighed += [(f"always {arm.name}", np.tile(np.eye(K)[k], (n, 1))) for k, arm in enumerate(dataset.arms)]
    weighed += [("uniform random", np.full((n, K), 1 / K))]
    weighed += [("static mix at the router's cost", np.tile(static_mix(dataset, cost), (n, 1)))]
    weighed += [("oracle, per prompt in hindsight", np.eye(K)[oracle(dataset, goal)])]
    return [_row(name, weights, dataset, goal) for name, weights in weighed]


def _row(name: str, weights: NDArray[np.float64], dataset: Dataset, goal: Goal) -> Row:
    """weights: (n, K) probability of each model for each prompt."""
    quality = float((weights * dataset.quality).sum(axis=1).mean())
    cost = float((weights * dataset.cost_usd).sum(axis=1).mean())
    utility = float((weights * goal.utility(dataset.quality, dataset.cost_usd)).sum(axis=1).mean())
    return Row(name, quality, 1000 * cost, utility, tuple(map(float, weights.mean(axis=0))))


def _chosen(dataset: Dataset, answered: Sequence[Answered]) -> NDArray[np.int64]:
    chosen = np.zeros(len(dataset.prompts), dtype=np.int64)
    for one in answered:
        chosen[one.row] = dataset.column(one.model)
    return chosen


def _notes(
    dataset: Dataset, answered: Sequence[Answered], elapsed_s: float, state: dict[str, Any]
) -> list[str]:
    statuses = ", ".join(f"{count} {status}" for status, count in Counter(a.status for a in answered).items())
    route = state["routes"]["default.auto"]
    sent = (
        f"{len(answered)} requests in {elapsed_s:.1f} s, one in {STREAM_EVERY} streamed; feedback: {statuses}"
    )
    return [
        f"{sent}; {route['events']} events in the log, digest {route['digest'][:12]}.",
        f"Data: {dataset.name}. The router began knowing nothing of these models; its learning cost is included.",
    ]


def _write_report(
    report: Path,
    dataset: Dataset,
    goal: Goal,
    chosen: NDArray[np.int64],
    table: Sequence[Row],
    notes: Sequence[str],
) -> None:
    names = tuple(arm.name for arm in dataset.arms)
    n, K = dataset.quality.shape

    def course(name: str, taken: NDArray[np.int64]) -> Course:
        rows = np.arange(n)
        utility = goal.utility(dataset.quality[rows, taken], dataset.cost_usd[rows, taken])
        return Course(name, names, taken, utility, dataset.cost_usd[rows, taken])

    others = [course(f"always {name}", np.full(n, k)) for k, name in enumerate(names)]
    random = np.asarray(np.random.default_rng(0).integers(0, K, n), dtype=np.int64)
    others.append(course("uniform random", random))
    title = f"{n:,} recorded prompts through the gateway"
    best = names[best_fixed(dataset, goal)]
    png = draw_courses(
        course("router", chosen), others, oracle=course("oracle", oracle(dataset, goal)), title=title
    )
    (report / "demo.png").write_bytes(png)
    write_page(
        report / "index.html",
        title=title,
        sections=[
            Section(
                "",
                as_html(table, names),
                png,
                alt="Three panels over the requests: the share of each model, cumulative regret, cumulative cost in USD",
                notes=[*notes, f"Best fixed model in hindsight: {best}."],
            )
        ],
    )
    figures = [row.as_dict(names) for row in table]
    (report / "demo.json").write_text(json.dumps({"goal": goal.usd_per_quality, "rows": figures}, indent=2))
