"""The recorded models over real sockets, asked by the official client; their timing through an injected sleep."""

import json
import socket
import subprocess
import sys
import threading
from asyncio import Event
from contextlib import closing, contextmanager
from dataclasses import replace

import httpx
import numpy as np
import openai
import pytest
import uvicorn
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bandit.arms import Arm
from simulations.datasets import Dataset, RecordedPrompt
from simulations.nearest import NearestPrompt, _buckets
from simulations.recorded_server import create_app, main

GUARD_S = 30.0  # no test waits this long: it turns a hang into a failure
LONG_ANSWER = "\n".join(f"line {i} of a long   answer, " + "words " * 5 for i in range(30))
PROMPTS = (
    RecordedPrompt("p-1", "What is 12 times 12?", "maths", tools=False),
    RecordedPrompt("p-2", "Name the capital of France.", "geography", tools=False),
)
DATASET = Dataset(
    name="made-up",
    prompts=PROMPTS,
    arms=(Arm("small", 0.1, 0.4), Arm("large", 1, 4)),
    quality=np.array([[0.5, 1.0], [0.75, 1.0]]),
    cost_usd=np.array([[1e-5, 1e-3], [2e-5, 2e-3]]),
    tokens_in=np.array([[7, 8], [9, 10]]),
    tokens_out=np.array([[30, 600], [60, 1200]]),
    responses={("p-1", "large"): LONG_ANSWER},
)


