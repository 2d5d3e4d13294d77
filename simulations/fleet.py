"""The fleet that the demo talks to: a server that plays the recorded models, and the gateway, as processes of their own.

The gateway is `python -m service`, started as anyone would start it and spoken to by HTTP only.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from simulations.datasets import WHEEL, Dataset, load
from simulations.metrics import goal_for

DEMO_CONFIG: Final = Path(__file__).with_name("demo.yaml")
STOP_S: Final = 40.0  # longer than the gateway gives its last requests


class FleetError(RuntimeError):
    """A process of the fleet did not come up; the message ends with what it last said."""


@dataclass(frozen=True, slots=True)
class Plan:
    """data: what `datasets.load` takes. time_scale: recorded latency is divided by it. port: the gateway's; 0 for any.

    folder: for the gateway's config, state and logs; starting again in the same folder goes on where it ended.
    """

    folder: Path
    data: str = WHEEL
    time_scale: float = 200.0
    port: int = 0


@dataclass(frozen=True, slots=True)
class Fleet:
    """url: the gateway's address, without a path. config: its YAML. gateway: its process."""

    url: str
    config: Path
    gateway: "subprocess.Popen[str]"


@contextmanager
def running(plan: Plan) -> Iterator[Fleet]:
    """Both processes up and answering; they are stopped when the block is left, however it is left."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        models = stack.enter_context(recorded_models(plan))
        config = write_config(plan.folder, models, plan.data)
        gateway, url = stack.enter_context(gateway_process(plan.folder, config, port=plan.port))
        yield Fleet(url, config, gateway)


@contextmanager
def recorded_models(plan: Plan) -> Iterator[str]:
    """The base URL of the recorded models."""
    command = [sys.executable, "-m", "simulations.recorded_server", "--data", plan.data]
    command += ["--port", "0", "--time-scale", str(plan.time_scale)]
    with process(command, plan.folder / "recorded-models.log") as (_, said):
        yield said


@contextmanager
def gateway_process(
    folder: Path, config: Path, *, port: int = 0
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The gateway's process and its address."""
    command = [sys.executable, "-m", "service", "--config", str(config), "--port", str(port)]
    with process(command, folder / "gateway.log") as started:
        yield started


@contextmanager
def process(
    command: Sequence[str], log: Path, *, cwd: Path | None = None
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A server that prints one line ending in its address once it listens."""
    with log.open("a") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=cwd)  # noqa: S603 - our own
    with child:
        try:
            yield child, _address(child, log)
        finally:
            _stop(child)


def write_config(folder: Path, models_url: str, data: str = WHEEL) -> Path:
    """The gateway's YAML for these data, with the recorded models' real address and its state in the folder."""
    config = demo_config() if data == WHEEL else _config_for(load(data))
    for model in config["models"].values():
        model["base_url"] = models_url
    config["store"] = {"state_dir": str(folder.absolute() / "state")}
    path = folder / "gateway.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def demo_config() -> dict[str, Any]:
    """What stands in demo.yaml."""
    config: dict[str, Any] = yaml.safe_load(DEMO_CONFIG.read_text())
    return config


def usd_per_quality(config: Path) -> float:
    """What one full point of quality is worth on the route `auto` of a gateway's YAML."""
    return float(yaml.safe_load(config.read_text())["routes"]["auto"]["usd_per_quality"])


def _config_for(dataset: Dataset) -> dict[str, Any]:
    """Every recorded model at its recorded price, balanced as a replay balances by default."""
    models = {
        arm.name: {
            "price_usd_per_mtok_in": arm.price_usd_per_mtok_in,
            "price_usd_per_mtok_out": arm.price_usd_per_mtok_out,
            "context_window_tokens": arm.context_window_tokens,
        }
        for arm in dataset.arms
    }
    worth = goal_for(dataset, "balanced", None, 0.0).usd_per_quality
    routes = {"auto": {"models": list(models), "usd_per_quality": worth}}
    return {"models": models, "routes": routes, "decision_log": {}}


def _address(child: "subprocess.Popen[str]", log: Path) -> str:
    assert child.stdout is not None
    for line in child.stdout:
        if " on http" in line:
            return line.split(" on ")[-1].strip()
    last = "\n".join(log.read_text().splitlines()[-10:])
    raise FleetError(f"{' '.join(child.args if isinstance(child.args, list) else [])} did not start:\n{last}")


def _stop(child: "subprocess.Popen[str]") -> None:
    child.terminate()
    try:
        child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
