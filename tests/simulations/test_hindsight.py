"""Full information: known problems with known answers, and scikit-learn as an independent reference."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from simulations import hindsight
from simulations.hindsight import (
    HINDSIGHT,
    PENALTIES,
    Record,
    predict_by_neighbours,
    predict_by_ridge,
)
from simulations.metrics import Goal, best_of

QUALITY, BALANCED, COST = (Goal(name, 1.0, 0.1) for name in ("quality", "balanced", "cost"))


def record(n=400, *, signal=0.4, seed=0):
    """Two arms; which one is better hangs on the sign of x_1."""
    rng = np.random.default_rng(seed)
    x = np.c_[np.ones(n), rng.normal(size=(n, 3))]
    side = np.sign(x[:, 1])
    quality = np.clip(0.5 + 0.5 * signal * np.c_[side, -side] + rng.normal(0, 0.1, (n, 2)), 0, 1)
    tasks = ["left" if s < 0 else "right" for s in side]
    return Record(x, tasks, quality, np.tile([0.01, 0.02], (n, 1)), np.ones((n, 2), dtype=bool))


def worth(of, chosen):
    return of.quality[np.arange(len(chosen)), chosen].mean()


@pytest.mark.parametrize("name", HINDSIGHT)
def test_each_finds_a_strong_signal(name):
    of = record()
    assert (
        worth(of, HINDSIGHT[name](of, QUALITY)) > 0.66
    )  # 0.5 for either arm alone, 0.7 for the better by sign
    assert worth(of, HINDSIGHT[name](of, QUALITY)) <= worth(of, hindsight.oracle(of, QUALITY))


@pytest.mark.parametrize("name", ["ridge, full information", "kNN, full information"])
def test_without_a_signal_out_of_fold_prediction_gains_nothing(name):
    """In-fold it would: 30 neighbours or four slopes among noise. The oracle gains 0.056, which is luck alone."""
    gains = []
    for seed in range(20):
        of = record(signal=0.0, seed=seed)
        gains.append(worth(of, HINDSIGHT[name](of, QUALITY)) - of.quality.mean())
    assert abs(np.mean(gains)) < 3 * np.std(gains) / np.sqrt(20) + 1e-3


def test_per_task_best_by_hand():
    quality = np.array([[0.9, 0.2], [0.5, 0.6], [0.1, 0.3], [0.4, 0.3]])
    of = Record(np.ones((4, 1)), ["a", "a", "b", "b"], quality, np.zeros((4, 2)), np.ones((4, 2), dtype=bool))
    assert hindsight.per_task(of, QUALITY).tolist() == [0, 0, 1, 1]


def test_only_arms_on_offer_are_chosen_and_of_equals_the_cheapest():
    quality = np.array([[0.9, 0.9, 0.95], [0.5, 0.9, 0.9]])
    cost = np.array([[2.0, 1.0, 5.0], [2.0, 1.0, 5.0]])
    offered = np.array([[True, True, False], [True, True, True]])
    assert best_of(quality, cost, offered, QUALITY).tolist() == [1, 1]
    assert best_of(quality, cost / 100, offered, BALANCED).tolist() == [1, 1]
    assert best_of(quality, cost, np.ones((2, 3), dtype=bool), COST).tolist() == [1, 1]


@pytest.mark.parametrize("penalty", PENALTIES)
def test_ridge_equals_scikit_learn_at_each_penalty(penalty):
    rng = np.random.default_rng(1)
    x, at = rng.normal(2.0, 3.0, (80, 5)), rng.normal(2.0, 3.0, (9, 5))
    y = rng.normal(size=(80, 3))
    scaler = StandardScaler().fit(x)
    expected = Ridge(alpha=penalty).fit(scaler.transform(x), y).predict(scaler.transform(at))
    np.testing.assert_allclose(predict_by_ridge(x, y, at, (penalty,)), expected, atol=1e-10)


def test_neighbours_are_the_nearest():
    rng = np.random.default_rng(2)
    x, at, y = rng.normal(size=(200, 3)), rng.normal(size=(7, 3)), rng.random((200, 2))
    spread = x.std(axis=0)
    for point, predicted in zip(at, predict_by_neighbours(x, y, at), strict=True):
        nearest = np.argsort((((x - point) / spread) ** 2).sum(axis=1))[:30]
        np.testing.assert_allclose(predicted, y[nearest].mean(axis=0))
