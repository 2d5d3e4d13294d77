from itertools import pairwise

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.sse import EventSplitter, EventTooLargeError, data_of, with_data

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # no test fails for time

LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
PIECES = st.sampled_from(
    [b"\n", b"\r", b"\r\n", b"data: x", b"data:", b": ping", b"event: e", "é\U0001f600".encode(), b" "]
)
STREAMS = st.lists(PIECES, max_size=24).map(b"".join) | st.binary(max_size=60)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=12)


def split_whole(stream: bytes) -> tuple[list[bytes], bytes]:
    splitter = EventSplitter()
    return splitter.feed(stream), splitter.rest()


@PATIENT
@given(STREAMS, st.data())
@example(b"data: x\r\n\r\ndata: y\r\r\n\n\n\n", None)
def test_however_a_stream_is_chunked_its_events_are_the_same(
    stream: bytes, data: st.DataObject | None
) -> None:
    cuts = range(len(stream)) if data is None else data.draw(st.sets(st.integers(0, len(stream))))
    bounds = [0, *sorted(cuts), len(stream)]
    splitter = EventSplitter()
    events = [event for start, end in pairwise(bounds) for event in splitter.feed(stream[start:end])]
    assert (events, splitter.rest()) == split_whole(stream)
    assert b"".join(events) + splitter.rest() == stream


@PATIENT
@given(STREAMS)
def test_an_event_ends_at_its_first_blank_line(stream: bytes) -> None:
    events, _ = split_whole(stream)
    for event in events:
        lines = event.splitlines()  # of bytes: at LF, CRLF and CR, as the standard has it
        assert lines[-1] == b""
        assert all(
            lines[1:-1]
        )  # a stream may begin an event with a line end; a second one would have ended it


@PATIENT
@given(st.lists(TEXTS.filter(lambda text: text != ""), max_size=5), LINE_ENDS)
def test_data_comes_back_as_it_was_sent(texts: list[str], line_end: bytes) -> None:
    events = [b"data: " + text.encode() + line_end * 2 for text in texts]
    end = b": end" + line_end * 2 + b":"  # an event that ends in CR waits for the byte behind it
    found, _ = split_whole(b"".join(events) + end)
    assert found == [*events, b": end" + line_end * 2]
    assert [data_of(event) for event in found] == [*(text.encode() for text in texts), None]


def test_an_event_is_complete_as_soon_as_its_blank_line_is() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b'data: {"a": 1}\n') == []
    assert splitter.feed(b"\n") == [b'data: {"a": 1}\n\n']
    assert splitter.feed(b"data: 1\r\n\r") == []
    assert splitter.feed(b"\ndata: 2\r\n\r\ndata") == [b"data: 1\r\n\r\n", b"data: 2\r\n\r\n"]
    assert splitter.rest() == b"data"


def test_a_stream_that_ends_without_a_blank_line_leaves_its_last_event() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"data: [DONE]\n") == []
    assert data_of(splitter.rest()) == b"[DONE]"


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\n\n", b"x"),
        (b"data:  x \n\n", b" x "),
        (b"data: a: b\r\n\r\n", b"a: b"),
        (b"event: e\nid: 7\ndata: x\n\n", b"x"),
        (b": note\rdata: x\rdata: y\r\r", b"x\ny"),
        (b"data\n\n", b""),
        (b"data:\ndata:\n\n", b"\n"),
        (b"data: \xc2\x85\x0b\x0c\x1c\n\n", b"\xc2\x85\x0b\x0c\x1c"),
        (b": ping\n\n", None),
        (b"event: e\ndatax: 1\n Data: 2\n\n", None),
        (b"\n\n", None),
    ],
)
def test_the_data_of_an_event_is_read_as_the_standard_says(event: bytes, data: bytes | None) -> None:
    assert data_of(event) == data


def test_new_data_keeps_the_other_lines_and_the_line_ends() -> None:
    event = b": note\r\nevent: data\r\ndata: old\r\nid: 7\r\n\r\n"
    assert with_data(event, b"new") == b": note\r\nevent: data\r\ndata: new\r\nid: 7\r\n\r\n"
    assert with_data(b"data: old\r\n\r\n", b"a\nb") == b"data: a\r\ndata: b\r\n\r\n"


@PATIENT
@given(
    st.lists(
        st.sampled_from([b": note", b"event: e", b"data: x", b"data:y", b"data"]), min_size=1, max_size=5
    ),
    LINE_ENDS,
    st.booleans(),
    st.lists(TEXTS, min_size=1, max_size=3),
)
def test_new_data_is_what_is_read_back(
    lines: list[bytes], end: bytes, complete: bool, texts: list[str]
) -> None:
    event = end.join(lines) + (end * 2 if complete else b"")
    data = "\n".join(texts).encode()
    if data_of(event) is None:
        with pytest.raises(ValueError, match="no data line"):
            with_data(event, data)
        return
    changed = with_data(event, data)
    assert data_of(changed) == data
    others = [line for line in lines if not line.startswith(b"data")]
    assert [line for line in changed.splitlines() if line and not line.startswith(b"data")] == others


@pytest.mark.parametrize("ending", [b"", b"\n\n"], ids=["unfinished", "finished"])
def test_an_event_beyond_the_limit_is_refused(ending: bytes) -> None:
    within, beyond = b"data: " + b"x" * (94 - len(ending)), b"data: " + b"x" * (95 - len(ending))
    EventSplitter(max_event_bytes=100).feed(within + ending)
    with pytest.raises(EventTooLargeError, match="100 bytes"):
        EventSplitter(max_event_bytes=100).feed(beyond + ending)
    splitter = EventSplitter(max_event_bytes=100)
    assert [splitter.feed(b"%c" % byte) for byte in (beyond + ending)[:100]] == [[]] * 100
    with pytest.raises(EventTooLargeError, match="100 bytes"):
        splitter.feed((beyond + ending)[100:])


def test_many_events_together_may_exceed_the_limit_of_one() -> None:
    assert len(EventSplitter(max_event_bytes=100).feed(b"data: x\n\n" * 1000)) == 1000


def test_an_event_of_megabytes_in_tiny_chunks_is_put_together() -> None:
    splitter = EventSplitter()
    chunk = b"x" * 700
    assert [splitter.feed(chunk) for _ in range(10_000)] == [[]] * 10_000
    assert splitter.feed(b"\n\n") == [chunk * 10_000 + b"\n\n"]
