"""The comparison's figures: each against a sum done another way."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations import paretobandit_protocol as protocol
from simulations import paretobandit_tables as tables
from simulations.datasets import load_wheel, take
from simulations.metrics import static_mix
from simulations.paretobandit_compare import ITS, ITS_COLD, OURS, Setting, Task, tasks_of

WHEEL = load_wheel()
VAL, TEST = take(WHEEL, np.arange(1785)), take(WHEEL, np.arange(1785, 3609))
EXPERIMENTS = (
    protocol.stationary(VAL, TEST),
    protocol.unconstrained(TEST),
    protocol.degradation(VAL, TEST),
    protocol.price_drop(VAL, TEST),
)


def played(experiment, choose, seeds=3):
    tasks = tasks_of(experiment, seeds=seeds, sides=(ITS, OURS))
    return {task: choose(task, experiment.world(task.seed)) for task in tasks}


def always(model):
    return lambda _, world: np.full(len(world), world.arms.index(model))


def test_each_side_plays_every_budget_and_seed_and_the_cold_start_only_without_a_budget():
    tasks = tasks_of(EXPERIMENTS[0], seeds=2, sides=(ITS, OURS))
    assert set(tasks) == {
        Task("stationary", budget, side, seed)
        for budget, side, seed in product(EXPERIMENTS[0].budgets_usd, (ITS, OURS), (3000, 3001))
    }
    assert {t.contestant for t in tasks_of(EXPERIMENTS[1], seeds=1, sides=(ITS, OURS))} == {
        ITS,
        ITS_COLD,
        OURS,
    }


def test_a_fixed_models_means_are_its_columns_means():
    runs = tables._runs(EXPERIMENTS[0], played(EXPERIMENTS[0], always("gemini-2.5-pro")), OURS, "2.9e-05")
    column = WHEEL.column("gemini-2.5-pro")
    np.testing.assert_allclose(runs.quality("test"), [TEST.quality[:, column].mean()] * 3)
    np.testing.assert_allclose(runs.cost_usd("test"), [TEST.cost_usd[:, column].mean()] * 3)
    assert runs.share("test", "gemini-2.5-pro").tolist() == [1.0] * 3


def test_regret_counts_from_the_best_model_of_each_prompt():
    runs = tables._runs(EXPERIMENTS[1], played(EXPERIMENTS[1], always("llama-3.1-8b-instruct")), OURS, "none")
    lost = TEST.quality.max(axis=1) - TEST.quality[:, WHEEL.column("llama-3.1-8b-instruct")]
    np.testing.assert_allclose(runs.regrets(), [lost.sum()] * 3)
    order = np.random.default_rng(9001).permutation(1824)
    assert runs.regrets(200)[1] == pytest.approx(lost[order[:200]].sum())


def test_the_published_fixed_models_and_oracle_come_out_to_the_third_digit():
    published = {"llama-3.1-8b-instruct": 0.793, "mistral-large-2512": 0.923, "gemini-2.5-pro": 0.932}
    for model, quality in published.items():
        assert round(TEST.quality[:, WHEEL.column(model)].mean(), 3) == quality
    assert round(TEST.quality.max(axis=1).mean(), 3) == 0.963


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.name)
def test_a_table_has_a_line_for_each_budget_and_side(experiment):
    rng = np.random.default_rng(0)
    some = played(experiment, lambda _, world: rng.integers(0, 3, len(world)))
    x = rng.normal(size=(len(experiment.prompts), 4))
    lines = tables.table(experiment, some, x).splitlines()
    per_budget = {"stationary": 1, "unconstrained": 3}.get(experiment.name, 3)
    assert len(lines) == 2 + per_budget * len(experiment.budgets_usd)
    assert len({len(line) for line in lines[:1]}) == 1


@given(st.floats(1e-5, 2e-2))
def test_the_mix_is_the_linear_programs(usd):
    quality, cost = TEST.quality.mean(axis=0), TEST.cost_usd.mean(axis=0)
    shares = static_mix(TEST, usd)
    assert tables.mix_at(quality, cost, usd) == pytest.approx(float(shares @ quality), abs=1e-6)


def test_the_best_within_a_budget_is_what_trying_everything_finds():
    rng = np.random.default_rng(2)
    for _ in range(20):
        worth, cost = rng.random((6, 3)), rng.random((6, 3)) + 0.1
        usd = float(rng.uniform(cost.min(axis=1).mean(), cost.max(axis=1).mean()))
        rows = np.arange(6)
        chosen = tables.best_within(worth, cost, usd)
        assert cost[rows, chosen].mean() <= usd + 1e-12
        best = max(
            worth[rows, picks].mean()
            for picks in product(range(3), repeat=6)
            if cost[rows, picks].mean() <= usd
        )
        # a dual solution falls short of the best assignment by less than one request's worth
        assert best - 1.0 / 6 <= worth[rows, chosen].mean() <= best + 1e-12


def test_hindsight_bounds_lie_in_order_and_within_the_published_oracle():
    world = EXPERIMENTS[0].world(3000)
    x = np.random.default_rng(1).normal(size=(3609, 5))
    for usd in (8.3e-5, 6.6e-4, 1.0):
        linear, oracle = tables.bounds(world, x, usd)
        assert linear < oracle <= 0.9635


def test_an_interval_holds_the_mean_and_narrows_with_more_seeds():
    rng = np.random.default_rng(3)
    few, many = rng.normal(size=8), rng.normal(size=800)
    for values in (few, many):
        low, high = tables.interval(values)
        assert low < values.mean() < high
    width = np.subtract(*tables.interval(many)[::-1])
    assert width == pytest.approx(2 * 1.96 * many.std() / 800**0.5, rel=0.1)


def test_a_newcomer_has_found_its_share_where_its_share_so_far_reaches_the_last():
    quarter = np.tile([1, 0, 0, 0], 100).astype(bool)
    assert tables.found_at(quarter) == 1
    assert tables.found_at(np.r_[[False] * 3, quarter]) == 4
    assert tables.found_at(np.r_[[False] * 12, [True] * 4, quarter]) == 16  # 4 of 16
    assert tables.found_at(np.zeros(300, bool)) == 1


def test_an_unknown_experiment_is_refused_before_anything_is_made():
    setting = Setting(None, "default")
    with pytest.raises(
        ValueError, match=r"no experiment 'onboarding-good'; known are stationary, .* need --data"
    ):
        next(tables.report(setting, names=["onboarding-good"], seeds=1, progress=False))
