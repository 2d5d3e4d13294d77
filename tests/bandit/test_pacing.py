"""Pacing, held against the linear programme that knows everything, and against orders of requests that mean it ill."""

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.sparse import csr_matrix, eye, kron

from bandit.arms import Arm
from bandit.pacing import (
    CREDIT_MAX,
    EVERY,
    HORIZON,
    PRESENT,
    RESERVE,
    UNSETTLED_MAX,
    WINDOW,
    Pacer,
    solved_dual,
)

PATIENT = settings(deadline=None)  # no test fails for time
ARMS = (Arm("small", 0.1, 0.4), Arm("middle", 0.5, 1.5), Arm("large", 3.0, 15.0))
BUDGETS = (0.0002, 0.0005, 0.001, 0.003)


@cache
def requests(n, seed=0):
    """Quality and cost (n, 3): dear arms are better, mostly; costs vary 30-fold with a request's length."""
    rng = np.random.default_rng(seed)
    hard = rng.beta(1, 2, n)
    quality = np.clip(rng.normal([0.9, 0.93, 0.96], 0.05, (n, 3)) - np.outer(hard, [0.5, 0.25, 0.05]), 0, 1)
    cost_usd = np.exp(rng.normal(0, 0.7, (n, 1))) * np.array([0.0001, 0.0006, 0.006])
    return quality, cost_usd


@cache
def best_value(n, budget):
    """Mean quality of the best mix that knows every outcome: a linear programme over all requests at once."""
    quality, cost_usd = requests(n)
    k = len(ARMS)
    done = linprog(
        -quality.ravel(),
        A_ub=csr_matrix(cost_usd.ravel()[None] / (budget * n)),
        b_ub=[1.0],
        A_eq=csr_matrix(kron(eye(n), np.ones((1, k)))),
        b_eq=np.ones(n),
    )
    return -done.fun / n


class Stream:
    """What a pacer's choices earned and cost. predicted: costs as expected when deciding; late: requests until a cost is known."""

    def __init__(self, quality, cost_usd, budget, *, predicted=None, late=0, arms=ARMS):
        self.pacer, self.earned, self.spent, self.most_over = Pacer(budget), [], [], -math.inf
        self.chosen, self.duals, self.credits, waiting, total = [], [], [], [], 0.0
        for i, (q, c) in enumerate(zip(quality, cost_usd, strict=True)):
            expected = c if predicted is None else predicted[i]
            utility = self.pacer.objective().utility(q[None], expected, 0)[0]
            chosen = int(np.argmax(utility))
            self.pacer.decided(f"rt-{i}", arms[chosen].name, arms, q, expected)
            waiting.append((f"rt-{i}", c[chosen]))
            while len(waiting) > late:
                self.pacer.settled(*waiting.pop(0))
            self.chosen.append(chosen)
            self.earned.append(q[chosen])
            self.spent.append(c[chosen])
            self.duals.append(self.pacer.dual)
            self.credits.append(self.pacer.credit)
            total += c[chosen]
            self.most_over = max(self.most_over, total / budget - (i + 1))

    @property
    def quality(self):
        return float(np.mean(self.earned))


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_dual_is_the_linear_programmes(budget):
    """Strong duality: the Lagrangian at the dual is the programme's value; the choices at it miss it by less than 0.1 %."""
    quality, cost_usd = requests(2000)
    cost, best = cost_usd / budget, best_value(len(quality), budget)
    dual = solved_dual(quality, cost, 1.0)
    worth = quality - dual * cost
    assert dual + worth.max(axis=1).mean() == pytest.approx(best, rel=1e-6)
    chosen = np.argmax(worth, axis=1)
    rows = np.arange(2000)
    assert cost[rows, chosen].mean() <= 1.0
    assert quality[rows, chosen].mean() >= best * (1 - 0.001)


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_stream_earns_nearly_what_was_best_in_hindsight_and_never_overspends(budget):
    """The programme knows all requests beforehand, the pacer none; what it did not dare to spend is in the gap."""
    quality, cost_usd = requests(4000)
    stream = Stream(quality, cost_usd, budget)
    assert stream.quality >= best_value(len(quality), budget) * (1 - 0.005)
    assert np.mean(stream.spent) >= 0.95 * min(budget, cost_usd[:, 2].mean())
    assert stream.most_over <= cost_usd[:, 0].max() / budget  # one request's cheapest arm


