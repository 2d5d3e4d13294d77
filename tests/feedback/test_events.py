import math
import struct

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.lengths import LengthSample
from bandit.statistics import CallStatistics
from feedback.events import (
    CALLED,
    CHARGED,
    COST_MAX_USD,
    GIVEN,
    JUDGE_DRIFT,
    RATED,
    RESET,
    REVISED,
    WITHDRAWN,
    Called,
    Charged,
    JudgeDrift,
    Rated,
    Reset,
    Withdrawn,
    decode,
    encode_called,
    encode_reset,
    feedback_tail,
)
from feedback.records import DECIDED_AT_MAX, DecisionPrefix, MalformedError

PREFIX = DecisionPrefix("small", np.array([1.0, -0.5]), 1.79e9, 0.25, b"features", b"policy!!").encode()
ORIGIN = "17-3"
COUNTS = st.integers(0, 2**53 - 1)
COUNTED = len(CallStatistics.__slots__)
NO_COUNTS = (1, None, [-1], [1.5], [True], ["1"], [2**53], [0] * (COUNTED + 1), [-1] * COUNTED)
NO_LENGTHS = (
    1,
    None,
    [],
    ["no base64", [1]],
    ["AAAA"],
    ["AAAA", 1],
    ["AAAA", [-1]],
    ["AAAA", [1.5]],
    [1, [1]],
)


def entry(
    kind: int,
    value: float | None,
    old: float | None = None,
    *,
    source: str = "user",
    change: int | None = None,
) -> bytes:
    """What a store puts together when feedback arrives."""
    change = (GIVEN if old is None else REVISED) if change is None else change
    tail = feedback_tail(value, old, source, "" if change == GIVEN else ORIGIN)
    return bytes([kind, change]) + PREFIX + tail


def test_an_entry_is_laid_out_as_the_docstring_says() -> None:
    assert entry(RATED, 0.75) == b"\x01\x00" + PREFIX + struct.pack("<dd", 0.75, 0.0) + b"\0user"
    revised = b"\x02\x01" + PREFIX + struct.pack("<dd", 0.5, 0.25) + b"17-3\0user"
    assert entry(CHARGED, 0.5, 0.25) == revised
    withdrawn = b"\x01\x02" + PREFIX + struct.pack("<dd", 0.0, 0.25) + b"17-3\0user"
    assert entry(RATED, None, 0.25, change=WITHDRAWN) == withdrawn


@given(st.floats(0, 1), st.none() | st.floats(0, 1), st.text(min_size=1, max_size=80))
def test_a_rating_survives_its_bytes(value: float, old: float | None, source: str) -> None:
    event = decode(entry(RATED, value, old, source=source))
    assert isinstance(event, Rated)
    assert (event.quality, event.old, event.source) == (value, old, source)
    assert event.origin == (None if old is None else (17, 3))
    assert event.decision.encode() == PREFIX


@given(st.floats(0, COST_MAX_USD), st.none() | st.floats(0, COST_MAX_USD))
def test_a_cost_survives_its_bytes(value: float, old: float | None) -> None:
    event = decode(entry(CHARGED, value, old, source="application"))
    assert isinstance(event, Charged)
    assert (event.cost_usd, event.old, event.source) == (value, old, "application")
    assert event.decision.encode() == PREFIX


@given(
    worker=st.text(max_size=40),
    sequence=COUNTS,
    calls=st.dictionaries(
        st.text(max_size=20),
        st.lists(COUNTS, min_size=COUNTED, max_size=COUNTED).map(CallStatistics.of_numbers),
        max_size=4,
    ),
    lengths=st.dictionaries(
        st.text(max_size=20),
        st.builds(LengthSample, st.binary(max_size=40), st.lists(COUNTS, max_size=4).map(tuple)),
        max_size=4,
    ),
    features=st.binary(max_size=8),
)
def test_a_workers_sums_survive_their_bytes(
    worker: str,
    sequence: int,
    calls: dict[str, CallStatistics],
    lengths: dict[str, LengthSample],
    features: bytes,
) -> None:
    event = Called(worker, sequence, calls, lengths=lengths, features=features)
    assert decode(encode_called(event)) == event


@pytest.mark.parametrize("kind", [RATED, CHARGED])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.001, -5e-324])
def test_values_that_cannot_be_are_refused_new_or_old(kind: int, value: float) -> None:
    for bad in (entry(kind, value), entry(kind, value, 0.5), entry(kind, 0.5, value)):
        with pytest.raises(MalformedError, match="between 0 and"):
            decode(bad)


def test_each_kind_has_its_own_upper_bound() -> None:
    decode(entry(RATED, 1.0))
    decode(entry(CHARGED, COST_MAX_USD))
    for bad in (entry(RATED, math.nextafter(1.0, 2.0)), entry(CHARGED, math.nextafter(COST_MAX_USD, 1e9))):
        with pytest.raises(MalformedError, match="between 0 and"):
            decode(bad)


def test_the_old_value_of_a_first_rating_is_not_looked_at() -> None:
    data = bytearray(entry(RATED, 0.5))
    data[-13:-5] = struct.pack("<d", math.nan)
    event = decode(bytes(data))
    assert isinstance(event, Rated)
    assert event.old is None


@pytest.mark.parametrize("whole", [entry(RATED, 0.5, source="u"), entry(CHARGED, 0.5, 0.25, source="u")])
def test_an_entry_cut_short_anywhere_is_refused(whole: bytes) -> None:
    decode(whole)
    for length in range(len(whole)):
        with pytest.raises(MalformedError):
            decode(whole[:length])


