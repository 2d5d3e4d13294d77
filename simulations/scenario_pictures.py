"""A scenario's picture: who answered, at what regret, and how good the answers were, as means over the seeds.

share     of each model among the router's last WINDOW requests
regret    sum of (utility of the best fixed model *of the phase* - utility of the contestant); lower is better
utility   mean over the last WINDOW requests of the phase: the router, and the fixed models that the scenario is about
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from simulations.drawing import (
    FAINT,
    INK,
    PALETTE,
    WINDOW,
    End,
    Pen,
    as_png,
    colors,
    draw_shares,
    dress,
    label_ends,
    line,
    moving_shares,
    regret_limits,
    signed,
    stacked_panels,
)
from simulations.rehearsal import Rehearsal
from simulations.world import World

Floats = NDArray[np.float64]

ALT: Final = "Three panels over the requests: the share of each model, cumulative regret of every contestant, utility of the router"
FIRST: Final = 20  # requests of a phase before its mean utility is worth drawing
_ROUTER: Final = Pen(INK, 2.6, weight="bold")


def draw(rehearsal: Rehearsal, *, title: str, subtitle: str) -> bytes:
    """A PNG, 1,200 pixels wide."""
    worlds, chosen = rehearsal.worlds, rehearsal.chosen
    arms = worlds[0].arms
    arm_pens = dict(zip(arms, (Pen(color) for color in colors(len(arms))), strict=True))
    rivals = [name for name in chosen if name != "router"]
    rival_pens = {name: _rival_pen(i) for i, name in enumerate(rivals)}
    labels = [*arms, *(f"{name}  +1,000.0  ↑" for name in chosen)]
    labels += [f"best fixed of the phase, {arm}" for arm in arms]
    lines = max(len(arms), len(chosen))
    figure, axes = stacked_panels(
        3, heights=(1, 1.4, 1), labels=labels, lines=lines, title=title, subtitle=subtitle
    )
    dress(axes[0], f"router: which model answered, share of the last {WINDOW} requests")
    draw_shares(axes[0], _mean_shares(chosen["router"], len(arms)), arms, list(arm_pens.values()))
    _draw_regret(axes[1], rehearsal, rival_pens)
    _draw_utility(axes[2], rehearsal, arm_pens)
    for panel in axes:
        _mark_phases(panel, rehearsal, named=panel is axes[0])
    return as_png(figure)


def _rival_pen(i: int) -> Pen:
    """Every colour once as a line, then dashed, then dotted."""
    dashes = ("-", "--", ":")[min(i // len(PALETTE), 2)]
    return Pen(PALETTE[i % len(PALETTE)], 1.3, dashes)


def _draw_regret(axes: Axes, rehearsal: Rehearsal, pens: Mapping[str, Pen]) -> None:
    seeds = len(rehearsal.worlds)
    dress(
        axes,
        f"cumulative regret against the best fixed model of each phase, mean of {seeds} seeds; lower is better",
    )
    gain = _gain(rehearsal)  # (S, n, K)
    runs = {
        name: -np.cumsum(_taken(gain, columns), axis=1) for name, columns in rehearsal.chosen.items()
    }  # (S, n)
    means = {name: run.mean(axis=0) for name, run in runs.items()}
    bottom, top = regret_limits(list(means.values()), means["router"], within=4.0)
    low, high = np.percentile(runs["router"], [10, 90], axis=0)
    requests = np.arange(1, len(low) + 1)
    axes.set_ylim(min(bottom, float(low.min())), max(top, float(high.max())))
    axes.fill_between(requests, low, high, color=INK, alpha=0.12, linewidth=0)
    ends = []
    for name in [*pens, "router"]:
        pen, regret = _ROUTER if name == "router" else pens[name], means[name]
        line(axes, regret, pen)
        beyond = "  ↑" if regret[-1] > axes.get_ylim()[1] else ""
        ends.append(End(regret[-1], f"{name}  {signed(regret[-1])}{beyond}", pen))
    label_ends(axes, ends, len(low))


def _draw_utility(axes: Axes, rehearsal: Rehearsal, pens: Mapping[str, Pen]) -> None:
    dress(axes, f"utility, mean of the last {WINDOW} requests of the phase")
    worlds, arms = rehearsal.worlds, rehearsal.worlds[0].arms
    utility = np.stack([rehearsal.goal.utility(world.quality, world.cost_usd) for world in worlds])
    offered = worlds[0].offered()
    ends = []
    for k in _shown(rehearsal):
        smooth = np.where(offered[:, k], _smooth(utility[:, :, k].mean(axis=0), worlds[0]), np.nan)
        line(axes, smooth, Pen(pens[arms[k]].color, 1.2, "--"))
        if not np.isnan(smooth[-1]):
            ends.append(End(smooth[-1], f"always {arms[k]}  {smooth[-1]:.3f}", pens[arms[k]]))
    router = _smooth(_taken(utility, rehearsal.chosen["router"]).mean(axis=0), worlds[0])
    line(axes, router, _ROUTER)
    if not np.isnan(router[-1]):
        ends.append(End(router[-1], f"router  {router[-1]:.3f}", _ROUTER))
    label_ends(axes, ends, len(router))


def _mark_phases(axes: Axes, rehearsal: Rehearsal, *, named: bool) -> None:
    """A thin line where a phase begins, its name above the first panel's areas."""
    phases = rehearsal.worlds[0].phases
    for phase in phases[1:]:
        axes.axvline(phase.start + 0.5, color=INK, linewidth=1.0, linestyle=(0, (2, 2)))
    if named and len(phases) > 1:
        for phase in phases:
            axes.annotate(
                phase.name,
                ((phase.start + phase.stop) / 2, 0),
                xytext=(0, -10),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                fontsize=9.5,
                color=FAINT,
                ha="center",
                va="center",
                parse_math=False,
            )


