"""Real processes: recorded models, the gateway with its embedded store, kill -9, restarts, two gateways on one store."""

import asyncio
import os
import signal
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import yaml
from openai import AsyncOpenAI, NotFoundError, OpenAI

from bandit.features import DIMENSION, TAG
from feedback.events import Rated, decode
from feedback.learn import fold
from feedback.redis_store import RedisStore
from feedback.state import START, State
from simulations import demo, fleet
from simulations.datasets import load

SCOPE = "default.auto"
SECRET = "an-end-to-end-secret-of-more-than-32-bytes"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The recorded models' base URL; one server for all tests of this file."""
    folder = tmp_path_factory.mktemp("models")
    with fleet.recorded_models(fleet.Plan(folder, time_scale=1000)) as url:
        yield url


@pytest.fixture
def folder(tmp_path, models):
    (tmp_path / "gateway").mkdir()
    fleet.write_config(tmp_path / "gateway", models)
    return tmp_path / "gateway"


def prompts(n: int) -> list[str]:
    return [prompt.text for prompt in load("wheel").prompts[:n]]


async def ask(client: httpx.AsyncClient, text: str) -> str:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
    response = await client.post("/v1/chat/completions", json=body)
    return response.raise_for_status().json()["id"]


async def rate(client: httpx.AsyncClient, decision_id: str, value: float) -> str:
    response = await client.post("/feedback", json={"decision_id": decision_id, "rating": value})
    return response.raise_for_status().json()["status"]


async def settled(client: httpx.AsyncClient, ratings: int | None = None) -> dict:
    """/readyz once nothing waits any more, and the posterior holds so many ratings."""
    async with asyncio.timeout(30):
        while True:
            state = (await client.get("/readyz")).json()
            route = state["routes"][SCOPE]
            held = sum(arm["ratings"] for arm in route["arms"].values())
            enough = ratings is None or round(held) >= ratings
            if state["feedback_unsettled"] == 0 and route["decisions_unwritten"] == 0 and enough:
                return state
            await asyncio.sleep(0.05)


def socket_url(folder: Path) -> str:
    """Where the embedded server of a running gateway listens, for a second reader."""
    from feedback.embedded import EmbeddedServer

    return EmbeddedServer(folder / "state").url


async def whole_log(url: str) -> list[tuple[str, bytes]]:
    store = RedisStore(url, decision_ttl_ms=1000)
    try:
        entries, cursor = [], START
        while batch := (await store.log(SCOPE).read(cursor, 500)).entries:
            entries += [(entry.token, entry.data) for entry in batch]
            cursor = batch[-1].token
        return entries
    finally:
        await store.close()


async def test_kill_9_in_the_middle_loses_nothing_that_was_accepted(folder):
    config = folder / "gateway.yaml"
    accepted: dict[float, str] = {}
    with fleet.gateway_process(folder, config) as (gateway, url):
        async with httpx.AsyncClient(base_url=url, timeout=10) as client:

            async def one(number: int, text: str) -> None:
                value = number / 1000  # tells the ratings apart in the log
                try:
                    accepted[value] = await rate(client, await ask(client, text), value)
                except httpx.HTTPError:
                    return  # the gateway was gone
                if len(accepted) == 60:
                    gateway.send_signal(signal.SIGKILL)

            async with asyncio.TaskGroup() as group:
                for number, text in enumerate(prompts(200)):
                    group.create_task(one(number, text))
        gateway.wait()
    assert 60 <= len(accepted) < 200, "it was killed in the middle"

    with fleet.gateway_process(folder, config) as (_, url):
        async with httpx.AsyncClient(base_url=url) as client:
            state = await settled(client, ratings=len(accepted))
            entries = await whole_log(socket_url(folder))
            state = await settled(client)
    events = [decode(data) for _, data in entries]
    in_log = Counter(event.quality for event in events if isinstance(event, Rated))
    assert state["feedback_dead_letters"] == 0
    assert {value for value in accepted if in_log[value] != 1} == set(), (
        "each accepted rating stands once in the log"
    )

    replayed = State(TAG, DIMENSION)
    for token, data in entries:
        replayed = fold(replayed, token, data)
    route = state["routes"][SCOPE]
    assert (replayed.cursor, replayed.digest()) == (route["cursor"], route["digest"])


async def test_what_was_learned_survives_a_stop(folder):
    config = folder / "gateway.yaml"
    with fleet.gateway_process(folder, config) as (_, url):
        async with httpx.AsyncClient(base_url=url) as client:
            for text in prompts(5):
                await rate(client, await ask(client, text), 0.5)
            before = (await settled(client, ratings=5))["routes"][SCOPE]["arms"]
    with fleet.gateway_process(folder, config) as (_, url):
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await settled(client))["routes"][SCOPE]["arms"] == before


