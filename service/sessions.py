"""Sessions: a conversation stays with its model unless the gain beats the price of a lost prompt cache.

A provider bills prompt tokens that it has seen moments ago at a lower price. Whoever answers the next turn elsewhere pays
for the whole conversation anew. So the model that holds the cache is weighed at what the turn would really cost there:

    effective price in = (cached x price_cached + fresh x price_in) / (cached + fresh)        tokens, USD

and the conversation leaves it only where another model's expected utility is higher even so. The prices acted on stand in
the decision's record, so that it can be made again.

A conversation is known by the request's `router.session`, a header, `prompt_cache_key`, or else by its own beginning:
what was asked up to the last answer in it is exactly what this gateway was asked one turn ago.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from bandit.arms import Arm
from bandit.types import Needs
from service.access import Caller
from service.request import ChatRequest

KEPT: Final = 50_000
CACHE_LIVES_S: Final = 300.0  # what providers promise; later the cache is taken for lost
HEADERS: Final = ("x-session-id", "x-conversation-id", "x-claude-code-session-id", "x-bf-session-affinity")


@dataclass(frozen=True, slots=True)
class Held:
    """The model that holds a conversation's cache. tokens: how much of it; until_s: monotonic seconds."""

    model: str
    tokens: int
    until_s: float


class Sessions:
    """now_s: monotonic seconds."""

    def __init__(self) -> None:
        self._held: OrderedDict[bytes, Held] = OrderedDict()

    def held(self, key: bytes, now_s: float) -> Held | None:
        held = self._held.get(key)
        return held if held is not None and now_s < held.until_s else None

    def hold(self, key: bytes, model: str, tokens: int, now_s: float) -> None:
        self._held[key] = Held(model, tokens, now_s + CACHE_LIVES_S)
        self._held.move_to_end(key)
        if len(self._held) > KEPT:
            self._held.popitem(last=False)


@dataclass(frozen=True, slots=True)
class Conversation:
    """continued: what the turn before was kept under, None where this is the first; next: what this one will be."""

    continued: bytes | None
    next: bytes


def conversation_of(ask: ChatRequest, caller: Caller, route: str) -> Conversation:
    """Tenants and routes never share a conversation, and an empty name names none."""
    named = ask.extension.session or _from_headers(caller) or ask.cache_key
    if named:
        key = _hash(caller.tenant, route, named)
        return Conversation(key, key)
    before = _before_the_last_answer(ask.messages)
    return Conversation(
        _hash(caller.tenant, route, before) if before else None, _hash(caller.tenant, route, ask.messages)
    )


def with_cache(arm: Arm, cached_tokens: int, price_cached: float, needs: Needs) -> Arm:
    """The arm at what this turn would cost there. price_cached: USD per million tokens."""
    share = min(cached_tokens, needs.tokens_in) / needs.tokens_in
    price = share * price_cached + (1.0 - share) * arm.price_usd_per_mtok_in
    return replace(arm, price_usd_per_mtok_in=price)


def _before_the_last_answer(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    answers = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
    return messages[: answers[-1]] if answers else ()


def _from_headers(caller: Caller) -> str | None:
    return next((value for name in HEADERS if (value := caller.header(name))), None)


def _hash(tenant: str, route: str, what: Any) -> bytes:
    return hashlib.blake2b(orjson.dumps([tenant, route, what]), digest_size=16).digest()
