"""Randomness that is all in names: repeatable, even, normal, and the same on every machine."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bandit.noise import NORMALS_MAX, TABLE_VERSION, _table, normals_of, start_of, uniform_of

IDS = [f"decision-{i}" for i in range(20_000)]
KEYS = [decision_id.encode() for decision_id in IDS]


@given(name=st.text())
def test_the_same_name_gives_the_same_noise(name):
    assert uniform_of(name) == uniform_of(name)
    assert 0 <= uniform_of(name) < 1
    key = name.encode()
    assert np.array_equal(normals_of(key, 100), normals_of(key, 100))
    assert len(normals_of(key, NORMALS_MAX)) == NORMALS_MAX  # from any start the table is long enough


def test_what_a_name_gives_is_pinned():
    """A record from last year must be recomputable: these numbers never change under one version of the table."""
    assert TABLE_VERSION == "normals-2"
    assert uniform_of("01JZ4N4GQK7T2V8XJ3M5") == 0.8248062948425873
    assert start_of(b"01JZ4N4GQK7T2V8XJ3M5") == 194489
    table = np.concatenate([_table()[start : start + NORMALS_MAX] for start in (0, 32_767, 524_287)])
    assert (
        hashlib.sha256(table.astype("<f4").tobytes()).hexdigest()
        == "820c3e5bb98b9e81a60660b576997399178999b55bce1e8e62c9798962809456"
    )


def test_a_longer_reading_begins_with_the_shorter():
    assert np.array_equal(normals_of(b"a", 1000)[:10], normals_of(b"a", 10))


def test_uniforms_are_uniform():
    assert stats.kstest([uniform_of(decision_id) for decision_id in IDS], "uniform").pvalue > 0.01


def test_starts_are_spread_over_the_table():
    counts = np.bincount([start_of(key) >> 13 for key in KEYS], minlength=64)
    assert len(counts) == 64
    assert stats.chisquare(counts).pvalue > 0.01


def test_uniform_and_start_of_the_same_name_know_nothing_of_each_other():
    """Else the logged probability (made from the start) were not the one the choice (by the uniform) was made with."""
    start, uniform = [start_of(key) for key in KEYS], [uniform_of(decision_id) for decision_id in IDS]
    table = np.histogram2d(start, uniform, bins=8)[0]
    assert stats.chi2_contingency(table).pvalue > 0.01


def test_normals_of_many_names_are_standard_normal():
    pooled = np.concatenate([normals_of(key, 5) for key in KEYS])
    assert pooled.mean() == pytest.approx(0, abs=0.01)
    assert pooled.var() == pytest.approx(1, abs=0.02)
    assert stats.kstest(pooled, "norm").statistic < 0.01  # the table repeats, so the p-value would mislead


def test_neighbouring_normals_are_uncorrelated():
    whole = _table()[:NORMALS_MAX]
    for lag in (1, 2, 14, 16, 64):
        assert np.corrcoef(whole[:-lag], whole[lag:])[0, 1] == pytest.approx(0, abs=4 / np.sqrt(NORMALS_MAX))


def test_a_reading_longer_than_the_table_allows_says_what_to_do():
    with pytest.raises(
        ValueError, match="at most 32768 normals are read at once, not 32769: use fewer draws"
    ):
        normals_of(b"a", NORMALS_MAX + 1)


def test_the_table_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        normals_of(b"a", 4)[0] = 0.0
