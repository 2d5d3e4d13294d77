"""Our policies as players: late, missing and repeated lessons leave the state that the gateway's log would leave."""

from dataclasses import replace

import numpy as np
import pytest

from bandit.objective import Quality
from simulations import baselines
from simulations.learner import Learner
from simulations.stream import play
from simulations.world import Channel, Facts, contexts_of, recorded_world


def learner(stream="s"):
    return Learner(baselines.router(Quality(), None, ()), Facts(), stream=stream)


def played(world, data, player):
    return list(play(world, contexts_of(data.prompts, Facts()), player))


def test_a_call_that_two_sources_rate_is_counted_once_and_rated_twice(outcomes):
    data, player = outcomes(60), learner()
    world = recorded_world(data, range(60))
    now, later = np.zeros(60, dtype=np.int64), np.full(60, 5)
    channels = (Channel("user", world.quality, now), Channel("judge", world.quality, later))
    steps = played(replace(world, channels=channels), data, player)
    state = player._state
    assert sum(calls.calls for calls in state.calls.values()) == 60
    tokens = sum(data.tokens_out[step.row, data.column(step.choice.arm)] for step in steps)
    assert sum(calls.tokens_out for calls in state.calls.values()) == tokens
    assert state.events == 60 + 60 + 55
    assert state.skipped == 0


def test_ratings_that_never_come_teach_nothing_and_costs_are_learned_all_the_same(outcomes):
    data, player = outcomes(60), learner()
    world = recorded_world(data, range(60))
    nothing = Channel("user", np.full((60, 3), np.nan), np.zeros(60, dtype=np.int64))
    played(replace(world, channels=(nothing,)), data, player)
    assert player._state.ratings == {}
    assert sum(calls.calls for calls in player._state.calls.values()) == 60


@pytest.mark.parametrize("delay", [1, 100])
def test_late_ratings_leave_the_same_sums_as_prompt_ones(outcomes, delay):
    """For the same choices, by a learner that has nothing to choose, of ratings that surprise nobody: heads 7 of 10 times.

    (Where ratings are far from what was expected when deciding, the drift detector may act on them, late or not.)
    """
    data = outcomes(250)
    heads = (np.random.default_rng(0).random((250, 3)) < 0.7).astype(float)
    world = recorded_world(replace(data, quality=heads), range(250))
    one = replace(world, phases=(replace(world.phases[0], candidates=data.arms[1:2]),))
    late = replace(one, channels=(replace(one.channels[0], delay=np.where(np.arange(250) < 150, delay, 0)),))
    sums = []
    for each in (one, late):
        player = learner()
        played(each, data, player)
        sums.append(player._state.ratings_per_arm()["middle"])
        assert player._state.events == 500
    assert sums[0].n == pytest.approx(sums[1].n)
    np.testing.assert_allclose(sums[0].xx, sums[1].xx, rtol=1e-12)
    np.testing.assert_allclose(sums[0].xr, sums[1].xr, rtol=1e-12)


def test_the_stream_names_all_chance(outcomes):
    data = outcomes(80)
    world = recorded_world(data, range(80))
    first, again, other = (
        [step.choice.arm for step in played(world, data, learner(name))] for name in ("s", "s", "t")
    )
    assert first == again != other
