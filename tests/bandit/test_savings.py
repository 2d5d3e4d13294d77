"""The report, on logs from a world where what each policy gets is known, and where nothing can be known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from bandit.savings import AS_ROUTED, STRATEGY, UNIFORM, Traffic, always, dearest, is_uneven, possible, rows

MODELS = ("small", "large")
QUALITY = np.array([[0.9, 0.95], [0.4, 0.9]])  # by kind of request
USD = np.array([[0.001, 0.01], [0.002, 0.03]])
CHOICE = np.array([[0.85, 0.15], [0.2, 0.8]])
SEEDS = 60


def world(n, seed, by=CHOICE, rated=0.5):
    """(traffic, what both models would have cost on these requests). Costs are spread; what is expected of them is off."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, n)
    usd = USD[kind] * rng.gamma(4.0, 0.25, (n, 2))
    quality = (rng.random((n, 2)) < QUALITY[kind]).astype(float)
    chosen = (rng.random(n) < by[kind, 1]).astype(np.int64)
    every = np.arange(n)
    traffic = Traffic(
        models=MODELS,
        probabilities=by[kind],
        quality_mean=QUALITY[kind] - 0.1,
        expected_usd=1.3 * USD[kind],
        strategy=by[kind],
        chosen=chosen,
        quality=np.where(rng.random(n) < rated, quality[every, chosen], np.nan),
        cost_usd=usd[every, chosen],
    )
    return traffic, usd


def told(traffic):
    return {row.policy: row for row in rows(traffic)}


def test_what_was_saved_is_within_its_interval_over_many_seeds():
    held, off = [], []
    for seed in range(SEEDS):
        traffic, usd = world(1500, seed)
        against = told(traffic)[always("large")].against
        saved = float(usd[:, 1].sum() - traffic.cost_usd.sum())
        assert against.paid_usd == pytest.approx(traffic.cost_usd.sum())
        held.append(abs(against.saved_usd - saved) <= 1.96 * against.se_usd)
        off.append((against.saved_usd - saved) / saved)
    assert np.mean(held) >= 0.9
    assert abs(np.mean(off)) < 3 * np.std(off) / math.sqrt(SEEDS)


def test_quality_of_every_policy_is_covered_and_so_is_the_difference():
    truth = {always("small"): QUALITY[:, 0].mean(), always("large"): QUALITY[:, 1].mean()}
    truth |= {UNIFORM: QUALITY.mean(), AS_ROUTED: (CHOICE * QUALITY).sum(axis=1).mean()}
    for seed in range(20):
        found = told(world(1500, seed)[0])
        assert set(found) == set(truth)
        for policy, true in truth.items():
            row = found[policy]
            assert row.quality.lower <= true <= row.quality.upper
            assert row.quality.value == pytest.approx(true, abs=0.06)
            if row.against is not None:
                lost = truth[AS_ROUTED] - true
                assert row.against.quality.lower <= lost <= row.against.quality.upper


def test_what_was_routed_is_told_as_it_was_seen():
    traffic, _ = world(500, 3)
    row = told(traffic)[AS_ROUTED]
    assert row.quality.value == pytest.approx(np.nanmean(traffic.quality))
    assert row.usd.value == pytest.approx(traffic.cost_usd.mean())
    assert (row.quality.se, row.usd.se, row.against) == (0.0, 0.0, None)
    assert row.quality.n == int((~np.isnan(traffic.quality)).sum())


def test_a_model_that_was_hardly_ever_chosen_gets_no_figure_and_no_narrow_interval():
    rare = np.array([[0.9995, 0.0005], [0.9995, 0.0005]])
    traffic, _ = world(3000, 1, by=rare)
    row = told(traffic)[always("large")]
    assert row.quality.value is None
    assert row.usd.value is None
    assert row.quality.upper - row.quality.lower > 0.9
    assert row.quality.effective_n < 2
    assert row.against.se_usd == math.inf
    assert dearest(rows(traffic)) == always("small")


