"""What the client gets of the upstream's reply: its bytes, with the decision's id and the model's own name spliced in.

Nothing is parsed and written again, so whatever a provider adds reaches the client as it was sent. A stream goes on event
by event; the usage that the router asked for on its own account is kept from a client that did not ask.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from service.splice import replace_values
from service.sse import EventSplitter, data_of, with_data

TOKENS_MAX: Final = 10**8


@dataclass(slots=True)
class Usage:
    """Tokens as the upstream bills them, None where it did not say; failed: it told of an error within its stream."""

    tokens_in: int | None = None
    tokens_out: int | None = None
    failed: bool = False

    def read(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self.tokens_in = _count(usage.get("prompt_tokens"), self.tokens_in)
            self.tokens_out = _count(usage.get("completion_tokens"), self.tokens_out)


def identity(decision_id: str, model: str) -> dict[str, bytes]:
    """The values that are ours in every reply."""
    return {"id": orjson.dumps(f"chatcmpl-{decision_id}"), "model": orjson.dumps(model)}


def whole(body: bytes, ours: Mapping[str, bytes], usage: Usage) -> bytes:
    """A reply that came in one piece. Raises ValueError if it is no answer, whatever its status says."""
    reply = orjson.loads(body)
    if not isinstance(reply, dict):
        raise ValueError("a reply is one JSON object")  # noqa: TRY004 - one error for all that is no reply
    if is_error(reply):
        raise ValueError("the reply is an error")
    usage.read(reply.get("usage"))
    return replace_values(body, ours)


async def streamed(
    chunks: AsyncIterator[bytes], ours: Mapping[str, bytes], usage: Usage, *, usage_asked: bool
) -> AsyncIterator[bytes]:
    """The events of a stream, as soon as each is complete; several that arrive together leave together."""
    splitter = EventSplitter()
    async for chunk in chunks:
        events = [_event(event, ours, usage, usage_asked=usage_asked) for event in splitter.feed(chunk)]
        if any(events):
            yield b"".join(events)
    if splitter.rest():  # the last event without its blank line
        yield _event(splitter.rest(), ours, usage, usage_asked=usage_asked)


def is_error(reply: dict[str, Any]) -> bool:
    """Some providers answer 200 and tell of an error in the body."""
    return bool(reply.get("error")) and not reply.get("choices")


def _event(event: bytes, ours: Mapping[str, bytes], usage: Usage, *, usage_asked: bool) -> bytes:
    data = data_of(event)
    if data is None or not data.lstrip().startswith(b"{"):
        return event
    try:
        chunk = orjson.loads(data)  # splicing is for what a parser accepts
    except orjson.JSONDecodeError:
        return event  # not ours to judge
    usage.read(chunk.get("usage"))
    usage.failed = usage.failed or is_error(chunk)
    only_usage = isinstance(chunk.get("usage"), dict) and not chunk.get("choices")
    if only_usage and not usage_asked:
        return b""
    return with_data(event, replace_values(data, ours))


def _count(value: Any, otherwise: int | None) -> int | None:
    """A plausible number of tokens; anything else is as good as not said."""
    plausible = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= TOKENS_MAX
    return value if plausible else otherwise
