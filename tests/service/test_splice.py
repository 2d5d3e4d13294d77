import json
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.splice import _members, duplicate_keys, replace_values, without_key

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # no test fails for time

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
KEYS = (
    st.sampled_from(["model", "id", "", "a", '"', "\\", "{", "]", 'x":1,"model', "é", "\U0001f600"])
    | st.text()
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=12)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=6)
SPACE = st.text(" \t\r\n", max_size=3)


def top_level_spans(data: bytes) -> dict[str, tuple[int, int]]:
    """Key -> where its value stands; of a key written twice the last, the one that parsers take."""
    return {key: (start, end) for key, start, end in _members(data)}


@st.composite
def written(draw: st.DrawFn, value: Any) -> str:
    """`value` as JSON with arbitrary white space and, for some strings, every character escaped."""
    if isinstance(value, dict):
        pairs = [f"{draw(written(key))}{draw(SPACE)}:{draw(written(item))}" for key, item in value.items()]
        text = "{" + draw(SPACE) + ",".join(pairs) + "}"
    elif isinstance(value, list):
        text = "[" + draw(SPACE) + ",".join(draw(written(item)) for item in value) + "]"
    elif isinstance(value, str) and draw(st.booleans()):
        units = value.encode("utf-16-be")
        text = '"' + "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2)) + '"'
    else:
        text = json.dumps(value, ensure_ascii=draw(st.booleans()))
    return draw(SPACE) + text + draw(SPACE)


@st.composite
def documents(draw: st.DrawFn) -> tuple[dict[str, Any], bytes]:
    value = draw(OBJECTS)
    return value, draw(written(value)).encode()


@PATIENT
@given(documents(), st.dictionaries(KEYS, VALUES, max_size=3))
def test_replacing_equals_setting_the_parsed_values(
    document: tuple[dict[str, Any], bytes], changes: dict[str, Any]
) -> None:
    value, data = document
    spliced = replace_values(data, {key: json.dumps(item).encode() for key, item in changes.items()})
    assert json.loads(spliced) == value | changes
    orjson.loads(spliced)  # a strict parser agrees that it is JSON


@PATIENT
@given(documents(), st.data())
def test_every_other_byte_stays_as_it_was(
    document: tuple[dict[str, Any], bytes], data: st.DataObject
) -> None:
    value, original = document
    if not value:
        return
    key = data.draw(st.sampled_from(sorted(value)))
    start, end = top_level_spans(original)[key]
    assert replace_values(original, {key: b'"new"'}) == original[:start] + b'"new"' + original[end:]
    assert replace_values(original, {key: original[start:end]}) == original


@PATIENT
@given(documents())
def test_a_missing_key_comes_first_and_the_rest_stays(document: tuple[dict[str, Any], bytes]) -> None:
    value, original = document
    spliced = replace_values(original, {"not there": b"[1, 2]"})
    opening = original.index(b"{") + 1
    assert spliced.startswith(original[:opening] + b'"not there":[1, 2]')
    assert spliced.endswith(original[opening:])
    assert list(json.loads(spliced).items()) == [("not there", [1, 2]), *value.items()]


@PATIENT
@given(documents())
def test_spans_hold_exactly_the_values(document: tuple[dict[str, Any], bytes]) -> None:
    value, data = document
    spans = top_level_spans(data)
    assert {key: json.loads(data[start:end]) for key, (start, end) in spans.items()} == value
    assert all(data[start:end].strip() == data[start:end] for start, end in spans.values())
    assert duplicate_keys(data) == ()


@PATIENT
@given(documents(), st.data())
def test_removing_equals_deleting_from_the_parsed_object(
    document: tuple[dict[str, Any], bytes], data: st.DataObject
) -> None:
    value, original = document
    key = data.draw(st.sampled_from(sorted(value))) if value else "a"
    shorter = without_key(original, key)
    assert json.loads(shorter) == {name: item for name, item in value.items() if name != key}
    orjson.loads(shorter)
    assert json.loads(without_key(original, "never there")) == value


@pytest.mark.parametrize(
    ("data", "left"),
    [
        (b'{"router": 1}', b"{}"),
        (b'{"router": {"a": ["}"]}, "b" : 2}', b'{"b" : 2}'),
        (b'{"a": 1, "router": 2, "c": 3}', b'{"a": 1, "c": 3}'),
        (b'{"a": 1, "router": 2}', b'{"a": 1}'),
        (b'{"router": 1, "a": 2, "\\u0072outer": 3}', b'{"a": 2}'),
        (b'{"a": {"router": 1}}', b'{"a": {"router": 1}}'),
        (b"{}", b"{}"),
    ],
)
def test_what_is_removed_takes_its_comma_with_it(data: bytes, left: bytes) -> None:
    assert without_key(data, "router") == left


def test_only_the_top_level_is_touched() -> None:
    data = b'{"a": {"model": 1, "b": [{"model": 2}]}, "model": 3, "c": "\\"model\\": 4"}'
    expected = b'{"a": {"model": 1, "b": [{"model": 2}]}, "model": "x", "c": "\\"model\\": 4"}'
    assert replace_values(data, {"model": b'"x"'}) == expected


def test_a_key_written_with_escapes_is_the_same_key() -> None:
    data = b'{"\\u006dodel": "auto", "a\\"b": 1}'
    assert replace_values(data, {"model": b'"x"', 'a"b': b"2"}) == b'{"\\u006dodel": "x", "a\\"b": 2}'


def test_a_key_written_twice_is_found_and_set_twice() -> None:
    data = b'{"model": 1, "a": 2, "\\u006dodel": 3}'
    assert duplicate_keys(data) == ("model",)
    assert replace_values(data, {"model": b"9"}) == b'{"model": 9, "a": 2, "\\u006dodel": 9}'
    assert top_level_spans(data)["model"] == (len(data) - 2, len(data) - 1)


@pytest.mark.parametrize("backslashes", range(6))
def test_any_run_of_backslashes_before_a_quote_is_read_right(backslashes: int) -> None:
    text = "\\" * backslashes + '"'
    data = json.dumps({text: text, "model": text}).encode()
    assert json.loads(replace_values(data, {"model": b"1"})) == {text: text, "model": 1}


@pytest.mark.parametrize(
    "value",
    ["x" * 3_000_000, '\\"\n' * 500_000, [[]] * 200_000, ['"'] * 200_000, {str(i): i for i in range(50_000)}],
    ids=["long string", "many escapes", "many brackets", "many strings", "many keys"],
)
def test_megabytes_need_neither_recursion_nor_backtracking(value: Any) -> None:
    data = orjson.dumps({"messages": value, "model": "auto"})
    assert orjson.loads(replace_values(data, {"model": b'"x"'})) == {"messages": value, "model": "x"}


def test_depth_is_no_limit() -> None:
    nested = b"[" * 100_000 + b"]" * 100_000
    assert replace_values(b'{"a":' + nested + b',"b":1}', {"b": b"2"}) == b'{"a":' + nested + b',"b":2}'


@pytest.mark.parametrize("data", [b"[]", b'"model"', b"1", b'[{"model": 1}]', b""])
def test_what_is_no_object_is_refused(data: bytes) -> None:
    for attempt in (lambda: replace_values(data, {"a": b"1"}), lambda: top_level_spans(data)):
        with pytest.raises(ValueError, match="JSON object"):
            attempt()
