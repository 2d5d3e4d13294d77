"""What a decision log tells of savings, in words and columns for people."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import numpy as np

from bandit.savings import Against, Row, Told, is_uneven
from service.savings_log import Read

Z: Final = 1.96
MANY: Final = 30  # answers of a model, for the share that was rated to mean something
HEAD: Final = ("policy", "quality", "95 %, at any n", "worth", "USD/1,000")


def left_out(scope: str, read: Read) -> list[str]:
    """What is told of, and what is not."""
    traffic = read.traffic
    first, last = (datetime.fromtimestamp(at, UTC).date() for at in (read.first_at, read.last_at))
    known = int((~np.isnan(traffic.cost_usd)).sum())
    lines = [f"{scope}: {len(traffic):,} decisions, {first} to {last}; of {known:,} the cost is known."]
    if read.attempts:
        usd = f"{read.attempts_usd:.4g} USD"
        lines.append(f"Left out: {read.attempts:,} further attempts, after failures or beside, for {usd}.")
    if read.by_name:
        lines.append(f"Left out: {read.by_name:,} requests for a model by its name.")
    return lines


def table(rows: Sequence[Row]) -> str:
    """Columns aligned: the first to the left, the others to the right."""
    lines = [HEAD, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    aligned = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    ]
    return "\n".join([aligned[0], "-" * (sum(widths) + 2 * len(widths) - 2), *aligned[1:]])


def _cells(row: Row) -> tuple[str, ...]:
    quality, usd = row.quality, row.usd
    interval = f"[{quality.lower:.3f}, {quality.upper:.3f}]" if math.isfinite(quality.upper) else "-"
    worth = f"{quality.effective_n:,.0f}"
    return row.policy, _figure(quality, 1.0), interval, worth, _figure(usd, 1000.0)


def _figure(told: Told, scale: float) -> str:
    """Measured, or where nothing can be, ~ what was expected."""
    if told.value is not None:
        return f"{scale * told.value:.3f}" + (f" +- {scale * Z * told.se:.3f}" if told.se else "")
    return "-" if told.n or math.isnan(told.expected) else f"~{scale * told.expected:.3f}"


def notes(read: Read, rows: Sequence[Row]) -> list[str]:
    """What the figures are of. The share of rated answers of each model is told: a rating that is given for good answers only,
    or for bad ones, makes all of these wrong.
    """
    traffic = read.traffic
    rated = ~np.isnan(traffic.quality)
    if not rated.any():
        return ["No decision was rated: of quality nothing is known."]
    shares = {
        model: float(rated[traffic.chosen == k].mean())
        for k, model in enumerate(traffic.models)
        if (traffic.chosen == k).sum() >= MANY
    }
    by = ", ".join(f"{source} {n:,}" for source, n in sorted(read.sources.items()))
    share = f"{rated.mean():.1%}: {', '.join(f'{model} {of:.1%}' for model, of in shares.items())}"
    lines = [f"Quality is of the {rated.sum():,} decisions that were rated ({share}), by {by}."]
    if len(read.sources) > 1:
        lines.append("Of several ratings of one decision the mean counts.")
    if rated.mean() < 1.0:
        lines.append("It says nothing of the others, if answers were rated for being good or bad.")
    if is_uneven(traffic):
        lines.append(
            "Some models' answers were rated oftener than others': quality is corrected for that, as if it hung on the model "
            "alone, and has no interval that holds at any n."
        )
    if (alone := float(((traffic.probabilities > 0).sum(axis=1) == 1).mean())) > 0:
        lines.append(
            f"In {alone:.1%} of the decisions there was one model to choose, as where a conversation keeps its own: they count "
            "as routed for every policy."
        )
    if any(row.usd.n == 0 and math.isfinite(row.usd.expected) for row in rows):
        lines.append("~: expected by the router, and not measured: nothing was chosen so.")
    if any(row.usd.n and None in (row.usd.value, row.quality.value) for row in rows):
        lines.append("-: too few such choices were made to tell; a larger exploration_floor makes more.")
    return lines


def headline(policy: str, against: Against) -> str:
    """The sentence for whoever pays."""
    saved, other, half = against.saved_usd, against.other_usd, Z * against.se_usd
    if not math.isfinite(half):
        cost = "too few calls of it to tell what was saved"
    elif saved >= 0:
        cost = f"saved {saved:.4g} +- {half:.2g} USD of {other:.4g} ({saved / max(other, 1e-12):.1%})"
    else:
        cost = f"{-saved:.4g} +- {half:.2g} USD more than its {other:.4g}"
    return f"Against {policy}: {cost}, {_lost(against.quality)}."


def _lost(quality: Told) -> str:
    if quality.n == 0:
        return "quality unknown"
    interval = ""
    if math.isfinite(quality.upper):
        interval = f" [{100 * quality.lower:+.1f}, {100 * quality.upper:+.1f}]"
    if quality.value is None:
        return f"quality: the log cannot tell{f',{interval} points' if interval else ''}"
    return f"quality {100 * quality.value:+.1f} +- {100 * Z * quality.se:.1f} points{interval}"
