"""Figures of a rehearsal can be recomputed by hand, its intervals cover, and its report says what was measured."""

import json
from io import BytesIO

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from simulations import run as scenario_run
from simulations import scenario_pictures, scenario_tables
from simulations.__main__ import main
from simulations.drawing import End, Pen, label_ends, line
from simulations.hindsight import HINDSIGHT
from simulations.metrics import static_mix
from simulations.pools import field_of
from simulations.rehearsal import STATIC_MIX, _interval, measured, rehearse

CASE = ("made-up", "balanced")


@pytest.fixture(scope="module")
def where(outcomes):
    return field_of([outcomes(240)], limit=240, objectives=["balanced"], usd_per_quality=0.02)


def always(column, seeds=2, n=240):
    return np.full((seeds, n), column, dtype=np.int16)


def rows_of(phase):
    return {row.name: row for row in phase.rows}


def test_a_fixed_policy_s_figures_are_the_means_of_its_columns(where):
    rehearsal = measured(where, "stationary", CASE, {"router": always(1)})
    (phase,) = rehearsal.phases
    data, goal = where.datasets["made-up"], where.goals[CASE]
    rows, utility = rows_of(phase), goal.utility(data.quality, data.cost_usd).mean(axis=0)
    best = int(np.argmax(utility))
    assert phase.best_fixed == data.arms[best].name
    for k, arm in enumerate(data.arms):
        row = rows[f"always {arm.name}"]
        assert row.quality == pytest.approx(data.quality[:, k].mean())
        assert row.cost_usd == pytest.approx(data.cost_usd[:, k].mean())
        assert row.utility.mean == pytest.approx(utility[k])
        assert row.gap.mean == pytest.approx(utility[k] - utility[best])
        assert row.regret == pytest.approx(240 * (utility[best] - utility[k]), abs=1e-9)
        assert row.shares == {"best": float(k == best)}
    assert rows["router"].utility == rows["always middle"].utility
    assert rows["oracle"].utility.mean >= max(row.utility.mean for row in phase.rows) - 1e-12


def test_the_static_mix_costs_what_the_router_costs(where):
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, 3, (2, 240)).astype(np.int16)
    (phase,) = measured(where, "stationary", CASE, {"router": chosen}).phases
    rows, data = rows_of(phase), where.datasets["made-up"]
    assert rows[STATIC_MIX].cost_usd == pytest.approx(rows["router"].cost_usd, rel=1e-6)
    weights = static_mix(data, rows["router"].cost_usd)
    assert rows[STATIC_MIX].quality == pytest.approx(weights @ data.quality.mean(axis=0), abs=1e-6)


def test_gaps_are_to_the_best_model_of_the_phase_among_those_on_offer(where):
    rehearsal = measured(where, "withdrawal", CASE, {"router": always(0)})
    arms = [arm.name for arm in where.datasets["made-up"].arms]
    best = arms[rehearsal.watched["best"]]
    names = [phase.best_fixed for phase in rehearsal.phases]
    assert names[0] == names[2] == best != names[1]
    for phase in rehearsal.phases:
        assert rows_of(phase)[f"always {phase.best_fixed}"].gap.mean == 0.0
    middle = {row.name for row in rehearsal.phases[1].rows}
    assert f"always {best}" not in middle
    assert set(HINDSIGHT) <= middle
    assert rows_of(rehearsal.phases[1])["oracle"].shares["best"] == 0.0


def test_intervals_cover_the_mean_and_shrink_with_more_requests():
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(200):  # the same prompts in every seed, as in a rehearsal; seeds differ a little
        prompts = rng.normal(0.2, 1.0, 400)
        values = prompts[None, :] + rng.normal(0, 0.05, (5, 1))
        interval = _interval(values)
        covered += interval.low <= 0.2 <= interval.high
    assert covered >= 0.9 * 200
    wide, narrow = (_interval(rng.normal(size=(5, n))) for n in (100, 10_000))
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


def test_a_rehearsal_is_the_same_again(where):
    first, again = (
        list(rehearse(where, ["regression"], ["router", "lints"], prior="none", seeds=2)) for _ in range(2)
    )
    assert scenario_tables.figures(first[0]) == scenario_tables.figures(again[0])
    assert not np.array_equal(*first[0].chosen["router"])  # seeds differ


def test_the_table_shows_every_phase_and_only_the_watched_of_many_models(where):
    rehearsal = measured(where, "price-cut", CASE, {"router": always(1), "ucb1": always(0)})
    text = scenario_tables.as_text(rehearsal)
    for told in (
        "before: 80 requests",
        "cut: 80 requests",
        "returned: 80 requests",
        "dearest: large",
        "ucb1",
    ):
        assert told in text
    assert scenario_tables.as_html(rehearsal).count("<table>") == 3


@pytest.mark.parametrize("scenario", ["stationary", "withdrawal", "newcomer-bad"])
def test_the_picture_is_1200_wide_and_nothing_runs_over_its_edge(scenario, where):
    chosen = {"router": always(1), "random": np.tile(np.arange(240) % 2, (2, 1)).astype(np.int16)}
    rehearsal = measured(where, scenario, CASE, chosen)
    png = scenario_pictures.draw(rehearsal, title="made up", subtitle="$\\frac{")
    image = np.round(255 * imread(BytesIO(png))[..., :3]).astype(int)
    assert image.shape[1] == 1200
    for edge in (image[:3], image[-3:], image[:, :3], image[:, -3:]):
        assert np.all(edge == 255)


def test_labels_stand_at_the_height_where_their_lines_end():
    figure = Figure(dpi=100)
    axes = figure.subplots()
    line(axes, np.array([0.80, 0.97, 0.90]), Pen("#0072B2"))
    label_ends(axes, [End(0.90, "here", Pen("#0072B2"))], 3)
    (label,) = axes.texts
    low, high = axes.get_ylim()
    assert label.get_position()[1] == pytest.approx((0.90 - low) / (high - low), abs=0.01)


def test_the_command_writes_table_pictures_page_and_figures(tmp_path, capsys):
    options = ["--limit", "120", "--seeds", "2", "--policy", "ucb1", "--report", str(tmp_path)]
    assert main(["run", "price-cut", "delay-100", *options]) == 0
    printed = capsys.readouterr().out
    assert "price-cut, paretobandit-wheel: The dearest model's price falls" in printed
    assert "2 seeds of 120 requests; objective balanced" in printed
    told = json.loads((tmp_path / "scenarios.json").read_text())
    assert [(one["scenario"], one["seeds"], len(one["phases"])) for one in told] == [
        ("price-cut", 2, 3),
        ("delay-100", 2, 1),
    ]
    page = (tmp_path / "index.html").read_text()
    assert page.count("<img ") == 2
    for name in ("price-cut", "delay-100"):
        assert (tmp_path / f"{name}-paretobandit-wheel.png").read_bytes().startswith(b"\x89PNG")


def test_under_the_cost_objective_only_those_play_that_can(outcomes, tmp_path, capsys):
    plan = scenario_run.Plan(("stationary",), ("ucb1", "random"), objective="cost", seeds=1)
    scenario_run.run([outcomes(60)], plan, report=tmp_path)
    printed = capsys.readouterr().out
    assert "random" in printed
    assert "ucb1" not in printed


def test_an_unknown_scenario_is_named_with_those_there_are(capsys):
    with pytest.raises(SystemExit):
        main(["run", "earthquake"])
    error = capsys.readouterr().err
    assert "earthquake" in error
    assert "price-cut" in error
