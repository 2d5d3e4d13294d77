"""A scenario's table, phase by phase: in a terminal, on a page, and as figures for a file."""

from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from typing import Any, Final

from simulations.rehearsal import Interval, PhaseTable, Rehearsal, Row
from simulations.tables import plain

FIXED_MAX: Final = 6  # with more models only those fixed policies are told that are watched or best


def as_text(rehearsal: Rehearsal) -> str:
    return "\n\n".join(f"{_phase_title(p)}\n{plain(_table(rehearsal, p))}" for p in rehearsal.phases)


def as_html(rehearsal: Rehearsal) -> str:
    return "\n".join(
        f"<h3>{escape(_phase_title(phase))}</h3>\n{_html(_table(rehearsal, phase))}"
        for phase in rehearsal.phases
    )


def figures(rehearsal: Rehearsal) -> dict[str, Any]:
    return {
        "scenario": rehearsal.scenario,
        "data": rehearsal.pool,
        "objective": rehearsal.goal.name,
        "usd_per_quality": rehearsal.goal.usd_per_quality,
        "seeds": len(rehearsal.worlds),
        "phases": [asdict(phase) for phase in rehearsal.phases],
    }


def _table(rehearsal: Rehearsal, phase: PhaseTable) -> list[list[str]]:
    arms = rehearsal.worlds[0].arms
    names = [f"{role}: {arms[k]}" for role, k in rehearsal.watched.items()]
    head = ["contestant", "utility [95 %]", "quality", "USD/1,000", "gap, points [95 %]", "regret", *names]
    return [head, *(_cells(row) for row in _shown(rehearsal, phase))]


def _shown(rehearsal: Rehearsal, phase: PhaseTable) -> Sequence[Row]:
    arms = rehearsal.worlds[0].arms
    if len(arms) <= FIXED_MAX:
        return phase.rows
    told = {f"always {arms[k]}" for k in rehearsal.watched.values()} | {f"always {phase.best_fixed}"}
    return [row for row in phase.rows if not row.name.startswith("always ") or row.name in told]


def _cells(row: Row) -> list[str]:
    return [
        row.name,
        _interval(row.utility, 1.0, 4),
        f"{row.quality:.4f}",
        f"{1000 * row.cost_usd:.3f}",
        _interval(row.gap, 100.0, 2),
        f"{row.regret:+.1f}",
        *(f"{100 * share:.1f} %" for share in row.shares.values()),
    ]


def _interval(of: Interval, unit: float, digits: int) -> str:
    mean, low, high = (f"{unit * value:+.{digits}f}" for value in (of.mean, of.low, of.high))
    return f"{mean} [{low}, {high}]"


def _phase_title(phase: PhaseTable) -> str:
    name = "" if phase.name == "whole" else f"{phase.name}: "
    return f"{name}{phase.requests:,} requests; best fixed model: {phase.best_fixed}"


def _html(table: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table[1:]
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
