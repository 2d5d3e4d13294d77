"""Facts about a request: defined for any text, bounded, cheap to read, and the same everywhere."""

import inspect
import sys
import tracemalloc
from types import ModuleType

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bandit import features
from bandit import words as words_table
from bandit.features import (
    CHARS_PER_TOKEN,
    DIMENSION,
    NAMES,
    READ_CHARS,
    TAG,
    TASKS,
    VERSION,
    context_of,
    estimate_tokens,
    task_bucket,
)
from bandit.prompt import Prompt, prompt_of

PATIENT = settings(deadline=None)  # no test fails for time

any_text = st.text(st.characters(exclude_categories=()))  # lone surrogates and NUL included
prompts = st.builds(
    Prompt,
    user=any_text,
    system=any_text,
    chars=st.integers(0, 10**7),
    turns=st.integers(1, 10**6),
    tools=st.booleans(),
    images=st.booleans(),
    max_tokens_out=st.none() | st.integers(1, 10**6),
    task=any_text,
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | any_text
words = st.sampled_from(
    ["type", "text", "image_url", "input_image", "user", "system", "tool", "role", "content"]
)
json_values = st.recursive(
    scalars | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | any_text, inner, max_size=3),
)
messages = st.lists(
    st.dictionaries(words | any_text, json_values, max_size=3)
    | st.fixed_dictionaries({}, optional={"role": json_values | words, "content": json_values}),
    max_size=5,
)


def x_of(text, **rest):
    return dict(zip(NAMES, context_of(Prompt(text, **rest)).x, strict=True))


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 1), ("a", 1), ("abcd", 1), ("abcde", 2), ("é" * 4000, 1000)]
)
def test_tokens_are_a_quarter_of_the_characters_rounded_up(text, tokens):
    assert estimate_tokens(text) == tokens


@given(text=any_text, more=any_text)
def test_a_longer_text_never_has_fewer_tokens(text, more):
    assert 1 <= estimate_tokens(text) <= estimate_tokens(text + more)


def test_a_plain_chat_is_read():
    prompt = prompt_of(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": "Use metric units."},
            {"role": "user", "content": "How far is the moon?"},
            {"role": "assistant", "content": "384,400 km"},
            {"role": "user", "content": "And the sun?"},
        ],
        tools=True,
        max_tokens_out=50,
    )
    assert prompt == Prompt(
        user="And the sun?",
        system="Be brief.\nUse metric units.",
        chars=9 + 17 + 20 + 10 + 12,
        turns=2,
        tools=True,
        max_tokens_out=50,
    )


def test_parts_are_read_for_their_text_and_an_image_is_noticed():
    prompt = prompt_of(
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                    {"type": "text", "text": "this?"},
                ],
            }
        ]
    )
    assert prompt == Prompt(user="What is\nthis?", chars=13, images=True)


def test_a_tool_conversation_is_still_about_its_last_user_message():
    prompt = prompt_of(
        [
            {"role": "user", "content": "Weather in Bern?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "function": {"name": "weather"}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": "12 degrees"},
        ]
    )
    assert prompt == Prompt(user="Weather in Bern?", chars=16 + 10)


def test_without_a_user_the_last_message_is_the_question():
    assert prompt_of([{"content": "first"}, {"content": "last"}]).user == "last"
    assert prompt_of([]) == Prompt(user="")


@PATIENT
@given(messages=messages)
@example(
    messages=[
        {"role": ["user"], "content": {"text": "x"}},
        {"role": {}, "content": [None, 3, {"text": 7}, []]},
    ]
)
@example(messages=[{"role": "user", "content": [{"type": {"image_url": 1}, "text": "\ud800"}]}])
def test_no_message_however_odd_is_an_error(messages):
    context = context_of(prompt_of(messages))
    assert np.isfinite(context.x).all()
    assert context.needs.tokens_in >= 1


@PATIENT
@given(prompt=prompts)
@example(prompt=Prompt(""))
@example(prompt=Prompt("\x00" * 10))
@example(prompt=Prompt("\ud83d"))
@example(prompt=Prompt("😀" * 5000))
@example(prompt=Prompt("7" * 1_000_000))
@example(prompt=Prompt("$" * 1_000_000, system="$" * 1_000_000))
@example(prompt=Prompt("A) B) " * 200_000))
def test_every_fact_is_finite_small_and_kept_by_the_log(prompt):
    x = context_of(prompt).x
    assert x.shape == (DIMENSION,)
    assert x.dtype == np.float64
    assert np.array_equal(x, x.astype(np.float16).astype(np.float64))
    assert np.abs(x).max() <= 4
    assert x[0] == 1


