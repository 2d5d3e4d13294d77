"""Conversations through a real gateway: what providers cache, what is billed for it, and that staying pays."""

import numpy as np

from simulations.conversations import TURNS, conversations_of, play, table
from simulations.datasets import WHEEL, load
from simulations.recorded_server import PromptCache


def message(text: str, role: str = "user") -> dict[str, str]:
    return {"role": role, "content": text}


def test_a_model_has_cached_what_it_was_asked_before_and_no_other_has():
    cache = PromptCache()
    first = [message("rules", "system"), message("one")]
    assert cache.cached_chars("small", first) == 0
    assert cache.cached_chars("small", first) == len("rulesone")
    then = [*first, message("answer", "assistant"), message("two")]
    assert cache.cached_chars("large", then) == 0
    assert cache.cached_chars("small", then) == len("rulesone")
    assert cache.cached_chars("small", [message("rules", "system"), message("other")]) == len("rules")


def test_a_conversation_is_of_one_task_and_no_prompt_is_in_two():
    data = load(WHEEL)
    chosen = conversations_of(data, 50, np.random.default_rng(1))
    rows = [row for rows in chosen for row in rows]
    assert len(rows) == len(set(rows)) == 50 * TURNS
    assert all(len({data.prompts[row].task_family for row in rows}) == 1 for rows in chosen)


def test_staying_changes_the_model_less_often_and_has_more_of_the_prompt_cached():
    data = load(WHEEL)
    chosen = conversations_of(data, 30, np.random.default_rng(1))
    stays, moves = play(data, chosen, sticky=True), play(data, chosen, sticky=False)
    assert stays.changes < moves.changes
    assert stays.cached > 0.5
    told = table({True: [stays], False: [moves]}, 30)
    assert f"{stays.usd * 1000:.3f}" in told
    assert f"{1 - stays.usd / moves.usd:.1%}" in told
