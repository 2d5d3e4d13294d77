"""`python -m simulations conversations [DIR]`: what staying with a model saves where it bills its cached prompt for less.

Conversations of TURNS recorded prompts of one task, behind a system prompt of SYSTEM_TOKENS, go through the real gateway,
once with `sticky_sessions` and once without. Every answer is rated by its recorded quality; each gateway has first learned
from all prompts that stand in no conversation, so that the luck of a cold start is not what is measured. The recorded models
bill what stands before a question, cached where they have seen it. Prices are the providers' own; a model that stands not in
PRICE_CACHED bills cached tokens like any others.
"""

import argparse
import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import httpx
import numpy as np
import yaml

from simulations.datasets import WHEEL, Dataset, load
from simulations.fleet import Plan, gateway_process, recorded_models, write_config

TURNS: Final = 8
SYSTEM_TOKENS: Final = 2000
SYSTEM: Final = (
    "Conversation {number}. " + "rule " * SYSTEM_TOKENS
)  # some 2,500 tokens at four characters each
PRICE_CACHED: Final[Mapping[str, float]] = {  # USD per million tokens read from the cache
    "claude-3-5-sonnet-20240620": 0.3,
    "claude-3-haiku-20240307": 0.03,
    "claude-3-opus-20240229": 1.5,
    "gemini-1.5-flash": 0.01875,
    "gemini-1.5-pro": 0.875,
    "gemini-2.5-pro": 0.125,
    "gpt-4o-mini-2024-07-18": 0.075,
}
USD_PER_QUALITY: Final = 0.1
AT_A_TIME: Final = 8


@dataclass(frozen=True, slots=True)
class Played:
    """Means per turn of one run. changes: share of later turns that another model answered than the one before; cached:
    share of prompt tokens that were billed as cached.
    """

    usd: float
    quality: float
    changes: float
    cached: float


@dataclass(frozen=True, slots=True)
class _Turn:
    model: str
    usd: float
    quality: float
    tokens_in: int
    cached: int


def run(options: argparse.Namespace) -> None:
    dataset = load(options.data)
    played: dict[bool, list[Played]] = {True: [], False: []}
    for seed in range(options.seeds):
        chosen = conversations_of(dataset, options.conversations, np.random.default_rng(seed))
        for sticky, runs in played.items():
            runs.append(play(dataset, chosen, sticky=sticky, data=options.data))
    print(f"{dataset.name}: {table(played, options.conversations)}")


def conversations_of(dataset: Dataset, count: int, rng: np.random.Generator) -> list[list[int]]:
    """Rows of the dataset: each conversation TURNS different prompts of one task."""
    by_task: defaultdict[str, list[int]] = defaultdict(list)
    for row in rng.permutation(len(dataset.prompts)):
        by_task[dataset.prompts[row].task_family].append(int(row))
    all_ = [rows[n : n + TURNS] for rows in by_task.values() for n in range(0, len(rows) - TURNS + 1, TURNS)]
    return [all_[k] for k in rng.permutation(len(all_))[:count]]


def play(
    dataset: Dataset, conversations: Sequence[Sequence[int]], *, sticky: bool, data: str = WHEEL
) -> Played:
    """All of them through a gateway of their own. data: where the dataset is from."""
    with TemporaryDirectory(prefix="conversations-") as name:
        folder = Path(name)
        with recorded_models(Plan(folder, data=data, time_scale=10_000.0)) as models:
            config = _configured(write_config(folder, models, data), sticky=sticky)
            with gateway_process(folder, config) as (_, url):
                turns = asyncio.run(_all(url, dataset, conversations, _prices(config)))
    later = [(one, other) for talk in turns for one, other in pairwise(talk)]
    flat = [turn for talk in turns for turn in talk]
    return Played(
        usd=float(np.mean([turn.usd for turn in flat])),
        quality=float(np.mean([turn.quality for turn in flat])),
        changes=float(np.mean([one.model != other.model for one, other in later])),
        cached=sum(turn.cached for turn in flat) / sum(turn.tokens_in for turn in flat),
    )


def _configured(config: Path, *, sticky: bool) -> Path:
    told: dict[str, Any] = yaml.safe_load(config.read_text())
    for name in PRICE_CACHED.keys() & told["models"].keys():
        told["models"][name]["price_usd_per_mtok_cached_in"] = PRICE_CACHED[name]
    told["routes"]["auto"] |= {"sticky_sessions": sticky, "usd_per_quality": USD_PER_QUALITY}
    config.write_text(yaml.safe_dump(told, sort_keys=False))
    return config


