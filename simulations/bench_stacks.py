"""The servers of the gateway's bench as processes: the upstream, our gateway with everything on, what it is measured against.

Every server under test, with all that it starts itself (the gateway's store), is held to one core; the upstream and the load
have the other. What a server used is the kernel's account of its process and of its children.
"""

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
import yaml

from simulations.bench_load import Target
from simulations.bench_rivals import RIVALS, Rival, RivalError, serving
from simulations.bench_upstream import MODEL
from simulations.fleet import gateway_process, process

KEY: Final = "bench-key"
ARMS: Final = 16
RATED_EVERY: Final = 50  # of so many answers one is rated
MESSAGES: Final = (
    {"role": "system", "content": "You are a helpful assistant. Answer briefly and precisely."},
    {
        "role": "user",
        "content": "Explain in two sentences why the sky is blue, and then give one practical example of Rayleigh "
        "scattering that a photographer might notice at sunset.",
    },
)


@dataclass(frozen=True, slots=True)
class Stack:
    """A server under test. cpu_s: seconds that its processes have used; rss_mib: what they hold now."""

    name: str
    target: Target
    pids: tuple[int, ...]

    def cpu_s(self) -> float:
        return sum(_cpu_s(pid) for pid in self.pids)

    def rss_mib(self) -> float:
        return sum(_rss_mib(pid) for pid in self.pids)


@dataclass(frozen=True, slots=True)
class Field:
    """All servers up. direct: the upstream itself. missing: what could not be had, and why."""

    direct: Stack
    stacks: tuple[Stack, ...]
    missing: tuple[str, ...] = ()

    def named(self, name: str) -> Stack | None:
        return next((stack for stack in self.stacks if stack.name == name), None)


ROUTER: Final = f"fairlead, {ARMS} models"
PARTIAL: Final = "fairlead, 4 models"
MANY: Final = "fairlead, 64 models"
TWO: Final = "fairlead, 2 workers on both cores"
BARE: Final = "bare pass-through"
NAIVE: Final = "FastAPI + httpx"


@contextmanager
def running(folder: Path, *, rivals: Sequence[Rival] = RIVALS) -> Iterator[Field]:
    """Everything that is wanted, up and answering; stopped when the block is left."""
    server, generator = cores()
    with ExitStack() as stack:
        _hold_to(generator)
        command = [sys.executable, "-m", "simulations.bench_upstream"]
        child, upstream = stack.enter_context(process(command, folder / "upstream.log"))
        direct = Stack("upstream itself", _target(f"{upstream}/v1/chat/completions", MODEL), (child.pid,))
        _hold_to(server)  # who is started now inherits it
        try:
            stacks, missing = _start(stack, folder, upstream, rivals)
            _hold_to(server | generator)  # what the load takes of its core, the table tells
            two = gateway(folder / "gateway-two", upstream, name=TWO, workers=2)
            stacks.append(stack.enter_context(two))
        finally:
            _hold_to(generator)
        stack.callback(_hold_to, {server.copy().pop(), *generator})
        yield Field(direct, tuple(stacks), tuple(missing))


def _start(
    stack: ExitStack, folder: Path, upstream: str, rivals: Sequence[Rival]
) -> tuple[list[Stack], list[str]]:
    stacks: list[Stack] = []
    for name, what in ((BARE, "bare"), (NAIVE, "naive")):
        command = [sys.executable, "-m", "simulations.bench_passthrough", what]
        command += ["--upstream", f"{upstream}/v1/chat/completions"]
        child, url = stack.enter_context(process(command, folder / f"{what}.log"))
        stacks.append(Stack(name, _target(f"{url}/v1/chat/completions", MODEL), family(child.pid)))
    for name, arms in ((ROUTER, ARMS), (PARTIAL, 4), (MANY, 64)):
        stacks.append(
            stack.enter_context(gateway(folder / f"gateway-{arms}", upstream, name=name, arms=arms))
        )
    missing: list[str] = []
    for rival in rivals:
        try:
            child, url = stack.enter_context(serving(rival, folder, upstream))
        except RivalError as error:
            missing.append(str(error))
            continue
        stacks.append(Stack(rival.name, _target(url, rival.model), family(child.pid)))
    return stacks, missing


@contextmanager
def gateway(
    folder: Path,
    upstream: str,
    *,
    name: str = ROUTER,
    arms: int = ARMS,
    rated_every: int = RATED_EVERY,
    workers: int = 1,
) -> Iterator[Stack]:
    """Our gateway as `python -m service`: store, spool, features, learning, metrics and keys, all of it on."""
    folder.mkdir()
    names = [f"model-{k}" for k in range(arms)]
    models = {
        model: {
            "base_url": f"{upstream}/v1",
            "upstream_model": MODEL,
            "price_usd_per_mtok_in": round(0.1 * (k + 1), 3),
            "price_usd_per_mtok_out": round(0.4 * (k + 1), 3),
        }
        for k, model in enumerate(names)
    }
    config = {
        "models": models,
        "routes": {"auto": {"models": names, "usd_per_quality": 0.05}},
        "access": {"keys": [{"sha256": hashlib.sha256(KEY.encode()).hexdigest()}]},
        "store": {"state_dir": str((folder / "state").absolute())},
        "server": {"workers": workers},
    }
    file = folder / "gateway.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    with gateway_process(folder, file) as (child, url):
        target = _target(f"{url}/v1/chat/completions", "auto", key=KEY, rated_every=rated_every)
        yield Stack(name, target, family(child.pid))


def _target(url: str, model: str, *, key: str = "", rated_every: int = 0) -> Target:
    asked: dict[str, Any] = {"model": model, "messages": MESSAGES, "temperature": 0.7, "max_tokens": 256}
    whole, stream = orjson.dumps(asked), orjson.dumps(asked | {"stream": True})
    return Target(url, whole, stream, key, rated_every)


def cores() -> tuple[set[int], set[int]]:
    """The servers' core and the load's; the same one where there is no second."""
    if not hasattr(os, "sched_getaffinity"):
        return {0}, {0}
    first, *others = sorted(os.sched_getaffinity(0))
    return {first}, set(others[:1] or [first])


def _hold_to(wanted: set[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, wanted)


def family(pid: int) -> tuple[int, ...]:
    """The process and those that it has started."""
    parents = {int(p.name): _parent(p) for p in Path("/proc").glob("[0-9]*")}
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return tuple(found)


def _parent(process_folder: Path) -> int:
    try:
        return int((process_folder / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0  # it has ended meanwhile


def _cpu_s(pid: int) -> float:
    """User and system time of all its threads."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    ticks: int = os.sysconf("SC_CLK_TCK")
    return (int(fields[11]) + int(fields[12])) / ticks


def _rss_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:")), 0.0)
