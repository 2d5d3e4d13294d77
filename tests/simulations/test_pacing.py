"""The table of pacing, held to bounds worked out by other means."""

import numpy as np
import pytest

from simulations.__main__ import main
from simulations.pacing import CASES, best, orders, paced


def test_the_bound_by_hand():
    """Two requests, budget 1 each: the dear arm for one of them, or half of it for both."""
    quality, cost = np.array([[0.0, 1.0], [0.0, 0.5]]), np.array([[0.5, 1.5], [0.5, 1.5]])
    assert best(quality, cost, 1.0) == pytest.approx(0.5)
    assert best(quality, cost, 1.25) == pytest.approx((1 + 0.25) / 2)
    assert best(quality, cost, 9.0) == pytest.approx(0.75)
    assert best(quality, cost, 0.1) == pytest.approx(0.0)  # the cheapest, though it is above the budget


def test_what_is_paced_is_counted_in_units_of_the_budget():
    quality, cost = np.tile([0.5, 0.9], (50, 1)), np.tile([0.5, 0.8], (50, 1))
    done = paced(quality, cost, cost, 1.0, late=0)
    assert (done.quality, done.spent, done.most_over) == (
        pytest.approx(0.9),
        pytest.approx(0.8),
        pytest.approx(-0.2),
    )


def test_each_order_is_one_of_all_requests():
    cost = np.random.default_rng(0).random((200, 3))
    made = orders(cost, seed=1)
    assert {case.order for case in CASES} == made.keys()
    for rows in made.values():
        assert sorted(rows) == list(range(200))
    assert cost[made["dear first"]].sum(axis=1)[0] == cost.sum(axis=1).max()


def test_the_command_prints_a_line_for_each_case(capsys, monkeypatch):
    import simulations.__main__ as command
    from simulations.datasets import load, take

    monkeypatch.setattr(command, "load", lambda _: take(load("wheel"), np.arange(300)))
    assert main(["pacing"]) == 0
    told = capsys.readouterr().out
    for case in CASES:
        assert case.name in told
