"""The replay command's interface: its JSON, its trace, and that every figure can be recomputed from the two."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from bandit.features import DIMENSION
from bandit.prior import QualityPrior
from simulations.__main__ import main
from simulations.datasets import load, take
from simulations.metrics import goal_for

KEYS = {"dataset", "prompts", "models", "usd_per_quality", "best_fixed", "oracle", "policies"}
POLICY_KEYS = {
    "name",
    "quality",
    "cost_usd",
    "utility",
    "utility_last_third",
    "best_fixed_utility_last_third",
    "gap_to_best_fixed",
    "gap_last_third",
    "se",
    "shares",
    "decision_us_p50",
}


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay")
    out, trace = folder / "out.json", folder / "trace.csv"
    options = ["--limit", "300", "--orders", "2", "--usd-per-quality", "0.005", "--seed", "3"]
    assert main(["replay", "wheel", *options, "--json", str(out), "--trace", str(trace)]) == 0
    with trace.open() as file:
        return json.loads(out.read_text()), list(csv.DictReader(file))


def test_json_has_the_agreed_form(replayed):
    report, _ = replayed
    assert set(report) >= KEYS
    assert report["prompts"] == 300
    assert report["models"] == ["llama-3.1-8b-instruct", "mistral-large-2512", "gemini-2.5-pro"]
    assert set(report["best_fixed"]) == {"model", "quality", "cost_usd", "utility"}
    assert [policy["name"] for policy in report["policies"]][:3] == [
        "router",
        "thompson-context-free",
        "random",
    ]
    for policy in report["policies"]:
        assert set(policy) >= POLICY_KEYS
        assert sum(policy["shares"].values()) == pytest.approx(1.0)
        assert policy["gap_to_best_fixed"] == pytest.approx(
            policy["utility"] - report["best_fixed"]["utility"]
        )


def test_best_fixed_has_no_gap_to_itself(replayed):
    report, _ = replayed
    (best,) = [p for p in report["policies"] if p["name"] == "fixed:" + report["best_fixed"]["model"]]
    assert best["gap_to_best_fixed"] == best["gap_last_third"] == best["se"] == 0.0
    assert report["oracle"]["utility"] >= max(policy["utility"] for policy in report["policies"])


def test_figures_can_be_recomputed_from_the_trace(replayed):
    report, trace = replayed
    data = take(load("wheel"), np.arange(300))
    goal = goal_for(data, "balanced", 0.005, 0.02)
    row_of = {prompt.prompt_id: row for row, prompt in enumerate(data.prompts)}
    steps = [step for step in trace if step["policy"] == "router"]
    assert [int(step["step"]) for step in steps] == [*range(300), *range(300)]
    rows = [row_of[step["prompt_id"]] for step in steps]
    columns = [data.column(step["arm"]) for step in steps]
    utility = goal.utility(data.quality[rows, columns], data.cost_usd[rows, columns])
    router = report["policies"][0]
    assert router["utility"] == pytest.approx(utility.mean())
    assert router["utility_last_third"] == pytest.approx(np.r_[utility[200:300], utility[500:600]].mean())
    assert all(0 < float(step["propensity"]) <= 1 for step in steps)


def test_same_seed_same_decisions(replayed, tmp_path):
    _, trace = replayed
    again = tmp_path / "again.csv"
    options = [
        "--limit",
        "300",
        "--orders",
        "1",
        "--usd-per-quality",
        "0.005",
        "--seed",
        "3",
        "--policy",
        "router",
    ]
    assert main(["replay", "wheel", *options, "--trace", str(again)]) == 0
    with again.open() as file:
        assert list(csv.DictReader(file)) == [
            s for s in trace if s["policy"] == "router" and s["order"] == "0"
        ]


def test_a_prior_file_changes_decisions_and_a_wrong_one_is_named(tmp_path, capsys):
    prior = tmp_path / "prior.json"
    rigid = replace(
        QualityPrior.flat(DIMENSION), arm_variance=np.full(DIMENSION, 1e-6)
    )  # arms that cannot differ
    prior.write_text(rigid.to_json())
    options = ["--limit", "100", "--orders", "1", "--policy", "router", "--objective", "quality"]
    qualities = set()
    for chosen in ("none", str(prior)):
        out = tmp_path / "out.json"
        assert main(["replay", "wheel", *options, "--prior", chosen, "--json", str(out)]) == 0
        qualities.add(json.loads(out.read_text())["policies"][0]["utility"])
    assert len(qualities) == 2
    prior.write_text('{"arm_level": 1}')
    assert main(["replay", "wheel", *options, "--prior", str(prior)]) == 1
    assert "prior: should be one JSON object of version 2" in capsys.readouterr().err
    assert main(["replay", "wheel", *options, "--prior", "leave-out"]) == 1
    assert "goes with several folders" in capsys.readouterr().err


def test_a_missing_folder_is_one_clear_sentence(capsys):
    assert main(["replay", "no-such-folder"]) == 1
    assert "no-such-folder is no folder" in capsys.readouterr().err


@pytest.mark.parametrize("objective", ["quality", "cost"])
def test_other_objectives_run(objective, tmp_path):
    out = tmp_path / "out.json"
    options = ["--limit", "150", "--orders", "1", "--objective", objective, "--json", str(out)]
    assert main(["replay", "wheel", *options]) == 0
    report = json.loads(out.read_text())
    assert report["objective"] == objective
    random = next(p for p in report["policies"] if p["name"] == "random")
    router = report["policies"][0]
    assert router["utility"] > random["utility"]
