"""The demo's picture: who answered, at what regret and what cost, as one PNG.

Three panels over the same requests:

    share    of each model among the last WINDOW requests of the router
    regret   sum of (utility of the best fixed model in hindsight - utility of the policy); below zero is better
    cost     sum of USD
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from simulations.drawing import (
    FAINT,
    INK,
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

Floats = NDArray[np.float64]

LOG_FROM: Final = 20.0  # costs that differ by more than this factor are drawn on a log scale


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """What one policy did along one stream. chosen: (n,) index into arms; utility, cost_usd: (n,)."""

    name: str
    arms: tuple[str, ...]
    chosen: NDArray[np.int64]
    utility: Floats
    cost_usd: Floats

    @property
    def fixed(self) -> bool:
        """It always chose the same model."""
        return bool(np.all(self.chosen == self.chosen[0]))


def draw_courses(router: Course, others: Sequence[Course], *, oracle: Course, title: str) -> bytes:
    """A PNG, 1,200 pixels wide. All courses are of the same requests in the same order.

    others: the fixed models, of which there must be at least one, and whatever else there is to compare with.
    """
    fixed = [course for course in others if course.fixed]
    if not fixed or not len(router.chosen):
        raise ValueError("a picture needs at least one request, and one fixed model among the others")
    best = max(fixed, key=lambda course: float(course.utility.sum()))
    pens = _pens(router, [*others, oracle], oracle)
    figure, panels = _panels([router, *others, oracle], title)
    _draw_shares(panels[0], router, pens)
    _draw_regret(panels[1], [*others, router], best=best, oracle=oracle, pens=pens)
    _draw_cost(panels[2], [oracle, *others, router], pens)
    return as_png(figure)


def _panels(courses: Sequence[Course], title: str) -> tuple[Figure, Sequence[Axes]]:
    """Three panels, with room at the right for the longest label and as many as there are."""
    names = [course.name for course in courses] + list(courses[0].arms)
    labels = [f"{name}  0, the best fixed" for name in names]
    return stacked_panels(3, heights=(1, 1.3, 1.1), labels=labels, lines=len(courses), title=title)


def _draw_shares(axes: Axes, router: Course, pens: Mapping[str, Pen]) -> None:
    dress(axes, f"{router.name}: which model answered, share of the last {WINDOW} requests")
    shares = moving_shares(router.chosen, len(router.arms))
    draw_shares(axes, shares, router.arms, [pens[f"arm {arm}"] for arm in router.arms])


def _draw_regret(
    axes: Axes, courses: Sequence[Course], *, best: Course, oracle: Course, pens: Mapping[str, Pen]
) -> None:
    regrets = {course.name: _regret(course, best) for course in courses}
    dress(axes, "cumulative regret against the best fixed model in hindsight; lower is better")
    bottom, top = regret_limits(list(regrets.values()), regrets[courses[-1].name])
    axes.set_ylim(bottom, top)
    ends = []
    for name, regret in regrets.items():
        line(axes, regret, pens[name])
        told = "0, the best fixed" if name == best.name else signed(regret[-1])
        beyond = "  ↑" if regret[-1] > top else ""
        ends.append(End(regret[-1], f"{name}  {told}{beyond}", pens[name]))
    label_ends(axes, ends, len(best.chosen))
    bound = (
        f"{oracle.name}, knowing every outcome beforehand: {signed(_regret(oracle, best)[-1])} (not drawn)"
    )
    axes.annotate(
        bound,
        (0, 0),
        xytext=(0, -14),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=9,
        color=FAINT,
        va="center",
        parse_math=False,
    )


def _draw_cost(axes: Axes, courses: Sequence[Course], pens: Mapping[str, Pen]) -> None:
    spent = {course.name: np.cumsum(course.cost_usd) for course in courses}
    totals = np.array([cost[-1] for cost in spent.values()])
    paid = totals[totals > 0]
    log = bool(len(paid)) and float(paid.max() / paid.min()) > LOG_FROM
    dress(axes, "cumulative cost, USD" + (" (log scale)" if log else ""))
    if log:
        axes.set_yscale("log")
        # The first requests span decades in which nothing is to be seen: begin where the cheapest has made a tenth of its way.
        axes.set_ylim(float(paid.min()) / 10, float(paid.max()) * 1.6)
        axes.minorticks_off()
    for name, cost in spent.items():
        line(axes, np.where(cost > 0, cost, np.nan) if log else cost, pens[name])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda usd, _: f"{usd:,.10g}"))
    ends = [End(cost[-1], f"{name}  {cost[-1]:,.3g} USD", pens[name]) for name, cost in spent.items()]
    label_ends(axes, ends, len(courses[0].chosen))


def _pens(router: Course, others: Sequence[Course], oracle: Course) -> dict[str, Pen]:
    """By policy name, and by "arm NAME" for each model; a fixed policy has its model's colour."""
    arm_pens = [Pen(color) for color in colors(len(router.arms))]
    pens = {f"arm {arm}": pen for arm, pen in zip(router.arms, arm_pens, strict=True)}
    pens |= {
        course.name: arm_pens[course.chosen[0]] if course.fixed else Pen(FAINT, 1.2) for course in others
    }
    pens[oracle.name] = Pen(FAINT, 1.2, dashes="--")
    pens[router.name] = Pen(INK, 2.6, weight="bold")
    return pens


def _regret(course: Course, best: Course) -> Floats:
    regret: Floats = np.cumsum(best.utility - course.utility)
    return regret
