"""Marks kept as they came, held to what taking each apart at once would give."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback import remembered
from feedback.remembered import Remembered
from feedback.store import Entry, Marks, fields_of

marks = st.builds(
    lambda slot, key, at, value, origin: b"%08d%08d%08d" % (slot, key, at) + (value and value + origin),
    st.integers(0, 3),
    st.integers(0, 9),
    st.integers(0, 10**7),
    st.sampled_from([b"", b"0.5-----"]),
    st.sampled_from([b"", b"3-0"]),
)


def entries_of(marked: list[bytes]) -> list[Entry]:
    return [Entry(f"{n}-0:p", f"{n + 1}-0:t", b"data", mark) for n, mark in enumerate(marked)]


@given(st.lists(marks | st.just(b"")))
def test_a_later_mark_of_the_same_field_is_the_one_that_is_told(marked: list[bytes]) -> None:
    expected: dict[bytes, Any] = {b"s-before": b"", b"k": b"1"}
    held = Remembered(Marks("0-0:s", dict(expected)), "0-1:b")
    for entry in entries_of(marked):
        held.add(entry)
        expected |= fields_of(entry)
    assert held.marks() == Marks("0-0:s", expected)


def test_beyond_the_limit_the_oldest_are_let_go_of_first_what_came_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remembered, "FIELDS_REMEMBERED", 6)
    held = Remembered(Marks("0-0:s", {b"a": b"", b"b": b""}), "0-1:b")
    entries = entries_of([b"%08d%08d%08d0.5-----" % (n, n, n) for n in range(5)])
    seen = []
    for entry in entries:
        held.add(entry)
        seen.append((held.since, len(held.marks().fields)))
    assert seen == [("0-0:s", 4), ("0-0:s", 6), ("0-1:b", 6), ("1-0:t", 6), ("2-0:t", 6)]