@PATIENT
@given(
    rows=st.integers(1, 30),
    arms=st.integers(1, 5),
    seed=st.integers(0, 10**6),
    target=st.floats(0.01, 10),
    near=st.floats(1e-9, 1e9),
)
def test_the_dual_is_the_smallest_that_keeps_to_the_target_wherever_the_search_began(
    rows, arms, seed, target, near
):
    rng = np.random.default_rng(seed)
    quality, cost = rng.random((rows, arms)), np.exp(rng.normal(0, 2, (rows, arms)))
    dual = solved_dual(quality, cost, target, near=near)

    def spend(at):
        return cost[np.arange(rows), np.argmax(quality - at * cost, axis=1)].mean()

    if cost.min(axis=1).mean() > target * (1 + 1e-9):
        assert spend(dual) == pytest.approx(cost.min(axis=1).mean())
    else:
        assert spend(dual) <= target * (1 + 1e-12)
        assert dual == 0 or dual < 1e-11 or spend(dual * (1 - 1e-6)) > target


def test_the_dual_falls_to_zero_where_there_is_more_money_than_needed():
    quality, cost_usd = requests(600)
    stream = Stream(quality, cost_usd, budget=10 * cost_usd.max())
    assert set(stream.duals) == {0.0}
    assert stream.chosen == np.argmax(quality, axis=1).tolist()
    assert stream.pacer.credit == CREDIT_MAX


def test_a_budget_below_the_cheapest_model_gets_the_cheapest_model():
    quality, cost_usd = requests(600)
    stream = Stream(quality, cost_usd, budget=cost_usd[:, 0].min() / 2)
    assert stream.chosen[16:] == [0] * (600 - 16)
    assert stream.pacer.credit == -HORIZON  # and no further: what cannot be paid is forgiven
    relieved = stream.pacer
    relieved.usd_per_request = 10 * cost_usd.max()
    for i in range(300):
        relieved.decided(f"later-{i}", "small", ARMS, quality[i], cost_usd[i])
    assert relieved.dual == 0.0


def orders(cost_usd):
    dear = np.argsort(-cost_usd.sum(axis=1))
    blocks = np.array_split(dear, 40)
    np.random.default_rng(3).shuffle(blocks)
    return {"dear first": dear, "dear last": dear[::-1], "bursts": np.concatenate(blocks)}


@pytest.mark.parametrize("order", ["dear first", "dear last", "bursts"])
@pytest.mark.parametrize("budget", BUDGETS[1:])
def test_no_order_of_requests_makes_it_overspend(order, budget):
    """Where costs are predicted rightly and the cheapest arm is within the budget, only single requests whose cheapest
    arm costs more than the budget can take the sum above n B, and only while there is no credit.
    """
    quality, cost_usd = requests(3000)
    rows = orders(cost_usd)[order]
    beyond = np.maximum(cost_usd[:, 0] / budget - 1, 0).sum()
    stream = Stream(quality[rows], cost_usd[rows], budget)
    assert stream.most_over <= beyond + 1e-6
    assert sum(stream.spent) <= 3000 * budget
    assert stream.quality >= 0.97 * best_value(len(quality), budget)


def most_over(spent, budget):
    """The largest sum above n B over all windows of n requests, in units of B."""
    over = np.concatenate([[0.0], np.cumsum(np.array(spent) / budget - 1)])
    return float((over - np.minimum.accumulate(over)).max())


@pytest.mark.parametrize("budget", BUDGETS[1:])
@pytest.mark.parametrize("order", ["as they come", "dear first", "dear last", "bursts"])
def test_no_window_costs_more_than_its_budget_and_what_may_be_saved(order, budget):
    quality, cost_usd = requests(3000)
    rows = {"as they come": np.arange(3000), **orders(cost_usd)}[order]
    stream = Stream(quality[rows], cost_usd[rows], budget)
    beyond = np.maximum(cost_usd[:, 0] / budget - 1, 0).sum()
    assert most_over(stream.spent, budget) <= CREDIT_MAX + beyond + 1e-6


def test_what_a_drought_saves_is_little_and_the_credit_returns_to_its_reserve():
    """For 600 requests only the small arm is worth calling, and each saves nearly a request's worth."""
    quality, cost_usd = requests(3000)
    quality = quality.copy()
    quality[600:1200, 1:] = quality[600:1200, :1] - 0.2
    stream = Stream(quality, cost_usd, 0.0005)
    spent = np.array(stream.spent) / 0.0005
    assert spent[700:1200].mean() < 0.4
    assert stream.credits[1199] == CREDIT_MAX
    assert 590 <= spent[1200:1800].sum() <= 600 + CREDIT_MAX
    assert np.mean(stream.credits[1800:]) == pytest.approx(RESERVE, abs=10)


