"""What tests of several folders share: real store servers, started once, and a log that fails on demand."""

import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from feedback.embedded import OPTIONS, EmbeddedServer
from feedback.store import Log, StoreError


@pytest.fixture(scope="session")
def embedded_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The embedded server, as a gateway starts it. Tests name their own routes in it."""
    server = EmbeddedServer.start(tmp_path_factory.mktemp("state"))
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The redis-server that is on PATH; only for tests that know there is one."""
    binary, folder = shutil.which("redis-server"), tmp_path_factory.mktemp("redis")
    assert binary is not None
    command = [binary, *OPTIONS, "--dir", str(folder), "--unixsocket", str(folder / "socket")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert any(b"eady to accept connections" in line for line in process.stdout)
        yield f"unix://{folder / 'socket'}"
        process.terminate()


async def nothing(call: str) -> None:
    """What happens around a call unless a test has something else in mind."""


class FaultyLog:
    """A log that fails while `away`, and that does what it is asked and does not say so while it `loses_answers`.

    before, after: awaited around every call, with its name.
    """

    def __init__(self, log: Log) -> None:
        self.log, self.away, self.loses_answers = log, False, False
        self.before: Callable[[str], Awaitable[None]] = nothing
        self.after: Callable[[str], Awaitable[None]] = nothing

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*arguments: Any, **named: Any) -> Any:
            if self.away:
                raise StoreError("away")
            await self.before(name)
            answer = await getattr(self.log, name)(*arguments, **named)
            await self.after(name)
            if self.loses_answers:
                raise StoreError("the answer was lost")
            return answer

        return call


@pytest.fixture
def faulty() -> Callable[[Log], FaultyLog]:
    return FaultyLog
