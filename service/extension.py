"""The `router` object in a request's body: what this one request wants of the router. It is not sent to any model.

{"router": {"objective": "cost", "quality_floor": 0.05, "candidates": ["small", "large"], "session": "chat-17",
            "task": "summary"}}
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from service.config_shape import nearest
from service.errors import BadRequestError
from service.settings import ObjectiveName

NAME_CHARS_MAX: Final = 256
OBJECTIVES: Final = ("quality", "balanced", "cost")


@dataclass(frozen=True, slots=True)
class Extension:
    """objective, usd_per_quality, quality_floor, exploration_floor: instead of the route's own, meaning the same.

    candidates: models of the route to choose from. session: the conversation this request belongs to. task: a word that
    rules can match on.
    """

    objective: ObjectiveName | None = None
    usd_per_quality: float | None = None
    quality_floor: float | None = None
    exploration_floor: float | None = None
    candidates: tuple[str, ...] | None = None
    session: str | None = None
    task: str | None = None

    @property
    def changes_policy(self) -> bool:
        own = (self.objective, self.usd_per_quality, self.quality_floor, self.exploration_floor)
        return any(value is not None for value in own)


NONE: Final = Extension()


def parse_extension(given: Any) -> Extension:
    """Raises BadRequestError naming the field and what would be right."""
    if given is None:
        return NONE
    if not isinstance(given, dict):
        raise BadRequestError("router must be an object", param="router")
    for name in given:
        if name not in _READERS:
            told = f"router has no field {name[:100]!r}{nearest(name, frozenset(_READERS))}"
            raise BadRequestError(told, param=f"router.{name[:100]}")
    return Extension(**{name: _READERS[name](f"router.{name}", value) for name, value in given.items()})


def _objective(field: str, value: Any) -> str:
    if value not in OBJECTIVES:
        raise BadRequestError(f"{field} must be one of {', '.join(OBJECTIVES)}", param=field)
    return str(value)


def _between(low: float, high: float) -> Callable[[str, Any], float]:
    def read(field: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise BadRequestError(f"{field} must be a number from {low:g} to {high:g}", param=field)
        return float(value)

    return read


def _candidates(field: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise BadRequestError(f"{field} must be a list of at least one model's name", param=field)
    return tuple(value)


def _name(field: str, value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= NAME_CHARS_MAX:
        raise BadRequestError(f"{field} must be text of 1 to {NAME_CHARS_MAX} characters", param=field)
    return value


_READERS: Final[Mapping[str, Callable[[str, Any], Any]]] = MappingProxyType(
    {
        "objective": _objective,
        "usd_per_quality": _between(1e-9, 1e6),
        "quality_floor": _between(0, 1),
        "exploration_floor": _between(0.0001, 0.2),
        "candidates": _candidates,
        "session": _name,
        "task": _name,
    }
)