def test_a_workers_sums_cut_short_anywhere_are_refused() -> None:
    whole = encode_called(Called("w", 3, {"small": CallStatistics(calls=2, tokens_out=600)}))
    for length in range(len(whole)):
        with pytest.raises(MalformedError):
            decode(whole[:length])


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        "abc",
        None,
        ["w", 1],
        ["w", 1, {}, {}],
        ["w", 1, {}, 0, {}, ""],
        ["w", -1, {}, {}, {}, ""],
        ["w", 1.0, {}, {}, {}, ""],
        ["w", True, {}, {}, {}, ""],
        ["w", None, {}, {}, {}, ""],
        ["w", 2**53, {}, {}, {}, ""],
        ["w", 1, [], {}, {}, ""],
        *(["w", 1, {"small": numbers}, {}, {}, ""] for numbers in NO_COUNTS),
        *(["w", 1, {}, {}, {"small": told}, ""] for told in NO_LENGTHS),
        ["w", 1, {}, {}, [], ""],
        ["w", 1, {}, {}, {}, "no tag"],
        ["w", 1, {}, {}, {}, None],
    ],
)
def test_sums_of_another_form_are_refused(content: object) -> None:
    with pytest.raises(MalformedError, match="not of the form"):
        decode(bytes([CALLED]) + orjson.dumps(content))


@given(st.floats(0, 1))
def test_a_withdrawal_survives_its_bytes(old: float) -> None:
    event = decode(entry(RATED, None, old, change=WITHDRAWN))
    assert isinstance(event, Withdrawn)
    assert (event.quality, event.source, event.origin) == (old, "user", (17, 3))
    assert event.decision.encode() == PREFIX


@pytest.mark.parametrize("origin", ["", "17", "x-1", "17-3-4", "17:3"])
@pytest.mark.parametrize("change", [REVISED, WITHDRAWN])
def test_a_change_of_a_rating_must_say_what_it_changes(origin: str, change: int) -> None:
    data = bytes([RATED, change]) + PREFIX + feedback_tail(0.5, 0.25, "user", origin)
    with pytest.raises(MalformedError, match="names no entry"):
        decode(data)


@pytest.mark.parametrize(("kind", "change"), [(RATED, 3), (RATED, 255), (CHARGED, 2), (CHARGED, 3)])
def test_changes_to_come_are_refused(kind: int, change: int) -> None:
    with pytest.raises(MalformedError, match="no change of a"):
        decode(entry(kind, 0.5, 0.25, change=change))


RESETS = st.builds(
    Reset,
    arm=st.text(max_size=20),
    source=st.none() | st.text(max_size=20),
    factor=st.floats(0, 1),
    cause=st.text(max_size=20),
    at=st.floats(0, DECIDED_AT_MAX),
    alarm=st.none() | st.text(max_size=40),
)
JUDGES = st.builds(
    JudgeDrift,
    source=st.text(max_size=20),
    factor=st.floats(0, 1),
    at=st.floats(0, DECIDED_AT_MAX),
    alarm=st.none() | st.text(max_size=40),
)


@given(RESETS | JUDGES)
def test_a_reset_survives_its_bytes(event: Reset | JudgeDrift) -> None:
    assert decode(encode_reset(event)) == event


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        None,
        7,
        ["small"],
        ["small", None, 0.02, "drift", 1.0],
        ["small", None, 0.02, "drift", 1.0, None, 1],
        [None, None, 0.02, "drift", 1.0, None],
        ["small", 3, 0.02, "drift", 1.0, None],
        ["small", None, 0.02, None, 1.0, None],
        ["small", None, 1.01, "drift", 1.0, None],
        ["small", None, -0.01, "drift", 1.0, None],
        ["small", None, True, "drift", 1.0, None],
        ["small", None, "0", "drift", 1.0, None],
        ["small", None, None, "drift", 1.0, None],
        ["small", None, 0.02, "drift", -1.0, None],
        ["small", None, 0.02, "drift", 1e300, None],
        ["small", None, 0.02, "drift", 1.0, 4],
    ],
)
def test_resets_of_another_form_are_refused(content: object) -> None:
    decode(bytes([RESET]) + orjson.dumps(["small", None, 0.02, "drift", 1.0, None]))
    with pytest.raises(MalformedError, match="reset"):
        decode(bytes([RESET]) + orjson.dumps(content))


@pytest.mark.parametrize("content", [[], [None, 0.02, 1.0, None], ["user", 2, 1.0, None], ["user", 0.02]])
def test_drifts_of_a_judge_of_another_form_are_refused(content: object) -> None:
    with pytest.raises(MalformedError, match="reset"):
        decode(bytes([JUDGE_DRIFT]) + orjson.dumps(content))


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"\x06" + entry(RATED, 0.5)[1:], b"\xff" * 200, bytes([CALLED]), bytes([RESET])]
)
def test_kinds_to_come_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        decode(data)


def test_a_source_that_is_no_text_is_refused() -> None:
    with pytest.raises(MalformedError, match="UTF-8"):
        decode(entry(RATED, 0.5)[:-1] + b"\xff")


@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\x01\x00", b"\x02\x01", b"\x03", b"\x04", b"\x01\x00\x02\x00"]),
)
def test_arbitrary_bytes_are_an_event_or_malformed_and_nothing_else(data: bytes, start: bytes) -> None:
    try:
        decode(start + data)
    except MalformedError:
        return


@given(st.data())
def test_a_damaged_entry_is_an_event_in_range_or_malformed_and_nothing_else(data: st.DataObject) -> None:
    whole = bytearray(entry(RATED, 0.5, 0.25))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        event = decode(bytes(whole))
    except MalformedError:
        return
    if isinstance(event, Rated):
        assert 0.0 <= event.quality <= 1.0
        assert np.isfinite(event.decision.x).all()
