"""An embedder before a real gateway: asked, late, wrong, away and back; and what a decision says of it."""

import asyncio
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import numpy as np
import pytest

from bandit.embedding import Projection
from bandit.features import POINTING, TAG, context_of
from bandit.prompt import Prompt
from bandit.words import BUCKETS, DIRECTIONS
from feedback.priors import shipped_prior
from feedback.records import decode_record
from service.breaker import FIRST_PAUSE_S
from service.config import parse_settings
from service.embedder import LATE_MAX, TOLD_EVERY_S, Embedder
from service.errors import ApiError
from service.reload import ReloadError
from service.router import Router
from service.settings import EmbedderSettings
from service.upstream import UpstreamError

E = 20
CONFIG = """
models:
  one: {base_url: "URL", price_usd_per_mtok_in: 1, price_usd_per_mtok_out: 2}
  two: {base_url: "URL", price_usd_per_mtok_in: 3, price_usd_per_mtok_out: 6}
routes:
  auto: {models: [one, two], usd_per_quality: 0.05}
  plain: {models: [one, two], strategy: fixed}
upstream: {connect_timeout_s: 2, first_byte_timeout_s: 5, idle_timeout_s: 5}
embedder: {base_url: "URL", api_key_env: UPSTREAM_KEY, projection: FILE, timeout_ms: 5000}
"""
HELLO = [{"role": "user", "content": "What is 12 times 12?"}]


def projection(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"centre": (E,), "axes": (E, DIRECTIONS), "rows": (BUCKETS, DIRECTIONS), "offset": (DIRECTIONS,)}
    return Projection("tiny", **{n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()})


PROJECTION = projection()


def config_of(tmp_path, text=CONFIG, written=PROJECTION):
    path = tmp_path / "projection.json"
    path.write_text(written.to_json())
    return text.replace("FILE", json.dumps(str(path)))


def embedding(vector):
    return {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": list(vector)}]}


VECTOR = np.linspace(-1, 1, E)


@pytest.fixture
def lab(start_lab, scripts, tmp_path):
    lab = start_lab(config_of(tmp_path))
    lab.says(
        one=scripts.says(200, scripts.completion("one")),
        two=scripts.says(200, scripts.completion("two")),
        tiny=scripts.says(200, embedding(VECTOR)),
    )
    return lab


def records(lab):
    recorder = lab.gateway.learning.routes["default.auto"].recorder
    return [decode_record(record) for record in recorder._unwritten.values()]


def asked_of(lab, model):
    return [asked for asked in lab.upstreams.asked if asked.model == model]


def metric(lab, outcome):
    page = lab.client.get("/metrics").text
    lines = [
        line
        for line in page.splitlines()
        if line.startswith(f'router_embeddings_total{{outcome="{outcome}"}}')
    ]
    return float(lines[0].split()[1]) if lines else 0.0


def test_a_request_is_decided_on_where_the_embedder_says_that_it_points(lab):
    assert lab.ask(messages=HELLO).status_code == 200
    ((prefix, explanation),) = records(lab)
    expected = context_of(Prompt(HELLO[0]["content"]), PROJECTION.version, PROJECTION.directions(VECTOR))
    assert np.array_equal(prefix.x, expected.x)
    assert prefix.features == PROJECTION.version.tag != TAG
    assert explanation.told["embedder"] == "embedded"
    (asked,) = asked_of(lab, "tiny")
    assert asked.body == {"model": "tiny", "input": HELLO[0]["content"], "encoding_format": "float"}
    assert b"POST /v1/embeddings " in asked.head
    assert b"authorization: Bearer sk-upstream-secret" in asked.head
    assert metric(lab, "embedded") == 1
    assert lab.client.get("/readyz").json()["embedder"] == "ok"


def test_a_long_message_is_sent_as_its_head_and_tail_and_a_conversation_as_its_last_message(lab):
    lab.ask(
        messages=[*HELLO, {"role": "assistant", "content": "144"}, {"role": "user", "content": "ab" * 50_000}]
    )
    (asked,) = asked_of(lab, "tiny")
    assert asked.body["input"] == "ab" * 2000


def test_ratings_of_embedded_requests_are_learned_from(lab):
    told = lab.ask(messages=HELLO)
    lab.tick()
    lab.client.post("/feedback", json={"decision_id": told.json()["id"], "rating": 1})
    lab.tick()
    state = lab.gateway.learning.routes["default.auto"].replica.state
    assert (state.features, state.rated, state.skipped) == (PROJECTION.version.tag, 1, 0)
    (rated,) = state.ratings_per_arm().values()
    np.testing.assert_allclose(
        rated.xr[POINTING] / rated.n, np.clip(PROJECTION.directions(VECTOR), -4, 4), atol=3e-3
    )


def test_a_preview_asks_too_and_says_what_came_of_it(lab, scripts):
    preview = lambda: lab.client.post("/v1/decision", json={"model": "auto", "messages": HELLO}).json()  # noqa: E731
    assert preview()["embedder"] == "embedded"
    lab.says(tiny=scripts.fails(500))
    assert preview()["embedder"] == "failed"
    decided = lab.ask(messages=HELLO).json()["id"]
    assert lab.client.get(f"/v1/decisions/{decided}").json()["embedder"] == "failed"


@pytest.mark.parametrize(
    ("model", "messages"),
    [
        ("plain", HELLO),
        ("one", HELLO),
        ("auto", [{"role": "user", "content": " \n"}]),
        ("auto", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]),
    ],
)
def test_where_it_tells_nothing_it_is_not_asked(lab, model, messages):
    assert lab.ask(model, messages=messages).status_code == 200
    assert asked_of(lab, "tiny") == []


