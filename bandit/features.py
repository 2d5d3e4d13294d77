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
from dataclasses import dataclass
from typing import Final

import numpy as np

from bandit import words
from bandit.marks import spaced_and_choices
from bandit.prompt import Prompt
from bandit.types import Context, Needs, Vector
from bandit.words import WordTable

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
POINTING: Final = slice(1 + len(FACTS), DIMENSION - TASKS)  # the directions: what versions differ in


@dataclass(frozen=True, slots=True, eq=False)
class FeatureVersion:
    """What a vector means. tag: 8 bytes that name it. words: where a text points by its words, so far as nobody knows better."""

    tag: bytes
    words: WordTable


def version_of(pointing: str, table: WordTable) -> FeatureVersion:
    """pointing: names how directions are found; all else of a version is this module's."""
    named = f"{VERSION},{pointing}-{table.version}:{','.join(NAMES)}"
    return FeatureVersion(hashlib.blake2b(named.encode(), digest_size=8).digest(), table)


SHIPPED: Final = version_of("words", words.SHIPPED)
TAG: Final = SHIPPED.tag


def estimate_tokens(text: str) -> int:
    """Tokens of a text by its length; at least 1."""
    return _tokens(len(text))


def context_of(
    prompt: Prompt, version: FeatureVersion = SHIPPED, directions: Vector | None = None
) -> Context:
    """The request as the policy sees it: x (d,) and its needs. directions (DIRECTIONS,): where an embedder says that the
    last user message points (bandit.embedding); None: its words have to tell.
    """
    tokens_in = _tokens(prompt.chars or len(prompt.user))
    needs = Needs(tokens_in, prompt.max_tokens_out, prompt.tools, prompt.images, prompt.json_schema)
    return Context(x=_vector(prompt, version, directions), needs=needs)


def task_bucket(prompt: Prompt) -> int | None:
    """Which of the TASKS buckets the request's task falls into; None where nothing tells."""
    name = f"task:{prompt.task}" if prompt.task else f"system:{prompt.system}" if prompt.system else None
    return None if name is None else zlib.crc32(name.encode("utf-8", "surrogatepass")) % TASKS


def _vector(prompt: Prompt, version: FeatureVersion, directions: Vector | None) -> Vector:
    text = excerpt(prompt.user)
    lower = text.lower()
    x = np.zeros(DIMENSION)
    x[0] = 1.0
    x[1 : 1 + len(FACTS)] = _facts(prompt, text, lower)
    x[POINTING] = words.mean_direction(lower, version.words) if directions is None else directions
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


def excerpt(text: str) -> str:
    """All that is read of a message: the whole of it, or its head and its tail."""
    if len(text) <= READ_CHARS:
        return text
    return text[: READ_CHARS // 2] + text[-READ_CHARS // 2 :]


def _tokens(chars: int) -> int:
    return max(1, -(-chars // CHARS_PER_TOKEN))
