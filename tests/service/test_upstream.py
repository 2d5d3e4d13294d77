"""Against real servers on loopback that behave and misbehave."""

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field

import pytest

from service.settings import UpstreamSettings
from service.upstream import AiohttpUpstream, UpstreamError

KEY = "sk-very-secret"
HEADERS = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
BODY = b'{"model": "auto"}'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
GUARD_S = 30.0  # no test waits this long: it turns a hang into a failure
SOON_S = 0.05


@dataclass(eq=False)
class Served:
    """A server's address and what it has seen."""

    url: str = ""
    port: int = 0
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)


@dataclass(eq=False)
class Peer:
    """One connection, as the server sees it."""

    served: Served
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def request(self) -> bytes:
        """The next request's head and body; empty when the client has left."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        return head + await self.reader.readexactly(length)

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def until_client_leaves(self) -> None:
        with suppress(ConnectionResetError):
            assert await self.reader.read(1) == b""

    def reset(self) -> None:
        linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # on, 0 s: closing sends RST
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


Behaviour = Callable[[Peer], Awaitable[None]]


@asynccontextmanager
async def serving(behaviour: Behaviour) -> AsyncIterator[Served]:
    served = Served()
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        served.connections += 1
        try:
            await behaviour(Peer(served, reader, writer))
        finally:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    served.port = server.sockets[0].getsockname()[1]
    served.url = f"http://127.0.0.1:{served.port}/v1/chat/completions"
    try:
        async with asyncio.timeout(GUARD_S):
            yield served
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [error for error in outcomes if isinstance(error, Exception)] == []


def always(reply: bytes) -> Behaviour:
    """Answers every request of every connection alike."""

    async def behaviour(peer: Peer) -> None:
        while request := await peer.request():
            peer.served.requests.append(request)
            await peer.say(reply)

    return behaviour


def once(reply: bytes) -> Behaviour:
    """Answers the first request and falls silent, the connection open."""

    async def behaviour(peer: Peer) -> None:
        peer.served.requests.append(await peer.request())
        await peer.say(reply)
        await peer.until_client_leaves()

    return behaviour


def then_close(reply: bytes) -> Behaviour:
    async def behaviour(peer: Peer) -> None:
        peer.served.requests.append(await peer.request())
        await peer.say(reply)

    return behaviour


def upstream(
    *,
    connect_s: float = GUARD_S,
    first_byte_s: float = GUARD_S,
    idle_s: float = GUARD_S,
    max_bytes: int = 1 << 20,
) -> AiohttpUpstream:
    return AiohttpUpstream(UpstreamSettings(connect_s, first_byte_s, idle_s), max_reply_bytes=max_bytes)


async def ask(client: AiohttpUpstream, url: str) -> bytes:
    with closing(await client.send(url, HEADERS, BODY)) as reply:
        return await reply.read()


async def failure(client: AiohttpUpstream, url: str) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await ask(client, url)
    assert KEY not in caught.value.message
    assert "127.0.0.1" not in caught.value.message
    return caught.value


async def test_a_reply_has_its_status_its_headers_in_lower_case_and_its_body() -> None:
    head = b"HTTP/1.1 429 Slow Down\r\nRetry-After: 7\r\nX-A: 1\r\nX-A: 2\r\nContent-Length: 4\r\n\r\n"
    async with serving(always(head + b"wait")) as served, upstream() as client:
        with closing(await client.send(served.url, HEADERS, BODY)) as reply:
            assert reply.status == 429
            assert dict(reply.headers) == {"retry-after": "7", "x-a": "1, 2"}
            assert await reply.read() == b"wait"


async def test_the_request_arrives_as_given_and_asks_for_no_compression() -> None:
    async with serving(always(OK)) as served, upstream() as client:
        await ask(client, served.url)
    head, _, body = served.requests[0].partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert lines[0] == b"post /v1/chat/completions http/1.1"
    assert f"authorization: bearer {KEY}".encode() in lines
    assert [line for line in lines if line.startswith(b"accept-encoding")] == [b"accept-encoding: identity"]
    assert body == BODY


async def test_a_chunked_reply_is_read_whole() -> None:
    async with (
        serving(always(CHUNKED + b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n")) as served,
        upstream() as client,
    ):
        assert await ask(client, served.url) == b"abcdefg"


async def test_each_chunk_is_handed_on_before_the_next_is_sent() -> None:
    seen = asyncio.Queue[bytes]()

    async def behaviour(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED)
        for word in (b"one", b"two", b"six"):
            await peer.say(b"3\r\n%b\r\n" % word)
            assert await seen.get() == word
        await peer.say(b"0\r\n\r\n")

    async with serving(behaviour) as served, upstream() as client:
        with closing(await client.send(served.url, HEADERS, BODY)) as reply:
            while chunk := await reply.chunk():
                seen.put_nowait(chunk)
    assert seen.empty()


async def test_a_refused_connection_is_named() -> None:
    with socket.socket() as held:  # bound and not listening: nobody else gets the port, and it refuses
        held.bind(("127.0.0.1", 0))
        async with upstream() as client:
            error = await failure(client, f"http://127.0.0.1:{held.getsockname()[1]}/v1")
    assert error.kind == "connect"


async def test_a_url_that_cannot_be_called_is_named() -> None:
    async with upstream() as client:
        assert (await failure(client, "http://127.0.0.1:99999/v1")).kind == "connect"


async def test_a_failed_tls_handshake_is_named() -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.reader.read(1)
        await peer.say(b"this is not TLS\r\n")

    async with serving(behaviour) as served, upstream() as client:
        assert (await failure(client, served.url.replace("http", "https"))).kind == "tls"


async def test_a_connection_that_never_stands_is_named() -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.reader.read()  # accepts, and never answers the handshake

    async with serving(behaviour) as served, upstream(connect_s=SOON_S) as client:
        assert (await failure(client, served.url.replace("http", "https"))).kind == "timeout_connect"


async def test_a_reply_that_never_begins_is_named_and_its_connection_closed() -> None:
    left = asyncio.Event()

    async def behaviour(peer: Peer) -> None:
        await peer.request()
        await peer.until_client_leaves()
        left.set()

    async with serving(behaviour) as served, upstream(first_byte_s=SOON_S, idle_s=GUARD_S) as client:
        assert (await failure(client, served.url)).kind == "timeout_first_byte"
        await left.wait()


@pytest.mark.parametrize(
    "beginning",
    [CHUNKED, CHUNKED + b"3\r\nabc\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"],
    ids=["before any of the body", "chunked", "content-length"],
)
async def test_a_reply_that_falls_silent_is_named(beginning: bytes) -> None:
    async with serving(once(beginning)) as served, upstream(idle_s=SOON_S) as client:
        assert (await failure(client, served.url)).kind == "timeout_idle"


async def test_the_idle_limit_does_not_apply_while_the_first_byte_is_awaited() -> None:
    async def behaviour(peer: Peer) -> None:
        peer.served.requests.append(await peer.request())
        await peer.until_client_leaves()

    async with serving(behaviour) as served, upstream(first_byte_s=4 * SOON_S, idle_s=SOON_S) as client:
        assert (await failure(client, served.url)).kind == "timeout_first_byte"


@pytest.mark.parametrize(
    "beginning",
    [b"", b"HTTP/1.1 200", CHUNKED + b"3\r\nabc\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"],
    ids=["before the head", "inside the head", "chunked", "content-length"],
)
@pytest.mark.parametrize("abruptly", [True, False])
async def test_a_reply_that_breaks_off_is_named_and_not_tried_again(beginning: bytes, abruptly: bool) -> None:
    async def behaviour(peer: Peer) -> None:
        peer.served.requests.append(await peer.request())
        await peer.say(beginning)
        if abruptly:
            peer.reset()

    async with serving(behaviour) as served, upstream() as client:
        assert (await failure(client, served.url)).kind == "reset"
    assert len(served.requests) == 1


async def test_what_was_sent_before_a_stream_breaks_is_handed_on_first() -> None:
    broken = asyncio.Event()

    async def behaviour(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED + b"3\r\nabc\r\n")
        await broken.wait()

    async with serving(behaviour) as served, upstream() as client:
        with closing(await client.send(served.url, HEADERS, BODY)) as reply:
            assert await reply.chunk() == b"abc"
            broken.set()
            with pytest.raises(UpstreamError, match="broke"):
                await reply.chunk()


@pytest.mark.parametrize(
    "reply", [b"220 mail ready\r\n\r\n", b"\x00\xff" * 100, b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n"]
)
async def test_what_is_not_http_is_named(reply: bytes) -> None:
    async with serving(then_close(reply)) as served, upstream() as client:
        assert (await failure(client, served.url)).kind == "reset"


async def test_a_reply_is_read_up_to_the_limit_and_no_further() -> None:
    async with serving(always(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello world")) as served:
        async with upstream(max_bytes=11) as client:
            assert await ask(client, served.url) == b"hello world"
        async with upstream(max_bytes=10) as client:
            assert (await failure(client, served.url)).kind == "too_large"


async def test_the_limit_holds_for_what_a_compressed_reply_becomes() -> None:
    bomb = gzip.compress(bytes(4 << 20))
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    async with serving(once(head + bomb)) as served, upstream(max_bytes=1 << 20) as client:
        assert (await failure(client, served.url)).kind == "too_large"


async def test_a_reply_that_is_compressed_all_the_same_is_read_and_loses_the_header() -> None:
    packed = gzip.compress(b"hello")
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    async with serving(always(head + packed)) as served, upstream() as client:
        with closing(await client.send(served.url, HEADERS, BODY)) as reply:
            assert dict(reply.headers) == {}
            assert await reply.read() == b"hello"


async def test_a_body_that_is_not_what_its_encoding_says_is_named() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\n"
    async with serving(once(head + b"hello")) as served, upstream() as client:
        assert (await failure(client, served.url)).kind == "reset"


async def test_a_redirect_is_a_reply_and_is_not_followed() -> None:
    async with serving(always(OK)) as target:
        redirect = b"HTTP/1.1 302 Found\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % target.url.encode()
        async with serving(always(redirect)) as served, upstream() as client:
            with closing(await client.send(served.url, HEADERS, BODY)) as reply:
                assert reply.status == 302
        assert target.connections == 0


async def test_no_cookie_is_kept() -> None:
    reply = b"HTTP/1.1 200 OK\r\nSet-Cookie: user=alice\r\nContent-Length: 0\r\n\r\n"
    async with serving(always(reply)) as served, upstream() as client:
        await ask(client, served.url)
        await ask(client, served.url)
    assert len(served.requests) == 2
    assert b"alice" not in served.requests[1]


async def test_a_proxy_in_the_environment_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(always(OK)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        async with serving(always(OK)) as served, upstream() as client:
            assert await ask(client, served.url) == b"ok"
        assert proxy.connections == 0


@pytest.mark.parametrize("reply", [OK, CHUNKED + b"2\r\nok\r\n0\r\n\r\n"], ids=["content-length", "chunked"])
async def test_a_reply_read_to_its_end_gives_its_connection_back(reply: bytes) -> None:
    async with serving(always(reply)) as served, upstream() as client:
        assert await ask(client, served.url) == b"ok"
        with closing(await client.send(served.url, HEADERS, BODY)) as streamed:
            assert (await streamed.chunk(), await streamed.chunk()) == (b"ok", b"")
        assert await ask(client, served.url) == b"ok"
    assert (len(served.requests), served.connections) == (3, 1)


async def test_many_requests_at_once_do_not_wait_for_each_other() -> None:
    arrived = 0
    everyone = asyncio.Event()

    async def behaviour(peer: Peer) -> None:
        nonlocal arrived
        await peer.request()
        arrived += 1
        if arrived == 60:
            everyone.set()
        await everyone.wait()
        await peer.say(OK)

    async with serving(behaviour) as served, upstream() as client:
        assert await asyncio.gather(*(ask(client, served.url) for _ in range(60))) == [b"ok"] * 60


async def test_leaving_before_the_end_closes_the_connection_at_once() -> None:
    left = asyncio.Event()

    async def behaviour(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED + b"3\r\nabc\r\n")
        await peer.until_client_leaves()
        left.set()

    async with serving(behaviour) as served, upstream() as client:
        reply = await client.send(served.url, HEADERS, BODY)
        assert await reply.chunk() == b"abc"
        assert not left.is_set()
        reply.close()
        await left.wait()  # the upstream itself is still open


@pytest.mark.parametrize(
    "beginning", [b"", CHUNKED + b"3\r\nabc\r\n"], ids=["before the head", "in the body"]
)
async def test_a_cancelled_caller_closes_the_connection_at_once(beginning: bytes) -> None:
    begun, left = asyncio.Event(), asyncio.Event()

    async def behaviour(peer: Peer) -> None:
        await peer.request()
        await peer.say(beginning)
        begun.set()
        await peer.until_client_leaves()
        left.set()

    async with serving(behaviour) as served, upstream() as client:
        caller = asyncio.create_task(ask(client, served.url))
        await begun.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await left.wait()


async def test_an_idle_connection_that_the_server_closed_is_replaced() -> None:
    async with serving(then_close(OK)) as served, upstream() as client:
        assert [await ask(client, served.url) for _ in range(20)] == [b"ok"] * 20
    assert served.connections == 20


@pytest.mark.parametrize("abruptly", [True, False])
async def test_a_request_that_finds_its_pooled_connection_closed_is_sent_once_more(abruptly: bool) -> None:
    async def behaviour(peer: Peer) -> None:
        peer.served.requests.append(await peer.request())
        await peer.say(OK)
        if peer.served.connections == 1:
            peer.served.requests.append(await peer.request())  # crosses with our closing: no byte of a reply
            if abruptly:
                peer.reset()

    async with serving(behaviour) as served, upstream() as client:
        assert await ask(client, served.url) == b"ok"
        assert await ask(client, served.url) == b"ok"
    assert (len(served.requests), served.connections) == (3, 2)


async def test_a_request_sent_once_more_takes_a_new_connection_though_more_lie_in_the_pool() -> None:
    pooled = 3
    everyone = asyncio.Event()

    async def behaviour(peer: Peer) -> None:
        await peer.request()
        if peer.served.connections == pooled:
            everyone.set()
        await everyone.wait()
        await peer.say(OK)
        await peer.request()  # and closes without a word: all of the pool is stale

    async with serving(behaviour) as served, upstream() as client:
        assert await asyncio.gather(*(ask(client, served.url) for _ in range(pooled))) == [b"ok"] * pooled
        assert await ask(client, served.url) == b"ok"
    assert served.connections == pooled + 1


async def test_a_request_is_sent_once_more_and_no_oftener() -> None:
    async def behaviour(peer: Peer) -> None:
        peer.served.requests.append(await peer.request())
        if peer.served.connections == 1:
            await peer.say(OK)
            peer.served.requests.append(await peer.request())

    async with serving(behaviour) as served, upstream() as client:
        assert await ask(client, served.url) == b"ok"
        assert (await failure(client, served.url)).kind == "reset"
    assert (len(served.requests), served.connections) == (3, 2)


async def test_nothing_is_read_ahead_of_a_reader_that_has_stopped() -> None:
    size = 64 << 20
    peers: list[Peer] = []

    async def behaviour(peer: Peer) -> None:
        if peers:
            await always(OK)(peer)
            return
        peers.append(peer)
        await peer.request()
        peer.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        peer.writer.write(bytes(size))
        await peer.until_client_leaves()

    async with serving(behaviour) as served, upstream() as client:
        with closing(await client.send(served.url, HEADERS, BODY)) as reply:
            received = len(await reply.chunk())
            for _ in range(500):  # takes the loop round often enough to pump 64 MiB through it
                await ask(client, served.url)
            waiting = peers[0].writer.transport.get_write_buffer_size()
    assert received < size // 4
    assert waiting > size // 2


async def test_closing_is_final_and_may_be_done_twice_or_without_a_request() -> None:
    async with upstream() as unused:
        pass
    await unused.close()
    async with serving(always(OK)) as served:
        client = upstream()
        await ask(client, served.url)
        await client.close()
        await client.close()
        with pytest.raises(RuntimeError, match="closed"):
            await ask(client, served.url)