def test_one_that_is_late_holds_no_request(start_lab, scripts, tmp_path, caplog):
    lab = start_lab(config_of(tmp_path).replace("timeout_ms: 5000", "timeout_ms: 1"))
    lab.says(
        one=scripts.says(200, scripts.completion("one")),
        two=scripts.says(200, scripts.completion("two")),
        tiny=scripts.silent(),
    )
    with caplog.at_level(logging.WARNING, "service.embedder"):
        for _ in range(3):
            assert lab.ask(messages=HELLO).status_code == 200
    told = [explanation.told["embedder"] for _, explanation in records(lab)]
    assert told[:2] == ["timeout", "timeout"]
    guessed = context_of(Prompt(HELLO[0]["content"]), PROJECTION.version).x
    for prefix, _ in records(lab):
        assert np.array_equal(prefix.x, guessed)
        assert prefix.features == PROJECTION.version.tag
    (warned,) = caplog.messages
    assert "no answer within 1 ms; words guess where requests point" in warned
    assert metric(lab, "timeout") >= 2
    assert lab.client.get("/readyz").json()["embedder"] == "resting"


@pytest.mark.parametrize(
    ("behaviour", "what"),
    [
        (("fails", (500,)), "it answered with status 500"),
        (("fails", (401, "wrong key sk-upstream-secret")), "it answered with status 401"),
        (("says", (200, embedding([1.0] * (E + 1)))), f"a list of {E} numbers"),
        (("says", (200, embedding(["x"] * E))), "a list of numbers"),
        (("says", (200, embedding([0.0] * E))), "not all 0"),
        (("says", (200, {"data": []})), "no data[0].embedding"),
        (("says", (200, {"data": 3})), "no data[0].embedding"),
        (("says", (200, [1, 2])), "no data[0].embedding"),
        (("says", (200, b"<html>")), "no data[0].embedding"),
        (
            (
                "says",
                (
                    302,
                    b"",
                ),
            ),
            "status 302",
        ),
        (("slams", ()), "the connection broke"),
    ],
)
def test_whatever_it_answers_the_request_goes_on_and_the_log_says_why(lab, scripts, caplog, behaviour, what):
    name, arguments = behaviour
    lab.says(tiny=getattr(scripts, name)(*arguments))
    with caplog.at_level(logging.WARNING, "service.embedder"):
        assert lab.ask(messages=HELLO).status_code == 200
    ((prefix, explanation),) = records(lab)
    assert explanation.told["embedder"] == "failed"
    assert np.array_equal(prefix.x, context_of(Prompt(HELLO[0]["content"]), PROJECTION.version).x)
    assert what in caplog.text
    assert "sk-upstream-secret" not in caplog.text


