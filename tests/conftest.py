"""What tests of several folders share: real store servers, started once, and a log that fails on demand."""

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from threadpoolctl import threadpool_limits

from feedback import embedded
from feedback.embedded import find_server
from feedback.store import Log, StoreError


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--server", type=Path, help="a redis-server or valkey-server to test on, instead of the embedded one"
    )


@pytest.fixture(scope="session", autouse=True)
def one_blas_thread() -> Iterator[None]:
    """As the gateway runs: threads that wait for each other take minutes where something else has the other core."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def server_binary(pytestconfig: pytest.Config) -> Path:
    given: Path | None = pytestconfig.getoption("server")
    return given or find_server()


@pytest.fixture(scope="session")
def store_url(server_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server as a gateway starts it. Tests name their own routes in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "find_server", lambda: server_binary)
        server = embedded.EmbeddedServer.start(tmp_path_factory.mktemp("state"))
    yield server.url
    server.stop()


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