async def test_two_gateways_on_one_store_hold_one_posterior(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ROUTER_SECRET", SECRET)
    config = yaml.safe_load((folder / "gateway.yaml").read_text())
    config["store"]["secret_env"] = "ROUTER_SECRET"
    (folder / "gateway.yaml").write_text(yaml.safe_dump(config))
    other = tmp_path / "other"
    other.mkdir()
    with ExitStack() as stack:
        _, first_url = stack.enter_context(fleet.gateway_process(folder, folder / "gateway.yaml"))
        config["store"] |= {"url": socket_url(folder), "state_dir": str(other / "state")}
        (other / "gateway.yaml").write_text(yaml.safe_dump(config))
        _, second_url = stack.enter_context(fleet.gateway_process(other, other / "gateway.yaml"))
        async with (
            httpx.AsyncClient(base_url=first_url) as first,
            httpx.AsyncClient(base_url=second_url) as second,
        ):
            for text in prompts(20):  # decided here, rated there, and the other way round
                assert await rate(second, await ask(first, text), 0.75) in ("applied", "queued")
                assert await rate(first, await ask(second, text), 0.25) in ("applied", "queued")
            async with asyncio.timeout(30):
                while True:
                    a, b = [(await settled(c, ratings=40))["routes"][SCOPE] for c in (first, second)]
                    if a["cursor"] == b["cursor"]:
                        break
                    await asyncio.sleep(0.05)
    assert a["digest"] == b["digest"]


async def test_gateway_goes_on_without_its_store_and_loses_nothing(folder):
    """The embedded server is killed under load: requests answer, feedback waits on disk, the server is brought back."""
    with fleet.gateway_process(folder, folder / "gateway.yaml") as (_, url):
        async with httpx.AsyncClient(base_url=url, timeout=10) as client:
            texts = iter(prompts(60))
            for text in (next(texts) for _ in range(10)):
                await rate(client, await ask(client, text), 0.5)
            os.kill(server_pid(folder), signal.SIGKILL)
            statuses = [await rate(client, await ask(client, text), 0.5) for text in texts]
            assert set(statuses) <= {"applied", "queued"}
            state = await settled(client, ratings=60)
            assert round(sum(arm["ratings"] for arm in state["routes"][SCOPE]["arms"].values())) == 60


def server_pid(folder: Path) -> int:
    import socket

    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(socket_url(folder).removeprefix("unix://"))
        connection.sendall(b"INFO server\r\n")
        reply = connection.recv(65536).decode()
    return int(next(line.split(":")[1] for line in reply.splitlines() if line.startswith("process_id:")))


async def test_the_official_client_sees_an_openai_server(folder):
    with fleet.gateway_process(folder, folder / "gateway.yaml") as (_, url):
        text = prompts(1)[0]
        with OpenAI(base_url=f"{url}/v1", api_key="none-needed", max_retries=0) as client:
            reply = client.chat.completions.create(model="auto", messages=[{"role": "user", "content": text}])
            assert reply.model in {model.id for model in client.models.list()}
            assert reply.usage.completion_tokens > 0
            with pytest.raises(NotFoundError, match="gpt-unknown"):
                client.chat.completions.create(
                    model="gpt-unknown", messages=[{"role": "user", "content": text}]
                )
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none-needed", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="auto",
                messages=[{"role": "user", "content": "never recorded: what is 12 times 12?"}],
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices).startswith(
            "[nearest recorded"
        )
        assert chunks[-1].usage.completion_tokens > 0
        assert {chunk.id.startswith("chatcmpl-rt-") for chunk in chunks} == {True}


def test_demo_ends_with_its_table_and_picture(tmp_path, capsys):
    demo.run(requests=80, data="wheel", time_scale=2000, seed=0, report=tmp_path)
    printed = capsys.readouterr().out
    for row in ("router", "always gemini-2.5-pro", "uniform random", "static mix", "oracle"):
        assert row in printed
    routed = [line.split() for line in printed.splitlines() if line.startswith("router ")]
    assert float(routed[1][-2]) == pytest.approx(float(routed[1][-1]), abs=2e-3), "the log knows the bill"
    assert float(routed[0][2]) == pytest.approx(float(routed[1][-1]), abs=2e-3)
    assert "told by its log alone" in printed
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png;base64," in (tmp_path / "index.html").read_text()
