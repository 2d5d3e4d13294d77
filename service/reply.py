"""What the client gets of the upstream's reply: its bytes, with the decision's id and the model's own name spliced in.

Nothing is parsed and written again, so whatever a provider adds reaches the client as it was sent. A stream goes on event
by event; the usage that the router asked for on its own account is kept from a client that did not ask.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from service.splice import replace_values, value_ends
from service.sse import EventSplitter, data_of, with_data

TOKENS_MAX: Final = 10**8
DONE: Final = b"data: [DONE]\n\n"
# What an event may tell beside a piece of the answer. Within a JSON text these quotes would be escaped.
NOTABLE: Final = re.compile(rb'"(?:usage|error|finish_reason)"\s*+:\s*+(?!null)')


@dataclass(slots=True)
class Usage:
    """What was seen of an answer.

    tokens_in, tokens_out, tokens_cached: as the upstream bills them, None where it did not say; tokens_cached are part of
    tokens_in. pieces: events of a stream with something of an answer, each about a token. failed: it told of an error
    within its stream. finished: it said that it was finished. done: it sent [DONE].
    """

    tokens_in: int | None = None
    tokens_out: int | None = None
    tokens_cached: int = 0
    pieces: int = 0
    failed: bool = False
    finished: bool = False
    done: bool = False

    def read(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        self.tokens_in = _count(usage.get("prompt_tokens"), self.tokens_in)
        self.tokens_out = _count(usage.get("completion_tokens"), self.tokens_out)
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict):
            cached = _count(details.get("cached_tokens"), 0) or 0
            self.tokens_cached = min(cached, self.tokens_in or 0)


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


class Splicer:
    """A stream as the client gets it: what is ours is put into each event, and what the event tells is noted in `usage`.

    Events go on as soon as each is complete; several that arrive together leave together. An upstream opens all its events
    alike: `data: {"id":"...","object":"...","created":1,"model":"..."`. Once that opening was found and rewritten by way of
    a parser, an event that begins with the same bytes and tells nothing but a piece of the answer gets its opening exchanged
    and is not parsed.
    """

    __slots__ = ("_after", "_before", "_ours", "_splitter", "_usage_asked", "is_done", "usage")

    def __init__(self, ours: Mapping[str, bytes], usage: Usage, *, usage_asked: bool) -> None:
        self._ours, self.usage, self._usage_asked = ours, usage, usage_asked
        self._splitter = EventSplitter()
        self._before = self._after = b""
        self.is_done = False  # what would follow is no part of the answer, and may never end

    def feed(self, chunk: bytes) -> bytes:
        """The events that this chunk completes; an empty one is the end of the stream. Raises EventTooLargeError."""
        if not chunk:
            self.is_done = True
            return self._rest()
        events = b""
        for event in self._splitter.feed(chunk):
            events += self.event(event)
            if self.usage.done:
                self.is_done = True
                break
        return events

    def _rest(self) -> bytes:
        """The last event without its blank line; and one who finished its answer and forgot [DONE] is helped out."""
        rest = self._splitter.rest()
        events = self.event(rest) + b"\n\n" if rest else b""
        usage = self.usage
        return events + DONE if usage.finished and not usage.done and not usage.failed else events

    def event(self, event: bytes) -> bytes:
        """The event as the client gets it; nothing where it was meant for the router alone."""
        if self._before and event.startswith(self._before):
            known = len(self._before)
            if b'"delta"' in event and NOTABLE.search(event, known) is None:
                self.usage.pieces += 1
                return self._after + event[known:]
        data = data_of(event)
        if data is None:
            return event
        if not data.lstrip().startswith(b"{"):
            self.usage.done = self.usage.done or data.strip() == b"[DONE]"
            return event
        try:
            chunk = orjson.loads(data)  # splicing is for what a parser accepts
        except orjson.JSONDecodeError:
            return event  # not ours to judge
        if self._is_usage_alone(chunk) and not self._usage_asked:
            return b""
        spliced = with_data(event, replace_values(data, self._ours))
        self._learn_opening(event, data, spliced)
        return spliced

    def _is_usage_alone(self, chunk: dict[str, Any]) -> bool:
        """Notes what the chunk tells. True for the one that ends a stream with its usage."""
        usage = self.usage
        usage.read(chunk.get("usage"))
        usage.failed = usage.failed or is_error(chunk)
        choices = chunk.get("choices")
        if choices:
            usage.pieces += 1
            usage.finished = usage.finished or _is_finished(choices)
            return False
        alone = isinstance(chunk.get("usage"), dict)
        usage.finished = usage.finished or alone
        return alone

    def _learn_opening(self, event: bytes, data: bytes, spliced: bytes) -> None:
        at = event.find(data)  # not there where the data stood on several lines
        ends = value_ends(data, self._ours)
        if at < 0 or len(ends) != len(self._ours):
            return
        opening = at + max(ends)
        rest = len(event) - opening
        self._before, self._after = event[:opening], spliced[: len(spliced) - rest]


def is_error(reply: dict[str, Any]) -> bool:
    """Some providers answer 200 and tell of an error in the body."""
    return bool(reply.get("error"))


def as_stream(body: bytes, *, usage_asked: bool) -> bytes:
    """A whole reply as the events of a stream, for an upstream that does not stream. Raises ValueError, as `whole`."""
    reply = orjson.loads(body)
    if not isinstance(reply, dict) or not isinstance(reply.get("choices"), list):
        raise ValueError("the reply has no choices")  # noqa: TRY004 - one error for all that is no reply
    chunk = {**reply, "object": "chat.completion.chunk", "choices": [_delta(c) for c in reply["choices"]]}
    usage = chunk.pop("usage", None)
    events = [chunk, {**chunk, "choices": [], "usage": usage}] if usage_asked and usage else [chunk]
    return b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events) + DONE


def _delta(choice: dict[str, Any]) -> dict[str, Any]:
    delta = dict(choice.get("message") or {})
    if isinstance(delta.get("tool_calls"), list):
        delta["tool_calls"] = [{"index": i, **call} for i, call in enumerate(delta["tool_calls"])]
    return {**{name: value for name, value in choice.items() if name != "message"}, "delta": delta}


def _is_finished(choices: Any) -> bool:
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and choice.get("finish_reason") for choice in choices
    )


def _count(value: Any, otherwise: int | None) -> int | None:
    """A plausible number of tokens; anything else is as good as not said."""
    plausible = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= TOKENS_MAX
    return value if plausible else otherwise
