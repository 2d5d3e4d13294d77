"""Tables for people: in a terminal and on a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Row:
    """One policy: mean quality in [0, 1], USD per 1,000 requests, mean utility, share of each model (K,)."""

    name: str
    quality: float
    usd_per_1000: float
    utility: float
    shares: tuple[float, ...]

    def cells(self) -> list[str]:
        numbers = [f"{self.quality:.4f}", f"{self.usd_per_1000:.3f}", f"{self.utility:+.4f}"]
        return [self.name, *numbers, *(f"{100 * share:.1f} %" for share in self.shares)]

    def as_dict(self, models: Sequence[str]) -> dict[str, Any]:
        return {
            "name": self.name,
            "quality": self.quality,
            "usd_per_1000": self.usd_per_1000,
            "utility": self.utility,
            "shares": dict(zip(models, self.shares, strict=True)),
        }


SHARES_MAX: Final = 6  # more columns than that do not fit a terminal


def as_text(rows: Sequence[Row], models: Sequence[str]) -> str:
    table = [_head(models), *(row.cells() for row in rows)]
    return plain(table if len(models) <= SHARES_MAX else [line[: -len(models)] for line in table])


def plain(table: Sequence[Sequence[str]]) -> str:
    """Columns aligned: the first to the left, the others to the right; a rule under the head."""
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def as_html(rows: Sequence[Row], models: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in _head(models))
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row.cells()) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _head(models: Sequence[str]) -> list[str]:
    return ["policy", "quality", "USD/1,000", "utility", *models]
