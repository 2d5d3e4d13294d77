"""Conversations: how they are known, and what staying with a model saves at the prices that providers really ask."""

import random
from itertools import count

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.arms import Arm
from bandit.types import Needs
from feedback.ids import new_id
from feedback.learning import Identity, Learning
from feedback.memory_store import MemoryStore
from feedback.spool import Spool
from service.access import Caller
from service.calls import Shell
from service.config import parse_settings
from service.outcomes import Outcomes
from service.pipeline import Pipeline
from service.request import parse_chat
from service.routes import quality_models, served_routes
from service.sessions import CACHE_LIVES_S, Sessions, conversation_of, with_cache

SECRET = b"s" * 32
SAID = [{"role": "user", "content": "hi"}]


def ask(messages, **fields):
    return parse_chat(orjson.dumps({"model": "auto", "messages": messages, **fields}))


def test_the_next_turn_is_known_by_what_was_asked_before_its_last_answer():
    first = conversation_of(ask(SAID), Caller(), "auto")
    turn = [*SAID, {"role": "assistant", "content": "yes?"}, {"role": "user", "content": "more"}]
    second = conversation_of(ask(turn), Caller(), "auto")
    assert first.continued is None
    assert second.continued == first.next
    third = conversation_of(ask([*turn, {"role": "assistant", "content": "ok"}, *SAID]), Caller(), "auto")
    assert third.continued == second.next
    tool = [*turn, {"role": "assistant", "tool_calls": []}, {"role": "tool", "content": "12"}]
    assert conversation_of(ask(tool), Caller(), "auto").continued == second.next


def test_tenants_and_routes_never_share_a_conversation_and_an_empty_name_names_none():
    named = ask(SAID, router={"session": "s"})
    keys = {conversation_of(named, Caller(tenant), route).next for tenant in "ab" for route in "xy"}
    assert len(keys) == 4
    empty = conversation_of(ask(SAID, prompt_cache_key=""), Caller(raw=[(b"x-session-id", b"")]), "auto")
    assert empty == conversation_of(ask(SAID), Caller(), "auto")


def test_a_cache_is_taken_for_lost_after_five_minutes():
    sessions = Sessions()
    sessions.hold(b"k", "m", 100, 0.0)
    assert sessions.held(b"k", CACHE_LIVES_S - 1).model == "m"
    assert sessions.held(b"k", CACHE_LIVES_S) is None
    assert sessions.held(b"other", 0.0) is None


@given(st.integers(0, 10_000), st.integers(1, 10_000), st.floats(0, 10), st.floats(0, 10))
def test_the_effective_price_bills_each_token_once(cached, tokens, price, discounted):
    discounted = min(price, discounted)
    arm = with_cache(Arm("m", price, 1), cached, discounted, Needs(tokens))
    known = min(cached, tokens)
    billed = (known * discounted + (tokens - known) * price) * 1e-6
    assert arm.cost_usd(tokens, 0) == pytest.approx(billed, abs=1e-12)


# USD per million tokens: in, out, cached in, as OpenAI and Google list gpt-4.1-mini and gemini-2.5-flash.
CONFIG = """
models:
  gpt-4.1-mini: {base_url: "http://a.test/v1", price_usd_per_mtok_in: 0.4, price_usd_per_mtok_out: 1.6, price_usd_per_mtok_cached_in: 0.1}
  gemini-2.5-flash: {base_url: "http://b.test/v1", price_usd_per_mtok_in: 0.3, price_usd_per_mtok_out: 2.5, price_usd_per_mtok_cached_in: 0.03}
routes:
  auto: {models: [gpt-4.1-mini, gemini-2.5-flash], usd_per_quality: 0.05, sticky_sessions: STICKY}
"""


class CachingUpstream:
    """Answers alike whoever is asked; bills the part of a prompt that this model has seen as cached."""

    def __init__(self) -> None:
        self.seen: dict[str, set[str]] = {}

    async def send(self, url, headers, body):
        asked = orjson.loads(body)
        seen = self.seen.setdefault(asked["model"], set())
        text, cached = "", 0
        for message in asked["messages"]:
            text += message["content"]
            if text in seen:
                cached = len(text) // 4
            seen.add(text)
        usage = {
            "prompt_tokens": len(text) // 4,
            "completion_tokens": 50,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": "word " * 40},
            "finish_reason": "stop",
        }
        return Reply(orjson.dumps({"id": "u", "model": "m", "choices": [choice], "usage": usage}))

    async def close(self) -> None:
        """Nothing is held open."""


class Reply:
    status = 200

    def __init__(self, body: bytes) -> None:
        self.headers, self.body = {"content-type": "application/json"}, body

    async def read(self) -> bytes:
        return self.body

    def close(self) -> None:
        """Nothing is held open."""


async def bill(tmp_path, *, sticky: bool, conversations: int = 40, turns: int = 8) -> tuple[float, float]:
    """USD for all conversations, and the share of turns that changed the model. Both models are rated alike."""
    text = CONFIG.replace("STICKY", str(sticky).lower())
    settings = parse_settings(text, source="t.yaml", folder=tmp_path, environ={})
    learning = Learning(
        MemoryStore(),
        await Spool.open(tmp_path / f"spool-{sticky}", worker="w", clock=lambda: 0.0),
        quality_models(settings),
        identity=Identity("w", [SECRET], 3600.0),
        clock=lambda: 0.0,
    )
    numbers, outcomes, dice = count(), Outcomes(), random.Random(3)
    shell = Shell(
        upstream=CachingUpstream(),
        now=lambda: 0.0,
        ticks=lambda: 0,
        new_id=lambda scope: new_id(SECRET, scope, now_s=0.0, entropy=next(numbers).to_bytes(8, "big")),
    )
    pipeline = Pipeline(settings, served_routes(settings, learning.routes), shell, outcomes)
    await learning.start()
    changes = 0
    for conversation in range(conversations):
        messages, last = [{"role": "system", "content": f"{conversation} " + "rule " * 2000}], None
        for turn in range(turns):
            messages.append(
                {"role": "user", "content": f"question {turn} " + "word " * dice.randrange(20, 60)}
            )
            answer, line = await pipeline.answer(ask(messages))
            line.close()
            reply = orjson.loads(answer.content)
            messages.append(reply["choices"][0]["message"])
            changes += last is not None and reply["model"] != last
            last = reply["model"]
            value = learning_value(dice.choice([0.7, 0.9]))
            await learning.intake.give(answer.headers["x-router-decision-id"], [value])
            await learning.tick()
    await learning.close()
    cost = sum(outcome.cost_usd for kept in outcomes._kept.values() for outcome in kept)
    return cost, changes / (conversations * (turns - 1))


def learning_value(rating: float):
    from feedback.events import RATED
    from feedback.intake import Value

    return Value("rating", RATED, "user", rating)


async def test_staying_costs_less_than_choosing_anew_each_turn_where_both_answer_alike(tmp_path):
    staying, moved = await bill(tmp_path, sticky=True)
    choosing, wandered = await bill(tmp_path, sticky=False)
    assert wandered > 0.05  # else there is nothing to save
    assert moved < wandered / 4
    assert staying < 0.95 * choosing