class FakeUpstream:
    """Answers with a status at once, or once it is let; or raises. asked: how often."""

    def __init__(self, status=200):
        self.asked, self.status, self.error = 0, status, None
        self.free = asyncio.Event()
        self.free.set()

    async def send(self, url, headers, body):
        self.asked += 1
        await self.free.wait()
        if self.error:
            raise self.error
        return FakeReply(self.status)


@dataclass
class FakeReply:
    status: int

    async def read(self):
        return json.dumps(embedding(VECTOR)).encode()

    def close(self):
        pass


def embedder_of(upstream, now, told=lambda _: None, timeout_s=5.0):
    settings = EmbedderSettings("http://embedder/v1", PROJECTION, timeout_s=timeout_s)
    return Embedder(settings, upstream, now_s=lambda: now[0], told=told)


async def test_after_a_rest_one_request_tries_it_and_the_rest_of_them_follow():
    now, upstream, told = [0.0], FakeUpstream(503), []
    embedder = embedder_of(upstream, now, told.append)
    for _ in range(8):
        assert (await embedder.pointed("text")).directions is None
    assert (upstream.asked, embedder.is_resting) == (5, True)
    assert told == ["failed"] * 5 + ["resting"] * 3
    now[0] += FIRST_PAUSE_S
    assert (await embedder.pointed("text")).how == "failed"  # the probe: the pause doubles
    now[0] += FIRST_PAUSE_S
    assert (await embedder.pointed("text")).how == "resting"
    now[0] += FIRST_PAUSE_S
    upstream.status = 200
    pointed = await embedder.pointed("text")
    np.testing.assert_array_equal(pointed.directions, PROJECTION.directions(VECTOR))
    assert not embedder.is_resting
    assert [(await embedder.pointed("text")).how for _ in range(3)] == ["embedded"] * 3


async def test_two_late_answers_in_a_row_bring_a_rest():
    upstream = FakeUpstream()
    upstream.free.clear()
    embedder = embedder_of(upstream, [0.0], timeout_s=0.001)
    assert [(await embedder.pointed("text")).how for _ in range(4)] == ["timeout"] * 2 + ["resting"] * 2
    assert upstream.asked == 2


async def test_a_call_that_is_late_is_left_to_end_but_not_any_number_of_them():
    """What was late may have been the connection: the next call finds it standing."""
    now, upstream = [0.0], FakeUpstream()
    upstream.free.clear()
    embedder = embedder_of(upstream, now, timeout_s=0.001)
    for _ in range(2 * LATE_MAX):
        await embedder.pointed("text")
        now[0] += 1000.0  # every one is a probe
    assert upstream.asked == 2 * LATE_MAX
    assert len(embedder._late) == LATE_MAX
    upstream.free.set()
    while embedder._late:
        await asyncio.sleep(0)
    assert (await embedder.pointed("text")).how == "embedded"


async def test_a_client_that_leaves_proves_nothing_of_the_embedder():
    now, upstream = [0.0], FakeUpstream(503)
    embedder = embedder_of(upstream, now)
    for _ in range(5):
        await embedder.pointed("text")
    now[0] += FIRST_PAUSE_S
    upstream.status = 200
    upstream.free.clear()
    probe = asyncio.create_task(embedder.pointed("text"))
    await asyncio.sleep(0)
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    upstream.free.set()
    assert (await embedder.pointed("text")).how == "embedded"  # the next one is the probe


@pytest.mark.parametrize("error", [RuntimeError("?"), OverflowError(), UpstreamError("tls", "no")])
async def test_no_error_whatever_reaches_the_request(error, caplog):
    upstream = FakeUpstream()
    upstream.error = error
    assert (await embedder_of(upstream, [0.0]).pointed("text")).how == "failed"
    assert (str(error) or type(error).__name__) in caplog.text


