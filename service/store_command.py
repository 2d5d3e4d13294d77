"""`python -m service store check|digest|repair|export`: the store as an operator sees it, route by route.

check   the server's fitness, every log's chain, every snapshot's checksum and digest; exit code 1 if anything is wrong
digest  position and digest of each route, as /readyz tells them of a gateway: equal digests, equal posteriors
repair  begin a damaged log again with all that can be read of it; what cannot goes to a file first
export  a route's log as JSON lines
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from feedback.embedded import EmbeddedServer, EmbeddedServerError
from feedback.inspection import entries_after, examine, rebuild, told
from feedback.redis_store import RedisStore
from feedback.state import START
from feedback.store import StoreError, log_name
from service.config import load_settings
from service.config_problems import ConfigError
from service.routes import quality_models
from service.settings import Settings

PATIENT_S = 10.0  # a person waits

Work = Callable[[RedisStore, list[str], bytes, Path], Coroutine[Any, Any, int]]


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 if all is well, 1 if something is wrong with the store, 2 if it cannot be reached or used."""
    options = _options(arguments)
    try:
        with ExitStack() as stack:
            settings = load_settings(options.config, os.environ)
            return asyncio.run(_run(options.work, _url(settings, stack), settings, options))
    except (ConfigError, EmbeddedServerError, StoreError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


def _url(settings: Settings, stack: ExitStack) -> str:
    if settings.store.url is not None:
        return settings.store.url
    server = EmbeddedServer.start(settings.store.state_dir)  # or the running gateway's own
    stack.callback(server.stop)
    return server.url


async def _run(work: Work, url: str, settings: Settings, options: argparse.Namespace) -> int:
    scopes = sorted(quality_models(settings))
    if options.route is not None:
        known = scopes
        scopes = [scope for scope in scopes if options.route in (scope, scope.partition(".")[2])]
        if not scopes:
            print(f"no route is called {options.route!r}; known: {', '.join(known)}", file=sys.stderr)
            return 2
    ttl_ms = round(settings.store.feedback_window_h * 3_600_000)
    store = RedisStore(url, prefix=settings.store.key_prefix, decision_ttl_ms=ttl_ms, timeout_s=PATIENT_S)
    try:
        return await work(store, scopes, settings.features.tag, options.keep)
    finally:
        await store.close()


async def _check(store: RedisStore, scopes: list[str], features: bytes, _: Path) -> int:
    print(f"server: version {await store.probe()}, fit")
    wrong = 0
    for scope in scopes:
        found = await examine(store.log(log_name(scope, features)), features)
        if found.last is None:
            print(f"{scope}: no log yet")
            continue
        print(
            f"{scope}: {found.state.events} events up to {found.state.cursor}, {found.entries} entries kept"
        )
        for problem in found.problems:
            print(f"{scope}: WRONG: {problem}")
        wrong += len(found.problems)
    return 1 if wrong else 0


async def _digest(store: RedisStore, scopes: list[str], features: bytes, _: Path) -> int:
    for scope in scopes:
        found = await examine(store.log(log_name(scope, features)), features)
        print(f"{scope} {found.state.cursor} {found.state.digest()}")
    return 0


async def _repair(store: RedisStore, scopes: list[str], features: bytes, keep: Path) -> int:
    for scope in scopes:
        log = store.log(log_name(scope, features))
        found = await examine(log, features)
        if not found.problems:
            print(f"{scope}: nothing is wrong")
            continue
        if found.beyond:
            path = keep / f"lost-{scope}-{int(time.time())}.jsonl"
            path.write_text("".join(json.dumps(told(entry)) + "\n" for entry in found.beyond))
            print(f"{scope}: {len(found.beyond)} entries that cannot be joined are kept in {path}")
        await rebuild(log, found)
        print(
            f"{scope}: begun again with {found.state.events} events; gateways send again what they still hold"
        )
    return 0


async def _export(store: RedisStore, scopes: list[str], features: bytes, _: Path) -> int:
    for scope in scopes:
        for entry in await entries_after(store.log(log_name(scope, features)), START):
            print(json.dumps({"scope": scope} | told(entry)))
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m service store",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    for name, work in (("check", _check), ("digest", _digest), ("repair", _repair), ("export", _export)):
        command = commands.add_parser(name)
        command.add_argument(
            "--config", type=Path, default=Path("gateway.yaml"), help="default: gateway.yaml"
        )
        command.add_argument("--route", help="this one alone; default: all")
        command.set_defaults(work=work, keep=Path())
        if name == "repair":
            command.add_argument(
                "--keep",
                type=Path,
                default=Path(),
                help="folder for what cannot be joined; default: this one",
            )
    return parser.parse_args(arguments)
