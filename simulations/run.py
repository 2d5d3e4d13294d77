"""`run SCENARIO|all`: what may happen to a route, played offline: a table, a picture and a page for each."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from simulations import scenario_pictures, scenario_tables
from simulations.contestants import CONTESTANTS
from simulations.datasets import Dataset
from simulations.page import Section, write_page
from simulations.pools import NO_PRIOR, Priors, field_of
from simulations.rehearsal import Rehearsal, rehearse
from simulations.scenarios import SCENARIOS

ALL: Final = "all"
RIVALS_OF_RATINGS: Final = (
    "router",
    "random",
    "thompson-context-free",
)  # who can play under the objective cost


@dataclass(frozen=True, slots=True)
class Plan:
    """scenarios, contestants: names; the router is always among them. prior: the name under
    which `priors` gives what the router knows beforehand. cluster: a Dask scheduler's address.
    """

    scenarios: tuple[str, ...]
    contestants: tuple[str, ...] = tuple(CONTESTANTS)
    objective: str = "balanced"
    usd_per_quality: float | None = None
    seeds: int = 5
    limit: int = 3000
    prior: str = NO_PRIOR
    priors: Callable[[Sequence[Dataset]], Priors] | None = None
    cluster: str | None = None
    progress: bool = False


def run(datasets: Sequence[Dataset], plan: Plan, *, report: Path) -> None:
    """Print the tables; write pictures, page and figures into the folder."""
    where = field_of(
        datasets,
        limit=plan.limit,
        priors=plan.priors,
        objectives=[plan.objective],
        usd_per_quality=plan.usd_per_quality,
    )
    scenarios = tuple(SCENARIOS) if ALL in plan.scenarios else plan.scenarios
    rehearsals = rehearse(
        where,
        scenarios,
        _contestants(plan),
        prior=plan.prior,
        seeds=plan.seeds,
        cluster=plan.cluster,
        progress=plan.progress,
    )
    report.mkdir(parents=True, exist_ok=True)
    sections, told = {}, {}
    for rehearsal in rehearsals:
        key = scenarios.index(rehearsal.scenario), rehearsal.pool
        sections[key] = _told(rehearsal, report)
        told[key] = scenario_tables.figures(rehearsal)
    title = f"{len(sections)} scenarios, offline"
    write_page(report / "index.html", title=title, sections=[sections[key] for key in sorted(sections)])
    (report / "scenarios.json").write_text(json.dumps([told[key] for key in sorted(told)], indent=1) + "\n")
    print(f"page: {report / 'index.html'}")


def _told(rehearsal: Rehearsal, report: Path) -> Section:
    scenario = SCENARIOS[rehearsal.scenario]
    title = f"{scenario.name}, {rehearsal.pool}"
    print(
        f"{title}: {scenario.says} {_played(rehearsal)}\n\n{scenario_tables.as_text(rehearsal)}\n", flush=True
    )
    png = scenario_pictures.draw(rehearsal, title=title, subtitle=scenario.says)
    (report / f"{scenario.name}-{rehearsal.pool}.png").write_bytes(png)
    return Section(
        title,
        scenario_tables.as_html(rehearsal),
        png,
        scenario_pictures.ALT,
        [scenario.says, _played(rehearsal)],
    )


def _contestants(plan: Plan) -> tuple[str, ...]:
    wanted = [name for name in plan.contestants if plan.objective != "cost" or name in RIVALS_OF_RATINGS]
    return tuple(dict.fromkeys(["router", *wanted]))


def _played(rehearsal: Rehearsal) -> str:
    goal = rehearsal.goal
    worth = f", a point of quality worth {goal.usd_per_quality:.3g} USD" if goal.name == "balanced" else ""
    return f"{len(rehearsal.worlds)} seeds of {len(rehearsal.worlds[0]):,} requests; objective {goal.name}{worth}."