@pytest.mark.parametrize(
    "text", ["QUJD" * 3000, "这是一个没有空格的很长的句子" * 30, "ก" * 500], ids=["base64", "zh", "th"]
)
def test_text_without_spaces_is_no_outlier(text):
    """Its one word has hundreds of letters; unbounded, this single fact would outweigh a thousand ratings."""
    assert x_of(text)["word_length"] == 4


@PATIENT
@given(text=any_text, system=any_text)
def test_the_same_request_gives_the_same_bits(text, system):
    assert np.array_equal(context_of(Prompt(text, system)).x, context_of(Prompt(text, system)).x)


@PATIENT
@given(head=any_text, tail=any_text, middle=any_text)
def test_only_head_and_tail_of_a_long_text_are_read(head, tail, middle):
    half = READ_CHARS // 2
    head, tail = (head + "h" * half)[:half], ("t" * half + tail)[-half:]
    short, long = Prompt(head + tail), Prompt(head + middle * 1000 + tail)
    assert np.array_equal(context_of(short).x, context_of(long).x)


def test_reading_a_megabyte_takes_no_more_memory_than_reading_its_excerpt():
    half = READ_CHARS // 2
    text = "Why is the sky blue? " * 50_000
    excerpt = text[:half] + text[-half:]
    context_of(Prompt(excerpt))

    def peak(prompt):
        tracemalloc.start()
        try:
            context_of(prompt)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(Prompt(text)) < 1.5 * peak(Prompt(excerpt)) < 1_000_000


