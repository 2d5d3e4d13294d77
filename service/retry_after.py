"""`retry-after` as upstreams write it: seconds, milliseconds or a date; nonsense, the past and the far future included."""

from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

LONGEST_S: Final = 3600.0  # whoever asks for more has made a mistake


def retry_after_s(headers: Mapping[str, str], *, now: float) -> float | None:
    """How long the upstream wants to be left alone, 0 to LONGEST_S; None if it does not say. now: Unix seconds."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return _bounded(milliseconds / 1000)
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None:
        return _bounded(seconds)
    at = _date(value)
    return None if at is None else _bounded(at - now)


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), LONGEST_S)


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if number == number else None  # noqa: PLR0124 - NaN


def _date(value: str | None) -> float | None:
    try:
        at = parsedate_to_datetime(value or "")
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