def _shown(rehearsal: Rehearsal) -> list[int]:
    """Columns of the watched arms and of each phase's best."""
    arms = rehearsal.worlds[0].arms
    best = [arms.index(phase.best_fixed) for phase in rehearsal.phases]
    return list(dict.fromkeys([*rehearsal.watched.values(), *best]))


def _gain(rehearsal: Rehearsal) -> Floats:
    """(S, n, K) utility of each arm minus that of the phase's best fixed model."""
    arms = rehearsal.worlds[0].arms
    gain = np.stack([rehearsal.goal.utility(world.quality, world.cost_usd) for world in rehearsal.worlds])
    for phase, table in zip(rehearsal.worlds[0].phases, rehearsal.phases, strict=True):
        part, best = slice(phase.start, phase.stop), arms.index(table.best_fixed)
        gain[:, part] = gain[:, part] - gain[:, part, best : best + 1]
    return gain


def _taken(values: Floats, chosen: NDArray[np.int16]) -> Floats:
    """(S, n) the value (S, n, K) of what was chosen (S, n)."""
    return np.take_along_axis(values, chosen[:, :, None].astype(np.int64), axis=2)[:, :, 0]


def _mean_shares(chosen: NDArray[np.int16], arms: int) -> Floats:
    shares: Floats = np.mean([moving_shares(run.astype(np.int64), arms) for run in chosen], axis=0)
    return shares


def _smooth(values: Floats, world: World) -> Floats:
    """(n,) means over the last WINDOW values of the same phase; NaN while there are fewer than FIRST."""
    smooth = np.full(len(values), np.nan)
    for phase in world.phases:
        sums = np.cumsum(values[phase.start : phase.stop])
        sums[WINDOW:] -= sums[:-WINDOW].copy()
        counts = np.minimum(np.arange(1, len(sums) + 1), WINDOW)
        smooth[phase.start : phase.stop] = np.where(counts >= FIRST, sums / counts, np.nan)
    return smooth
