"""The gateway over in-process HTTP makes exactly the decisions of the simulation: same data, same ids, one code path."""

import json
from dataclasses import replace
from itertools import count
from typing import ClassVar

import httpx
import numpy as np
import pytest

from bandit.arms import Arm
from feedback.cuts import DRIFT, RECOVERY
from feedback.events import RATED
from feedback.intake import Value
from feedback.learning import Identity, Learning
from feedback.memory_store import MemoryStore
from feedback.records import decode_record
from feedback.spool import Spool
from service.app import create_app
from service.calls import Shell
from service.config import parse_settings
from service.routes import quality_models
from simulations import baselines
from simulations.datasets import Dataset, RecordedPrompt
from simulations.learner import SECONDS_BETWEEN_REQUESTS, Learner
from simulations.metrics import Goal
from simulations.stream import play
from simulations.world import Facts, contexts_of, recorded_world

CONFIG = """
models:
  small: {base_url: "http://m.test/v1", price_usd_per_mtok_in: 0.1, price_usd_per_mtok_out: 0.4}
  middle: {base_url: "http://m.test/v1", price_usd_per_mtok_in: 1, price_usd_per_mtok_out: 2}
  large: {base_url: "http://m.test/v1", price_usd_per_mtok_in: 5, price_usd_per_mtok_out: 15}
routes:
  auto: {models: [small, middle, large], objective: OBJECTIVE, usd_per_quality: 0.05, quality_floor: 0.02}
"""
STREAM = "a stream"  # of decision ids: all chance is in them
WORDS = [
    "sum",
    "12",
    "def f(x):\n  return x",
    "(A) yes (B) no",
    "why?",
    "läßt",
    "$x^2$",
    "the quick brown fox",
]


def recorded(n: int = 200) -> Dataset:
    """Made-up outcomes: long prompts are hard for the small model."""
    rng = np.random.default_rng(7)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 60))) for _ in range(n)]
    prompts = tuple(
        RecordedPrompt(f"p{i}", f"{i}: {text}", "made-up", tools=False) for i, text in enumerate(texts)
    )
    hard = np.array([len(text) > 300 for text in texts])
    quality = np.clip(rng.normal([0.8, 0.85, 0.9], 0.1, (n, 3)) - np.outer(hard, [0.4, 0.1, 0.0]), 0, 1)
    tokens_out = rng.integers(20, 600, (n, 3))
    arms = (Arm("small", 0.1, 0.4), Arm("middle", 1, 2), Arm("large", 5, 15))
    tokens_in = np.full((n, 3), 50)
    cost = np.array([[a.cost_usd(50, t) for a, t in zip(arms, row, strict=True)] for row in tokens_out])
    return Dataset("made-up", prompts, arms, quality, cost, tokens_in, tokens_out, {})


class RecordedUpstream:
    """Answers with the recorded tokens of the prompt whose number it is asked."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    async def send(self, url, headers, body):
        asked = json.loads(body)
        row = int(asked["messages"][0]["content"].split(":")[0])
        column = self.dataset.column(asked["model"])
        usage = {
            "prompt_tokens": int(self.dataset.tokens_in[row, column]),
            "completion_tokens": int(self.dataset.tokens_out[row, column]),
        }
        return Reply(json.dumps({"id": "u", "model": asked["model"], "choices": [], "usage": usage}).encode())

    async def close(self) -> None:
        """Nothing is held open."""


class Reply:
    status = 200
    headers: ClassVar = {"content-type": "application/json"}

    def __init__(self, body: bytes) -> None:
        self.body = body

    async def read(self) -> bytes:
        return self.body

    def close(self) -> None:
        """Nothing is held open."""


def failing(n: int = 300, start: int = 150) -> Dataset:
    """The model that quality prefers fails silently from some prompt on."""
    dataset = recorded(n)
    quality = dataset.quality.copy()
    quality[start:, 2] = np.maximum(quality[start:, 2] - 0.7, 0)
    return replace(dataset, quality=quality)


@pytest.mark.parametrize(
    ("objective", "dataset", "resets"),
    [
        ("balanced", recorded(), []),
        ("quality", recorded(), []),
        ("cost", recorded(), []),
        ("quality", failing(), [DRIFT, RECOVERY]),
    ],
    ids=["balanced", "quality", "cost", "quality, and a model fails"],
)
async def test_same_decisions(objective, dataset, resets, tmp_path):
    steps, secret = count(), b"s" * 32
    now = {"s": 0.0}
    settings = parse_settings(
        CONFIG.replace("OBJECTIVE", objective), source="t.yaml", folder=tmp_path, environ={}
    )
    learning = Learning(
        MemoryStore(),
        await Spool.open(tmp_path / "spool", worker="w", clock=lambda: now["s"]),
        quality_models(settings),
        identity=Identity("w", [secret], 1e9),
        clock=lambda: now["s"],
    )
    shell = Shell(
        upstream=RecordedUpstream(dataset),
        now=lambda: now["s"],
        ticks=lambda: 0,
        new_id=lambda _: f"{STREAM}:{next(steps)}",
    )
    app = create_app(settings, learning, shell, background=False)
    await learning.start()
    goal = Goal(objective, 0.05, 0.02)
    features = Facts(tasks=False)  # these requests name no task
    model = quality_models(settings)["default.auto"]
    router = Learner(baselines.router(goal.objective(), model.prior, model.arms), features, stream=STREAM)
    world = recorded_world(dataset, range(len(dataset.prompts)))
    simulated = list(play(world, contexts_of(dataset.prompts, features), router))

    route = learning.routes["default.auto"]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://g.test") as client:
        for step in simulated:
            now["s"] = step.row * SECONDS_BETWEEN_REQUESTS
            message = {"role": "user", "content": dataset.prompts[step.row].text}
            response = await client.post(
                "/v1/chat/completions", json={"model": "auto", "messages": [message]}
            )
            assert response.json()["model"] == step.choice.decision.arm.name, f"step {step.row}"
            decision_id = response.headers["x-router-decision-id"]
            await learning.tick()
            record = route.recorder.record_of(decision_id)
            assert record is not None
            _, explanation = decode_record(record)
            assert explanation.probabilities.tolist() == step.choice.decision.probabilities.tolist()
            await rate(route, decision_id, step.quality, record)
            await learning.tick()
    assert len({step.choice.decision.arm.name for step in simulated}) > 1, (
        "a stream on which nothing was chosen proves nothing"
    )
    causes = [cut.cause for cut in route.replica.state.cuts]
    assert causes == resets, "a drift that was not seen, or not waited for, proves nothing"
    await learning.close()


async def rate(route, decision_id, quality, record):
    """Ids of this test carry no MAC, so the rating goes to the log without the intake's check of it."""
    from feedback.intake import _feedback

    settled = await route.log.give_feedback(
        _feedback(decision_id, Value("r", RATED, "recorded", quality), record)
    )
    assert settled.answer.value == "applied"
