"""Put values into the top level of a JSON object's bytes without parsing and re-serialising the rest.

The upstream gets the client's own bytes and the client the upstream's, digit for digit; only the values that are ours
to set change. The input is bytes that a JSON parser has already accepted as an object.
"""

import json
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from functools import lru_cache
from operator import itemgetter
from typing import Final

# Possessive, so that nothing is kept for backtracking: a string of megabytes costs no memory. No group that repeats
# holds a choice, which Pythons before 3.11.5 matched wrongly (gh-106052).
OPENING: Final = re.compile(rb"\s*+\{\s*+")
MEMBER: Final = re.compile(rb'[\s,]*+"([^"]*+)"\s*+:\s*+')
SCALAR: Final = re.compile(rb'"[^"]*+"|[^\s,}]++')
# The first members, up to one that is an object, an array, or a string with an escape in it.
PLAIN: Final = re.compile(rb'\s*+\{(?:\s*+"[^"\\]*+"\s*+:\s*+(?:"[^"\\]*+"|[^\s,"{}\[\]]++)\s*+,){0,64}')
VALUE: Final = re.compile(rb'\s*+:\s*+("[^"\\]*+"|[^\s,"{}\[\]]++)')
BRACKET: Final = re.compile(rb'[^"{}\[\]]*+(?:"[^"]*+"[^"{}\[\]]*+)*+([{}\[\]])')

Member = tuple[str, int, int]  # key, start and end of its value


def replace_values(data: bytes, values: Mapping[str, bytes]) -> bytes:
    """`data` with `values` (key -> JSON) set at the top level; every other byte stays as it was.

    A key that is missing is inserted behind the opening brace. A key written twice is set twice: parsers differ in which
    of the two they take. Raises ValueError if `data` is not an object.
    """
    missing = dict(values)
    spans = _plain_spans(data, values)
    members = _members(data) if spans is None else spans
    pieces: list[bytes] = []
    done = 0
    for key, start, end in members:
        if key in values:
            pieces += (data[done:start], values[key])
            missing.pop(key, None)
            done = end
    pieces.append(data[done:])
    return _insert(b"".join(pieces), missing)


def without_key(data: bytes, key: str) -> bytes:
    """`data` without the top-level member `key`, which may stand first, last, alone or twice. Raises ValueError if `data`
    is not an object.
    """
    kept: list[bytes] = []
    begun = done = _opening_end(data)
    for name, _, end in _members(data):
        if name != key:
            member = data[done:end]  # with the comma and the space before it
            kept.append(member if kept else member.lstrip(b", \t\r\n"))
        done = end
    return b"".join((data[:begun], *kept, data[done:]))


def value_ends(data: bytes, keys: Container[str]) -> list[int]:
    """Where the values of these top-level keys end, one for each time that one is written."""
    return [end for key, _, end in _members(data) if key in keys]


def duplicate_keys(data: bytes, keys: Iterable[str] = ()) -> tuple[str, ...]:
    """The top-level keys that are written more than once. Raises ValueError if `data` is not an object.

    keys: those that a parser found, each once; where each of them stands in the whole text but once, there is no need to
    look where.
    """
    if keys and _is_spelled_plainly(data):
        spelled = [_spelled(key) for key in keys]
        if [key for key in spelled if key is None or data.count(key) != 1] == []:
            return ()
    counts = Counter(key for key, _, _ in _members(data))
    return tuple(key for key, count in counts.items() if count > 1)


def _plain_spans(data: bytes, keys: Iterable[str]) -> list[Member] | None:
    """Where the values of these keys stand, in order, without those that are nowhere in `data`; None where that takes a
    closer look: a key stands twice, or not among the plain members at the beginning.
    """
    opening = PLAIN.match(data)
    if opening is None or not _is_spelled_plainly(data):
        return None
    spans: list[Member] = []
    for key in keys:
        spelled = _spelled(key)
        if spelled is None:
            return None
        at = data.find(spelled)
        if at < 0:
            continue
        value = VALUE.match(data, at + len(spelled))
        if value is None or value.end() > opening.end() or data.find(spelled, at + 1) >= 0:
            return None
        spans.append((key, *value.span(1)))
    return sorted(spans, key=itemgetter(1))


def _is_spelled_plainly(data: bytes) -> bool:
    """No key of ASCII can be hidden behind an escape that it does not need."""
    return b"\\" not in data or (b"\\u00" not in data and b"\\/" not in data)


@lru_cache(maxsize=1024)
def _spelled(key: str) -> bytes | None:
    """The one way to write this key without needless escapes; None for one with characters that have several."""
    plain = key.isascii() and key.isprintable() and not set(key) & set('"\\/')
    return f'"{key}"'.encode() if plain else None


def _members(data: bytes) -> Iterator[Member]:
    """Each member of the object in the order written."""
    # With the escapes masked, byte for byte, a quote begins or ends a string and nothing else.
    plain = data.replace(rb"\\", b"__").replace(rb"\"", b"__") if b"\\" in data else data
    position = _opening_end(plain)
    while (member := MEMBER.match(plain, position)) is not None:
        start = member.end()
        position = _value_end(plain, start)
        yield _key(data[member.start(1) : member.end(1)]), start, position


def _opening_end(data: bytes) -> int:
    opening = OPENING.match(data)
    if opening is None:
        raise ValueError("values can be put into a JSON object only, and this is none")
    return opening.end()


def _value_end(plain: bytes, start: int) -> int:
    if plain[start] not in b"{[":
        scalar = SCALAR.match(plain, start)
        assert scalar is not None, "the bytes were to be JSON that a parser accepted"
        return scalar.end()
    depth = 0
    for bracket in BRACKET.finditer(plain, start):
        end = bracket.end()
        depth += 1 if plain[end - 1] in b"{[" else -1
        if depth == 0:
            return end
    raise AssertionError("the bytes were to be JSON that a parser accepted")


def _key(raw: bytes) -> str:
    if b"\\" not in raw:
        return raw.decode()
    key: str = json.loads(b'"%b"' % raw)
    return key


def _insert(data: bytes, values: Mapping[str, bytes]) -> bytes:
    if not values:
        return data
    members = b",".join(b"%b:%b" % (json.dumps(key).encode(), value) for key, value in values.items())
    at = data.index(b"{") + 1
    comma = b"" if data[_opening_end(data)] in b"}" else b","
    return b"".join((data[:at], members, comma, data[at:]))
