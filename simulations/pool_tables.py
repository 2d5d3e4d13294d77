"""The tables of `bench quality`, as Markdown and as figures for a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulations.contestants import CONTESTANTS
from simulations.equal_quality import Share
from simulations.metrics import best_fixed, clustered_mean, paired_bootstrap_interval
from simulations.pools import HARMLESS, Chosen, Field, Gaps, hindsight_gaps

Floats = NDArray[np.float64]
Case = tuple[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """One contestant over all cases, in points. worst: the case with the lowest mean, and that mean. ahead, ahead_se: the
    router minus it over the whole stream, clustered by source.
    """

    name: str
    setting: str
    whole: float
    last_third: float
    worst_whole: tuple[str, float]
    worst_last_third: tuple[str, float]
    ahead: float
    ahead_se: float


def summaries(where: Field, chosen: Mapping[str, Chosen]) -> list[Summary]:
    """In the order of `chosen`, of which the router must be one."""
    cases = where.cases()
    sources = [where.sources[pool] for pool, _ in cases]
    means = {
        name: 100 * np.array([[c.gaps[case].whole.mean(), c.gaps[case].last_third.mean()] for case in cases])
        for name, c in chosen.items()
    }
    result = []
    for name, c in chosen.items():
        whole, last = means[name].T
        ahead, se = clustered_mean(means["router"][:, 0] - whole, sources)
        result.append(
            Summary(
                name,
                _settings(name, c),
                float(whole.mean()),
                float(last.mean()),
                (_case_name(cases[int(whole.argmin())]), float(whole.min())),
                (_case_name(cases[int(last.argmin())]), float(last.min())),
                ahead,
                se,
            )
        )
    return result


def gap_table(where: Field, chosen: Mapping[str, Chosen]) -> str:
    """Every case: the router's gaps with 95 % intervals, the rivals', and what hindsight could reach."""
    rivals = [name for name in chosen if name != "router"]
    hindsight = ["per-task best", "ridge, full information", "oracle"]
    head = ["data", "objective", "best fixed", "router, whole", "router, last third", *rivals, *hindsight]
    lines = []
    for case in where.cases():
        known = hindsight_gaps(where, case)
        data = where.datasets[case[0]]
        cells = [case[0], case[1], data.arms[best_fixed(data, where.goals[case])].name]
        cells += _with_intervals(chosen["router"].gaps[case])
        cells += [_pair(chosen[name].gaps[case]) for name in rivals]
        cells += [_points(known[name]) for name in hindsight]
        lines.append(cells)
    return markdown([head, *lines])


def summary_table(rows: Sequence[Summary]) -> str:
    head = [
        "contestant",
        "settings chosen",
        "whole",
        "last third",
        "worst case, whole",
        "worst case, last third",
        "router minus it ± se",
    ]
    return markdown([head, *(_summary_cells(row) for row in rows)])


def harm_table(harm: Mapping[str, Mapping[Case, Mapping[str, Gaps]]]) -> str:
    """harm: prior -> case -> view -> gaps. Each view beside the bias alone, and the mean of all cases."""
    views = [f"{view} minus bias alone [95 %]" for view in HARMLESS]
    lines = [["data", "objective", "prior", "bias alone", *views]]
    for prior, cases in harm.items():
        for (pool, objective), found in cases.items():
            told = [_beside(found[view], found["bias"]) for view in HARMLESS]
            lines.append([pool, objective, prior, _points(float(found["bias"].whole.mean())), *told])
        means = {
            view: float(np.mean([found[view].whole.mean() for found in cases.values()]))
            for view in ("bias", *HARMLESS)
        }
        told = [_points(means[view] - means["bias"]) for view in HARMLESS]
        lines.append(["mean", "", prior, _points(means["bias"]), *told])
    return markdown(lines)


def _beside(one: Gaps, other: Gaps) -> str:
    difference = one.by_prompt - other.by_prompt
    low, high = paired_bootstrap_interval(difference)
    return f"{_points(float(difference.mean()))} [{_points(low)}, {_points(high)}]"


def cost_table(shares: Mapping[str, Share]) -> str:
    names = list(next(iter(shares.values())).shares)
    lines = [["data", "best model", *names, f"{names[0]} minus ridge, points"]]
    for pool, share in shares.items():
        cells = [f"{100 * share.shares[name]:.1f} %" for name in names]
        difference = share.shares[names[0]] - share.shares["ridge, full information"]
        lines.append([pool, share.best_model, *cells, f"{100 * difference:+.1f}"])
    return markdown(lines)


def figures(where: Field, chosen: Mapping[str, Chosen]) -> list[dict[str, Any]]:
    """Everything behind the gap table: one record per case and contestant, each seed's gaps in utility."""
    return [
        {
            "data": case[0],
            "objective": case[1],
            "source": where.sources[case[0]],
            "contestant": name,
            "setting": c.settings[case],
            "whole": c.gaps[case].whole.tolist(),
            "last_third": c.gaps[case].last_third.tolist(),
        }
        for case in where.cases()
        for name, c in chosen.items()
    ]


def grids(names: Sequence[str]) -> str:
    """What could be chosen from, in words."""
    told = [
        f"{name}: {entry.setting} {', '.join(f'{g:g}' for g in entry.grid)}"
        for name in names
        for entry in [CONTESTANTS[name]]
        if len(entry.grid) > 1
    ]
    return "; ".join(told)


def markdown(table: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(line) + " |" for line in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])


def _summary_cells(row: Summary) -> list[str]:
    ahead = "" if row.name == "router" else f"{row.ahead:+.2f} ± {row.ahead_se:.2f}"
    return [
        row.name,
        row.setting,
        f"{row.whole:+.2f}",
        f"{row.last_third:+.2f}",
        f"{row.worst_whole[1]:+.2f} ({row.worst_whole[0]})",
        f"{row.worst_last_third[1]:+.2f} ({row.worst_last_third[0]})",
        ahead,
    ]


def _settings(name: str, chosen: Chosen) -> str:
    entry = CONTESTANTS[name]
    if len(entry.grid) == 1:
        return ""
    used = sorted(set(chosen.settings.values()))
    return f"{entry.setting} " + ", ".join(f"{setting:g}" for setting in used)


def _with_intervals(of: Gaps) -> list[str]:
    late = of.late_by_prompt[~np.isnan(of.late_by_prompt)]
    return [
        f"{_points(float(mean))} [{_points(low)}, {_points(high)}]"
        for mean, (low, high) in (
            (of.whole.mean(), paired_bootstrap_interval(of.by_prompt)),
            (of.last_third.mean(), paired_bootstrap_interval(late)),
        )
    ]


def _pair(of: Gaps) -> str:
    return f"{_points(float(of.whole.mean()))} / {_points(float(of.last_third.mean()))}"


def _points(utility: float) -> str:
    return f"{100 * utility:+.2f}"


def _case_name(case: Case) -> str:
    return f"{case[0]}, {case[1]}"
