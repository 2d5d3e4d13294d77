"""`python -m service savings`: what the router saved, told from the decision log of its own traffic.

Per route a table: the policy as it routed, beside each fixed model and chance, as far as the log can tell. Quality is that of
the decisions that were rated, by a doubly robust estimate; [lower, upper] hold with 95 % at every length of one growing log, each
row by itself, if ratings come with their decisions and hang on nothing but the model. +- is 1.96 standard errors. worth: so many ratings of the policy's own choosing the log is worth; where it is too little, - stands. ~: expected by the router,
and not measured, where a strategy runs in shadow.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from bandit.savings import Row, always, dearest, possible, rows
from service.config import load_settings
from service.config_problems import ConfigError
from service.routes import scope_of_route
from service.savings_log import DecisionLogs, LogError, Read
from service.savings_text import headline, left_out, notes, table
from service.settings import Route, Settings


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0, or 2 where there is nothing to tell from."""
    options = _options(arguments)
    try:
        settings = load_settings(options.config, os.environ)
        logs = DecisionLogs.read(_folders(options, settings), since=options.since)
        told = _report(logs, settings, options)
        if options.json is not None:
            options.json.write_text(json.dumps(told, indent=1) + "\n")
    except (ConfigError, LogError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _report(logs: DecisionLogs, settings: Settings, options: argparse.Namespace) -> dict[str, Any]:
    """Print it, and give it as JSON has it. Raises LogError."""
    wanted, told = _wanted(settings, options.route), {}
    models = sorted({model for route in wanted.values() for model in route.models})
    if options.baseline not in (None, *models):
        raise LogError(f"no such model: {options.baseline!r}; known: {', '.join(models)}")
    torn = f"; {logs.torn} of them torn or none of ours, left out" if logs.torn else ""
    print(f"{logs.lines:,} lines in {logs.files} files{torn}.")
    for scope, route in wanted.items():
        read = None if route.strategy == "fixed" else logs.of(scope)
        if read is not None:
            told[scope] = _tell(scope, route, read, options.baseline)
    others = sorted(logs.scopes() - told.keys())
    if others and options.route is None:
        print(f"\nNot told of: {', '.join(others)} (without a choice, or not in the file).")
    if not told:
        raise LogError(f"nothing was weighed on {', '.join(wanted)} in these files")
    return told


def _tell(scope: str, route: Route, read: Read, baseline: str | None) -> dict[str, Any]:
    found = rows(read.traffic)
    baseline = baseline or route.baseline or (route.ramp.baseline if route.ramp else None)
    print("\n".join(["", *left_out(scope, read), "", table(found), "", *notes(read, found)]))
    said = _against(found, read, dearest(found) if baseline is None else always(baseline), route)
    print(said)
    return {
        "policies": [_finite(asdict(row)) for row in found],
        "said": said,
        "decisions": len(read.traffic),
        "further_attempts": read.attempts,
        "further_attempts_usd": read.attempts_usd,
    }


def _against(found: Sequence[Row], read: Read, policy: str | None, route: Route) -> str:
    """The sentence that all this comes down to."""
    if policy is None:
        return "Of no model were there choices enough to tell what it would cost."
    for row in found:
        if row.policy == policy and row.against is not None:
            return headline(policy, row.against)
    model = policy.removeprefix(always(""))
    share = possible(read.traffic).get(model, 0.0)
    if model not in route.models and share == 0.0:
        return f"The route {route.name} has no model {model!r}."
    return f"{model} could be chosen in {share:.1%} of the decisions only: the log cannot tell what it would get."


def _wanted(settings: Settings, name: str | None) -> dict[str, Route]:
    """By scope. Raises LogError for a route that there is not."""
    scopes = {
        scope_of_route(route, tenant): own
        for tenant in settings.tenants
        for route, own in settings.routes.items()
    }
    found = {scope: own for scope, own in scopes.items() if name in (None, scope, own.name)}
    if not found:
        raise LogError(f"no route is called {name!r}; known: {', '.join(sorted(scopes))}")
    return found


def _folders(options: argparse.Namespace, settings: Settings) -> list[Path]:
    if options.folder:
        return list(options.folder)
    if settings.decision_log is None:
        raise LogError(f"{options.config} keeps no decision_log; add one, or name its folders with --folder")
    return [settings.decision_log.folder]


def _finite(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: null is what is not known."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m service savings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, default=Path("gateway.yaml"), help="default: gateway.yaml")
    parser.add_argument("--route", help="this one alone; default: all that weigh models")
    parser.add_argument(
        "--baseline", metavar="MODEL", help="default: the route's, or the dearest that was measured"
    )
    parser.add_argument("--since", type=date.fromisoformat, metavar="YYYY-MM-DD", help="in UTC; default: all")
    parser.add_argument(
        "--folder", type=Path, nargs="+", metavar="DIR", help="of logs, of all gateways; default: the file's"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    return parser.parse_args(arguments)
