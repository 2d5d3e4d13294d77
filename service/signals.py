"""Cascades: the cheapest model answers first, and a dearer one is asked only where that answer is not good enough.

How good it is, is told by a signal from 0 to 1: the mean probability that the model gave to the tokens of its own answer,
or the score that a judge model gives. Every call is billed and told of; an answer is held back until its signal is known, so
a stream begins late with all but the last model. To the policy a cascade is an arm like any other (service.cascades).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from math import exp
from typing import Any, Final

import orjson

from service.sse import EventSplitter, data_of

JUDGE_CHARS: Final = 24_000  # of question and answer each: what a judge reads at most
JUDGE_PROMPT: Final = (
    "You grade an assistant's answer. Reply with one whole number from 0 (wrong or useless) to 100 (right and complete), "
    "and nothing else."
)
_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?")


def parts(content: bytes, *, stream: bool) -> Iterator[dict[str, Any]]:
    """The JSON objects of an answer: one, or those of a stream's events."""
    if not stream:
        yield orjson.loads(content)
        return
    for event in EventSplitter().feed(content):
        data = data_of(event)
        if data is not None and data.lstrip().startswith(b"{"):
            yield orjson.loads(data)


def token_confidence(content: bytes, *, stream: bool) -> float | None:
    """The exponential of the mean log probability over all tokens of the answer; None where the model told of none."""
    told = [
        token["logprob"]
        for choice in _choices(content, stream=stream)
        for token in ((choice.get("logprobs") or {}).get("content") or ())
        if isinstance(token.get("logprob"), int | float)
    ]
    return min(1.0, exp(sum(told) / len(told))) if told else None


def text_of(content: bytes, *, stream: bool) -> str:
    """The answer's text, of its first choice."""
    pieces = []
    for choice in _choices(content, stream=stream):
        said = choice.get("delta" if stream else "message") or {}
        if choice.get("index", 0) == 0 and isinstance(said.get("content"), str):
            pieces.append(said["content"])
    return "".join(pieces)


def without_logprobs(content: bytes, *, stream: bool) -> bytes:
    """The answer as a client sees it that did not ask for probabilities."""
    if not stream:
        return orjson.dumps(_stripped(orjson.loads(content)))
    shown = []
    for event in EventSplitter().feed(content):
        data = data_of(event)
        if data is not None and data.lstrip().startswith(b"{"):
            event = b"data: " + orjson.dumps(_stripped(orjson.loads(data))) + b"\n\n"  # noqa: PLW2901
        shown.append(event)
    return b"".join(shown)


def judge_request(judge: str, question: str, answer: str) -> bytes:
    """The body of the request to the judge."""
    asked = f"Question:\n{question[:JUDGE_CHARS]}\n\nAnswer:\n{answer[:JUDGE_CHARS]}\n\nYour grade, 0 to 100:"
    messages: Sequence[Mapping[str, str]] = (
        {"role": "system", "content": JUDGE_PROMPT},
        {"role": "user", "content": asked},
    )
    return orjson.dumps({"model": judge, "messages": messages, "temperature": 0, "max_tokens": 16})


def judge_score(content: bytes) -> float | None:
    """What the judge said, 0 to 1; None where it said nothing of the kind."""
    number = _NUMBER.search(text_of(content, stream=False))
    score = float(number[0]) / 100 if number else None
    return score if score is not None and score <= 1 else None


def _choices(content: bytes, *, stream: bool) -> Iterator[dict[str, Any]]:
    for part in parts(content, stream=stream):
        for choice in part.get("choices") or ():
            if isinstance(choice, dict):
                yield choice


def _stripped(part: dict[str, Any]) -> dict[str, Any]:
    for choice in part.get("choices") or ():
        choice.pop("logprobs", None)
    return part
