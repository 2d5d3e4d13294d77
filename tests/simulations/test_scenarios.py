"""Each change does to the world what its sentence says, and to nothing else; a scenario can be played again."""

from itertools import pairwise

import numpy as np
import pytest

from simulations.changes import ROLES, Drop, Judge, Newcomer, Poison, Price, Stage, cast_of, in_phases
from simulations.datasets import take
from simulations.metrics import Goal
from simulations.scenarios import SCENARIOS, Scenario, watched_arms, world_of
from simulations.world import recorded_world

QUALITY, BALANCED = Goal("quality", 0.01, 0.02), Goal("balanced", 0.01, 0.02)


def made(outcomes, scenario, n=300, goal=BALANCED, seed=0):
    data = outcomes(n)
    return data, world_of(scenario, data, goal, seed), world_of(SCENARIOS["stationary"], data, goal, seed)


def part(world, name):
    (phase,) = [phase for phase in world.phases if phase.name == name]
    return slice(phase.start, phase.stop)


def arm_in(world, phase, name):
    (found,) = [p for p in world.phases if p.name == phase]
    return next(arm for arm in found.candidates if arm.name == name)


def test_roles_by_hand(outcomes):
    """Means: quality 0.55, 0.75, 0.85; cost rises with the model; X = 0.01 USD makes the large one the worst."""
    cast = cast_of(outcomes(300), BALANCED)
    assert set(cast) == set(ROLES)
    assert (cast["finest"], cast["cheapest"], cast["dearest"]) == (2, 0, 2)
    assert cast["best"] == 1
    with pytest.raises(ValueError, match="needs at least two"):
        cast_of(one_model(outcomes(10)), QUALITY)


def one_model(data):
    from dataclasses import replace

    kept = {name: getattr(data, name)[:, :1] for name in ("quality", "cost_usd", "tokens_in", "tokens_out")}
    return replace(data, arms=data.arms[:1], **kept)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_is_a_whole_world_and_the_same_one_again(name, outcomes):
    data, scenario = outcomes(300), SCENARIOS[name]
    world, again = (world_of(scenario, data, QUALITY, 5) for _ in range(2))
    other = world_of(scenario, data, QUALITY, 6)
    assert sorted(world.rows) == list(range(300))
    assert np.array_equal(world.rows, again.rows)
    assert not np.array_equal(world.rows, other.rows)
    edges = [(phase.start, phase.stop) for phase in world.phases]
    assert edges[0][0] == 0
    assert edges[-1][1] == 300
    assert all(stop == start for (_, stop), (start, _) in pairwise(edges))
    assert all(phase.candidates for phase in world.phases)
    for channel, same in zip(world.channels, again.channels, strict=True):
        np.testing.assert_array_equal(channel.told, same.told)
        seen = channel.told[~np.isnan(channel.told)]
        assert ((seen >= 0) & (seen <= 1)).all()
    assert ((world.quality >= 0) & (world.quality <= 1)).all()
    assert set(watched_arms(scenario, data, QUALITY)) == set(scenario.watched)


def test_a_price_acts_on_cost_and_registry_during_its_phase_alone(outcomes):
    data, world, plain = made(outcomes, SCENARIOS["price-cut"])
    during = np.zeros(300, dtype=bool)
    during[part(world, "cut")] = True
    expected = np.where(during, 0.02, 1.0) * plain.cost_usd[:, 2]
    np.testing.assert_allclose(world.cost_usd[:, 2], expected)
    np.testing.assert_array_equal(world.cost_usd[:, :2], plain.cost_usd[:, :2])
    np.testing.assert_array_equal(world.quality, plain.quality)
    assert arm_in(world, "cut", "large").price_usd_per_mtok_out == pytest.approx(0.02 * 15.0)
    assert arm_in(world, "returned", "large") == data.arms[2]


@pytest.mark.parametrize("name", SCENARIOS)
def test_registry_and_tokens_always_say_what_a_call_costs(name, outcomes):
    _, world, _ = made(outcomes, SCENARIOS[name])
    for phase in world.phases:
        rows = slice(phase.start, phase.stop)
        for arm in phase.candidates:
            k = world.arms.index(arm.name)
            listed = [
                arm.cost_usd(i, o)
                for i, o in zip(world.tokens_in[rows, k], world.tokens_out[rows, k], strict=True)
            ]
            np.testing.assert_allclose(world.cost_usd[rows, k], listed, rtol=1e-9)


def test_a_regression_is_silent_and_as_large_as_it_says(outcomes):
    data, world, plain = made(outcomes, SCENARIOS["regression"])
    k, rows = cast_of(data, BALANCED)["best"], part(world, "worse")
    assert plain.quality[rows, k].mean() - world.quality[rows, k].mean() == pytest.approx(0.2)
    others = np.ones(world.quality.shape, dtype=bool)
    others[rows, k] = False
    np.testing.assert_array_equal(world.quality[others], plain.quality[others])
    np.testing.assert_array_equal(world.channels[0].told, world.quality)  # raters see it, nobody announces it
    assert all(phase.candidates == data.arms for phase in world.phases)


def test_a_model_that_is_worth_little_falls_to_nothing_and_no_further(outcomes):
    data = outcomes(60)
    scenario = Scenario("s", "", ("a", "b"), (Drop("finest", by=2.0, phase="b"),))
    world = world_of(scenario, data, QUALITY, 0)
    assert (world.quality[30:, 2] == 0).all()


def test_a_withdrawn_model_is_gone_for_its_phase_and_nowhere_else(outcomes):
    data, world, _ = made(outcomes, SCENARIOS["withdrawal"])
    k = cast_of(data, BALANCED)["best"]
    offered = world.offered()
    assert offered[:, k].tolist() == [True] * 100 + [False] * 100 + [True] * 100
    assert np.delete(offered, k, axis=1).all()


