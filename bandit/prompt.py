"""What is read of a chat request's messages: the parts that features and needs are made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Prompt:
    """The parts of a chat request that features and needs are read from.

    system, user: text of the system messages and of the last user message; chars: text of all messages together.
    task: what the caller calls this kind of request, or "".
    """

    user: str
    system: str = ""
    chars: int = 0
    turns: int = 1
    tools: bool = False
    images: bool = False
    max_tokens_out: int | None = None
    json_schema: bool = False
    task: str = ""


def prompt_of(
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: bool = False,
    max_tokens_out: int | None = None,
    json_schema: bool = False,
    task: str = "",
) -> Prompt:
    """Read a chat request's messages; anything that is not text (images, tool results as parts) adds no text."""
    texts = [_text(message.get("content")) for message in messages]
    roles = [message.get("role") for message in messages]
    last_user = max((i for i, role in enumerate(roles) if role == "user"), default=len(texts) - 1)
    system = [text for text, role in zip(texts, roles, strict=True) if role in ("system", "developer")]
    return Prompt(
        user=texts[last_user] if texts else "",
        system="\n".join(system),
        chars=sum(map(len, texts)),
        turns=max(1, roles.count("user")),
        tools=tools,
        images=any(_has_image(message.get("content")) for message in messages),
        max_tokens_out=max_tokens_out,
        json_schema=json_schema,
        task=task,
    )


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if _is_text(part))
    return ""


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str)


def _has_image(content: Any) -> bool:
    return isinstance(content, list) and any(
        isinstance(part, dict) and part.get("type") in ("image_url", "input_image") for part in content
    )
