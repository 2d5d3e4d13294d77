"""Several workers on one machine: processes that listen on one port, each a whole gateway.

They share the store, through it what is learned, and one folder of metrics. This process keeps the port and the embedded
store, starts a worker again when it ends, and hands signals on; it serves nothing itself. The first worker has the operator's
listener. A worker that was killed leaves its spool to the one that comes after it (feedback.spool).

On Linux each worker has a listening socket of its own (SO_REUSEPORT), over which the kernel spreads connections. From one that
all share whoever is woken first takes them: of 40 opened while two workers were idle, one had fewer than 5. The price: what
waits to be accepted by a worker that ends is reset, and its client connects again; and one that hangs is given its share.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from socket import SO_REUSEADDR, SO_REUSEPORT, SOL_SOCKET, socket
from tempfile import TemporaryDirectory
from typing import Any, Final

import uvicorn

from service.settings import ServerSettings

FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 10.0
LEAVE_S: Final = 40.0  # longer than a worker gives its requests to end
SPREAD: Final = sys.platform == "linux"  # elsewhere the last to listen gets all
UNFIT: Final = 2  # the exit code of a gateway whose settings or store are wrong
log = logging.getLogger("service")


class Workers:
    """command: the arguments of `python -m service`, without what is one worker's own. admin: there is an operator's
    listener, and the first worker has it.
    """

    def __init__(self, server: ServerSettings, command: Sequence[str], *, admin: bool) -> None:
        self._server, self._command, self._admin = server, command, admin
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._leaving = asyncio.Event()
        self._code = 0

    async def run(self) -> int:
        """Until a signal ends it. Exit code: 0, or 2 where a worker says that it can never serve."""
        with _reserved(self._server) as port:
            self._hand_signals_on()
            ready = [asyncio.Event() for _ in range(self._server.workers)]
            keeping = [
                asyncio.create_task(self._keep(number, port, event)) for number, event in enumerate(ready)
            ]
            announcing = asyncio.create_task(self._announce(port, ready))
            await self._leaving.wait()
            announcing.cancel()
            await self._end(keeping)
        return self._code

    def _hand_signals_on(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._leaving.set)
        loop.add_signal_handler(signal.SIGHUP, self._tell, signal.SIGHUP)

    def _tell(self, number: signal.Signals) -> None:
        for process in self._running.values():
            with suppress(ProcessLookupError):
                process.send_signal(number)

    async def _announce(self, reserved: socket, ready: Sequence[asyncio.Event]) -> None:
        for event in ready:
            await event.wait()
        host, port = reserved.getsockname()[:2]
        print(f"gateway on http://{host}:{port}", flush=True)

    async def _keep(self, number: int, port: socket, ready: asyncio.Event) -> None:
        """Worker `number`, started again whenever it ends. One that can never serve ends all, but only before it ever did: a
        file that is broken later changes nothing.
        """
        pause_s = FIRST_PAUSE_S
        while not self._leaving.is_set():
            try:
                process = self._running[number] = await self._start(number, port)
            except OSError:
                log.exception("worker %d cannot be started", number)
                await asyncio.sleep(LONGEST_PAUSE_S)
                continue
            if self._leaving.is_set():  # the signal came while it was being started
                process.terminate()
            served = await self._hear(process, ready)
            code = await process.wait()
            if self._leaving.is_set():
                return
            if code == UNFIT and not ready.is_set():
                self._code = UNFIT
                self._leaving.set()
                return
            log.error("worker %d ended with %s; another takes its place", number, code)
            pause_s = FIRST_PAUSE_S if served else min(2 * pause_s, LONGEST_PAUSE_S)
            await asyncio.sleep(pause_s)

    async def _start(self, number: int, port: socket) -> asyncio.subprocess.Process:
        with _own(port) as own:  # the worker's alone: with it the socket dies
            options = ["--listen-on", str(own.fileno()), "--parent", str(os.getpid())]
            if not (self._admin and number == 0):
                options.append("--without-admin")
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "service",
                *self._command,
                *options,
                stdout=asyncio.subprocess.PIPE,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[own.fileno()],
                start_new_session=True,  # a terminal's interrupt comes to this process, which ends them in order
            )

    async def _hear(self, process: asyncio.subprocess.Process, ready: asyncio.Event) -> bool:
        """Its lines, until it ends: where the operator's listener is, and that it serves. Whether it ever did."""
        assert process.stdout is not None
        served = False
        async for line in process.stdout:
            if line.startswith(b"gateway on "):
                served = True
                ready.set()
            else:
                sys.stdout.write(line.decode())
                sys.stdout.flush()
        return served

    async def _end(self, keeping: Sequence[asyncio.Task[None]]) -> None:
        self._tell(signal.SIGTERM)
        _, late = await asyncio.wait(keeping, timeout=LEAVE_S)
        if late:
            log.error("%d workers did not end in %g s and are killed", len(late), LEAVE_S)
            self._tell(signal.SIGKILL)
            await asyncio.wait(late)


def share_metrics(stack: ExitStack) -> None:
    """One folder in which all workers count, unless the operator has named one (service.metrics)."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = stack.enter_context(TemporaryDirectory(prefix="metrics-"))


def _reserved(server: ServerSettings) -> socket:
    """Bound, so that the port is no other gateway's; where connections are spread nobody listens on it. Uvicorn's own way to
    bind comes first: it ends the process, saying why, where the address cannot be had.
    """
    bound = uvicorn.Config(app="", host=server.host, port=server.port, log_config=None).bind_socket()
    if not SPREAD:
        return bound
    family, address = bound.family, bound.getsockname()
    bound.close()
    try:
        return _bound(family, address, SO_REUSEPORT)
    except OSError:  # connections of an earlier gateway with one worker linger, for a minute
        log.warning("port %d is bound beside what lingers on it: start no second gateway there", address[1])
        return _bound(family, address, SO_REUSEADDR, SO_REUSEPORT)


def _own(port: socket) -> socket:
    """For one worker to listen on."""
    return _bound(port.family, port.getsockname(), SO_REUSEADDR, SO_REUSEPORT) if SPREAD else port.dup()


def _bound(family: int, address: Any, *options: int) -> socket:
    made = socket(family)
    try:
        for option in options:
            made.setsockopt(SOL_SOCKET, option, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made


async def parent_is_gone(parent: int) -> None:
    """In a worker: returns once the process that started it has ended without a word."""
    while os.getppid() == parent:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(1.0)
    log.error("the process that started this worker is gone: leaving too")
