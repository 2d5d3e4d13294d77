from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.yaml_lines import MAX_DEPTH, Problem, read_yaml

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # no test fails for time


def test_every_field_and_item_keeps_its_line() -> None:
    document = read_yaml("# first\na: 1\nb:\n  - x\n  - c:\n      d: {e: 2,\n        f: 3}\n")
    assert document.value == {"a": 1, "b": ["x", {"c": {"d": {"e": 2, "f": 3}}}]}
    assert document.problems == ()
    assert document.line_of(("a",)) == 2
    assert document.line_of(("b",)) == 3
    assert document.line_of(("b", 0)) == 4
    assert document.line_of(("b", 1, "c", "d", "f")) == 7
    assert document.line_of(("b", 1, "c", "missing", "deeper")) == 5
    assert document.line_of(("missing",)) == 2


@pytest.mark.parametrize(
    ("plain", "value"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("true", True),
        ("FALSE", False),
        ("-12", -12),
        ("007", 7),
        ("1.5", 1.5),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("9" * 30, float("9" * 30)),
        ("on", "on"),
        ("no", "no"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("2024-99-99", "2024-99-99"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("=", "="),
        ("'1'", "1"),
        ('"true"', "true"),
        ("|\n  1\n", "1\n"),
    ],
)
def test_scalars_mean_what_the_core_schema_of_yaml_1_2_says(plain: str, value: Any) -> None:
    read = read_yaml(f"a: {plain}").value["a"]
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "line", "sentence"),
    [
        ("", 1, "the file is empty"),
        ("---\n...\n", 1, "the file is empty"),
        ("null", 1, "the file is empty"),
        ("a:\n\tb: 1", 2, "a tab stands here"),
        ("a: 1\nb: &x 1", 2, "anchors (&) and aliases (*) are not supported"),
        ("a: 1\nb: *x", 2, "anchors (&) and aliases (*) are not supported"),
        ("a: &a [*a, *a]", 1, "anchors (&) and aliases (*) are not supported"),
        (
            "a: !!python/object/apply:os.system [ls]",
            1,
            "tags are not supported; remove 'tag:yaml.org,2002:python/",
        ),
        ("a: !!int 3", 1, "tags are not supported"),
        ("\n\na: b: c", 3, "this is not YAML: mapping values are not allowed here"),
        ("a: [1", 1, "this is not YAML"),
        ("a: 1\n---\nb: 2", 2, "this is not YAML: but found another document"),
        ("a: 1\nb: \x07", 2, "the character U+0007 may not stand in YAML"),
        ('a: 1\nb: "\\UFFFFFFFF"', 2, "an escape or a directive here is out of range"),
        ('a: "\\U00110000"', 1, "an escape or a directive here is out of range"),
        ("%YAML " + "9" * 5000 + ".1\n---\na: 1", 1, "an escape or a directive here is out of range"),
        ("[" * 100_000, 1, "nested deeper than 16 levels"),
        ("- " * 100_000, 1, "nested deeper than 16 levels"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_line(text: str, line: int, sentence: str) -> None:
    document = read_yaml(text)
    assert document.value is None
    (problem,) = document.problems
    assert (problem.line, problem.location) == (line, ())
    assert problem.sentence.startswith(sentence)


def test_duplicate_and_unnamed_keys_are_told_all_at_once() -> None:
    document = read_yaml("a:\n  b: 1\n  b: 2\n8: 3\n[x]: 4\n~: 5\na: 6\n")
    assert document.value == {"a": {"b": 1}, "8": 3, "~": 5}
    assert document.problems == (
        Problem(3, ("a", "b"), "duplicate key; it stands on line 2 already"),
        Problem(4, (), "the key '8' is not text; put it in quotes"),
        Problem(5, (), "the key here is not text; put it in quotes"),
        Problem(6, (), "the key '~' is not text; put it in quotes"),
        Problem(7, ("a",), "duplicate key; it stands on line 1 already"),
    )


def test_depth_is_allowed_up_to_the_limit_and_breadth_without_one() -> None:
    assert read_yaml("- [a]\n" * 1000).value == [["a"]] * 1000
    within = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert read_yaml(within).problems == ()
    assert read_yaml(f"[{within}]").value is None


@PATIENT
@given(st.text(max_size=100) | st.text(":-[]{}#&*!|>'\"%@`,? \n\t~01.eExuU\\<", max_size=60))
@example("!<")
@example("%TAG ! x\n--- !a b")
@example('"\\ud800"')
def test_reading_never_raises_and_always_says_why_there_is_no_value(text: str) -> None:
    document = read_yaml(text)
    assert (document.value is None) <= (len(document.problems) == 1)
    lines = (
        text.count("\n")
        + text.count("\r")
        + text.count("\x85")
        + text.count("\u2028")
        + text.count("\u2029")
        + 1
    )
    assert all(1 <= problem.line <= lines + 1 for problem in document.problems)