async def test_the_log_is_not_flooded(caplog):
    now, upstream = [0.0], FakeUpstream()
    embedder = embedder_of(upstream, now)
    for n in range(60):
        upstream.status = 200 if n % 2 else 500
        await embedder.pointed("text")
        now[0] += 1.0
    assert len(caplog.messages) == 60 / TOLD_EVERY_S


async def test_a_text_that_is_no_unicode_is_asked_about_all_the_same():
    assert (await embedder_of(FakeUpstream(), [0.0]).pointed("half \ud800 a pair")).how == "embedded"


def test_a_client_that_leaves_while_it_is_asked_leaves_nothing_behind(lab, scripts):
    lab.says(tiny=scripts.held(scripts.says(200, embedding(VECTOR))))
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=lab.url, trust_env=False) as client:
        asking = pool.submit(
            client.post, "/v1/chat/completions", json={"model": "auto", "messages": HELLO}, timeout=1
        )
        lab.until(lambda: asked_of(lab, "tiny"))
        assert isinstance(asking.exception(), httpx.ReadTimeout)
    lab.until(lambda: lab.gateway.access.at_once == 0)
    asked_of(lab, "tiny")[0].released.set()
    assert records(lab) == []


def test_another_embedder_begins_with_a_restart(lab, tmp_path):
    def settings(text, written=PROJECTION):
        environ = {"UPSTREAM_KEY": "sk-upstream-secret"}
        config = config_of(tmp_path, text, written).replace("URL", lab.gateway.settings.embedder.base_url)
        return parse_settings(config, source="x", folder=tmp_path, environ=environ)

    lab.gateway.adopt(settings(CONFIG))  # the same file, read anew
    for text, written in ((CONFIG, projection(1)), (CONFIG.partition("embedder:")[0], PROJECTION)):
        with pytest.raises(ReloadError, match=r"embedder: .* begins with a restart"):
            lab.gateway.adopt(settings(text, written))


async def test_in_an_application_the_embedding_is_given_or_the_words_guess(tmp_path):
    config = config_of(tmp_path).replace("URL", "http://127.0.0.1:1/v1")
    (tmp_path / "gateway.yaml").write_text(config)
    environ = {"UPSTREAM_KEY": "k"}
    async with Router.open(tmp_path / "gateway.yaml", environ=environ, ephemeral=True) as router:
        given = router.route(HELLO, embedding=VECTOR.tolist())
        guessed = router.route(HELLO)
        recorder = router.learning.routes["default.auto"].recorder
        told, words = (decode_record(recorder.record_of(c.decision_id))[0].x for c in (given, guessed))
        np.testing.assert_allclose(told[POINTING], np.clip(PROJECTION.directions(VECTOR), -4, 4), atol=3e-3)
        assert np.array_equal(words, context_of(Prompt(HELLO[0]["content"]), PROJECTION.version).x)
        with pytest.raises(ApiError, match=f"a list of {E} numbers") as refused:
            router.route(HELLO, embedding=[1.0])
        assert (refused.value.status, refused.value.param) == (400, "embedding")


async def test_an_embedding_is_refused_where_nobody_could_read_it(tmp_path):
    (tmp_path / "gateway.yaml").write_text(
        CONFIG.partition("embedder:")[0].replace("URL", "http://127.0.0.1:1")
    )
    async with Router.open(tmp_path / "gateway.yaml", environ={}, ephemeral=True) as router:
        with pytest.raises(ApiError, match="the configuration has no embedder"):
            router.route(HELLO, embedding=[1.0])


def test_a_route_begins_with_the_shipped_prior_but_for_what_means_something_else(lab):
    believed = lab.gateway.learning.routes["default.auto"].replica.model.prior
    assert believed.features == PROJECTION.version.tag
    assert not believed.mean[POINTING].any()
    assert believed.known == shipped_prior().known
