"""How well lengths are foretold, where it is known how well they can be."""

from dataclasses import replace

import numpy as np
import pytest

from simulations.foretold import figures
from simulations.pools import field_of


def field(data, tokens_out):
    return field_of([replace(data, tokens_out=tokens_out)], limit=len(data.prompts))


def test_lengths_that_follow_the_request_are_foretold_and_others_are_not(outcomes):
    data = outcomes(400)
    x = field_of([data], limit=400).x("made-up")
    rng = np.random.default_rng(0)
    logs = 5.0 + 0.8 * x[:, 1:2] + np.arange(len(data.arms))
    follows = np.exp(logs).round().astype(np.int64)
    shares, _ = figures(field(data, follows), seeds=1)
    whole, first, last, facts_alone, all_told = shares["made-up"]
    assert last < first
    assert last < whole < 0.5
    assert all_told <= whole
    assert facts_alone < 0.5  # here one of them tells all
    chance, _ = figures(field(data, rng.permutation(follows)), seeds=1)
    assert chance["made-up"][0] == pytest.approx(1.0, abs=0.1)


def test_a_pool_that_is_too_small_says_nothing(outcomes):
    shares, told = figures(field_of([outcomes(30)], limit=30), seeds=1)
    assert np.isnan(shares["made-up"]).all()
    assert "| made-up | 0 | nan" in told
