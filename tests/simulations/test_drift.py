"""The simulation of drift: its intervals by hand, its streams by what they must show."""

import numpy as np
import pytest
from scipy.stats import poisson

from simulations.__main__ import main
from simulations.drift import CHANGING, STEADY, Cusum, delays, false_alarms, labels, rate_interval


def test_a_rates_interval_is_exact():
    """At its ends the count that was seen is as improbable as 2.5 % on either side."""
    rate, low, high = rate_interval(7, 20_000)
    assert rate == 3.5
    assert poisson.sf(6, low * 2) == pytest.approx(0.025)
    assert poisson.cdf(7, high * 2) == pytest.approx(0.025)
    assert rate_interval(0, 10_000)[:2] == (0, 0)
    assert rate_interval(0, 10_000)[2] == pytest.approx(3.689, abs=0.001)


def test_the_usual_detector_by_hand():
    """z = 4.25 is taken as 4, less k = 0.25: the sixth one passes 20."""
    cusum = Cusum()
    assert [cusum.alarms(4.25) for _ in range(7)] == [False] * 5 + [True, False]
    assert [cusum.alarms(-9.0) for _ in range(6)] == [False] * 5 + [True]


@pytest.mark.parametrize("world", STEADY)
def test_ratings_of_a_world_have_its_means(world):
    rng = np.random.default_rng(0)
    for arm, mean in enumerate(world.means):
        ratings = [world.rate(np.r_[1.0, rng.normal(size=4)], arm, 0.0, rng) for _ in range(4000)]
        assert np.mean(ratings) == pytest.approx(
            mean, abs=0.035
        )  # clipped at 1, a mean of 0.9 is a little lower
        assert set(ratings) <= ({0.0, 1.0} if world.kind == "0/1" else {0.0, 0.25, 0.5, 0.75, 1.0})


def test_a_large_change_is_found_in_every_run_and_a_steady_world_raises_next_to_nothing():
    found = delays((CHANGING[2], -0.2), runs=4, seed=1)
    assert len(found.ours) >= 3
    assert all(delay is not None and 0 < delay < 120 for delay in found.ours)
    assert false_alarms(STEADY[5], 4000, seed=1).ours <= 3


def test_streams_are_made_again_from_their_seed():
    def stream(seed):
        return list(labels(STEADY[0], [0, 1, 2] * 100, np.random.default_rng(seed), lambda _arm, _seen: 0.0))

    assert stream(3) == stream(3)


def test_the_command_prints_both_tables(capsys):
    assert main(["drift", "--labels", "300", "--runs", "1", "--seed", "4"]) == 0
    told = capsys.readouterr().out
    assert "False alarms per 10,000 labels" in told
    assert told.count("graded") == 2 + 6
