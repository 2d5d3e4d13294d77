import numpy as np
import pytest

from bandit.arms import Arm
from simulations.datasets import Dataset, RecordedPrompt
from simulations.metrics import Goal, best_fixed, goal_for, oracle, paired_bootstrap_se, static_mix


def dataset(quality, cost) -> Dataset:
    quality, cost = np.array(quality, float), np.array(cost, float)
    n, K = quality.shape
    prompts = tuple(RecordedPrompt(f"p{i}", f"text {i}", "t", tools=False) for i in range(n))
    arms = tuple(Arm(f"m{k}", 0.0, 0.001) for k in range(K))
    zeros = np.zeros((n, K), dtype=np.int64)
    return Dataset("made", prompts, arms, quality, cost, zeros, zeros, {})


DATA = dataset(
    [[0.5, 0.9, 1.0], [0.7, 0.7, 0.9], [0.6, 1.0, 1.0], [0.6, 0.8, 0.9]],
    [[1, 2, 10]] * 4,
)


def test_utilities_by_hand():
    balanced = goal_for(DATA, "balanced", 20.0, 0.02)
    assert balanced.utility(np.array([0.9]), np.array([2.0])) == pytest.approx(0.8)
    assert goal_for(DATA, "balanced", None, 0.02).usd_per_quality == pytest.approx(10 / 0.3)
    assert goal_for(DATA, "quality", None, 0.02).utility(np.array([0.9]), np.array([2.0])) == 0.9


@pytest.mark.parametrize(("goal", "best"), [("quality", 2), ("balanced", 1), ("cost", 1)])
def test_best_fixed_model(goal, best):
    """Means: quality 0.6, 0.85, 0.95; cost 1, 2, 10. At X = 20: 0.55, 0.75, 0.45. Within 0.1 of 0.95: the second."""
    assert best_fixed(DATA, Goal(goal, 20.0, 0.1)) == best


def test_oracle_takes_the_best_and_the_cheapest_of_equals():
    assert oracle(DATA, Goal("quality", 20.0, 0.1)).tolist() == [2, 2, 1, 2]
    assert oracle(DATA, Goal("balanced", 20.0, 0.1)).tolist() == [1, 0, 1, 1]
    assert oracle(DATA, Goal("cost", 20.0, 0.1)).tolist() == [1, 2, 1, 1]


def test_static_mix_spends_the_budget_on_the_upper_hull():
    """Half of the budget between 2 and 10 USD: half second, half third model."""
    np.testing.assert_allclose(static_mix(DATA, 6.0), [0, 0.5, 0.5], atol=1e-9)
    np.testing.assert_allclose(static_mix(DATA, 100.0), [0, 0, 1], atol=1e-9)
    np.testing.assert_allclose(static_mix(DATA, 0.1), [1, 0, 0], atol=1e-9)


def test_bootstrap_agrees_with_the_formula_for_a_mean():
    values = np.random.default_rng(1).normal(size=500)
    assert paired_bootstrap_se(values, seed=0) == pytest.approx(values.std() / np.sqrt(500), rel=0.1)
