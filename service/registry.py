"""Changing the registry within its file: one model's entry, and the routes that list it. Every other byte stays.

The file remains the one truth about models and prices: what an operator changes over HTTP is written there, and gateways
that share the file follow. Where the file's author wrote an entry on many lines it becomes one line of the same fields.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

import orjson
import yaml

from service.yaml_lines import read_yaml


def with_model(text: str, name: str, fields: Mapping[str, Any], routes: Sequence[str] = ()) -> str:
    """`text`, a configuration that is right, with these fields of a model set, and the model in these routes' lists.

    A field of None is taken out. Raises KeyError for a route that is not in the file.
    """
    value = read_yaml(text).value
    entry = {**value["models"].get(name, {}), **fields}
    flow = orjson.dumps({key: field for key, field in entry.items() if field is not None}).decode()
    root = _root(text)
    edits = [_entry_edit(text, _child(root, "models"), name, flow)]
    for route in routes:
        if name not in value["routes"][route]["models"]:
            listed = _child(_child(_child(root, "routes"), route), "models")
            edits.append(_append(text, listed, orjson.dumps(name).decode()))
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def write_whole(path: Path, text: str) -> None:
    """Put `text` in the file's place at once, or leave the file as it is. Raises OSError."""
    draft = path.with_name(f".{path.name}.{token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, path.stat().st_mode & 0o777)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        draft.replace(path)
    finally:
        with suppress(FileNotFoundError):
            draft.unlink()


Edit = tuple[int, int, str]  # from, to, what stands there instead


def _entry_edit(text: str, models: yaml.MappingNode, name: str, flow: str) -> Edit:
    for key, value in models.value:
        if key.value == name:
            return value.start_mark.index, _end(value), flow
    return _append(text, models, f"{orjson.dumps(name).decode()}: {flow}")


def _append(text: str, node: yaml.CollectionNode, item: str) -> Edit:
    """One more item at the end of a list or a mapping, in the style that it is written in."""
    if node.flow_style:
        end = node.end_mark.index - 1
        return end, end, f", {item}"
    end, column = _end(node), node.start_mark.column
    dash = "- " if isinstance(node, yaml.SequenceNode) else ""
    line_end = text.find("\n", end)  # behind a comment that belongs to the last item
    at = len(text) if line_end < 0 else line_end
    return at, at, f"\n{' ' * column}{dash}{item}"


def _end(node: yaml.Node) -> int:
    """Where the node's last character is followed by something else; a block ends with its last item."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(node, yaml.MappingNode) else last)
    return int(node.end_mark.index)


def _root(text: str) -> yaml.MappingNode:
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(node, yaml.MappingNode), "the file was read before"
    return node


def _child(node: yaml.Node, key: str) -> Any:
    return next(value for name, value in node.value if name.value == key)
