"""YAML read so that every value keeps its line, and so that nothing in it surprises.

The subset is what a configuration needs: one document of mappings, lists and scalars. Plain scalars follow YAML 1.2's
core schema (`on`, `12:30` and `2024-01-01` are text, `1e-3` is a number), not YAML 1.1's. Anchors, aliases, tags,
duplicate keys, keys that are not text, and depth beyond reason are refused, each with its line.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

MAX_DEPTH: Final = 16
NULL: Final = re.compile(r"|~|null|Null|NULL")
BOOL: Final = re.compile(r"true|True|TRUE|false|False|FALSE")
INT: Final = re.compile(r"[-+]?[0-9]{1,18}")
FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
NOT_FINITE: Final = re.compile(r"([-+]?)\.(inf|Inf|INF|nan|NaN|NAN)")

Location = tuple[str | int, ...]  # ("routes", "auto", "models", 1)


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong at one place. line: counted from 1."""

    line: int
    location: Location
    sentence: str


@dataclass(frozen=True, slots=True)
class Document:
    """value: the root, or None if the text could not be read at all. lines: where each field and list item stands."""

    value: Any
    lines: Mapping[Location, int]
    problems: tuple[Problem, ...]

    def line_of(self, location: Location) -> int:
        """The line of the field, or of the nearest one around it that exists."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location, 1)


def read_yaml(text: str) -> Document:
    """Never raises: what is wrong with the text stands in `problems`."""
    try:
        root = _compose(text)
    except _RefusedError as refusal:
        return _unreadable(refusal.line, refusal.sentence)
    except yaml.MarkedYAMLError as error:
        return _unreadable(*_syntax_error(error, text))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        return _unreadable(line, f"the character U+{ord(text[error.position]):04X} may not stand in YAML")
    reading = _Reading()
    value = None if root is None else reading.value(root, ())
    if value is None:
        return _unreadable(1, "the file is empty; it should at least have `models` and `routes`")
    return Document(value, reading.lines, tuple(reading.problems))


class _RefusedError(Exception):
    def __init__(self, line: int, sentence: str) -> None:
        super().__init__(sentence)
        self.line = line
        self.sentence = sentence


class _Composer(yaml.SafeLoader):
    """Refuses what could grow, recur or construct, before it is built."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _RefusedError(line, "anchors (&) and aliases (*) are not supported; write the value out")
        if event.tag is not None:
            raise _RefusedError(line, f"tags are not supported; remove {_shown(event.tag)}")
        if self.depth == MAX_DEPTH:
            raise _RefusedError(line, f"nested deeper than {MAX_DEPTH} levels")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _compose(text: str) -> yaml.Node | None:
    loader = _Composer(text)
    try:
        return loader.get_single_node()
    except (OverflowError, ValueError):  # PyYAML does not check "\UFFFFFFFF", nor %YAML with 5000 digits
        raise _RefusedError(loader.line + 1, "an escape or a directive here is out of range") from None
    finally:
        loader.dispose()


@dataclass(slots=True)
class _Reading:
    """Nodes into values, noting lines and problems on the way."""

    lines: dict[Location, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def value(self, node: yaml.Node, location: Location) -> Any:
        self.lines.setdefault(location, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, location)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*location, index)) for index, item in enumerate(node.value)]
        return _scalar(node)

    def _mapping(self, mapping: yaml.MappingNode, location: Location) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in mapping.value:
            line = key_node.start_mark.line + 1
            if not isinstance(_scalar(key_node), str):
                sentence = f"the key {_shown(key_node.value)} is not text; put it in quotes"
                self.problems.append(Problem(line, location, sentence))
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            key = key_node.value  # also of a number: what stands below it is then checked all the same
            if key in values:
                sentence = f"duplicate key; it stands on line {self.lines[*location, key]} already"
                self.problems.append(Problem(line, (*location, key), sentence))
            else:
                self.lines[*location, key] = line
                values[key] = self.value(value_node, (*location, key))
        return values


def _scalar(node: yaml.Node) -> Any:
    """What a scalar means: in quotes, or as a block, it is text; a mapping or a list is no scalar and means nothing."""
    if not isinstance(node, yaml.ScalarNode):
        return None
    return node.value if node.style is not None else _plain(node.value)


def _plain(text: str) -> Any:
    if NULL.fullmatch(text):
        return None
    if BOOL.fullmatch(text):
        return text.lower() == "true"
    if INT.fullmatch(text):
        return int(text)
    if FLOAT.fullmatch(text):
        return float(text)
    if special := NOT_FINITE.fullmatch(text):
        return float(special[1] + special[2])
    return text


def _syntax_error(error: yaml.MarkedYAMLError, text: str) -> tuple[int, str]:
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return 1, f"this is not YAML: {error.problem}"
    if text[mark.index : mark.index + 1] == "\t":
        return mark.line + 1, "a tab stands here; YAML is indented with spaces only"
    return mark.line + 1, f"this is not YAML: {error.problem}"


def _unreadable(line: int, sentence: str) -> Document:
    return Document(None, {}, (Problem(line, (), sentence),))


def _shown(text: Any) -> str:
    """A word of the file in quotes, clipped, with whatever does not print escaped."""
    shown = repr(text) if isinstance(text, str) else "here"
    return shown if len(shown) <= 80 else f"{shown[:80]}…"
