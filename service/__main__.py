"""`python -m service --config gateway.yaml`: the gateway under uvicorn, with the embedded store unless one is named.

The embedded server is started from the main thread, before any loop runs: the kernel ends it with the thread that
spawned it, so that no gateway can leave one behind.
"""

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from socket import socket

import uvicorn
import uvloop
from threadpoolctl import threadpool_limits

from feedback.embedded import EmbeddedServerError
from feedback.ids import SecretError
from feedback.spool import SpoolError
from feedback.store import StoreUnfitError
from service import savings_command, store_command
from service.admin import admin_app
from service.app import Gateway, create_app
from service.config import parse_settings, read_file
from service.config_problems import ConfigError
from service.home import Home, home_of, open_budgets, open_learning, secret_of, shell_of
from service.reload import ConfigurationFile
from service.settings import AdminSettings, Settings
from service.workers import Workers, parent_is_gone, share_metrics

KEEP_ALIVE_S = (
    75  # longer than clients keep an idle connection, lest they send into one that is just being closed
)
GARBAGE_EVERY = 20_000  # objects; a request makes some hundreds
COMMANDS = {"store": store_command.main, "savings": savings_command.main}
log = logging.getLogger("service")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 after a clean stop, 2 where the settings or the store are wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] and arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]](arguments[1:])
    options = _options(arguments)
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        with ExitStack() as stack:
            settings = _settings(options)
            secret = secret_of(settings)
            _warn_of_missing_keys(settings)
            supervises = settings.server.workers > 1 and options.listen_on is None
            if supervises and options.ephemeral:
                print(
                    "--ephemeral keeps what is learned in one process; server.workers must be 1",
                    file=sys.stderr,
                )
                return 2
            home = home_of(settings, stack, ephemeral=options.ephemeral)
            runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
            if supervises:
                share_metrics(stack)
                return runner.run(Workers(settings.server, arguments, admin=settings.admin is not None).run())
            stack.enter_context(threadpool_limits(1))
            runner.run(_serve(settings, secret, home, options))
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


async def _serve(settings: Settings, secret: bytes, home: Home, options: argparse.Namespace) -> None:
    learning = await open_learning(settings, secret, home)
    shell = shell_of(settings, secret)
    gateway = create_app(settings, learning, shell, await open_budgets(settings, learning, home))
    _collect_seldom()

    file = ConfigurationFile(options.config, partial(_parsed, options), gateway.adopt)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, file.reload_and_tell)
    watching = asyncio.create_task(file.watch())
    try:
        async with AsyncExitStack() as stack:
            if settings.admin is not None and not options.without_admin:
                await stack.enter_async_context(_admin(gateway, settings.admin, file))
            server = _listening(gateway, settings)
            if options.parent is not None:
                alone = asyncio.create_task(parent_is_gone(options.parent))
                alone.add_done_callback(lambda _: server.handle_exit(signal.SIGTERM, None))
                stack.callback(alone.cancel)
            await server.serve(
                sockets=None if options.listen_on is None else [socket(fileno=options.listen_on)]
            )
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def _collect_seldom() -> None:
    """What stands by now stays: it need not be looked through for garbage again and again, nor what every request makes."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_EVERY, 20, 50)


def _listening(app: Gateway, settings: Settings) -> "_Announcing":
    config = uvicorn.Config(
        app,
        host=settings.server.host,
        port=settings.server.port,
        http="httptools",
        access_log=False,
        log_config=None,
        lifespan="on",
        proxy_headers=False,  # nothing here asks for the client's address
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=30,
    )
    return _Announcing(config, "gateway")


@asynccontextmanager
async def _admin(gateway: Gateway, settings: AdminSettings, file: ConfigurationFile) -> AsyncIterator[None]:
    """The operator's listener, while the block is open."""
    config = uvicorn.Config(
        admin_app(gateway, settings, file),
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
        lifespan="off",
    )
    listening = config.bind_socket()  # ends the process, saying why, where the address cannot be had
    server = _Beside(config, "admin")
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving


class _Announcing(uvicorn.Server):
    """Says on which address it listens: with port 0 nobody else knows."""

    def __init__(self, config: uvicorn.Config, what: str) -> None:
        super().__init__(config)
        self._what = what

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's own, but a signal that was obeyed is not raised once more: it would end what has yet to be closed."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers if self.started else ():
            host, port = server.sockets[0].getsockname()[:2]
            print(f"{self._what} on http://{host}:{port}", flush=True)


class _Beside(_Announcing):
    """Ends when it is told to; signals are the gateway's own business."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _settings(options: argparse.Namespace) -> Settings:
    return _parsed(options, read_file(options.config))


def _parsed(options: argparse.Namespace, text: str) -> Settings:
    path = options.config
    settings = parse_settings(text, source=str(path), folder=path.parent, environ=os.environ)
    server = settings.server
    server = replace(
        server,
        host=options.host or server.host,
        port=server.port if options.port is None else options.port,
    )
    return replace(settings, server=server)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m service", description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("gateway.yaml"), help="default: gateway.yaml")
    parser.add_argument("--host", help="instead of server.host")
    parser.add_argument("--port", type=int, help="instead of server.port; 0 for any free one")
    parser.add_argument(
        "--ephemeral", action="store_true", help="keep nothing: the store is this process's memory"
    )
    for own in ("--listen-on", "--parent"):  # of a worker: service.workers
        parser.add_argument(own, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--without-admin", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