def test_what_is_learned_of_an_arm_counts_for_the_requests_that_it_was_offered_to_before():
    """The large arm turns out 0.2 better than was believed: at once the dual is what it would be had that been known."""
    quality, cost_usd = requests(WINDOW + EVERY)
    before, now = np.array([0.8, 0.85, 0.7]), np.array([0.8, 0.85, 0.9])
    known, told, untold = Pacer(0.001), Pacer(0.001), Pacer(0.001)
    for i in range(len(quality)):
        typical = before if i < WINDOW else now
        believed = quality[i] - now + typical
        known.decided(f"rt-{i}", "small", ARMS, quality[i], cost_usd[i], now)
        told.decided(f"rt-{i}", "small", ARMS, believed, cost_usd[i], typical)
        untold.decided(f"rt-{i}", "small", ARMS, believed, cost_usd[i])
    assert told.dual == pytest.approx(known.dual)
    assert untold.dual < 0.8 * known.dual


@pytest.mark.parametrize("wrong_by", [1 / 3, 3.0])
@pytest.mark.parametrize("order", ["as they come", "dear first", "dear last", "bursts"])
def test_costs_predicted_wrong_by_three_are_found_out_and_paid_back(wrong_by, order):
    quality, cost_usd = requests(3000)
    rows = {"as they come": np.arange(3000), **orders(cost_usd)}[order]
    budget = 0.001
    stream = Stream(quality[rows], cost_usd[rows], budget, predicted=cost_usd[rows] * wrong_by, late=20)
    assert stream.pacer.ratio == pytest.approx(1 / wrong_by, rel=0.2)  # shrunk to 1
    assert stream.most_over <= HORIZON
    assert np.mean(stream.spent) <= 1.005 * budget
    assert stream.quality >= 0.96 * best_value(len(quality), budget)


def test_a_price_change_acts_on_the_next_solution_though_the_window_is_full_of_old_costs():
    """The large arm becomes 60 times cheaper: soon nothing else is called; dear again, the spend keeps to the budget."""
    quality, cost_usd = requests(3000)
    budget = 0.0005
    cheap = Arm("large", ARMS[2].price_usd_per_mtok_in / 60, ARMS[2].price_usd_per_mtok_out / 60)
    pacer, spent, large = Pacer(budget), [], []
    for i in range(3000):
        arms, cost = ARMS, cost_usd[i].copy()
        if 1000 <= i < 2000:
            arms, cost = (*ARMS[:2], cheap), cost / np.array([1, 1, 60])
        chosen = int(np.argmax(pacer.objective().utility(quality[i][None], cost, 0)[0]))
        pacer.decided(f"rt-{i}", arms[chosen].name, arms, quality[i], cost)
        pacer.settled(f"rt-{i}", float(cost[chosen]))
        spent.append(cost[chosen])
        large.append(chosen == 2)
    best = np.argmax(quality, axis=1) == 2
    assert np.mean(large[:1000]) < 0.1
    assert np.mean(np.array(large)[1032:2000] == best[1032:2000]) > 0.95
    for start, end in ((0, 1000), (1000, 2000)):
        assert sum(spent[start:end]) <= (end - start) * budget
    assert sum(spent[2000:]) <= (1000 + CREDIT_MAX) * budget
    assert np.mean(large[2200:]) < 0.1


@pytest.mark.parametrize("factor", [10.0, 0.1, 8.0])
def test_all_prices_and_the_budget_times_ten_change_nothing(factor):
    quality, cost_usd = requests(1500)
    scaled = [Arm(a.name, a.price_usd_per_mtok_in * factor, a.price_usd_per_mtok_out * factor) for a in ARMS]
    one = Stream(quality, cost_usd, 0.0007)
    other = Stream(quality, cost_usd * factor, 0.0007 * factor, arms=scaled)
    assert other.chosen == one.chosen
    np.testing.assert_allclose(other.duals, one.duals, rtol=1e-6)


def test_all_qualities_lifted_alike_change_nothing():
    quality, cost_usd = requests(1500)
    lifted = Stream(quality + 0.25, cost_usd, 0.0007)
    assert lifted.chosen == Stream(quality, cost_usd, 0.0007).chosen


def test_a_cost_is_charged_as_expected_and_corrected_once():
    pacer = Pacer(0.01)
    for _ in range(2):
        pacer.decided("rt-1", "middle", ARMS, np.ones(3), np.array([0.001, 0.004, 0.02]))
    assert pacer.credit == pytest.approx(0.6)
    assert pacer.requests == 1
    pacer.settled("rt-1", 0.006)
    assert pacer.credit == pytest.approx(0.4)
    pacer.settled("rt-1", 0.006)
    pacer.settled("rt-1", 5.0)
    pacer.settled("rt-never", 5.0)
    assert pacer.credit == pytest.approx(0.4)


def test_a_call_that_failed_costs_nothing_and_says_nothing_of_prices():
    pacer = Pacer(0.01)
    pacer.decided("rt-1", "middle", ARMS, np.ones(3), np.array([0.001, 0.004, 0.02]))
    pacer.settled("rt-1", 0.0)
    assert (pacer.credit, pacer.ratio) == (pytest.approx(1.0), 1.0)


