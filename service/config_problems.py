"""What is wrong with a configuration, as sentences that a person can act on: where, what, and what would be right."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from service.config_shape import (
    AccessEntry,
    AdminEntry,
    BudgetEntry,
    CascadeEntry,
    DecisionLogEntry,
    DeploymentEntry,
    EmbedderEntry,
    FileEntry,
    KeyEntry,
    LatencyEntry,
    ModelEntry,
    NewcomersEntry,
    RampEntry,
    RouteEntry,
    RuleEntry,
    ServerEntry,
    StoreEntry,
    UpstreamEntry,
    WhenEntry,
    nearest,
)
from service.yaml_lines import Document, Location, Problem

MAX_SHOWN: Final = 100
SHAPES: Final[Mapping[tuple[str, ...], type[BaseModel]]] = (
    MappingProxyType(  # * stands for any name or number
        {
            (): FileEntry,
            ("server",): ServerEntry,
            ("access",): AccessEntry,
            ("access", "keys", "*"): KeyEntry,
            ("admin",): AdminEntry,
            ("store",): StoreEntry,
            ("upstream",): UpstreamEntry,
            ("embedder",): EmbedderEntry,
            ("decision_log",): DecisionLogEntry,
            ("budgets", "*"): BudgetEntry,
            ("models", "*"): ModelEntry,
            ("models", "*", "deployments", "*"): DeploymentEntry,
            ("cascades", "*"): CascadeEntry,
            ("routes", "*"): RouteEntry,
            ("routes", "*", "latency"): LatencyEntry,
            ("routes", "*", "newcomers"): NewcomersEntry,
            ("routes", "*", "ramp"): RampEntry,
            ("routes", "*", "rules", "*"): RuleEntry,
            ("routes", "*", "rules", "*", "when"): WhenEntry,
        }
    )
)
EXPECTED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "missing": "missing; this field is required",
        "too_short": "should have at least one entry",
        "dict_too_short": "should have at least one entry",
        "model_type": "should be a mapping of fields, not {given}",
        "dict_type": "should be a mapping from names to their fields, not {given}",
        "list_type": "should be a list, not {given}",
        "string_type": "should be text, not {given}; put it in quotes if it is meant as text",
        "float_type": "should be a number, not {given}",
        "int_type": "should be a whole number, not {given}",
        "int_from_float": "should be a whole number, not {given}",
        "bool_type": "should be true or false, not {given}",
    }
)


class ConfigError(ValueError):
    """The configuration cannot be used. One line per problem: `gateway.yaml:12: routes.auto.models[1]: ...`."""

    def __init__(self, source: str, problems: Iterable[Problem]) -> None:
        ordered = sorted(problems, key=lambda problem: problem.line or 0)
        lines = [_rendered(source, problem) for problem in ordered[:MAX_SHOWN]]
        if len(ordered) > MAX_SHOWN:
            lines.append(f"{source}: and {len(ordered) - MAX_SHOWN} more problems")
        super().__init__("\n".join(lines))


def problems_of(error: ValidationError, document: Document) -> list[Problem]:
    """Each of pydantic's findings at its line, in our words."""
    return [_problem(detail, document) for detail in error.errors(include_url=False)]


def _problem(detail: ErrorDetails, document: Document) -> Problem:
    location = tuple(part for part in detail["loc"] if part != "[key]")
    return Problem(document.line_of(location), location, _sentence(detail, location))


def _sentence(detail: ErrorDetails, location: Location) -> str:
    match detail:
        case {"type": "config", "msg": message}:
            sentence = message
        case {"type": "extra_forbidden"}:
            sentence = f"unknown field{nearest(str(location[-1]), _fields_at(location[:-1]))}"
        case {"type": "literal_error", "input": str(given), "ctx": {"expected": expected}}:
            sentence = f"unknown word {given!r:.100}{nearest(given, _quoted(expected))}"
        case {"type": kind, "input": given} if kind in EXPECTED:
            sentence = EXPECTED[kind].format(given=_kind_of(given))
        case {"msg": message, "input": int() | float() as given}:
            sentence = f"{message.replace('Input should', 'should')}, not {given}"
        case {"msg": message}:
            sentence = message.replace("Input should", "should")
    return sentence


def _quoted(words: str) -> frozenset[str]:
    """'a', 'b' or 'c' -> {a, b, c}"""
    return frozenset(words.split("'")[1::2])


def _fields_at(location: Location) -> frozenset[str]:
    for pattern, shape in SHAPES.items():
        if len(pattern) == len(location) and all(
            here in ("*", part) for here, part in zip(pattern, location, strict=True)
        ):
            return frozenset(shape.model_fields)
    raise AssertionError("every section has its shape")


def _kind_of(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"{value}".lower()
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, list) else "a mapping"


def _rendered(source: str, problem: Problem) -> str:
    path = "".join(
        f"[{part}]" if isinstance(part, int) else f".{_on_one_line(part)}" for part in problem.location
    )
    place = f"{path.removeprefix('.')}: " if path else ""
    return f"{source}:{problem.line}: {place}{problem.sentence}"


def _on_one_line(name: str) -> str:
    return name if name.isprintable() and len(name) <= 200 else f"{name!r:.200}"
