"""Fields that would tell a gateway where to send a request, or with which key: refused wherever they stand.

A provider library behind some gateway once honoured each of these, at the root or deep inside, and so handed keys and
prompts to whoever asked. Names inside a JSON schema's `properties` are the client's own data and are let through: a tool
may well have a parameter `base_url`.
"""

import re
from typing import Any, Final

FORBIDDEN: Final = frozenset(
    {"api_base", "base_url", "api_key", "extra_headers", "extra_body", "custom_llm_provider"}
)
# Reading the bytes first spares nearly every request the walk. An escaped letter could hide a name from this reading.
_SUSPECT: Final = re.compile(
    rb"\\u00[46][0-9a-fA-F]|\\u007[0-9aA]|\\u005[0-9aAfF]|" + "|".join(FORBIDDEN).encode()
)
_SCHEMAS: Final = frozenset({"parameters", "input_schema", "schema"})
_NAMED_BY_CLIENT: Final = frozenset({"properties", "patternProperties", "$defs", "definitions"})


def forbidden_field(body: bytes, data: Any) -> str | None:
    """The path of a forbidden field in the parsed body, such as `metadata.api_base` or `tools[0].extra_body`; or None."""
    if _SUSPECT.search(body) is None:
        return None
    pending: list[tuple[str, Any, bool, bool]] = [
        ("", data, False, False)
    ]  # path, value, in a schema, names are data
    while pending:
        path, value, in_schema, names_are_data = pending.pop()
        if isinstance(value, list):
            pending += ((f"{path}[{i}]", item, in_schema, False) for i, item in enumerate(value))
        elif isinstance(value, dict):
            for name, inner in value.items():
                here = f"{path}.{name}" if path else name
                if name in FORBIDDEN and not names_are_data:
                    return here
                schema = in_schema or name in _SCHEMAS
                data_inside = schema and not names_are_data and name in _NAMED_BY_CLIENT
                pending.append((here, inner, schema, data_inside))
    return None
