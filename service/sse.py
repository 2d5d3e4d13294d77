"""Server-sent events out of a byte stream, each kept as the very bytes that arrived.

An event ends with a blank line; a line ends with LF, CRLF or CR (WHATWG HTML, 9.2.5 and 9.2.6). Chunks may end
anywhere: inside a character, inside a line end, between events.
"""

import re
from typing import Final

MAX_EVENT_BYTES: Final = 8 * 1024 * 1024
BLANK_LINE: Final = re.compile(rb"(?:\r\n?+|\n)(?:\r\n?+|\n)")  # possessive: CRLF is one line end, never two
TERMINATOR_BYTES: Final = 4  # the longest: CRLF CRLF


class EventTooLargeError(ValueError):
    """An event grew beyond the limit before its blank line came."""


class EventSplitter:
    """Cuts a stream into events: however it is chunked, the events are the same and no byte is lost or added.

    A CR at the very end of what has arrived may be half a CRLF, so an event that ends there waits for the next byte.
    """

    __slots__ = ("_held", "_max_event_bytes")

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._held = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that `chunk` completes, each with its blank line. Raises EventTooLargeError."""
        if not self._held and _is_one_event(chunk) and len(chunk) <= self._max_event_bytes:
            return [chunk]
        searched = max(0, len(self._held) - TERMINATOR_BYTES + 1)
        self._held += chunk
        events: list[bytes] = []
        start = 0
        for end in self._event_ends(searched):
            events.append(bytes(self._held[start:end]))
            start = end
        del self._held[:start]
        longest = max(len(self._held), max(map(len, events), default=0))
        if longest > self._max_event_bytes:
            raise EventTooLargeError(f"an event of the stream is longer than {self._max_event_bytes} bytes")
        return events

    def rest(self) -> bytes:
        """What has arrived after the last complete event: at the end of a stream, an event without its blank line."""
        return bytes(self._held)

    def _event_ends(self, start: int) -> list[int]:
        ends = [blank.end() for blank in BLANK_LINE.finditer(self._held, start)]
        if ends and ends[-1] == len(self._held) and self._held.endswith(b"\r"):
            ends.pop()
        return ends


def data_of(event: bytes) -> bytes | None:
    r"""The event's data, several lines of it joined by \n; None if it has none (a comment, a bare `event:`)."""
    lines = [line for line in event.splitlines() if _is_data(line)]
    if not lines:
        return None
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines)


def with_data(event: bytes, data: bytes) -> bytes:
    r"""`event` with `data` in place of its own, one data line per line of it; its other lines stay.

    `data` holds no CR. Raises ValueError if the event has no data to replace.
    """
    lines = event.splitlines(keepends=True)
    places = [index for index, line in enumerate(lines) if _is_data(line.rstrip(b"\r\n"))]
    if not places:
        raise ValueError("the event has no data line that could be replaced")
    first = places[0]
    line_end = lines[first][len(lines[first].rstrip(b"\r\n")) :]
    for index in places:
        lines[index] = b""
    lines[first] = (line_end or b"\n").join(b"data: " + line for line in data.split(b"\n")) + line_end
    return b"".join(lines)


def _is_one_event(chunk: bytes) -> bool:
    """As most chunks are: with LF only, and its one blank line at the end."""
    return chunk.endswith(b"\n\n") and chunk.find(b"\n\n") == len(chunk) - 2 and b"\r" not in chunk


def _is_data(line: bytes) -> bool:
    return line.startswith(b"data:") or line == b"data"
