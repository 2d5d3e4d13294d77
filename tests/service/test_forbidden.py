import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.forbidden import FORBIDDEN, forbidden_field

names = st.sampled_from(["a", "metadata", "tools", "properties", "parameters", "schema", *sorted(FORBIDDEN)])
values = st.recursive(
    st.none() | st.integers() | st.sampled_from(sorted(FORBIDDEN)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=15,
)


def written(value, *, escaped: bool = False) -> bytes:
    text = json.dumps(value)
    if escaped:
        for name in FORBIDDEN:
            text = text.replace(f'"{name}"', '"' + "".join(f"\\u{ord(c):04x}" for c in name) + '"')
    return text.encode()


def keys(value, *, in_schema: bool = False, names_are_data: bool = False):
    """Every key that is a field: the reference, by recursion."""
    if isinstance(value, list):
        for item in value:
            yield from keys(item, in_schema=in_schema)
    elif isinstance(value, dict):
        for name, inner in value.items():
            if not names_are_data:
                yield name
            schema = in_schema or name in ("parameters", "schema", "input_schema")
            yield from keys(
                inner, in_schema=schema, names_are_data=schema and not names_are_data and name == "properties"
            )


@given(st.dictionaries(names, values, max_size=4), st.booleans())
def test_a_forbidden_field_is_found_wherever_it_stands_and_however_it_is_written(data, escaped):
    body = written(data, escaped=escaped)
    found = forbidden_field(body, json.loads(body))
    assert (found is not None) == bool(FORBIDDEN & set(keys(data)))
    if found is not None:
        assert found.split(".")[-1].split("[")[0] in FORBIDDEN


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"a": [{}, {"b": {"api_key": 1}}]}, "a[1].b.api_key"),
        ({"tools": [{"function": {"parameters": {"api_key": 1}}}]}, "tools[0].function.parameters.api_key"),
        ({"properties": {"api_key": 1}}, "properties.api_key"),
        ({"tools": [{"function": {"parameters": {"properties": {"api_key": {"extra_body": 1}}}}}]}, "tools[0].function.parameters.properties.api_key.extra_body"),
        ({"messages": [{"content": "api_key"}]}, None),
    ],
)  # fmt: skip
def test_its_path_is_told(data, path):
    assert forbidden_field(written(data), data) == path
