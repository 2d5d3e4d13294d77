"""`bench gateway`: the gateway beside its own stack bare, a first draft, and its rivals, in turn on one core. Prints Markdown.

Each round visits every stack with every shape of load; figures are medians over rounds, ratios are medians of the ratios
within a round with their smallest and largest beside them: what else the machine does falls out of them.
"""

import gc
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import uvloop

from simulations import bench_gateway_tables as tables
from simulations.bench_load import Sample, Shape, load
from simulations.bench_rivals import RIVALS
from simulations.bench_stacks import MANY, PARTIAL, ROUTER, TWO, Field, Stack, running

CONNECTIONS: Final = (1, 16, 64)
ONLY_AT: Final = {PARTIAL: 16, MANY: 16, TWO: 64}  # whole answers, connections
SOAK_REQUESTS: Final = 200_000


@dataclass(frozen=True, slots=True)
class Plan:
    """seconds: of each sample. rivals: also the other gateways (which are installed on first use)."""

    rounds: int = 3
    seconds: float = 0.8
    rivals: bool = True


@dataclass(slots=True)
class Seen:
    """samples[stack, shape]: one a round. memory: stack -> MiB after all of it, its store's beside it; worker_mib: of the
    gateway without its store. load_share: of one core, what load and upstream took beside two workers, once a round.
    """

    plan: Plan
    samples: dict[tuple[str, Shape], list[Sample]] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    worker_mib: float = float("nan")
    load_share: list[float] = field(default_factory=list)
    missing: tuple[str, ...] = ()

    def add(self, stack: Stack, shape: Shape, sample: Sample) -> None:
        self.samples.setdefault((stack.name, shape), []).append(sample)


def shapes(plan: Plan) -> list[Shape]:
    return [Shape(c, plan.seconds, stream) for stream in (False, True) for c in CONNECTIONS]


def run(plan: Plan) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), rivals=RIVALS if plan.rivals else ()) as where,
    ):
        seen = uvloop.run(_measured(where, plan))
    print(tables.page(seen, shapes(plan)), flush=True)


async def _measured(where: Field, plan: Plan) -> Seen:
    seen = Seen(plan, missing=where.missing)
    gc.disable()  # the load's own pauses are no server's
    stacks = [stack for stack in where.stacks if await _answers(stack, seen)]
    for _ in range(plan.rounds):
        for shape in shapes(plan):
            for stack in (where.direct, *stacks):
                if stack.name in ONLY_AT and (shape.stream or shape.connections != ONLY_AT[stack.name]):
                    continue
                begun, beside = time.perf_counter(), time.process_time() + where.direct.cpu_s()
                seen.add(stack, shape, await load(stack.target, shape, stack.cpu_s))
                if stack.name == TWO:
                    beside = time.process_time() + where.direct.cpu_s() - beside
                    seen.load_share.append(beside / (time.perf_counter() - begun))
            gc.collect()
    for stack in stacks:
        seen.memory[stack.name] = stack.rss_mib()
        if stack.name == ROUTER:
            seen.worker_mib = Stack("", stack.target, stack.pids[:1]).rss_mib()
    await _learning(where, seen)
    gc.enable()
    return seen


async def _answers(stack: Stack, seen: Seen) -> bool:
    """It does; and nobody is measured cold. ValueError where it is the gateway that does not."""
    sample = await load(stack.target, Shape(4, 1.0, warm_s=0.0))
    if sample.latency_us:
        return True
    told = f"{stack.name} answers no request with status 200"
    if stack.name == ROUTER:
        raise ValueError(told)
    seen.missing = (*seen.missing, told)
    return False


async def _learning(where: Field, seen: Seen) -> None:
    """p99 at 70 % of what the gateway can take, with every tenth answer rated and with none."""
    router = where.named(ROUTER)
    if router is None:
        return
    at_most = tables.middle(seen, ROUTER, Shape(16, seen.plan.seconds), lambda s: s.per_s)
    shape = Shape(64, 2.0, rate=0.7 * at_most)
    for _ in range(seen.plan.rounds):
        for name, every in (("learning on", 10), ("learning off", 0)):
            target = tables.rated(router.target, every)
            seen.add(Stack(name, target, ()), shape, await load(target, shape))


def soak(requests: int = SOAK_REQUESTS) -> None:
    """Resident memory of a gateway at every tenth of so many requests."""
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), rivals=()) as where:
        router = where.named(ROUTER)
        assert router is not None
        print(tables.soak_table(uvloop.run(_soaked(router, requests))), flush=True)


async def _soaked(router: Stack, requests: int) -> list[tuple[int, float, float]]:
    """(requests so far, MiB of the gateway, MiB of its store)."""
    own, store = Stack("", router.target, router.pids[:1]), Stack("", router.target, router.pids[1:])
    rows, done = [(0, own.rss_mib(), store.rss_mib())], 0
    while done < requests:
        sample = await load(router.target, Shape(16, 2.0, warm_s=0.0))
        done += len(sample.latency_us)
        if done >= requests * len(rows) // 10:
            rows.append((done, own.rss_mib(), store.rss_mib()))
    return rows
