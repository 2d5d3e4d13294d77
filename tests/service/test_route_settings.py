"""What a route may be told beside its strategy: a budget, a ramp, a floor with confidence, a time limit, newcomers, tasks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bandit.features import DIMENSION, TASKS, task_bucket
from bandit.latency import LatencyStatistics, LogTimes
from bandit.pacing import EVERY
from bandit.prompt import Prompt
from feedback.records import decode_record
from service.config import parse_settings
from service.config_problems import ConfigError

HEAD = """
models:
  small: {base_url: "URL", price_usd_per_mtok_in: 1, price_usd_per_mtok_out: 2}
  large: {base_url: "URL", price_usd_per_mtok_in: 1000, price_usd_per_mtok_out: 2000, expected_quality: 0.95}
upstream: {connect_timeout_s: 2, first_byte_timeout_s: 5, idle_timeout_s: 5}
routes:
  auto:
    models: [small, large]
"""
LONG = [{"role": "user", "content": "word " * 20_000}]


def started(start_lab, scripts, settings: str, head: str = HEAD):
    lab = start_lab(head + settings)
    lab.says(**{name: scripts.says(200, scripts.completion(name)) for name in ("small", "large")})
    return lab


def records(lab):
    recorder = lab.gateway.learning.routes["default.auto"].recorder
    return [decode_record(record) for record in recorder._unwritten.values()]


def replica(lab):
    return lab.gateway.learning.routes["default.auto"].replica


def test_in_shadow_the_baseline_answers_and_what_the_strategy_would_do_is_recorded(start_lab, scripts):
    lab = started(start_lab, scripts, "    objective: quality\n    ramp: {baseline: small, share: 0}\n")
    assert {lab.ask().json()["model"] for _ in range(12)} == {"small"}
    for prefix, explanation in records(lab):
        assert prefix.propensity == 1.0
        assert explanation.told["policy"].startswith("Ramped(policy=Thompson(")


def test_a_ramp_mixes_the_strategy_with_the_baseline_exactly(start_lab, scripts):
    lab = started(start_lab, scripts, "    objective: quality\n    ramp: {baseline: small, share: 0.25}\n")
    lab.ask()
    ((_, explanation),) = records(lab)
    names = [name for name, *_ in explanation.told["candidates"]]
    probabilities = dict(zip(names, explanation.probabilities.tolist(), strict=True))
    assert sum(probabilities.values()) == pytest.approx(1.0)
    assert probabilities["small"] >= 0.75
    assert 0 < probabilities["large"] <= 0.25


def test_a_budget_aims_every_decision_and_its_ledger_settles_at_what_was_billed(start_lab, scripts):
    lab = started(start_lab, scripts, "    objective: quality\n    budget_usd_per_request: 0.002\n")
    for _ in range(40):
        lab.ask()
    told = [explanation for _, explanation in records(lab)]
    assert all("QualityUnderBudget(usd_per_request=" in explanation.told["policy"] for explanation in told)
    pacers = lab.gateway.pipeline._pacers._pacers
    pacer = pacers["default.auto"]
    assert pacer.requests == 40
    assert not pacer._unsettled
    spent = sum(
        outcome.cost_usd
        for prefix_id in lab.gateway.outcomes._kept
        for outcome in lab.gateway.outcomes.of(prefix_id)
    )
    assert pacer.credit == pytest.approx(40 - spent / 0.002)
    assert spent <= 41 * 0.002


def test_a_conversations_cached_price_is_no_new_price_for_its_budget(start_lab, scripts, monkeypatch):
    """One turn is answered by the model that holds its cache, at a hundredth of the price: other requests' costs stand."""
    lab = started(
        start_lab,
        scripts,
        "    objective: quality\n    budget_usd_per_request: 0.002\n",
        head=HEAD.replace("mtok_out: 2}", "mtok_out: 2, price_usd_per_mtok_cached_in: 0.01}"),
    )
    for turn in range(EVERY + 4):
        lab.ask(router={"session": "long" if turn == EVERY + 3 else f"s-{turn}"}, messages=LONG)
    pacer, solved = lab.gateway.pipeline._pacers._pacers["default.auto"], []
    monkeypatch.setattr(pacer, "_solve", lambda: solved.append(pacer.requests))
    before = pacer._offers._cost_usd.copy()
    assert lab.ask(router={"session": "long"}, messages=LONG).json()["model"] == "small"
    row, column = EVERY + 4, pacer._offers._columns["small"]
    after = pacer._offers._cost_usd
    assert pacer.requests == row + 1
    assert after[row, column] < before[row - 1, column] / 10, "what the turn itself costs is told as it is"
    assert np.array_equal(np.delete(after, row, axis=0), np.delete(before, row, axis=0))
    assert not solved