def test_decisions_that_never_settle_are_forgotten_and_their_expected_cost_stands():
    pacer = Pacer(0.01)
    offer = (np.ones(3), np.array([0.001, 0.01, 0.02]))
    for i in range(UNSETTLED_MAX + 10):
        pacer.decided(f"rt-{i}", "middle", ARMS, *offer)
    credit = pacer.credit
    pacer.settled("rt-0", 0.0)
    assert pacer.credit == credit
    pacer.settled("rt-10", 0.0)
    assert pacer.credit == pytest.approx(credit + 1.0)


def test_only_what_half_of_the_credit_covers_may_be_called_and_the_cheapest_always():
    pacer = Pacer(0.01)
    cost_usd = np.array([0.02, 0.011, 0.03])
    objective = pacer.objective()
    assert objective.affordable(cost_usd).tolist() == [False, True, False]
    assert objective.utility(np.ones((2, 3)), cost_usd, 0)[:, [0, 2]].tolist() == [[-math.inf] * 2] * 2
    for i in range(4):
        pacer.decided(f"rt-{i}", "small", ARMS, np.ones(3), np.array([0.001, 0.011, 0.03]))
    assert pacer.credit == pytest.approx(3.6)
    assert pacer.objective().affordable(cost_usd).tolist() == [True, True, False]
    for i in range(4, 6):
        pacer.decided(f"rt-{i}", "small", ARMS, np.ones(3), np.array([0.001, 0.011, 0.03]))
    assert pacer.objective().affordable(cost_usd).tolist() == [True, True, True]


@pytest.mark.parametrize(
    ("factor", "at_once"), [(60.0, True), (1 / 60, True), (1.2, False), (1 / 1.2, False)]
)
def test_a_price_that_jumps_is_solved_for_at_once_and_a_small_change_with_the_next_solution(factor, at_once):
    """Prices that creep must not cost a solution at each request."""
    quality, cost_usd = requests(200)
    pacer = Pacer(0.0005)
    for i in range(10 * EVERY):
        pacer.decided(f"rt-{i}", "small", ARMS, quality[i], cost_usd[i])
    before, dear = pacer.dual, ARMS[2]
    arms = (
        *ARMS[:2],
        Arm("large", dear.price_usd_per_mtok_in * factor, dear.price_usd_per_mtok_out * factor),
    )
    pacer.decided("next", "small", arms, quality[170], cost_usd[170] * np.array([1, 1, factor]))
    assert (pacer.dual != before) == at_once
    for i in range(EVERY):
        pacer.decided(f"later-{i}", "small", arms, quality[i], cost_usd[i] * np.array([1, 1, factor]))
    assert pacer.dual != before


def test_a_withdrawn_arm_stops_counting_and_a_new_one_counts_at_once():
    """The dual answers for the arms there are: without the cheap one the budget is tight, with it there is plenty."""
    quality, cost_usd = np.array([0.9, 0.5, 0.95]), np.array([0.0001, 0.0002, 0.01])
    pacer = Pacer(0.001)
    for i in range(WINDOW):
        pacer.decided(f"a-{i}", "small", ARMS, quality, cost_usd)
    tight = pacer.dual
    for i in range(PRESENT + 16):
        pacer.decided(f"b-{i}", "middle", ARMS[1:], quality[1:], cost_usd[1:])
    without = pacer.dual
    assert without > 2 * tight > 0  # 0.45 of quality, and no longer 0.05, for about 10 budgets
    new = (*ARMS[1:], Arm("new", 0.1, 0.1))
    for i in range(WINDOW):
        pacer.decided(f"c-{i}", "new", new, np.array([0.5, 0.95, 0.99]), np.array([0.0002, 0.01, 0.0001]))
    assert pacer.dual == 0.0


def test_an_arm_that_a_request_cannot_use_is_no_candidate_in_its_row():
    pacer = Pacer(0.001)
    for i in range(64):
        arms = ARMS if i % 2 else ARMS[:1]
        quality, cost_usd = (
            np.array([0.5, 0.6, 0.9])[: len(arms)],
            np.array([0.001, 0.002, 0.01])[: len(arms)],
        )
        pacer.decided(f"rt-{i}", "small", arms, quality, cost_usd)
    assert math.isfinite(pacer.dual)
    assert pacer.dual > 0


@pytest.mark.parametrize("budget", [0.0, -1.0, math.inf, math.nan])
def test_a_budget_that_is_none_is_refused(budget):
    with pytest.raises(ValueError, match="USD per request above 0"):
        Pacer(budget)