def _prices(config: Path) -> dict[str, tuple[float, float, float]]:
    """By model: USD per million tokens of prompt, cached prompt, answer."""
    models: dict[str, dict[str, float]] = yaml.safe_load(config.read_text())["models"]
    return {
        name: (
            model["price_usd_per_mtok_in"],
            model.get("price_usd_per_mtok_cached_in", model["price_usd_per_mtok_in"]),
            model["price_usd_per_mtok_out"],
        )
        for name, model in models.items()
    }


async def _all(
    url: str,
    dataset: Dataset,
    conversations: Sequence[Sequence[int]],
    prices: Mapping[str, tuple[float, float, float]],
) -> list[list[_Turn]]:
    known = set(range(len(dataset.prompts))) - {row for rows in conversations for row in rows}
    async with httpx.AsyncClient(base_url=url, timeout=60.0) as client:

        async def talks(of: Sequence[Sequence[int]], system: str) -> list[list[_Turn]]:
            waiting, held = iter(enumerate(of)), list[list[_Turn]]()

            async def talk() -> None:
                for number, rows in waiting:
                    told = system.format(number=number)
                    held.append(await _conversation(client, dataset, rows, prices, told))

            async with asyncio.TaskGroup() as group:
                for _ in range(AT_A_TIME):
                    group.create_task(talk())
            return held

        await talks([[row] for row in sorted(known)], "Answer.")
        return await talks(conversations, SYSTEM)


async def _conversation(
    client: httpx.AsyncClient,
    dataset: Dataset,
    rows: Sequence[int],
    prices: Mapping[str, tuple[float, float, float]],
    system: str,
) -> list[_Turn]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}]
    turns = []
    for row in rows:
        prompt = dataset.prompts[row]
        messages.append({"role": "user", "content": prompt.text})
        body = {"model": "auto", "messages": messages, "metadata": {"task": prompt.task_family}}
        reply = (await client.post("/v1/chat/completions", json=body)).raise_for_status().json()
        messages.append({"role": "assistant", "content": reply["choices"][0]["message"]["content"]})
        quality = float(dataset.quality[row, dataset.column(reply["model"])])
        rated = {"decision_id": reply["id"], "rating": quality}
        (await client.post("/feedback", json=rated)).raise_for_status()
        turns.append(_turn(reply, quality, prices[reply["model"]]))
    return turns


def _turn(reply: Mapping[str, Any], quality: float, price: tuple[float, float, float]) -> _Turn:
    usage = reply["usage"]
    tokens_in, tokens_out = usage["prompt_tokens"], usage["completion_tokens"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    usd = ((tokens_in - cached) * price[0] + cached * price[1] + tokens_out * price[2]) * 1e-6
    return _Turn(reply["model"], usd, quality, tokens_in, cached)


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f}"


def table(played: Mapping[bool, Sequence[Played]], conversations: int) -> str:
    """Markdown: means over seeds, with their standard deviation, and what staying saves run by run."""
    runs = len(played[True])
    lines = [
        f"{conversations} conversations of {TURNS} turns, seeds: {runs}; a point of quality is worth {USD_PER_QUALITY / 100:g} USD",
        "",
        "| sticky_sessions | USD/1,000 turns | quality | utility | turns that changed the model | prompt tokens cached |",
        "|---|---|---|---|---|---|",
    ]
    for sticky, own in played.items():
        usd, quality = [1000 * run.usd for run in own], [run.quality for run in own]
        utility = [run.quality - run.usd / USD_PER_QUALITY for run in own]
        lines.append(
            f"| {str(sticky).lower()} | {_spread(usd, 3)} | {_spread(quality, 4)} | {_spread(utility, 4)} "
            f"| {np.mean([run.changes for run in own]):.1%} | {np.mean([run.cached for run in own]):.1%} |"
        )
    pairs = list(zip(played[True], played[False], strict=True))
    saved = [1 - stays.usd / moves.usd for stays, moves in pairs]
    better = [100 * (stays.quality - moves.quality) for stays, moves in pairs]
    told = f"Staying costs {np.mean(saved):.1%} ± {np.std(saved):.1%} less, at {np.mean(better):+.2f} ± {np.std(better):.2f} points of quality."
    return "\n".join([*lines, "", told])
