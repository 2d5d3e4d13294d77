"""Randomness that is all in the id: repeatable, even, normal, and the same on every machine."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bandit.noise import NORMALS_MAX, TABLE_VERSION, Noise

IDS = [f"decision-{i}" for i in range(20_000)]
NOISES = [Noise.of(decision_id) for decision_id in IDS]


@given(decision_id=st.text())
def test_the_same_id_gives_the_same_noise(decision_id):
    first, again = Noise.of(decision_id), Noise.of(decision_id)
    assert first == again
    assert np.array_equal(first.normals(100), again.normals(100))
    assert 0 <= first.uniform < 1
    assert len(first.normals(NORMALS_MAX)) == NORMALS_MAX  # from any start the table is long enough


def test_what_an_id_gives_is_pinned():
    """A record from last year must be recomputable: these numbers never change under one version of the table."""
    noise = Noise.of("01JZ4N4GQK7T2V8XJ3M5")
    assert TABLE_VERSION == "normals-1"
    assert (noise.start, noise.uniform) == (42575, 0.8248062948425873)
    table = np.concatenate([Noise(start, 0.0).normals(NORMALS_MAX) for start in (0, 32_767, 65_535)])
    assert (
        hashlib.sha256(table.astype("<f8").tobytes()).hexdigest()
        == "3ee981d1c5c3288f31f892e6f5147ec94efc9b40ee90668380211378839585e9"
    )


def test_a_longer_reading_begins_with_the_shorter():
    noise = Noise.of("a")
    assert np.array_equal(noise.normals(1000)[:10], noise.normals(10))


def test_uniforms_are_uniform():
    assert stats.kstest([noise.uniform for noise in NOISES], "uniform").pvalue > 0.01


def test_starts_are_spread_over_the_table():
    counts = np.bincount([noise.start >> 10 for noise in NOISES], minlength=64)
    assert len(counts) == 64
    assert stats.chisquare(counts).pvalue > 0.01


def test_uniform_and_start_know_nothing_of_each_other():
    """Else the logged probability (made from the start) were not the one the choice (by the uniform) was made with."""
    start, uniform = np.array([(noise.start, noise.uniform) for noise in NOISES]).T
    table = np.histogram2d(start, uniform, bins=8)[0]
    assert stats.chi2_contingency(table).pvalue > 0.01


def test_normals_of_many_ids_are_standard_normal():
    pooled = np.concatenate([noise.normals(5) for noise in NOISES])
    assert pooled.mean() == pytest.approx(0, abs=0.01)
    assert pooled.var() == pytest.approx(1, abs=0.02)
    assert stats.kstest(pooled, "norm").statistic < 0.01  # the table repeats, so the p-value would mislead


def test_neighbouring_normals_are_uncorrelated():
    whole = Noise(0, 0.0).normals(NORMALS_MAX)
    for lag in (1, 2, 14, 16, 64):
        assert np.corrcoef(whole[:-lag], whole[lag:])[0, 1] == pytest.approx(0, abs=4 / np.sqrt(NORMALS_MAX))


def test_a_reading_longer_than_the_table_allows_says_what_to_do():
    with pytest.raises(ValueError, match="at most 32768 normals, not 32769: use fewer draws or arms"):
        Noise.of("a").normals(NORMALS_MAX + 1)


def test_the_table_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        Noise.of("a").normals(4)[0] = 0.0
