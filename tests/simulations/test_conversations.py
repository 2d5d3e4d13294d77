"""Conversations through a real gateway: what providers cache and what is billed for it."""

import numpy as np

from simulations.conversations import TURNS, Played, conversations_of, play, table
from simulations.datasets import WHEEL, load, take
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


def test_a_conversation_that_stays_is_billed_most_of_its_prompt_as_cached():
    data = take(load(WHEEL), range(0, 3600, 3))  # the gateway learns from all that is not asked
    played = play(data, conversations_of(data, 30, np.random.default_rng(1)), sticky=True)
    assert played.cached > 0.5
    assert played.changes < 0.5
    assert played.usd > 0.0
    assert 0.0 < played.quality < 1.0


def test_the_table_says_what_staying_saves_run_by_run():
    stays = [Played(usd=0.003, quality=0.8, changes=0.01, cached=0.9), Played(0.002, 0.7, 0.03, 0.7)]
    moves = [Played(usd=0.004, quality=0.8, changes=0.5, cached=0.4), Played(0.004, 0.8, 0.3, 0.2)]
    told = table({True: stays, False: moves}, 30)
    assert "| true | 2.500 ± 0.500 | 0.7500 ± 0.0500 | 0.7250 ± 0.0450 | 2.0% | 80.0% |" in told
    assert "| false | 4.000 ± 0.000 |" in told
    assert told.endswith("Staying costs 37.5% ± 12.5% less, at -5.00 ± 5.00 points of quality.")