def test_a_model_that_could_not_be_chosen_now_and_then_is_taken_as_routed_there_and_one_that_seldom_could_is_not_told_of():
    traffic, _ = world(1000, 2)

    def without_large(rows_out):
        p = traffic.probabilities.copy()
        p[rows_out] = [1.0, 0.0]
        chosen = traffic.chosen.copy()
        chosen[rows_out] = 0
        return replace(traffic, probabilities=p, strategy=p, chosen=chosen)

    now_and_then = told(without_large(slice(0, 1000, 25)))
    assert always("large") in now_and_then
    assert now_and_then[always("large")].usd.value < told(traffic)[always("large")].usd.value
    often = without_large(slice(0, 1000, 10))
    assert always("large") not in told(often)
    assert possible(often)["large"] == pytest.approx(0.9)


def test_a_ramped_route_tells_what_its_strategy_gets_alone():
    """A tenth of the requests by the strategy, the rest to the large one; and in shadow, where nothing is measured."""
    ramped = 0.1 * CHOICE + 0.9 * np.array([0.0, 1.0])
    traffic, usd = world(6000, 4, by=ramped, rated=1.0)
    strategy = np.where(traffic.expected_usd[:, :1] < 0.002, CHOICE[0], CHOICE[1])
    row = told(replace(traffic, strategy=strategy))[STRATEGY]
    assert abs(row.usd.value - (strategy * usd).sum(axis=1).mean()) < 3 * row.usd.se
    assert row.quality.lower < (CHOICE * QUALITY).sum(axis=1).mean() < row.quality.upper
    shadow, _ = world(500, 5, by=np.tile([0.0, 1.0], (2, 1)))
    row = told(replace(shadow, strategy=np.full((500, 2), 0.5)))[STRATEGY]
    assert (row.usd.value, row.quality.value, row.usd.n, row.against) == (None, None, 0, None)
    assert row.usd.expected == pytest.approx(shadow.expected_usd.mean())


def test_without_ratings_quality_is_unknown_and_cost_is_not():
    traffic, _ = world(500, 6, rated=0.0)
    row = told(traffic)[always("large")]
    assert (row.quality.value, row.quality.n, row.against.quality.n) == (None, 0, 0)
    assert row.usd.value is not None


def test_of_no_decision_nothing_is_told():
    traffic, _ = world(1, 0)
    none = Traffic(MODELS, *(np.zeros((0, 2)) for _ in range(4)), *(traffic.chosen[:0],) * 3)
    with pytest.raises(ValueError, match="no decision"):
        rows(none)


def test_models_that_are_rated_at_different_rates_are_told_of_as_if_they_were_not():
    """The large one's answers five times as often: by the logged probabilities it would be far better than perfect."""
    held = []
    for seed in range(20):
        traffic, _ = world(20_000, seed, rated=1.0)
        rng = np.random.default_rng([seed, 1])
        rated = rng.random(20_000) < np.where(traffic.chosen == 1, 0.25, 0.05)
        found = told(replace(traffic, quality=np.where(rated, traffic.quality, np.nan)))
        for policy, true in (
            (always("small"), QUALITY[:, 0].mean()),
            (always("large"), QUALITY[:, 1].mean()),
        ):
            quality, lost = found[policy].quality, found[policy].against.quality
            routed = (CHOICE * QUALITY).sum(axis=1).mean()
            held += [
                abs(quality.value - true) < 2 * quality.se,
                abs(lost.value - (routed - true)) < 2 * lost.se,
            ]
            assert (quality.lower, quality.upper) == (-math.inf, math.inf)
        assert found[AS_ROUTED].quality.value == pytest.approx(
            (CHOICE * QUALITY).sum(axis=1).mean(), abs=0.04
        )
    assert np.mean(held) > 0.85


def test_a_model_that_is_never_rated_gets_no_quality_and_its_cost():
    traffic, _ = world(5000, 1, rated=1.0)
    found = told(replace(traffic, quality=np.where(traffic.chosen == 0, np.nan, traffic.quality)))
    assert found[always("small")].quality.value is None
    assert found[always("small")].usd.value is not None
    assert found[always("large")].quality.value == pytest.approx(QUALITY[:, 1].mean(), abs=0.05)


def test_neither_chance_nor_a_model_that_nobody_asked_is_taken_for_uneven_rating():
    assert not any(is_uneven(world(1500, seed, rated=0.02)[0]) for seed in range(50))
    never = np.tile([1.0, 0.0], (2, 1)) + [[-1e-4, 1e-4]] * 2
    assert not any(is_uneven(world(1500, seed, by=never, rated=1.0)[0]) for seed in range(20))
