"""Sentence vectors of an endpoint, over real HTTP: in order, in batches, once; and what is said where it fails."""

import numpy as np
import pytest

from simulations import vectors
from simulations.vectors import AT_ONCE, EmbeddingError, Endpoint, embed

TEXTS = [f"text {i}" for i in range(2 * AT_ONCE + 5)]


def test_each_text_has_its_own_vector_whatever_order_they_come_back_in(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDDER_KEY", "secret")
    source = Endpoint(endpoint.base_url + "/", "tiny", "EMBEDDER_KEY")
    found = embed(TEXTS, source, cache=tmp_path)
    np.testing.assert_array_equal(found, [endpoint.vector_of(text) for text in TEXTS])
    assert [len(body["input"]) for _, body, _ in endpoint.asked] == [AT_ONCE, AT_ONCE, 5]
    path, body, headers = endpoint.asked[0]
    assert (path, body["model"], body["encoding_format"]) == ("/v1/embeddings", "tiny", "float")
    assert headers["authorization"] == "Bearer secret"


def test_what_was_made_is_not_asked_for_again_even_if_a_later_batch_failed(endpoint, tmp_path):
    source = Endpoint(endpoint.base_url, "tiny")
    endpoint.reply = lambda rows: (200, {"data": rows}) if len(endpoint.asked) < 2 else (500, b"no")
    with pytest.raises(EmbeddingError, match="500"):
        embed(TEXTS, source, cache=tmp_path)
    endpoint.reply = lambda rows: (200, {"data": rows})
    np.testing.assert_array_equal(
        embed(TEXTS, source, cache=tmp_path), [endpoint.vector_of(t) for t in TEXTS]
    )
    assert sum(len(body["input"]) for _, body, _ in endpoint.asked) == len(TEXTS) + AT_ONCE
    embed(TEXTS[::2], source, cache=tmp_path)
    assert sum(len(body["input"]) for _, body, _ in endpoint.asked) == len(TEXTS) + AT_ONCE


def test_another_model_or_place_has_vectors_of_its_own(endpoint, tmp_path):
    for name in ("tiny", "other"):
        embed(TEXTS[:1], Endpoint(endpoint.base_url, name), cache=tmp_path)
    assert [body["model"] for _, body, _ in endpoint.asked] == ["tiny", "other"]


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (lambda _: (401, b""), "401"),
        (lambda rows: (200, {"data": rows[:-1]}), "3 texts with 2 vectors"),
        (lambda _: (200, {}), r"no data\[\]\.embedding"),
        (lambda _: (200, b"<html>"), r"no data\[\]\.embedding"),
        (lambda _: (200, {"data": [{"index": 0}]}), r"no data\[\]\.embedding"),
        (lambda rows: (200, {"data": [row | {"embedding": "x"} for row in rows]}), r"no data\[\]\.embedding"),
        (
            lambda rows: (200, {"data": [r | {"embedding": [1.0] * (1 + r["index"])} for r in rows]}),
            "not of one length",
        ),
        (
            lambda rows: (200, {"data": [row | {"embedding": [None, 1.0]} for row in rows]}),
            "no vectors of finite numbers",
        ),
    ],
)
def test_an_answer_that_is_none_is_told(endpoint, tmp_path, reply, told):
    endpoint.reply = reply
    with pytest.raises(EmbeddingError, match=told):
        embed(TEXTS[:3], Endpoint(endpoint.base_url, "tiny"), cache=tmp_path)
    endpoint.reply = lambda rows: (200, {"data": rows})  # and none of it was kept
    assert embed(TEXTS[:3], Endpoint(endpoint.base_url, "tiny"), cache=tmp_path).shape == (3, 24)


def test_a_place_where_nobody_answers_and_a_key_that_is_not_set_are_told(tmp_path, monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(EmbeddingError, match="--api-key-env: NOT_SET is not set"):
        Endpoint("http://127.0.0.1:1/v1", "tiny", "NOT_SET")
    monkeypatch.setattr(vectors, "TIMEOUT_S", 5.0)
    with pytest.raises(EmbeddingError, match=r"127\.0\.0\.1:1/v1/embeddings: "):
        embed(TEXTS[:1], Endpoint("http://127.0.0.1:1/v1", "tiny"), cache=tmp_path)
