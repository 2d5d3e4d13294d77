"""Features of a request: a few cheap facts about its text, on fixed scales.

Coarse on purpose. On recorded outcomes of 2-25 models fine features lose to none at all, while a handful of facts about
the kind of request (how long, multiple choice, code, numbers, tools) pays. Each fact is scaled by constants that were
chosen once, so that a vector means the same on every replica and in every simulation; `VERSION` names them, travels with
every logged vector, and vectors of two versions never mix.

    x = [1, facts...]   (d,), rounded to float16: the log stores float16, and a decision must be recomputable from it
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from bandit.types import Context, Needs, Vector

READ_CHARS: Final = 4000  # a longer message is read at its head and tail only: cost stays bounded
LARGEST: Final = 4.0  # facts saturate here, lest one text without spaces outweigh a thousand others
CHARS_PER_TOKEN: Final = 4  # the usual rule of thumb for English; learned counts correct it (bandit.cost)

_CHOICES = re.compile(r"(?<!\w)[A-D][).:]\s")
_CODE_MARKS = (
    "```",
    "def ",
    "return",
    "import ",
    "function",
    "class ",
    "();",
    "assert ",
    "#include",
    "python",
)
_MATH_MARKS: Final = b"$\\^=+*%"
_DIGITS: Final = b"0123456789"


@dataclass(frozen=True, slots=True)
class Prompt:
    """The parts of a chat request that features and needs are read from.

    system, user: text of the system messages and of the last user message; chars: text of all messages together.
    """

    user: str
    system: str = ""
    chars: int = 0
    turns: int = 1
    tools: bool = False
    images: bool = False
    max_tokens_out: int | None = None


@dataclass(frozen=True, slots=True)
class _Facts:
    """The text facts of one message, before scaling."""

    text: str
    lower: str
    ascii: bytes

    def length(self) -> float:
        return (math.log1p(len(self.text)) - 5.5) / 1.2

    def count(self, marks: bytes) -> int:
        """How many of the text's characters are among these."""
        return len(self.ascii) - len(self.ascii.translate(None, marks))

    def share(self, count: int, typical: float) -> float:
        """Occurrences per character, against a typical rate; saturates at 3."""
        return min(count / (len(self.text) + 20) / typical, 3.0)


NAMES: Final = (
    "bias",
    "length",
    "digits",
    "choices",
    "code",
    "maths",
    "foreign",
    "lines",
    "word_length",
    "question",
    "turns",
    "system",
    "tools",
    "images",
)
VERSION: Final = "facts-1"
DIMENSION: Final = len(NAMES)
TAG: Final = hashlib.blake2b(f"{VERSION}:{','.join(NAMES)}".encode(), digest_size=8).digest()


def estimate_tokens(text: str) -> int:
    """Tokens of a text by its length; at least 1."""
    return _tokens(len(text))


def prompt_of(
    messages: Sequence[Mapping[str, Any]], *, tools: bool = False, max_tokens_out: int | None = None
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
    )


def context_of(prompt: Prompt) -> Context:
    """The request as the policy sees it: x (d,) and its needs."""
    needs = Needs(_tokens(prompt.chars or len(prompt.user)), prompt.max_tokens_out, prompt.tools)
    return Context(x=_vector(prompt), needs=needs)


def _vector(prompt: Prompt) -> Vector:
    text = _excerpt(prompt.user)
    facts = _Facts(text, text.lower(), text.encode("ascii", "ignore"))
    words = len(text.split()) or 1
    x = (
        1.0,
        facts.length(),
        facts.share(facts.count(_DIGITS), 0.05),
        min(len(_CHOICES.findall(text)), 4) / 4,
        min(sum(facts.lower.count(mark) for mark in _CODE_MARKS), 4) / 4,
        facts.share(facts.count(_MATH_MARKS), 0.03),
        facts.share(len(text) - len(facts.ascii), 0.05),
        facts.share(text.count("\n"), 0.02),
        (len(text) / words - 6.0) / 2.0,
        1.0 if text.rstrip().endswith("?") else 0.0,
        math.log(prompt.turns),
        math.log1p(len(prompt.system)) / 6,
        float(prompt.tools),
        float(prompt.images),
    )
    return np.clip(x, -LARGEST, LARGEST).astype(np.float16).astype(np.float64)


def _excerpt(text: str) -> str:
    if len(text) <= READ_CHARS:
        return text
    return text[: READ_CHARS // 2] + text[-READ_CHARS // 2 :]


def _tokens(chars: int) -> int:
    return max(1, -(-chars // CHARS_PER_TOKEN))


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
