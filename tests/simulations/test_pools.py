"""The table's machinery: pairing, settings from other sources, noise, clustered errors, and the command as a whole."""

import json
from dataclasses import replace

import numpy as np
import pytest

from bandit.features import DIMENSION
from bandit.prior import QualityPrior
from simulations import bench_quality, equal_quality, pools
from simulations.__main__ import main
from simulations.contestants import CONTESTANTS
from simulations.equal_quality import Point, cost_share
from simulations.metrics import best_fixed, clustered_mean, paired_bootstrap_interval
from simulations.pool_tables import summaries
from simulations.pools import Task, field_of, gap_tasks, gaps, gaps_of, play_task
from simulations.sources import clusters


@pytest.fixture(scope="module")
def where(outcomes):
    whole = outcomes(120)
    half = replace(outcomes(120), name="half")
    return field_of([whole, half, outcomes(90, seed=1, name="other")], limit=100)


def always(where, case, column, seeds=2):
    n = len(where.datasets[case[0]].prompts)
    return {seed: np.full(n, column, dtype=np.int16) for seed in range(seeds)}


def test_the_best_fixed_model_has_no_gap_and_others_have_their_own(where):
    for case in where.cases():
        data, goal = where.datasets[case[0]], where.goals[case]
        utility = goal.utility(data.quality, data.cost_usd).mean(axis=0)
        best = best_fixed(data, goal)
        for column in range(3):
            found = gaps(where, case, always(where, case, column))
            np.testing.assert_allclose(found.whole, utility[column] - utility[best], atol=1e-12)
            assert (found.last_third == 0).all() or column != best


def test_the_last_third_is_that_of_each_order(where):
    case = ("other", "quality")
    data = where.datasets["other"]
    played = always(where, case, 0, seeds=1)
    late = pools.order(data, 0)[60:]
    reference = best_fixed(data, where.goals[case])
    expected = (data.quality[late, 0] - data.quality[late, reference]).mean()
    found = gaps(where, case, played)
    assert found.last_third == pytest.approx(expected)
    assert np.flatnonzero(~np.isnan(found.late_by_prompt)).tolist() == sorted(late)


def test_settings_come_from_other_sources_under_the_same_objective(where):
    """A rival whose first setting is good on `made-up` and its double, and whose last is good elsewhere."""
    grid = CONTESTANTS["ucb1"].grid

    def choice(pool, setting):
        good = setting == (grid[0] if pool != "other" else grid[-1])
        return 2 if good else 0

    played = {
        task: np.full(len(where.datasets[task.pool].prompts), choice(task.pool, task.setting), np.int16)
        for task in gap_tasks(where, ["ucb1"], prior="none", seeds=2)
    }
    chosen = gaps_of(where, played, ["ucb1"], prior="none")["ucb1"]
    assert where.sources == {"made-up": 0, "half": 0, "other": 2}
    assert chosen.settings["made-up", "quality"] == chosen.settings["half", "quality"] == grid[-1]
    assert chosen.settings["other", "quality"] == grid[0]


def test_views_change_the_features_and_nothing_else(where):
    contexts = where.contexts["other"]
    bias, noise = (pools._view(contexts, view, 3) for view in ("bias", "noise"))
    for old, flat, wild in zip(contexts, bias, noise, strict=True):
        assert flat.x.tolist() == [1.0] + [0.0] * (len(old.x) - 1)
        assert wild.x[0] == 1.0
        assert flat.needs is wild.needs is old.needs
    x = np.array([context.x for context in noise])[:, 1:]
    assert abs(x.mean()) < 0.1
    assert x.std() == pytest.approx(1.0, abs=0.1)
    assert np.array_equal(x, x.astype(np.float16))
    assert not np.array_equal(x, np.array([c.x for c in pools._view(contexts, "noise", 4)])[:, 1:])
    another = [tuple(c.x) for c in pools._view(contexts, "another", 3)]
    assert sorted(another) == sorted(tuple(c.x) for c in contexts)
    assert another != [tuple(c.x) for c in contexts]


