"""`python -m service --config gateway.yaml`: the gateway under uvicorn, with the embedded store unless one is named.

The embedded server is started from the main thread, before any loop runs: the kernel ends it with the thread that
spawned it, so that no gateway can leave one behind.
"""

import argparse
import asyncio
import logging
import os
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from socket import socket

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
from service.app import Gateway, create_app
from service.config import Settings, load_settings
from service.config_problems import ConfigError
from service.pipeline import Shell
from service.routes import quality_models
from service.upstream import AiohttpUpstream

KEEP_ALIVE_S = (
    75  # longer than clients keep an idle connection, lest they send into one that is just being closed
)
log = logging.getLogger("service")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 after a clean stop, 2 where the settings or the store are wrong."""
    options = _options(arguments)
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        settings = _settings(options)
        secret = load_secret(_secret_text(settings), settings.store.state_dir)
        embedded = _embedded(settings, ephemeral=options.ephemeral)
    except (ConfigError, SecretError, EmbeddedServerError) as error:
        print(error, file=sys.stderr)
        return 2
    try:
        with threadpool_limits(1), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, secret, embedded))
    except StoreUnfitError as error:
        print(f"the store cannot be used: {error}", file=sys.stderr)
        return 2
    except SpoolError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        if embedded is not None:
            embedded.stop()
    return 0


async def _serve(settings: Settings, secret: bytes, embedded: EmbeddedServer | None) -> None:
    worker = secrets.token_hex(8)
    spool = await Spool.open(settings.store.state_dir / "spool", worker=worker, clock=time.time)
    store = await _store(settings, embedded)
    learning = Learning(
        store,
        spool,
        quality_models(settings),
        identity=Identity(worker, [secret], window_s=settings.store.feedback_window_h * 3600),
        clock=time.time,
        revive=embedded.ensure if embedded else None,
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


async def _store(settings: Settings, embedded: EmbeddedServer | None) -> Store:
    url = settings.store.url or (embedded.url if embedded else None)
    if url is None:
        log.warning("ephemeral: everything that is learned ends with this process")
        return MemoryStore()
    ttl_ms = round(settings.store.feedback_window_h * 3_600_000)
    store = RedisStore(url, prefix=settings.store.key_prefix, decision_ttl_ms=ttl_ms)
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


def _embedded(settings: Settings, *, ephemeral: bool) -> EmbeddedServer | None:
    if ephemeral or settings.store.url:
        return None
    return EmbeddedServer.start(settings.store.state_dir)


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
