"""The report's picture and page: who answered, at what regret and what cost, as one PNG and one self-contained page.

Three panels over the same requests. Every line is named at its end, with where it ended, so that no legend hides data:

    share    of each model among the last WINDOW requests of the router
    regret   sum of (utility of the best fixed model in hindsight - utility of the policy); below zero is better
    cost     sum of USD
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from string import Template
from typing import Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WINDOW: Final = 100  # requests that a share is taken over
LOG_FROM: Final = 20.0  # costs that differ by more than this factor are drawn on a log scale
WIDTH_IN, HEIGHT_IN, DPI = 12.0, 11.0, 100  # the height grows where more policies must be named than fit
ABOVE_IN, BELOW_IN, LEFT_IN = 1.15, 0.65, 0.85  # room for the title, the axis' name, the scales
LABEL_PT: Final = 10.0
LABEL_GAP_IN: Final = 0.2
INK, FAINT, GRID = "#1a1a1a", "#767676", "#e4e4e4"
# Okabe and Ito's colours, told apart by people with any of the usual kinds of colour blindness; yellow is left out (too
# faint for a line on white) and black is the router's.
PALETTE: Final = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


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


@dataclass(frozen=True, slots=True)
class _Pen:
    """How a policy's line is drawn, in every panel alike."""

    color: str
    width: float = 1.6
    dashes: str = "-"
    weight: str = "normal"


@dataclass(frozen=True, slots=True)
class _End:
    """A label at the right edge, beside the value where its line or area ends."""

    value: float
    text: str
    pen: _Pen


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
    file = BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()


def write_page(path: Path, *, title: str, table_html: str, png: bytes, notes: Sequence[str]) -> None:
    """One HTML file that refers to nothing outside itself. table_html is put in as it is; title and notes are text."""
    page = _PAGE.substitute(
        title=escape(title),
        picture=b64encode(png).decode(),
        table=table_html,
        notes="\n".join(f"<p>{escape(note)}</p>" for note in notes),
    )
    path.write_text(page, encoding="utf-8")


def _panels(courses: Sequence[Course], title: str) -> tuple[Figure, Sequence[Axes]]:
    """Three panels, one above the other, with room at the right for the longest label and as many as there are."""
    height_in = max(HEIGHT_IN, ABOVE_IN + BELOW_IN + 1 + 3.1 * LABEL_GAP_IN * len(courses))
    names = [course.name for course in courses] + list(courses[0].arms)
    labels_in = 0.4 + 0.074 * max(len(name) + len("  0, the best fixed") for name in names)
    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    panels: Sequence[Axes] = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1.3, 1.1))
    figure.subplots_adjust(
        left=LEFT_IN / WIDTH_IN,
        right=max(1 - labels_in / WIDTH_IN, 0.4),
        top=1 - ABOVE_IN / height_in,
        bottom=BELOW_IN / height_in,
        hspace=0.27,
    )
    figure.text(
        LEFT_IN / WIDTH_IN,
        1 - 0.5 / height_in,
        title,
        fontsize=17,
        weight="bold",
        color=INK,
        parse_math=False,
    )
    panels[2].set_xlabel("requests", color=FAINT)
    panels[2].xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
    panels[2].xaxis.set_major_formatter(FuncFormatter(lambda request, _: f"{request:,.0f}"))
    return figure, panels


def _draw_shares(axes: Axes, router: Course, pens: Mapping[str, _Pen]) -> None:
    shares = _moving_shares(router.chosen, len(router.arms))  # (n, K)
    _dress(axes, f"{router.name}: which model answered, share of the last {WINDOW} requests")
    requests = np.arange(1, len(shares) + 1)
    arm_pens = [pens[f"arm {arm}"] for arm in router.arms]
    colors = [pen.color for pen in arm_pens]
    axes.stackplot(requests, shares.T, colors=colors, alpha=0.85, linewidth=0, edgecolor="none")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f} %"))
    tops = np.cumsum(shares[-1])
    ends = [
        _End(top - share / 2, f"{arm}  {100 * share:.0f} %", pen)
        for arm, top, share, pen in zip(router.arms, tops, shares[-1], arm_pens, strict=True)
    ]
    _label_ends(axes, ends, len(shares))


def _draw_regret(
    axes: Axes, courses: Sequence[Course], *, best: Course, oracle: Course, pens: Mapping[str, _Pen]
) -> None:
    regrets = {course.name: _regret(course, best) for course in courses}
    _dress(axes, "cumulative regret against the best fixed model in hindsight; lower is better")
    bottom, top = _regret_limits(list(regrets.values()), regrets[courses[-1].name])
    axes.set_ylim(bottom, top)
    ends = []
    for name, regret in regrets.items():
        _line(axes, regret, pens[name])
        told = "0, the best fixed" if name == best.name else _signed(regret[-1])
        beyond = "  ↑" if regret[-1] > top else ""
        ends.append(_End(regret[-1], f"{name}  {told}{beyond}", pens[name]))
    _label_ends(axes, ends, len(best.chosen))
    bound = (
        f"{oracle.name}, knowing every outcome beforehand: {_signed(_regret(oracle, best)[-1])} (not drawn)"
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


def _draw_cost(axes: Axes, courses: Sequence[Course], pens: Mapping[str, _Pen]) -> None:
    spent = {course.name: np.cumsum(course.cost_usd) for course in courses}
    totals = np.array([cost[-1] for cost in spent.values()])
    paid = totals[totals > 0]
    log = bool(len(paid)) and float(paid.max() / paid.min()) > LOG_FROM
    _dress(axes, "cumulative cost, USD" + (" (log scale)" if log else ""))
    if log:
        axes.set_yscale("log")
        # The first requests span decades in which nothing is to be seen: begin where the cheapest has made a tenth of its way.
        axes.set_ylim(float(paid.min()) / 10, float(paid.max()) * 1.6)
        axes.minorticks_off()
    for name, cost in spent.items():
        _line(axes, np.where(cost > 0, cost, np.nan) if log else cost, pens[name])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda usd, _: f"{usd:,.10g}"))
    ends = [_End(cost[-1], f"{name}  {cost[-1]:,.3g} USD", pens[name]) for name, cost in spent.items()]
    _label_ends(axes, ends, len(courses[0].chosen))