def test_the_needs_count_all_messages_not_the_excerpt():
    needs = context_of(Prompt("q" * 8000, chars=40_000, tools=True, max_tokens_out=7)).needs
    assert (needs.tokens_in, needs.max_tokens_out, needs.tools) == (40_000 // CHARS_PER_TOKEN, 7, True)
    assert context_of(Prompt("q" * 8000)).needs.tokens_in == 2000


@pytest.mark.parametrize(
    ("fact", "with_it", "without"),
    [
        ("length", "word " * 500, "word"),
        ("digits", "What is 1234 times 5678", "What is that times this"),
        ("choices", "Which?\nA) one\nB) two\nC) three", "Which? one two three"),
        ("code", "```python\ndef f(): return 1```", "Tell me a story of a cat"),
        ("maths", "$x^2 + y^2 = z^2$", "x squared and y squared"),
        ("foreign", "Где находится библиотека", "Where is the library"),
        ("lines", "one\ntwo\nthree", "one two three"),
        ("word_length", "incomprehensibilities", "a cat sat on a mat"),
        ("question", "Is it?  \n", "It is."),
    ],
)
def test_a_fact_is_higher_in_the_text_it_is_about(fact, with_it, without):
    assert x_of(with_it)[fact] > x_of(without)[fact]


def test_facts_that_are_not_about_the_text():
    plain, other = x_of("Hi"), x_of("Hi", system="Be kind.", turns=3, tools=True, images=True)
    changed = {name for name in NAMES if plain[name] != other[name] and not name.startswith("task-")}
    assert changed == {"system", "turns", "tools", "images"}
    assert (other["tools"], other["images"]) == (1, 1)
    assert other["turns"] == pytest.approx(np.log(3), rel=1e-3)


def task_of(**rest):
    """Names of the task buckets in which the request lies."""
    return [name for name, value in x_of("Hi", **rest).items() if name.startswith("task-") and value]


def test_a_request_without_task_or_system_prompt_lies_in_no_bucket():
    assert task_of() == []
    assert task_bucket(Prompt("Hi")) is None


@PATIENT
@given(task=any_text.filter(bool), user=any_text, system=any_text)
def test_a_named_task_has_one_bucket_whatever_else_the_request_says(task, user, system):
    bucket = task_bucket(Prompt("Hi", task=task))
    assert task_bucket(Prompt(user, system=system, task=task)) == bucket
    x = context_of(Prompt(user, system=system, task=task)).x
    assert np.flatnonzero(x[-TASKS:]).tolist() == [bucket]
    assert x[bucket - TASKS] == 1


def test_system_prompts_tell_templates_apart_by_their_whole_text():
    templates = ["You sort mail." + " " * k for k in range(200)]
    buckets = [task_bucket(Prompt("Hi", system=text)) for text in templates]
    assert buckets == [task_bucket(Prompt("Other", system=text)) for text in templates]
    assert len(set(buckets)) == TASKS  # 200 texts fill all of them
    long = "x" * 1_000_000
    assert task_of(system=long + "a") != task_of(system=long + "b")


def test_a_task_and_a_system_prompt_of_the_same_words_are_different_things():
    names = [f"name {k}" for k in range(50)]
    same = [task_bucket(Prompt("Hi", task=n)) == task_bucket(Prompt("Hi", system=n)) for n in names]
    assert sum(same) < 10


@pytest.mark.parametrize(
    "text", ["", " ", "\x00", "\ud83d", "\udc00" * 10, "é\u0301", "a" * 1_000_000, "\n" * 5000]
)
def test_an_odd_text_has_words_too(text):
    x = context_of(Prompt(text, system=text, task=text)).x
    assert np.isfinite(x).all()
    assert np.abs(x).max() <= 4


CODE_MARKS = [
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
]


@PATIENT
@given(parts=st.lists(st.sampled_from([*CODE_MARKS, "`", "#", ";", "()", " ", "x\n", "é"]), max_size=8))
def test_four_marks_of_code_are_as_many_as_any(parts):
    text = "".join(parts)
    assert x_of(text)["code"] == min(sum(map(text.count, CODE_MARKS)), 4) / 4
    assert x_of(text.upper())["code"] == x_of(text)["code"]


@PATIENT
@given(
    words=st.lists(
        st.sampled_from(["if", "a", "train", "leaves", "at", "3", "pm", ",", "when", "?"]) | any_text,
        max_size=400,
    )
)
def test_rows_of_words_are_summed_one_after_another_to_the_last_bit(words):
    """In another order the sum would be another float32 now and then, and the vector one of another version."""
    lower = " ".join(words).lower()
    total = np.zeros(words_table.DIRECTIONS, np.float32)
    buckets = words_table.buckets(lower, words_table.BUCKETS)
    for bucket in buckets:
        total += words_table.SHIPPED.rows[bucket]
    expected = total / max(len(buckets), 1) + words_table.SHIPPED.offset
    assert np.array_equal(words_table.mean_direction(lower), expected)


def test_words_point_where_the_mean_of_their_rows_points():
    rows = words_table.SHIPPED.rows[words_table.buckets("a cat !", words_table.BUCKETS)]
    assert len(rows) == 3
    expected = rows.mean(axis=0) + words_table.SHIPPED.offset
    np.testing.assert_allclose(words_table.mean_direction("a cat !"), expected, rtol=1e-6)
    assert np.array_equal(words_table.mean_direction(" \n"), words_table.SHIPPED.offset)


@given(text=any_text.filter(lambda t: 0 < len(t) < 2000))
def test_words_are_a_bag_their_repetition_changes_little(text):
    once, twice = (words_table.buckets(t, 64) for t in (text, text + " " + text))
    if len(text) * 2 + 1 <= 2 * words_table.READ_CHARS:
        assert twice == once + once


def test_a_vector_of_this_version_is_pinned():
    """If a scale moves, VERSION must move with it: vectors of one version are compared and summed for years."""
    text = "Compute 12 * 3 = ?\nA) 36\nB) 15\nWhich of them is right?"
    x = context_of(Prompt(text, system="Be brief.", turns=2, tools=True)).x
    assert VERSION == "facts-1,tasks-1"
    assert x[:14].tolist() == [
        1.0,
        -1.244140625,
        1.8916015625,
        0.5,
        0.0,
        0.90087890625,
        0.0,
        2.02734375,
        -1.2001953125,
        1.0,
        0.693359375,
        0.3837890625,
        1.0,
        0.0,
    ]
    assert x[14:30].tolist() == [
        -0.355224609375,
        -0.450439453125,
        0.11212158203125,
        0.84326171875,
        1.1689453125,
        -0.74951171875,
        -0.0489501953125,
        -0.552734375,
        -0.336669921875,
        -0.5673828125,
        -0.62353515625,
        -0.08306884765625,
        0.54931640625,
        0.12176513671875,
        0.4384765625,
        -0.481689453125,
    ]
    assert (np.flatnonzero(x[30:]) + 30).tolist() == [53]
    assert DIMENSION == 62
    assert TAG.hex() == "de4395aae0fc991d"


def test_a_renamed_fact_or_a_new_version_has_another_tag(monkeypatch):
    def tag(old, new):
        changed = ModuleType("changed_features")
        monkeypatch.setitem(sys.modules, changed.__name__, changed)  # where dataclasses look a module up
        source = inspect.getsource(features)
        assert source.count(old) == 1
        exec(compile(source.replace(old, new), "changed", "exec"), changed.__dict__)
        return changed.TAG

    same, renamed, dropped, newer = (
        tag('"word_length",', replacement)
        for replacement in ('"word_length",', '"words",', "", '"word_length", "x",')
    )
    version = tag('VERSION: Final = "facts-1,', 'VERSION: Final = "facts-2,')
    assert same == TAG
    assert len({same, renamed, dropped, newer, version}) == 5
