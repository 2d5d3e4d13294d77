"""The hand that all pictures are drawn with: pens that colour-blind readers can tell apart, bare axes, labels at the ends.

Every line is named at its end, with where it ended, so that no legend hides data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
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
WIDTH_IN, HEIGHT_IN, DPI = 12.0, 11.0, 100  # the height grows where more policies must be named than fit
ABOVE_IN, BELOW_IN, LEFT_IN = 1.15, 0.65, 0.85  # room for the title, the axis' name, the scales
LABEL_PT: Final = 10.0
LABEL_GAP_IN: Final = 0.2
INK, FAINT, GRID = "#1a1a1a", "#767676", "#e4e4e4"
# Okabe and Ito's colours, told apart by people with any of the usual kinds of colour blindness; yellow is left out (too
# faint for a line on white) and black is the router's.
PALETTE: Final = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


@dataclass(frozen=True, slots=True)
class Pen:
    """How a policy's line is drawn, in every panel alike."""

    color: str
    width: float = 1.6
    dashes: str = "-"
    weight: str = "normal"


@dataclass(frozen=True, slots=True)
class End:
    """A label at the right edge, beside the value where its line or area ends."""

    value: float
    text: str
    pen: Pen


def stacked_panels(
    count: int, *, heights: Sequence[float], labels: Sequence[str], lines: int, title: str, subtitle: str = ""
) -> tuple[Figure, Sequence[Axes]]:
    """Panels over the same requests, one above the other. labels: the texts at the right, which must find room; lines: the
    most that one panel must name.
    """
    height_in = max(HEIGHT_IN, ABOVE_IN + BELOW_IN + 1 + 3.1 * LABEL_GAP_IN * lines)
    labels_in = 0.4 + 0.074 * max(map(len, labels))
    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes: Sequence[Axes] = figure.subplots(count, 1, sharex=True, height_ratios=heights)
    figure.subplots_adjust(
        left=LEFT_IN / WIDTH_IN,
        right=max(1 - labels_in / WIDTH_IN, 0.4),
        top=1 - ABOVE_IN / height_in,
        bottom=BELOW_IN / height_in,
        hspace=0.27,
    )
    figure.text(
        LEFT_IN / WIDTH_IN,
        1 - (0.42 if subtitle else 0.5) / height_in,
        title,
        fontsize=17,
        weight="bold",
        color=INK,
        parse_math=False,
    )
    figure.text(
        LEFT_IN / WIDTH_IN, 1 - 0.67 / height_in, subtitle, fontsize=11, color=FAINT, parse_math=False
    )
    axes[-1].set_xlabel("requests", color=FAINT)
    axes[-1].xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
    axes[-1].xaxis.set_major_formatter(FuncFormatter(lambda request, _: f"{request:,.0f}"))
    return figure, axes


def as_png(figure: Figure) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()


def draw_shares(axes: Axes, shares: Floats, arms: Sequence[str], pens: Sequence[Pen]) -> None:
    """Stacked areas of shares (n, K), each arm named where it ends."""
    requests = np.arange(1, len(shares) + 1)
    colors = [pen.color for pen in pens]
    axes.stackplot(requests, shares.T, colors=colors, alpha=0.85, linewidth=0, edgecolor="none")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f} %"))
    tops = np.cumsum(shares[-1])
    label_ends(
        axes,
        [
            End(top - share / 2, f"{arm}  {100 * share:.0f} %", pen)
            for arm, top, share, pen in zip(arms, tops, shares[-1], pens, strict=True)
        ],
        len(shares),
    )


def moving_shares(chosen: NDArray[np.int64], arms: int) -> Floats:
    """(n, K) shares among the last WINDOW requests; among all so far while there are fewer."""
    counts = np.cumsum(np.eye(arms)[chosen], axis=0)
    counts[WINDOW:] -= counts[:-WINDOW].copy()
    seen = np.minimum(np.arange(1, len(chosen) + 1), WINDOW)
    shares: Floats = counts / seen[:, None]
    return shares


def dress(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11.5, color=INK, pad=9, parse_math=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(colors=FAINT, length=0, labelsize=LABEL_PT)
    axes.tick_params(axis="x", length=3)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0)


def line(axes: Axes, values: Floats, pen: Pen) -> None:
    requests = np.arange(1, len(values) + 1)
    axes.plot(
        requests, values, color=pen.color, linewidth=pen.width, linestyle=pen.dashes, solid_capstyle="round"
    )


def label_ends(axes: Axes, ends: Sequence[End], last: int) -> None:
    """Labels right of the panel, as near to their ends as they fit, each tied to its end by a thin line."""
    ends = sorted(ends, key=lambda end: end.value)
    axes.set_ylim(*axes.get_ylim())  # scales are settled late; places are asked for now
    box = axes.get_window_extent()
    at = [float(axes.transData.transform((last, end.value))[1]) for end in ends]
    at = [min(max(y, box.y0), box.y1) for y in at]
    placed = spread(at, gap=LABEL_GAP_IN * DPI, low=box.y0, high=box.y1)
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
            color=darkened(end.pen.color),
            weight=end.pen.weight,
            parse_math=False,
        )


def darkened(color: str) -> str:
    """The colour as text: a light one would be hard to read on white."""
    red, green, blue = mpl.colors.to_rgb(color)
    return mpl.colors.to_hex((0.7 * red, 0.7 * green, 0.7 * blue))


def signed(value: float) -> str:
    return f"{value:+,.1f}".replace("-", "−")


def spread(at: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Ascending places at least gap apart, as near to the ascending `at` as one pass up and one down put them."""
    placed: list[float] = []
    for place in at:
        placed.append(max(place, placed[-1] + gap if placed else low))
    ceiling = high
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def colors(count: int) -> list[str]:
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.92, count))
    return [mpl.colors.to_hex(shade) for shade in shades]


def regret_limits(regrets: Sequence[Floats], router: Floats, *, within: float = 10.0) -> tuple[float, float]:
    """Room for the router and for all that ends within so many times its scale; what is worse leaves at the top."""
    finals = np.array([regret[-1] for regret in regrets])
    own = float(np.abs(router).max())
    near = float(finals[finals > 0].min(initial=np.inf))
    scale = max(own, near if np.isfinite(near) else 0.0)
    shown = [router, *(regret for regret in regrets if regret[-1] <= within * scale)]
    top = max(0.2 * scale, *(float(regret.max()) for regret in shown)) or 1.0
    bottom = min(0.0, *(float(regret.min()) for regret in regrets))
    return bottom - 0.08 * (top - bottom), top + 0.08 * (top - bottom)
