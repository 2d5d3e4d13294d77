"""A chat request as the router reads it: the few fields that routing needs. Everything else passes through untouched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from bandit.prompt import Prompt, prompt_of
from service.errors import BadRequestError
from service.extension import NONE, Extension, parse_extension
from service.forbidden import forbidden_field
from service.splice import duplicate_keys

_LIMITS: Final = ("max_completion_tokens", "max_tokens")


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """body: the client's bytes. model: what it asked for. usage_asked: it wants the usage chunk of a stream itself.

    messages: as parsed. logprobs_asked: it wants the probabilities of the answer's tokens itself. extended: the body has
    a `router` object, which no upstream may see. cache_key: the client's own name for the conversation's prompt cache.
    """

    body: bytes
    model: str
    prompt: Prompt
    stream: bool
    stream_options: dict[str, Any] | None
    messages: Sequence[Mapping[str, Any]] = ()
    logprobs_asked: bool = False
    extension: Extension = NONE
    extended: bool = False
    cache_key: str | None = None

    @property
    def usage_asked(self) -> bool:
        return bool((self.stream_options or {}).get("include_usage"))


def parse_chat(body: bytes) -> ChatRequest:
    """Raises BadRequestError naming the field and what would be right."""
    data = _object(body)
    for name in duplicate_keys(body, data):
        raise BadRequestError(f"{name} stands twice in the body; which one is meant?", param=name)
    if (field := forbidden_field(body, data)) is not None:
        raise BadRequestError(
            f"{field} may not be set by a client of this gateway; leave it out", param=field
        )
    model = data.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequestError('model must be the name of a route or a model, such as "auto"', param="model")
    messages = data.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("messages must be a list with at least one message", param="messages")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequestError("a message is an object with a role and a content", param=f"messages[{i}]")
    extension = parse_extension(data.get("router"))
    return ChatRequest(
        body=body,
        model=model,
        prompt=prompt_of(
            messages,
            tools=_has_tools(data),
            max_tokens_out=_max_tokens(data),
            json_schema=_wants_schema(data),
            task=extension.task or _task(data),
        ),
        stream=_flag(data, "stream"),
        stream_options=_stream_options(data),
        messages=messages,
        logprobs_asked=_flag(data, "logprobs"),
        extension=extension,
        extended="router" in data,
        cache_key=key if isinstance(key := data.get("prompt_cache_key"), str) else None,
    )


def _object(body: bytes) -> dict[str, Any]:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the body is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise BadRequestError("the body must be one JSON object")
    return data


def _flag(data: dict[str, Any], name: str) -> bool:
    value = data.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadRequestError(f"{name} must be true or false", param=name)
    return bool(value)


def _max_tokens(data: dict[str, Any]) -> int | None:
    """The longest answer that the caller takes; where it gives both fields, the larger."""
    limits: list[int] = []
    for name in _LIMITS:
        value = data.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
            raise BadRequestError(f"{name} must be a whole number of tokens of at least 1", param=name)
        limits.append(value)
    return max(limits, default=None)


def _task(data: dict[str, Any]) -> str:
    """What the caller calls this kind of request in `metadata.task`; "" where it says nothing."""
    metadata = data.get("metadata")
    task = metadata.get("task") if isinstance(metadata, dict) else None
    return task if isinstance(task, str) else ""


def _wants_schema(data: dict[str, Any]) -> bool:
    """An answer that keeps to a schema is asked for by `response_format`."""
    wanted = data.get("response_format")
    if wanted is not None and not (isinstance(wanted, dict) and isinstance(wanted.get("type"), str)):
        raise BadRequestError(
            'response_format must be an object with a type, such as {"type": "json_object"}',
            param="response_format",
        )
    return wanted is not None and wanted["type"] == "json_schema"


def _has_tools(data: dict[str, Any]) -> bool:
    tools = data.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise BadRequestError("tools must be a list", param="tools")
    return bool(tools)


def _stream_options(data: dict[str, Any]) -> dict[str, Any] | None:
    options = data.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise BadRequestError("stream_options must be an object", param="stream_options")
    return options