def test_a_request_with_an_objective_of_its_own_is_not_paced(start_lab, scripts):
    lab = started(start_lab, scripts, "    objective: quality\n    budget_usd_per_request: 0.002\n")
    lab.ask(router={"objective": "balanced", "usd_per_quality": 0.1})
    ((_, explanation),) = records(lab)
    assert "Balanced(usd_per_quality=0.1)" in explanation.told["policy"]


def test_a_model_that_is_too_likely_to_be_late_is_left_out_with_its_reason(start_lab, scripts):
    lab = started(start_lab, scripts, "    objective: quality\n    latency: {limit_s: 2}\n")

    def seen(seconds: float) -> LatencyStatistics:
        many = LogTimes.of(seconds).times(50.0)
        return LatencyStatistics(first_byte=many, per_token=LogTimes.of(1e-4).times(50.0), at=1e10)

    state = replica(lab).state
    replica(lab).state = replace(state, latencies={"small": seen(0.2), "large": seen(30.0)})
    assert {lab.ask().json()["model"] for _ in range(6)} == {"small"}
    assert all(explanation.told["excluded"] == {"large": "latency"} for _, explanation in records(lab))
    told = lab.client.post(
        "/v1/decision", json={"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
    )
    (excluded,) = told.json()["excluded"]
    assert "takes longer than 2 s" in excluded["reason"]


def test_where_all_are_late_the_likeliest_to_be_in_time_answers(start_lab, scripts):
    lab = started(start_lab, scripts, "    objective: quality\n    latency: {limit_s: 0.001}\n")
    assert lab.ask().status_code == 200


def test_the_callers_task_reaches_the_features_from_either_place(start_lab, scripts):
    lab = started(start_lab, scripts, "    objective: quality\n")
    lab.ask(metadata={"task": "triage"})
    lab.ask(router={"task": "triage"})
    lab.ask()
    first, second, plain = (prefix.x for prefix, _ in records(lab))
    expected = np.zeros(TASKS)
    expected[task_bucket(Prompt(user="", task="triage"))] = 1.0
    assert first[DIMENSION - TASKS :].tolist() == expected.tolist() == second[DIMENSION - TASKS :].tolist()
    assert not plain[DIMENSION - TASKS :].any()


def test_a_floor_with_confidence_is_named_in_the_record(start_lab, scripts):
    lab = started(
        start_lab,
        scripts,
        "    objective: cost\n    quality_floor: 0.05\n    baseline: large\n    confidence: 0.9\n",
    )
    lab.ask()
    ((_, explanation),) = records(lab)
    assert "Cost(quality_floor=0.05, baseline='large', confidence=0.9)" in explanation.told["policy"]


def test_newcomers_have_their_allowance_in_the_policy(start_lab, scripts):
    lab = started(start_lab, scripts, "    objective: quality\n    newcomers: {share: 0.05}\n")
    lab.ask()
    ((_, explanation),) = records(lab)
    assert "newcomers=Newcomers(ratings=8.0, share=0.05, usd_per_request=inf)" in explanation.told["policy"]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ("    usd_per_quality: 1\n    budget_usd_per_request: 1\n", "acts only with `objective: quality`"),
        ("    objective: quality\n    baseline: small\n", "acts only with `objective: cost`"),
        ("    objective: quality\n    confidence: 0.9\n", "acts only with `objective: cost`"),
        ("    objective: cost\n    baseline: smal\n", "unknown model 'smal'.*small"),
        ("    objective: quality\n    ramp: {baseline: smal, share: 0.1}\n", "unknown model 'smal'.*small"),
        ("    objective: quality\n    ramp: {baseline: small, share: 2}\n", "share"),
        ("    objective: quality\n    latency: {limit_s: 0}\n", "limit_s"),
        ("    objective: quality\n    newcomers: {share: 0.9}\n", "share"),
        ("    objective: quality\n    prior: mine\n", "prior"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named_with_what_would(settings, complaint):
    text = (HEAD + settings).replace("URL", "http://127.0.0.1:1/v1")
    with pytest.raises(ConfigError, match=complaint):
        parse_settings(text, source="t.yaml", folder=Path(), environ={})
