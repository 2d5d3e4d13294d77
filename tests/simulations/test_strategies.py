"""Every strategy on one stream: cascades recomputed by hand, rules by task, and nothing fitted on what is played."""

import numpy as np
import pytest

from simulations import strategies
from simulations.__main__ import main
from simulations.metrics import Goal
from simulations.strategies import (
    CASCADE_THRESHOLDS,
    STRATEGIES,
    FittedCascade,
    answers,
    best_by_task,
    compared,
    fitted_cascade,
    with_cascades,
)

GOAL = Goal("balanced", 0.02, 0.0)


def test_a_cascade_bills_both_calls_and_answers_with_the_second(outcomes):
    data = outcomes(3)
    quality, cost, calls = answers(data, FittedCascade(0, 2, 0.5), np.array([0.9, 0.5, 0.1]))
    assert quality.tolist() == [data.quality[0, 0], data.quality[1, 0], data.quality[2, 2]]
    assert cost == pytest.approx([*data.cost_usd[:2, 0], data.cost_usd[2, 0] + data.cost_usd[2, 2]])
    assert calls.tolist() == [1, 1, 2]


def test_a_fitted_cascade_is_worth_at_least_its_cheapest_model_where_it_was_fitted(outcomes):
    data = outcomes(400)
    cascade = fitted_cascade(data, GOAL, np.random.default_rng(1))
    assert data.cost_usd[:, cascade.cheap].mean() < data.cost_usd[:, cascade.dear].mean()
    assert 0 < cascade.accept_from < 1  # the small model fails at code, and the judge sees it


def test_cascades_among_the_arms_are_what_they_would_have_been(outcomes):
    data = outcomes(50)
    score = np.random.default_rng(2).uniform(size=50)
    wider = with_cascades(data, FittedCascade(0, 2, 0.5), score)
    for n, accept_from in enumerate(CASCADE_THRESHOLDS):
        quality, cost, _ = answers(data, FittedCascade(0, 2, accept_from), score)
        column = wider.column(f"cascade@{accept_from:g}")
        assert column == len(data.arms) + n
        assert (wider.quality[:, column] == quality).all()
        assert (wider.cost_usd[:, column] == cost).all()
    assert (wider.quality[:, : len(data.arms)] == data.quality).all()


def test_rules_name_the_best_model_of_each_task(outcomes):
    data = outcomes(400)
    found = best_by_task(data, GOAL)
    assert found["sums"] == "small"
    assert found["code"] != "small"


def test_where_tasks_decide_rules_and_classifier_beat_the_single_model(outcomes):
    data, goal = outcomes(800), Goal("balanced", 0.005, 0.0)  # sums are far from a tie between models
    found = compared(data, goal, seed=0, limit=400)
    assert tuple(found) == STRATEGIES
    worth = {name: own.quality - own.cost_usd / goal.usd_per_quality for name, own in found.items()}
    assert worth["rules"] > worth["single"] + 0.01
    assert worth["classifier"] > worth["single"] + 0.01
    assert found["cascade"].calls > 1.0
    assert 1.0 < found["learned, cascades"].calls < 2.0


def test_a_strategy_fitted_beforehand_is_the_same_whatever_happens_on_the_stream(outcomes):
    """Quality turned upside down on the half that is played changes no choice of the single model's."""
    data = outcomes(200)
    order = np.random.default_rng([0, 5]).permutation(200)
    found = compared(data, GOAL, seed=0, limit=100)
    known = np.zeros(200, dtype=bool)
    known[order[:100]] = True
    data.quality[~known] = 1.0 - data.quality[~known]
    turned = compared(data, GOAL, seed=0, limit=100)
    assert turned["single"].cost_usd == found["single"].cost_usd
    assert turned["rules"].cost_usd == found["rules"].cost_usd
    assert turned["single"].quality == pytest.approx(1.0 - found["single"].quality)


def test_the_command_prints_a_line_for_every_strategy(outcomes, monkeypatch, capsys):
    monkeypatch.setattr(strategies, "load", lambda name: outcomes(200, name=name))
    assert main(["strategies", "some", "--seeds", "2"]) == 0
    told = capsys.readouterr().out
    assert all(f"| {name} |" in told for name in STRATEGIES)
    assert "seeds: 2" in told
