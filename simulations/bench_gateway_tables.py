"""The tables of `bench gateway`, as Markdown: what every stack did, and the bars that the gateway is held to."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from simulations.bench_load import Sample, Shape, Target
from simulations.bench_rivals import LITELLM, SWITCHYARD, TENSORZERO
from simulations.bench_stacks import BARE, MANY, NAIVE, PARTIAL, RATED_EVERY, ROUTER, TWO
from simulations.bench_upstream import CHUNKS, GAP_S

if TYPE_CHECKING:
    from simulations.bench_gateway import Seen

DIRECT: Final = "upstream itself"
Figure = Callable[[Sample], float]


@dataclass(frozen=True, slots=True)
class Bar:
    """What is compared within each round: figure of `one` (at its shape) over or minus that of `other`. at_least or at_most."""

    what: str
    one: tuple[str, Shape, Figure]
    other: tuple[str, Shape, Figure]
    wanted: float
    at_least: bool = True
    difference: bool = False

    def values(self, seen: "Seen") -> list[float]:
        pairs = zip(_figures(seen, *self.one), _figures(seen, *self.other), strict=False)
        return [a - b if self.difference else a / b for a, b in pairs if b or self.difference]

    def by_cpu(self, seen: "Seen") -> str:
        """Of requests a second, the same ratio as work per second of CPU: it holds on a machine that does other things too."""
        if self.one[2] is not per_s:
            return ""
        cheaper = Bar("", (*self.other[:2], cpu_us_per_answer), (*self.one[:2], cpu_us_per_answer), 0.0)
        return f"{np.median(cheaper.values(seen)):.2f}"


def page(seen: "Seen", shapes: Sequence[Shape]) -> str:
    whole = [shape for shape in shapes if not shape.stream]
    stream = [shape for shape in shapes if shape.stream]
    missing = [f"\nNot measured: {what}" for what in seen.missing]
    told = (
        f"One core for each server with all that it starts, another for upstream and load; {seen.plan.rounds} rounds in "
        f"turn, {seen.plan.seconds:g} s a sample, medians. Prompt 45 tokens, answer 1 KB; 1 answer in {RATED_EVERY} is "
        f"rated; streams of {CHUNKS} chunks, {1000 * GAP_S:g} ms apart. Added: beyond the upstream itself."
    )
    if seen.load_share:
        told += f" Beside two workers, load and upstream took {np.median(seen.load_share):.0%} of one of the cores."
    parts = ["## The gateway", told, _whole_table(seen, whole), _stream_table(seen, stream), *missing]
    return "\n\n".join([*parts, _bars_table(seen)]) + "\n"


def _whole_table(seen: "Seen", shapes: Sequence[Shape]) -> str:
    head = [
        "whole answers",
        *(f"req/s, {s.connections} conn." for s in shapes),
        "added p50 / p99 µs, 1 conn.",
    ]
    head += [f"CPU µs/req, {s.connections}" for s in shapes] + ["RSS MiB"]
    rows = []
    for name in _names(seen, shapes):
        row = [name, *(_told(middle(seen, name, s, per_s)) for s in shapes)]
        row.append(_added(seen, name, shapes[0], lambda s: s.latency_us))
        row += [_told(middle(seen, name, s, cpu_us_per_answer)) for s in shapes]
        rows.append([*row, _told(seen.memory.get(name, np.nan))])
    return _markdown(head, rows)


def _stream_table(seen: "Seen", shapes: Sequence[Shape]) -> str:
    head = ["streams", *(f"added first chunk p50 / p99 µs, {s.connections} conn." for s in shapes[:2])]
    head += [f"chunks/s, {s.connections}" for s in shapes] + [
        f"CPU µs/chunk, {s.connections}" for s in shapes
    ]
    rows = []
    for name in _names(seen, shapes):
        row = [name, *(_added(seen, name, s, lambda sample: sample.first_us) for s in shapes[:2])]
        row += [_told(middle(seen, name, s, chunks_per_s)) for s in shapes]
        rows.append([*row, *(_told(middle(seen, name, s, cpu_us_per_chunk)) for s in shapes)])
    return _markdown(head, rows)


def _bars_table(seen: "Seen") -> str:
    rows = []
    for bar in _bars(seen):
        values = bar.values(seen)
        if not values or not np.isfinite(values).all():
            continue
        value = float(np.median(values))
        met = value >= bar.wanted if bar.at_least else value <= bar.wanted
        wanted = f"{'>=' if bar.at_least else '<='} {bar.wanted:g}"
        spread = f"{value:.2f} [{min(values):.2f} .. {max(values):.2f}]"
        rows.append([bar.what, wanted, spread, bar.by_cpu(seen), "yes" if met else "**no**"])
    rss = seen.worker_mib
    rows.append(["resident MiB of a worker", "<= 120", _told(rss), "", "yes" if rss <= 120 else "**no**"])
    return _markdown(["bar", "wanted", "median of rounds [least .. most]", "per CPU second", "met"], rows)


def _bars(seen: "Seen") -> Iterator[Bar]:
    s = seen.plan.seconds
    one, some, many = Shape(1, s), Shape(16, s), Shape(64, s)
    streams = Shape(16, s, stream=True)
    ours = (ROUTER, some, per_s)
    yield Bar("req/s at 16 ÷ bare pass-through", ours, (BARE, some, per_s), 0.5)
    for rival, shape, wanted in (
        (LITELLM.name, some, 40),
        (LITELLM.name, many, 50),
        (TENSORZERO.name, some, 1.1),
        (SWITCHYARD.name, some, 1.1),
        (NAIVE, some, 15),
    ):
        what = f"req/s at {shape.connections} ÷ {rival}"
        yield Bar(what, (ROUTER, shape, per_s), (rival, shape, per_s), wanted)
    yield Bar("req/s at 64 ÷ at 16", (ROUTER, many, per_s), ours, 0.85)
    yield Bar("req/s with 64 models ÷ with 4", (MANY, some, per_s), (PARTIAL, some, per_s), 0.75)
    yield Bar("req/s of 2 workers ÷ of 1, at 64", (TWO, many, per_s), (ROUTER, many, per_s), 1.7)
    p50, first = _percentile(lambda x: x.latency_us, 50), _percentile(lambda x: x.first_us, 50)
    yield Bar("p50 at 1 beyond bare, µs", (ROUTER, one, p50), (BARE, one, p50), 250, at_least=False, difference=True)  # fmt: skip
    for shape in (Shape(1, s, stream=True), streams):
        yield Bar(
            f"first chunk at {shape.connections} beyond bare, µs",
            (ROUTER, shape, first),
            (BARE, shape, first),
            500,
            at_least=False,
            difference=True,
        )
    cpu = (ROUTER, streams, cpu_us_per_chunk)
    yield Bar("CPU per chunk at 16 ÷ bare", cpu, (BARE, streams, cpu_us_per_chunk), 1.3, at_least=False)
    yield Bar(
        "chunks per CPU second at 16 ÷ LiteLLM proxy", (LITELLM.name, streams, cpu_us_per_chunk), cpu, 12
    )
    rated_shapes = [shape for name, shape in seen.samples if name == "learning on"]
    p99 = _percentile(lambda x: x.latency_us, 99)
    for shape in rated_shapes:
        yield Bar(
            "p99 at 70 % load, learning on ÷ off",
            ("learning on", shape, p99),
            ("learning off", shape, p99),
            1.5,
            at_least=False,
        )


def per_s(sample: Sample) -> float:
    return sample.per_s


def chunks_per_s(sample: Sample) -> float:
    return sample.chunks / sample.seconds


def cpu_us_per_answer(sample: Sample) -> float:
    return 1e6 * sample.used / len(sample.latency_us) if sample.latency_us else np.nan


def cpu_us_per_chunk(sample: Sample) -> float:
    return 1e6 * sample.used / sample.chunks if sample.chunks else np.nan


def _percentile(of: Callable[[Sample], Sequence[float]], q: float) -> Figure:
    return lambda sample: float(np.percentile(of(sample), q)) if of(sample) else np.nan


def middle(seen: "Seen", name: str, shape: Shape, figure: Figure) -> float:
    """Median over rounds; NaN where it was not measured."""
    values = _figures(seen, name, shape, figure)
    return float(np.median(values)) if values else np.nan


def rated(target: Target, every: int) -> Target:
    return replace(target, rated_every=every)


def _figures(seen: "Seen", name: str, shape: Shape, figure: Figure) -> list[float]:
    return [figure(sample) for sample in seen.samples.get((name, shape), ())]


def _names(seen: "Seen", shapes: Sequence[Shape]) -> list[str]:
    return list(dict.fromkeys(name for name, shape in seen.samples if shape in shapes))


def _added(seen: "Seen", name: str, shape: Shape, of: Callable[[Sample], Sequence[float]]) -> str:
    told = []
    for q in (50, 99):
        figure = _percentile(of, q)
        base = 0.0 if name == DIRECT else middle(seen, DIRECT, shape, figure)
        told.append(_told(middle(seen, name, shape, figure) - base))
    return " / ".join(told)


def _told(value: float) -> str:
    if not np.isfinite(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def soak_table(rows: Sequence[tuple[int, float, float]]) -> str:
    """rows: (requests so far, MiB of the gateway, MiB of its store)."""
    body = [[f"{n:,}", f"{own:.1f}", f"{store:.1f}"] for n, own, store in rows]
    return "## Memory\n\n" + _markdown(["requests so far", "gateway, MiB", "its store, MiB"], body) + "\n"