def test_a_task_can_be_played_again(where):
    task = Task("other", "balanced", "router", 0.0, "none", "features", 1)
    first, again = play_task(where, task), play_task(where, task)
    other = play_task(where, task._replace(seed=2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_two_pools_of_one_name_are_refused(outcomes):
    with pytest.raises(ValueError, match="same name"):
        field_of([outcomes(10), outcomes(20)], limit=10)


def test_clustered_errors_by_hand():
    """Mean 2; sums about it by cluster: (-1 + -1), (0), (2): se^2 = 3/2 (4 + 0 + 4) / 16."""
    mean, se = clustered_mean(np.array([1.0, 1.0, 2.0, 4.0]), [0, 0, 1, 2])
    assert mean == 2.0
    assert se == pytest.approx(np.sqrt(1.5 * 8 / 16))
    assert clustered_mean(np.array([1.0, 3.0]), [4, 4]) == (2.0, float("inf"))


def test_clusters_of_one_give_the_usual_standard_error():
    values = np.random.default_rng(0).normal(size=40)
    _, se = clustered_mean(values, list(range(40)))
    assert se == pytest.approx(values.std(ddof=1) / np.sqrt(40))


def test_bootstrap_intervals_cover_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        low, high = paired_bootstrap_interval(rng.normal(0.3, 1.0, 150), resamples=300)
        covered += low <= 0.3 <= high
    assert 0.91 <= covered / 300 <= 0.98


def test_summaries_compare_case_by_case(where):
    played = {}
    for task in gap_tasks(where, ["router", "random"], prior="none", seeds=2):
        n = len(where.datasets[task.pool].prompts)
        best = best_fixed(where.datasets[task.pool], where.goals[task.pool, task.objective])
        column = best if task.contestant == "router" else (best + 1) % 3
        played[task] = np.full(n, column, np.int16)
    router, random = summaries(where, gaps_of(where, played, ["router", "random"], prior="none"))
    assert (router.whole, router.last_third, router.ahead) == (0.0, 0.0, 0.0)
    assert random.ahead == pytest.approx(-random.whole)
    assert random.worst_whole[1] <= random.whole < 0


def test_cost_share_mixes_the_cheapest_points_that_are_good_enough():
    """Best model: 0.9 at 10 USD, so 0.895 is wanted. 0.795 at 2 and 0.995 at 6: half of each, 4 USD."""
    model = Point(0.9, 10.0)
    assert cost_share([Point(0.795, 2.0), Point(0.995, 6.0), model], model) == pytest.approx(0.4)
    assert cost_share([Point(0.2, 1.0), model], model) == pytest.approx(1 - 0.9 * 0.005 / 0.7)
    assert cost_share([Point(0.9, 0.0), Point(0.9, 0.0)], Point(0.9, 0.0)) == 1.0


def test_nothing_is_judged_on_prompts_that_were_learned_from(outcomes):
    data = outcomes(50)
    learned, judged = equal_quality.split(data, 7)
    assert sorted([*learned, *judged]) == list(range(50))
    assert len(judged) == 15


def test_clusters_are_asked_of_all_data_however_short_the_streams(outcomes):
    whole = outcomes(100)
    assert field_of([whole], limit=10).sources == {"made-up": clusters([whole])[0]}


def test_the_command_prints_its_tables_and_writes_every_seed(capsys, tmp_path, outcomes):
    made = [outcomes(30), outcomes(30, seed=1, name="other")]
    out = tmp_path / "out.json"
    plan = bench_quality.Plan(seeds=2, learn=30, rivals=("linucb", "lints"))
    bench_quality.run(made, plan, json_to=out)
    printed, report = capsys.readouterr().out, json.loads(out.read_text())
    for told in (
        "## Every pool",
        "## Do no harm",
        "## Cost at equal quality",
        "alpha 0.03, 0.1, 0.3, 1",
        "## How well the length",
    ):
        assert told in printed
    assert len(report["gaps"]) == 4 * 3
    assert all(len(record["whole"]) == len(record["last_third"]) == 2 for record in report["gaps"])
    assert len(report["harm"]) == 4
    assert set(report["cost"]) == set(report["lengths"]) == {"made-up", "other"}
    assert all(0 < share <= 1.0 + 1e-9 for shares in report["cost"].values() for share in shares.values())


def test_the_command_takes_data_parts_rivals_and_a_prior(tmp_path, capsys):
    prior, out = tmp_path / "prior.json", tmp_path / "out.json"
    prior.write_text(QualityPrior.flat(DIMENSION).to_json())
    options = ["--seeds", "1", "--limit", "60", "--policy", "lints", "--part", "gaps", "harm"]
    assert main(["bench", "quality", "wheel", *options, "--prior", str(prior), "--json", str(out)]) == 0
    printed, report = capsys.readouterr().out, json.loads(out.read_text())
    assert f"1 orders of at most 60 requests, prior: {prior}" in printed
    assert "Cost at equal quality" not in printed
    assert "Microseconds" not in printed
    assert {record["prior"] for record in report["harm"]} == {"none", str(prior)}
    assert {record["contestant"] for record in report["gaps"]} == {"router", "lints"}


def test_a_missing_pool_is_one_clear_sentence(capsys):
    assert main(["bench", "quality", "no-such-folder"]) == 1
    assert "no-such-folder is no folder" in capsys.readouterr().err