def _pens(router: Course, others: Sequence[Course], oracle: Course) -> dict[str, _Pen]:
    """By policy name, and by "arm NAME" for each model; a fixed policy has its model's colour."""
    arm_pens = [_Pen(color) for color in _colors(len(router.arms))]
    pens = {f"arm {arm}": pen for arm, pen in zip(router.arms, arm_pens, strict=True)}
    pens |= {
        course.name: arm_pens[course.chosen[0]] if course.fixed else _Pen(FAINT, 1.2) for course in others
    }
    pens[oracle.name] = _Pen(FAINT, 1.2, dashes="--")
    pens[router.name] = _Pen(INK, 2.6, weight="bold")
    return pens


def _colors(count: int) -> list[str]:
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.92, count))
    return [mpl.colors.to_hex(shade) for shade in shades]


def _moving_shares(chosen: NDArray[np.int64], arms: int) -> Floats:
    """(n, K) shares among the last WINDOW requests; among all so far while there are fewer."""
    counts = np.cumsum(np.eye(arms)[chosen], axis=0)
    counts[WINDOW:] -= counts[:-WINDOW].copy()
    seen = np.minimum(np.arange(1, len(chosen) + 1), WINDOW)
    shares: Floats = counts / seen[:, None]
    return shares


def _regret(course: Course, best: Course) -> Floats:
    regret: Floats = np.cumsum(best.utility - course.utility)
    return regret


def _regret_limits(regrets: Sequence[Floats], router: Floats) -> tuple[float, float]:
    """Room for the router and for all that ends within ten times its scale; what is worse leaves at the top."""
    finals = np.array([regret[-1] for regret in regrets])
    own = float(np.abs(router).max())
    near = float(finals[finals > 0].min(initial=np.inf))
    scale = max(own, near if np.isfinite(near) else 0.0)
    shown = [router, *(regret for regret in regrets if regret[-1] <= 10 * scale)]
    top = max(0.2 * scale, *(float(regret.max()) for regret in shown)) or 1.0
    bottom = min(0.0, *(float(regret.min()) for regret in regrets))
    return bottom - 0.08 * (top - bottom), top + 0.08 * (top - bottom)


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11.5, color=INK, pad=9, parse_math=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(colors=FAINT, length=0, labelsize=LABEL_PT)
    axes.tick_params(axis="x", length=3)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0)


def _line(axes: Axes, values: Floats, pen: _Pen) -> None:
    requests = np.arange(1, len(values) + 1)
    axes.plot(
        requests, values, color=pen.color, linewidth=pen.width, linestyle=pen.dashes, solid_capstyle="round"
    )


def _label_ends(axes: Axes, ends: Sequence[_End], last: int) -> None:
    """Labels right of the panel, as near to their ends as they fit, each tied to its end by a thin line."""
    ends = sorted(ends, key=lambda end: end.value)
    box = axes.get_window_extent()
    at = [float(axes.transData.transform((last, end.value))[1]) for end in ends]
    at = [min(max(y, box.y0), box.y1) for y in at]
    placed = _spread(at, gap=LABEL_GAP_IN * DPI, low=box.y0, high=box.y1)
    for end, y, place in zip(ends, at, placed, strict=True):
        height, label = ((v - box.y0) / box.height for v in (y, place))
        axes.plot(
            [1.004, 1.02, 1.026],
            [height, label, label],
            transform=axes.transAxes,
            color=end.pen.color,
            linewidth=0.9,
            clip_on=False,
        )
        axes.text(
            1.032,
            label,
            end.text,
            transform=axes.transAxes,
            va="center",
            fontsize=LABEL_PT,
            color=_darkened(end.pen.color),
            weight=end.pen.weight,
            parse_math=False,
        )


def _darkened(color: str) -> str:
    """The colour as text: a light one would be hard to read on white."""
    red, green, blue = mpl.colors.to_rgb(color)
    return mpl.colors.to_hex((0.7 * red, 0.7 * green, 0.7 * blue))


def _signed(value: float) -> str:
    return f"{value:+,.1f}".replace("-", "−")


def _spread(at: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Ascending places at least gap apart, as near to the ascending `at` as one pass up and one down put them."""
    placed: list[float] = []
    for place in at:
        placed.append(max(place, placed[-1] + gap if placed else low))
    ceiling = high
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


_PAGE: Final = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1a1a1a; --faint: #5f6368; --rule: #dadce0; --paper: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --faint: #9aa0a6; --rule: #3c4043; --paper: #17181a; }
}
body { margin: 3rem auto; max-width: 75rem; padding: 0 1.25rem; background: var(--paper); color: var(--ink);
       font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1.5rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .4rem 1.2rem .4rem 0; text-align: right; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; color: var(--faint); }
th:first-child, td:first-child { text-align: left; }
tbody tr:first-child { font-weight: 600; }
img { display: block; max-width: 100%; height: auto; margin: 2rem 0; border-radius: .5rem; }
p { max-width: 48rem; color: var(--faint); margin: .5rem 0; }
</style>
</head>
<body>
<h1>$title</h1>
<div class="table">$table</div>
<img alt="Three panels over the requests: the share of each model, cumulative regret, cumulative cost in USD"
     src="data:image/png;base64,$picture">
$notes
</body>
</html>
""")