@contextmanager
def serving(app):
    """The app under a real uvicorn in a thread; yields its base URL."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        server = uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join(GUARD_S)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def url():
    with serving(create_app(DATASET, time_scale=1e6)) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=GUARD_S) as client:
        yield client


def says(text):
    return [{"role": "user", "content": text}]


def test_a_recorded_prompt_gets_its_recorded_answer_and_usage(client):
    reply = client.chat.completions.create(model="large", messages=says("What is 12 times 12?"))
    assert reply.object == "chat.completion"
    assert reply.id.startswith("chatcmpl-")
    assert reply.model == "large"
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].message.content == LONG_ANSWER
    assert reply.choices[0].finish_reason == "stop"
    assert reply.system_fingerprint is None
    usage = reply.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (8, 600, 608)


def test_without_a_recorded_text_one_sentence_says_so_and_names_model_and_prompt(client):
    reply = client.chat.completions.create(model="small", messages=says("Name the capital of France."))
    text = reply.choices[0].message.content
    assert "small" in text
    assert "p-2" in text
    assert "not its text" in text
    assert "nearest" not in text


def test_two_answers_never_share_an_id(client):
    ids = {client.chat.completions.create(model="small", messages=says("Hm?")).id for _ in range(5)}
    assert len(ids) == 5


def test_the_last_user_message_is_the_prompt_in_parts_or_not(client):
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name the capital of France."},
        {"role": "assistant", "content": "Paris"},
        {"role": "user", "content": [{"type": "text", "text": "What is 12 times 12?"}]},
    ]
    reply = client.chat.completions.create(model="large", messages=conversation)
    assert reply.choices[0].message.content == LONG_ANSWER


def test_a_prompt_that_was_never_recorded_gets_the_nearest_ones_answer_and_is_told(client):
    reply = client.chat.completions.create(model="large", messages=says("And what is 12 times 13?"))
    assert reply.choices[0].message.content == f"[nearest recorded prompt: p-1] {LONG_ANSWER}"
    assert reply.usage.completion_tokens == 600


def test_a_stream_carries_the_same_text_in_at_most_twenty_pieces_and_then_its_usage(client):
    with client.chat.completions.create(
        model="large",
        messages=says("What is 12 times 12?"),
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    assert {(chunk.object, chunk.model) for chunk in chunks} == {("chat.completion.chunk", "large")}
    *body, finish, last = chunks
    pieces = [chunk.choices[0].delta.content for chunk in body if chunk.choices[0].delta.content]
    assert "".join(pieces) == LONG_ANSWER
    assert 2 <= len(pieces) <= 20
    assert [chunk.choices[0].finish_reason for chunk in [*body, finish]] == [None] * len(body) + ["stop"]
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens) == (8, 600, 608)


@pytest.mark.parametrize("options", [{}, {"stream_options": None}, {"stream_options": 7}])
def test_a_stream_ends_without_usage_where_none_was_asked_for(url, options):
    body = {"model": "small", "messages": says("What is 12 times 12?"), "stream": True} | options
    reply = httpx.post(f"{url}/chat/completions", json=body)
    events = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert events[-1] == "[DONE]"
    assert all("usage" not in json.loads(event) for event in events[:-1])


@settings(deadline=None)  # it speaks to a server: how long that takes is not what is asked
@given(st.text(min_size=1, alphabet=st.characters(exclude_categories=["Cs"])))
def test_whatever_the_text_a_stream_joins_to_what_is_said_at_once(client, text):
    said = client.chat.completions.create(model="small", messages=says(text)).choices[0].message.content
    with client.chat.completions.create(model="small", messages=says(text), stream=True) as stream:
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == said


def test_unknown_fields_are_ignored(client):
    reply = client.chat.completions.create(
        model="small", messages=says("What is 12 times 12?"), temperature=0.3, extra_body={"whim": [1]}
    )
    assert reply.usage.completion_tokens == 30


def test_an_unknown_model_is_not_found_in_openais_words(client):
    with pytest.raises(openai.NotFoundError, match="recorded are small, large") as raised:
        client.chat.completions.create(model="medium", messages=says("Hm?"))
    assert raised.value.code == "model_not_found"
    assert raised.value.param == "model"
    assert raised.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b'{"model": "small"}',
        b'{"model": "small", "messages": ["hi"]}',
        b'{"model": "\xff"}',
    ],
)
def test_a_body_that_cannot_be_read_is_a_bad_request_in_openais_envelope(url, body):
    reply = httpx.post(f"{url}/chat/completions", content=body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


def test_models_are_listed_and_the_server_says_that_it_is_alive(client, url):
    assert [model.id for model in client.models.list()] == ["small", "large"]
    assert httpx.get(url.removesuffix("/v1") + "/healthz").status_code == 200


class Sleeps:
    """Remembers what it was asked to wait for, and does not."""

    def __init__(self):
        self.seconds = []

    async def __call__(self, seconds):
        self.seconds.append(seconds)


async def ask(dataset, sleep, **body):
    app = create_app(dataset, time_scale=10, sleep=sleep)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://models.test") as client:
        reply = await client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200


@pytest.mark.parametrize(("model", "tokens_out"), [("small", 30), ("large", 600)])
async def test_an_answer_takes_a_fifth_of_a_second_and_a_sixtieth_for_each_token(model, tokens_out):
    sleep = Sleeps()
    await ask(DATASET, sleep, model=model, messages=says("What is 12 times 12?"))
    assert sum(sleep.seconds) == pytest.approx((0.2 + tokens_out / 60) / 10)


async def test_a_stream_waits_for_its_first_token_and_spreads_the_rest_evenly():
    sleep = Sleeps()
    await ask(DATASET, sleep, model="large", messages=says("What is 12 times 12?"), stream=True)
    first, *rest = sleep.seconds
    assert first == pytest.approx(0.02)
    assert len(rest) > 1
    assert rest == pytest.approx([600 / 60 / 10 / len(rest)] * len(rest))


async def test_nobody_waits_for_tokens_that_count_nano_dollars():
    metered = Dataset(
        "metered", PROMPTS[:1], (Arm("a", 0, 0.001),), *np.ones((3, 1, 1)), np.array([[10**7]]), {}
    )
    sleep = Sleeps()
    await ask(metered, sleep, model="a", messages=says("Hm?"))
    assert sum(sleep.seconds) * 10 < 300


def test_a_client_that_leaves_stops_its_stream():
    waiting, stopped = threading.Event(), threading.Event()

    async def sleep(seconds):
        if seconds < 0.1:  # the first token's 0.2 s / 10; what follows never comes
            return
        waiting.set()
        try:
            await Event().wait()
        finally:
            stopped.set()

    body = {"model": "large", "messages": says("What is 12 times 12?"), "stream": True}
    few = replace(DATASET, responses={("p-1", "large"): "two words"})
    with serving(create_app(few, time_scale=10, sleep=sleep)) as url:
        with httpx.stream("POST", f"{url}/chat/completions", json=body) as reply:
            lines = reply.iter_lines()  # dropping it would close the stream already
            assert next(lines).startswith("data: ")
            assert waiting.wait(GUARD_S)
            assert not stopped.is_set()
        assert stopped.wait(GUARD_S)


def test_the_command_says_where_it_listens_and_ends_when_told(tmp_path):
    row = {"prompt_id": "q", "prompt": "2 + 2?", "outcomes": {"tiny": {"quality": 1, "cost_usd": 1e-6}}}
    (tmp_path / "sample.jsonl").write_text(json.dumps(row))
    command = [sys.executable, "-m", "simulations.recorded_server", "--data", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            said = child.stdout.readline()
            assert said.startswith("recorded models on http://127.0.0.1:")
            url = said.split(" on ")[1].strip()
            assert url.endswith("/v1")
            with openai.OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=GUARD_S) as client:
                reply = client.chat.completions.create(model="tiny", messages=says("2 + 2?"))
            assert reply.usage.completion_tokens == 1000
        finally:
            child.terminate()
        assert child.wait(GUARD_S) in (0, -15)


def test_the_command_refuses_data_that_are_not_there_in_one_sentence(tmp_path, capsys):
    assert main(["--data", str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf"])
def test_the_command_refuses_a_time_scale_that_is_not_above_zero(scale, capsys):
    with pytest.raises(SystemExit):
        main(["--time-scale", scale])
    assert "must be above 0" in capsys.readouterr().err


def test_the_nearest_prompt_shares_the_rarest_words():
    texts = ["the cat sat on the mat", "the dog sat on the log", "prime factors of the number 91"]
    nearest = NearestPrompt(texts)
    assert nearest.row("where the mat is, the cat is") == 0
    assert nearest.row("DOG!") == 1
    assert nearest.row("the number") == 2
    assert nearest.row("") == 0


@given(
    st.lists(
        st.text(alphabet="abc xyz", min_size=1).filter(str.strip),
        min_size=1,
        unique_by=lambda t: tuple(sorted(t.split())),
    )
)
@example(["b", "ybby"])
def test_a_recorded_text_is_its_own_nearest_or_has_words_that_cannot_be_told_from_its_own(texts):
    """Two words may fall into one bucket."""
    nearest = NearestPrompt(texts)
    for text in texts:
        assert set(_buckets(texts[nearest.row(text)])) == set(_buckets(text))
