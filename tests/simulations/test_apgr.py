"""RouteLLM's figure on two made-up models: its ends, the rationing, and what it refuses."""

import re
from dataclasses import replace

import numpy as np
import pytest

from bandit.arms import Arm
from simulations.apgr import SHARES, TOKENS_OUT, Run, Setting, Task, play_task, rationed, report
from simulations.datasets import DatasetError, take


@pytest.fixture(scope="module")
def two(outcomes):
    """The small and the large model: half of the requests are hard, and the small one fails at these."""
    data = outcomes(400)
    columns = [0, 2]
    return replace(
        data,
        arms=tuple(data.arms[k] for k in columns),
        **{
            name: getattr(data, name)[:, columns]
            for name in ("quality", "cost_usd", "tokens_in", "tokens_out")
        },
    )


def setting(data):
    return Setting(rationed(data, "", 400), None, tasks=False)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_no_more_calls_are_made_than_allowed(two, share):
    played = play_task(setting(two), Task(share, 1))
    assert played.strong <= share + 0.02
    low, _ = two.quality.mean(axis=0)
    assert low - 0.02 <= played.quality <= two.quality.max(axis=1).mean() + 1e-9


def test_half_of_the_calls_where_they_pay_recover_much_more_than_half_of_the_gap(two):
    low, high = two.quality.mean(axis=0)
    recovered = (play_task(setting(two), Task(0.5, 1)).quality - low) / (high - low)
    assert recovered > 0.65


def test_order_0_is_the_recorded_order_and_every_run_is_repeatable(two):
    here = setting(two)
    assert play_task(here, Task(0.3, 0)) == play_task(here, Task(0.3, 0))
    assert play_task(here, Task(0.3, 0)) != play_task(here, Task(0.3, 1))


def all_runs(data, recovered, seeds=2):
    low, high = data.quality.mean(axis=0)
    return {
        Task(share, order): Run(low + recovered(share) * (high - low), share)
        for share in SHARES
        for order in range(seeds)
    }


@pytest.mark.parametrize(
    ("recovered", "apgr"),
    [
        (lambda share: share, 0.5),  # drawing at random
        (lambda _: 1.0, 10 / 11),  # the most there is: PGR(0) is 0 by definition
        (lambda _: 0.0, 1 / 11),
    ],
    ids=["random", "perfect", "nothing"],
)
def test_the_figure_by_hand(two, recovered, apgr):
    text = report(setting(two), all_runs(two, recovered), 2)
    assert float(re.search(r"APGR (\d\.\d+)", text)[1]) == pytest.approx(apgr, abs=1e-4)
    assert "it begins knowing nothing; tasks named: no" in text


def test_one_order_has_no_standard_error(two):
    assert "± - over 1 orders" in report(setting(two), all_runs(two, lambda share: share, 1), 1)


def test_every_call_of_a_model_costs_the_same(two):
    kept = rationed(two, "", 50)
    assert len(kept.prompts) == 50
    np.testing.assert_allclose(kept.cost_usd, np.tile([0.4e-6 * TOKENS_OUT, 15e-6 * TOKENS_OUT], (50, 1)))
    assert all(arm.price_usd_per_mtok_in == 0 for arm in kept.arms)


def test_only_the_family_asked_for_is_played(two):
    assert {prompt.task_family for prompt in rationed(two, "code", 1000).prompts} == {"code"}
    with pytest.raises(DatasetError, match="made-up: no prompt's task_family begins with 'poems'"):
        rationed(two, "poems", 10)


def test_three_models_are_refused(outcomes):
    with pytest.raises(DatasetError, match="should hold two models, a weak and a strong one, not 3"):
        rationed(outcomes(20), "", 10)


def test_equal_prices_are_refused(two):
    same = replace(two, arms=(Arm("a", 1.0, 2.0), Arm("b", 3.0, 2.0)))
    with pytest.raises(
        DatasetError, match="both models cost the same, so nothing tells which is the strong one"
    ):
        rationed(same, "", 10)


def test_the_order_of_the_columns_does_not_matter(two):
    turned = replace(
        two,
        arms=two.arms[::-1],
        **{name: getattr(two, name)[:, ::-1] for name in ("quality", "cost_usd", "tokens_in", "tokens_out")},
    )
    here, there = (play_task(setting(take(data, range(200))), Task(0.5, 1)) for data in (two, turned))
    assert there.strong == pytest.approx(here.strong, abs=0.1)
    assert there.quality == pytest.approx(here.quality, abs=0.05)
