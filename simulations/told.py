"""What `python -m service savings` says of a gateway's log, beside the truth that recorded outcomes know."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from simulations.tables import Row, plain

NAMES: Final = {"as routed": "router"}  # of policies that a comparison calls otherwise
Z: Final = 1.96
HEAD: Final = ("told by its log alone", "quality", "at any n", "true", "USD/1,000", "true")


class ToldError(RuntimeError):
    """The report could not be made; the message is its own."""


def savings_of(config: Path, scope: str = "default.auto") -> Mapping[str, Any]:
    """The report on one route, as the command's JSON has it."""
    out = config.with_name("savings.json")
    command = [sys.executable, "-m", "service", "savings", "--config", str(config), "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    if done.returncode != 0:
        raise ToldError(done.stderr.strip())
    report: Mapping[str, Any] = json.loads(out.read_text())[scope]
    return report


def beside_the_truth(report: Mapping[str, Any], truth: Sequence[Row]) -> str:
    """A table and the report's sentence. truth: rows of the policies that it tells of, among others."""
    true = {row.name: row for row in truth}
    lines = [HEAD]
    for policy in report["policies"]:
        name = NAMES.get(policy["policy"], policy["policy"])
        quality, usd, row = policy["quality"], policy["usd"], true[name]
        interval = "-" if quality["lower"] is None else f"{quality['lower']:.2f} .. {quality['upper']:.2f}"
        told = _figure(quality, 1.0), interval, f"{row.quality:.3f}"
        lines.append((name, *told, _figure(usd, 1000.0), f"{row.usd_per_1000:.3f}"))
    return f"{plain(lines)}\n{report['said']}"


def _figure(told: Mapping[str, Any], scale: float) -> str:
    if told["value"] is None:
        return "-"
    return f"{scale * told['value']:.3f}" + (f" +- {scale * Z * told['se']:.3f}" if told["se"] else "")
