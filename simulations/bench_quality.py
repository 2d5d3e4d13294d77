"""`bench quality`: the router on every pool of recorded outcomes beside its rivals, as Markdown; BENCHMARKS.md holds a run.

Five tables: gaps to the best fixed model in every case, their means and the paired differences to each rival, what features
that tell nothing cost (nothing, it should be), what the best model's quality costs when one may choose, and how well the
lengths of answers are foretold.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from simulations import equal_quality, foretold, pool_tables
from simulations.datasets import Dataset
from simulations.pools import (
    NO_PRIOR,
    RIVALS,
    Field,
    Priors,
    field_of,
    gap_tasks,
    gaps_of,
    harm_of,
    harm_tasks,
    play_all,
)
from simulations.world import Features

PARTS: Final = ("gaps", "harm", "cost", "lengths")


@dataclass(frozen=True, slots=True)
class Plan:
    """prior: the name under which `priors` gives what the router knows beforehand. features: None are the shipped ones.
    cluster: a Dask scheduler.
    """

    seeds: int = 5
    limit: int = 3000
    learn: int = equal_quality.LEARN
    rivals: tuple[str, ...] = RIVALS
    parts: tuple[str, ...] = PARTS
    prior: str = NO_PRIOR
    priors: Callable[[Sequence[Dataset]], Priors] | None = None
    features: Features | None = None
    cluster: str | None = None


def run(datasets: Sequence[Dataset], plan: Plan, *, json_to: Path | None = None) -> None:
    """Print each table as soon as it is made."""
    where = field_of(datasets, limit=plan.limit, priors=plan.priors, features=plan.features)
    report: dict[str, Any] = {}
    for part in plan.parts:
        print(_PRINT[part](where, plan, report), flush=True)
    if json_to is not None:
        json_to.write_text(json.dumps(report, indent=1) + "\n")


def _gaps(where: Field, plan: Plan, report: dict[str, Any]) -> str:
    names = ["router", *(name for name in plan.rivals if name != "router")]
    tasks = gap_tasks(where, names, prior=plan.prior, seeds=plan.seeds)
    played = play_all(where, tasks, cluster=plan.cluster, progress=_seen())
    chosen = gaps_of(where, played, names, prior=plan.prior)
    rows = pool_tables.summaries(where, chosen)
    report["gaps"] = pool_tables.figures(where, chosen)
    told = (
        f"Gaps in points to the best fixed model in hindsight, {plan.seeds} orders of at most {plan.limit} requests, "
        f"prior: {plan.prior}; rivals: whole stream / last third."
    )
    chosen_from = (
        f"Standard errors are clustered by source ({_sources(where)}). Settings are chosen on the other sources, from "
        f"{pool_tables.grids(names)}."
    )
    return "\n".join(
        [
            "## Every pool\n",
            told,
            "",
            pool_tables.gap_table(where, chosen),
            "",
            pool_tables.summary_table(rows),
            "",
            chosen_from,
            "",
        ]
    )


def _harm(where: Field, plan: Plan, report: dict[str, Any]) -> str:
    played = play_all(where, harm_tasks(where, seeds=plan.seeds), cluster=plan.cluster, progress=_seen())
    harm = {prior: harm_of(where, played, prior) for prior in where.priors}
    report["harm"] = [
        {
            "data": pool,
            "objective": objective,
            "prior": prior,
            **{view: found.whole.tolist() for view, found in views.items()},
        }
        for prior, cases in harm.items()
        for (pool, objective), views in cases.items()
    ]
    return "## Do no harm: features that tell nothing\n\n" + pool_tables.harm_table(harm) + "\n"


def _cost(where: Field, plan: Plan, report: dict[str, Any]) -> str:
    shares = equal_quality.shares(
        where,
        ["router"],
        prior=plan.prior,
        seeds=plan.seeds,
        learn=plan.learn,
        cluster=plan.cluster,
        progress=_seen(),
    )
    report["cost"] = {pool: dict(share.shares) for pool, share in shares.items()}
    return (
        "## Cost at equal quality: share of the best model's cost at its quality minus half a point\n\n"
        f"After {plan.learn:,} requests, on requests that were not learned from.\n\n"
        + pool_tables.cost_table(shares)
        + "\n"
    )


def _lengths(where: Field, plan: Plan, report: dict[str, Any]) -> str:
    report["lengths"], told = foretold.figures(
        where, seeds=plan.seeds, cluster=plan.cluster, progress=_seen()
    )
    return f"## How well the length of an answer is foretold\n\n{told}\n"


_PRINT: Final = {"gaps": _gaps, "harm": _harm, "cost": _cost, "lengths": _lengths}


def _sources(where: Field) -> str:
    by_source: dict[int, list[str]] = {}
    for pool, source in where.sources.items():
        by_source.setdefault(source, []).append(pool)
    return "; ".join(" + ".join(pools) for pools in by_source.values())


def _seen() -> bool:
    return sys.stderr.isatty()
