"""`python -m service --config gateway.yaml`: the gateway under uvicorn, with the embedded store unless one is named.

The embedded server is started from the main thread, before any loop runs: the kernel ends it with the thread that
spawned it, so that no gateway can leave one behind.
"""

import argparse
import asyncio
import hashlib
import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from secrets import token_hex
from socket import socket
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import uvicorn
import uvloop
from threadpoolctl import threadpool_limits

from feedback.embedded import EmbeddedServer, EmbeddedServerError
from feedback.ids import SecretError, load_secret, new_id
from feedback.learning import Identity, Learning
from feedback.memory_store import MemoryStore
from feedback.redis_store import RedisStore
from feedback.spool import Spool, SpoolError
from feedback.store import Store, StoreError, StoreUnfitError
from service import store_command
from service.app import Gateway, create_app
from service.config import Settings, StoreSettings, load_settings
from service.config_problems import ConfigError
from service.pipeline import Shell
from service.routes import quality_models
from service.upstream import AiohttpUpstream

KEEP_ALIVE_S = (
    75  # longer than clients keep an idle connection, lest they send into one that is just being closed
)
PATIENCE_S = 3.0
log = logging.getLogger("service")


@dataclass(frozen=True, slots=True)
class _Home:
    """Where what is learned is kept. store_url: None for this process's memory. spool: of feedback for that store and no
    other. patience_s: how long an empty store is left to gateways that may know more than a fresh one does.
    """

    store_url: str | None
    spool: Path
    embedded: EmbeddedServer | None = None
    patience_s: float = 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 after a clean stop, 2 where the settings or the store are wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["store"]:
        return store_command.main(arguments[1:])
    options = _options(arguments)
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        with ExitStack() as stack:
            settings = _settings(options)
            secret = load_secret(_secret_text(settings), settings.store.state_dir)
            _warn_of_missing_keys(settings)
            home = _home(settings, stack, ephemeral=options.ephemeral)
            stack.enter_context(threadpool_limits(1))
            runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
            runner.run(_serve(settings, secret, home))
    except (ConfigError, SecretError, EmbeddedServerError, SpoolError) as error:
        print(error, file=sys.stderr)
        return 2
    except StoreUnfitError as error:
        print(f"the store cannot be used: {error}", file=sys.stderr)
        return 2
    return 0


def _warn_of_missing_keys(settings: Settings) -> None:
    for name, model in settings.models.items():
        if model.missing_key_env is not None:
            log.warning(
                "%s cannot be called: its key should be in %s, which is not set", name, model.missing_key_env
            )


def _home(settings: Settings, stack: ExitStack, *, ephemeral: bool) -> _Home:
    if ephemeral:
        log.warning("ephemeral: everything that is learned ends with this process")
        return _Home(None, Path(stack.enter_context(TemporaryDirectory(prefix="ephemeral-"))))
    spools = settings.store.state_dir / "spool"
    if settings.store.url is None:
        embedded = EmbeddedServer.start(settings.store.state_dir)
        stack.callback(embedded.stop)
        home = _Home(embedded.url, spools / "embedded", embedded, 0.0 if embedded.owner else PATIENCE_S)
    else:
        home = _Home(settings.store.url, spools / _name_of(settings.store), patience_s=PATIENCE_S)
    for other in sorted(spools.glob("*/*.spool")):
        if other.parent != home.spool and other.stat().st_size > 0:
            log.warning(
                "%s holds feedback for another store; start the gateway on that store to send it", other
            )
    return home


def _name_of(store: StoreSettings) -> str:
    """A folder's name for a store: the same for the same server, database and prefix, whatever the password."""
    url = urlsplit(store.url or "")
    where = f"{url.hostname}:{url.port}{url.path}?{url.query}#{store.key_prefix}"
    return hashlib.blake2b(where.encode(), digest_size=6).hexdigest()


async def _serve(settings: Settings, secret: bytes, home: _Home) -> None:
    worker = token_hex(8)
    previous = settings.store.previous_secret
    window_s = settings.store.feedback_window_h * 3600
    store = await _store(settings, home)
    learning = Learning(
        store,
        await Spool.open(home.spool, worker=worker, clock=time.time),
        quality_models(settings),
        identity=Identity(worker, [secret, *([previous] if previous else [])], window_s),
        clock=time.time,
        patience_s=home.patience_s,
        revive=home.embedded.ensure if home.embedded else None,
    )
    shell = Shell(
        upstream=AiohttpUpstream(settings.upstream),
        now=time.time,
        ticks=time.monotonic_ns,
        new_id=partial(_new_id, secret),
    )
    await _listen(create_app(settings, learning, shell), settings)


async def _listen(app: Gateway, settings: Settings) -> None:
    config = uvicorn.Config(
        app,
        host=settings.server.host,
        port=settings.server.port,
        http="httptools",
        access_log=False,
        log_config=None,
        lifespan="on",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=30,
    )
    await _Announcing(config).serve()


class _Announcing(uvicorn.Server):
    """Says on which address it listens: with port 0 nobody else knows."""

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers if self.started else ():
            host, port = server.sockets[0].getsockname()[:2]
            print(f"gateway on http://{host}:{port}", flush=True)


async def _store(settings: Settings, home: _Home) -> Store:
    if home.store_url is None:
        return MemoryStore()
    ttl_ms = round(settings.store.feedback_window_h * 3_600_000)
    store = RedisStore(home.store_url, prefix=settings.store.key_prefix, decision_ttl_ms=ttl_ms)
    try:
        log.info("store: version %s", await store.probe())
    except StoreUnfitError:
        await store.close()
        raise
    except StoreError as error:
        log.warning("the store is away (%s): starting without it", error)
    return store


def _settings(options: argparse.Namespace) -> Settings:
    settings = load_settings(options.config, os.environ)
    server = settings.server
    server = replace(
        server,
        host=options.host or server.host,
        port=server.port if options.port is None else options.port,
    )
    return replace(settings, server=server)


def _secret_text(settings: Settings) -> str | None:
    return None if settings.store.secret is None else settings.store.secret.decode()


def _new_id(secret: bytes, scope: str) -> str:
    return new_id(secret, scope, now_s=time.time(), entropy=os.urandom(8))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m service", description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("gateway.yaml"), help="default: gateway.yaml")
    parser.add_argument("--host", help="instead of server.host")
    parser.add_argument("--port", type=int, help="instead of server.port; 0 for any free one")
    parser.add_argument(
        "--ephemeral", action="store_true", help="keep nothing: the store is this process's memory"
    )
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
