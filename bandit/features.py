"""Features of a request: a few cheap facts about its text, where its words point, and the task that its caller names.

    x = [1, facts..., words..., tasks...]   (d,), rounded to float16: the log stores float16, and a decision must be
                                            recomputable from it

Coarse on purpose. On recorded outcomes of 2-25 models fine features lose to none at all, while three things pay:
facts      the kind of request (how long, multiple choice, code, numbers, tools), on scales that were chosen once
words      the mean of one small vector per word (bandit.words): the directions in which prompts differ most
tasks      one of TASKS buckets for the task: what the caller says (`metadata.task`), else the identity of the system
           prompt, for real traffic comes from templates. A request without either has no task and loses nothing

A vector means the same on every replica and in every simulation. `TAG` names the version of all of it, travels with every
logged vector, and vectors of two versions never mix.
"""

import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from bandit import words
from bandit.marks import spaced_and_choices
from bandit.types import Context, Needs, Vector

READ_CHARS: Final = 4000  # a longer message is read at its head and tail only: cost stays bounded
LARGEST: Final = 4.0  # facts saturate here, lest one text without spaces outweigh a thousand others
_LOWEST, _HIGHEST = np.array(-LARGEST), np.array(LARGEST)
CHARS_PER_TOKEN: Final = 4  # the usual rule of thumb for English; learned counts correct it (bandit.cost)

_CODE_WORDS: Final = ("def ", "return", "import ", "function", "class ", "assert ", "python")
_CODE_SIGNS: Final = (
    ("`", "```"),
    (";", "();"),
    ("#", "#include"),
)  # sought only where their rarest character is
_MATH_MARKS: Final = b"$\\^=+*%"
_DIGITS: Final = b"0123456789"


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


TASKS: Final = 32
FACTS: Final = (
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
NAMES: Final = (
    "bias",
    *FACTS,
    *(f"words-{k}" for k in range(words.DIRECTIONS)),
    *(f"task-{k}" for k in range(TASKS)),
)
VERSION: Final = "facts-1,tasks-1"
DIMENSION: Final = len(NAMES)
TAG: Final = hashlib.blake2b(f"{VERSION},{words.VERSION}:{','.join(NAMES)}".encode(), digest_size=8).digest()


def estimate_tokens(text: str) -> int:
    """Tokens of a text by its length; at least 1."""
    return _tokens(len(text))


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


def context_of(prompt: Prompt) -> Context:
    """The request as the policy sees it: x (d,) and its needs."""
    tokens_in = _tokens(prompt.chars or len(prompt.user))
    needs = Needs(tokens_in, prompt.max_tokens_out, prompt.tools, prompt.images, prompt.json_schema)
    return Context(x=_vector(prompt), needs=needs)


def task_bucket(prompt: Prompt) -> int | None:
    """Which of the TASKS buckets the request's task falls into; None where nothing tells."""
    name = f"task:{prompt.task}" if prompt.task else f"system:{prompt.system}" if prompt.system else None
    return None if name is None else zlib.crc32(name.encode("utf-8", "surrogatepass")) % TASKS


def _vector(prompt: Prompt) -> Vector:
    text = _excerpt(prompt.user)
    lower = text.lower()
    x = np.zeros(DIMENSION)
    x[0] = 1.0
    x[1 : 1 + len(FACTS)] = _facts(prompt, text, lower)
    x[1 + len(FACTS) : -TASKS] = words.mean_direction(lower)
    bucket = task_bucket(prompt)
    if bucket is not None:
        x[bucket - TASKS] = 1.0
    return x.clip(_LOWEST, _HIGHEST).astype(np.float16).astype(np.float64)


def _facts(prompt: Prompt, text: str, lower: str) -> tuple[float, ...]:
    raw = text.encode("ascii", "ignore")
    spaced, choices = spaced_and_choices(text, raw)
    chars = len(text)
    return (
        (math.log1p(chars) - 5.5) / 1.2,
        _share(len(raw) - len(raw.translate(None, _DIGITS)), chars, 0.05),
        min(choices, 4) / 4,
        min(_code_marks(lower), 4) / 4,
        _share(len(raw) - len(raw.translate(None, _MATH_MARKS)), chars, 0.03),
        _share(chars - len(raw), chars, 0.05),
        _share(raw.count(b"\n"), chars, 0.02),
        (chars / (spaced or 1) - 6.0) / 2.0,
        1.0 if text.rstrip().endswith("?") else 0.0,
        math.log(prompt.turns),
        math.log1p(len(prompt.system)) / 6,
        float(prompt.tools),
        float(prompt.images),
    )


def _share(count: int, chars: int, typical: float) -> float:
    """Occurrences per character, against a typical rate; saturates at 3."""
    return min(count / (chars + 20) / typical, 3.0)


def _code_marks(lower: str) -> int:
    """How many marks of code a text in lower case has."""
    signs = sum(lower.count(mark) for sign, mark in _CODE_SIGNS if sign in lower)
    return signs + sum(map(lower.count, _CODE_WORDS))


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