@pytest.mark.parametrize(
    ("name", "cost_of", "times", "worse"),
    [
        ("newcomer-good-cheap", np.min, 1.0, 0.0),
        ("newcomer-good-dear", np.max, 3.0, 0.0),
        ("newcomer-bad", np.min, 1.0, 0.25),
    ],
)
def test_newcomers_join_as_announced(name, cost_of, times, worse, outcomes):
    data, world, plain = made(outcomes, SCENARIOS[name])
    assert world.offered()[:, 2].tolist() == [False] * 100 + [True] * 200
    assert world.cost_usd[:, 2].mean() == pytest.approx(times * cost_of(data.cost_usd[:, :2].mean(axis=0)))
    assert plain.quality[:, 2].mean() - world.quality[:, 2].mean() == pytest.approx(worse)


def test_a_task_shift_parts_the_kinds_of_task(outcomes):
    data, world, _ = made(outcomes, SCENARIOS["task-shift"])
    first, second = world.phases
    kinds = [data.prompts[row].task_family for row in world.rows]
    assert len(set(kinds[: first.stop])) == len(set(kinds[first.stop :])) == 1
    assert kinds[0] != kinds[-1]
    assert second.start == first.stop
    np.testing.assert_array_equal(world.quality, data.quality[world.rows])


def test_without_task_families_long_prompts_come_second_and_equal_ones_are_refused(outcomes):
    from dataclasses import replace

    data = outcomes(100)
    nameless = replace(data, prompts=tuple(replace(prompt, task_family="") for prompt in data.prompts))
    world = world_of(SCENARIOS["task-shift"], nameless, QUALITY, 0)
    lengths = [len(data.prompts[row].text) for row in world.rows]
    edge = world.phases[1].start
    assert max(lengths[:edge]) <= min(lengths[edge:])
    alike = take(nameless, [0, 0, 0])
    with pytest.raises(ValueError, match="all prompts are of one kind"):
        world_of(SCENARIOS["task-shift"], alike, QUALITY, 0)


def test_missing_ratings_are_as_many_as_announced_and_the_same_for_every_arm(outcomes):
    _, world, _ = made(outcomes, SCENARIOS["missing-90"], n=2000)
    silent = np.isnan(world.channels[0].told)
    assert silent.mean() == pytest.approx(0.9, abs=0.02)
    assert (silent.all(axis=1) == silent.any(axis=1)).all()


def test_a_judge_s_bias_and_noise_are_what_it_was_given(outcomes):
    data = outcomes(3000)
    stage = Stage(data, cast_of(data, BALANCED), np.random.default_rng(0))
    plain = recorded_world(data, range(3000))
    users, judge = Judge(users=0.1, bias=0.1, favourite="cheapest").apply(plain, stage).channels
    rated = ~np.isnan(users.told)
    assert rated.mean() == pytest.approx(0.1, abs=0.02)
    np.testing.assert_array_equal(users.told[rated], data.quality[rated])
    np.testing.assert_allclose(judge.told[:, 0], np.clip(data.quality[:, 0] + 0.1, 0, 1))
    np.testing.assert_array_equal(judge.told[:, 1:], data.quality[:, 1:])
    _, noisy = Judge(users=0.1, noise=0.05).apply(plain, stage).channels
    inside = (noisy.told > 0) & (noisy.told < 1)
    assert (noisy.told - data.quality)[inside].std() == pytest.approx(0.05, rel=0.1)


def test_a_judge_that_grows_strict_lowers_every_model_alike_and_no_users_rating(outcomes):
    data, world, _ = made(outcomes, SCENARIOS["judge-stricter"], n=2000)
    users, judge = world.channels
    before, stricter = part(world, "before"), part(world, "stricter")
    quality = data.quality[world.rows]
    np.testing.assert_array_equal(judge.told[before], quality[before])
    np.testing.assert_allclose(judge.told[stricter], np.maximum(quality[stricter] - 0.2, 0.0))
    rated = ~np.isnan(users.told)
    np.testing.assert_array_equal(users.told[rated], quality[rated])
    np.testing.assert_array_equal(world.quality, quality)


def test_poisoned_ratings_praise_the_favourite_and_damn_the_others(outcomes):
    data = outcomes(2000)
    stage = Stage(data, cast_of(data, BALANCED), np.random.default_rng(0))
    world = Poison("cheapest", share=0.2).apply(recorded_world(data, range(2000)), stage)
    told = world.channels[0].told
    lies = (told == [1.0, 0.0, 0.0]).all(axis=1)
    assert lies.mean() == pytest.approx(0.2, abs=0.03)
    np.testing.assert_array_equal(told[~lies], data.quality[~lies])
    np.testing.assert_array_equal(world.quality, data.quality)


def test_too_few_requests_for_the_phases_are_refused(outcomes):
    with pytest.raises(ValueError, match="2 requests are too few for 3 phases"):
        in_phases(recorded_world(outcomes(2), range(2)), ("a", "b", "c"))


def test_changes_can_be_combined(outcomes):
    """A newcomer whose price is cut while it is new: both act."""
    changes = (Newcomer("finest", cost_of="dearest", since="b"), Price("finest", factor=0.5, phase="b"))
    data = outcomes(90)
    world = world_of(Scenario("s", "", ("a", "b", "c"), changes), data, QUALITY, 0)
    plain = world_of(Scenario("s", "", ("a", "b", "c"), changes[:1]), data, QUALITY, 0)
    np.testing.assert_allclose(world.cost_usd[30:60, 2], 0.5 * plain.cost_usd[30:60, 2])
    np.testing.assert_allclose(world.cost_usd[60:, 2], plain.cost_usd[60:, 2])
    assert not world.offered()[:30, 2].any()
