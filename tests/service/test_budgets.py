"""Budgets as a client and an operator meet them: what is refused and how, what is billed once, what waits for the store."""

import hashlib

import pytest

from feedback.ledgers import MemoryLedger
from feedback.store import StoreError
from service.config import parse_settings
from service.config_problems import ConfigError
from service.reload import ReloadError

ALICE, BOB = ("Bearer " + name for name in ("alices-key", "bobs-key"))
MODELS = """
models:
  one: {base_url: "URL", price_usd_per_mtok_in: 1, price_usd_per_mtok_out: 2}
  two: {base_url: "URL", price_usd_per_mtok_in: 100, price_usd_per_mtok_out: 200}
routes:
  auto: {models: [two, one], strategy: fixed}
  cheap: {models: [one], strategy: fixed}
upstream: {first_byte_timeout_s: 1}
"""
ONE_CALL = 7e-6 + 22e-6  # of `one`: 7 tokens in, 11 out


def budgets(text) -> str:
    return MODELS + "budgets:\n" + text


def used(scripts, tokens_out: int):
    """An answer that is billed so many tokens."""
    body = scripts.completion() | {
        "usage": {"prompt_tokens": 0, "completion_tokens": tokens_out, "total_tokens": tokens_out}
    }
    return scripts.says(200, body)


def spent(lab, name="all"):
    return lab.gateway.budgets.told()[name]["spent_usd"]


def test_a_call_is_billed_to_the_budget_at_what_it_cost(start_lab, scripts):
    lab = start_lab(budgets("  all: {usd: 1, period: day}\n"))
    lab.says(one=scripts.says(200, scripts.completion()))
    assert lab.ask("cheap").status_code == 200
    assert lab.ask("one").status_code == 200
    lab.tick()
    told = lab.gateway.budgets.told()["all"]
    assert told["spent_usd"] == pytest.approx(2 * ONE_CALL, abs=2e-9)
    assert told["limit_usd"] == 1
    assert told["held_usd"] == pytest.approx(0.05)
    page = lab.client.get("/metrics").text
    assert 'router_budget_usd{budget="all",what="limit"} 1.0' in page


def test_a_budget_that_is_used_up_refuses_in_openais_own_words_and_asks_no_model(start_lab, scripts):
    lab = start_lab(budgets("  all: {usd: 0.002, lease_usd: 0.001, period: day}\n"))
    lab.says(one=used(scripts, 900))  # 0.0018 USD, expected 0.0006
    assert lab.ask("cheap").status_code == 200
    lab.tick()
    refused = lab.ask("cheap")
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert error["code"] == error["type"] == "insufficient_quota"
    assert "the budget 'all' of 0.002 USD a day is used up: 0.0018 USD are spent" in error["message"]
    assert refused.headers["x-should-retry"] == "false"
    assert lab.ask("one").status_code == 429, "by its own name too"
    assert lab.upstreams.models_asked() == ["one"]


def test_a_model_that_the_budget_cannot_pay_is_no_candidate_and_the_reason_is_told(start_lab, scripts):
    lab = start_lab(budgets("  all: {usd: 1, lease_usd: 0.01}\n"))
    lab.says(one=scripts.says(200, scripts.completion()))
    preview = lab.client.post(
        "/v1/decision", json={"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
    ).json()
    assert preview["model"] == "one"
    assert lab.ask("auto").headers["x-router-model"] == "one"
    assert "expected to cost 0.06 USD; 0.01 are left" in str(preview["excluded"])
    dear = lab.ask("two")
    assert dear.status_code == 429
    assert "lets one call cost at most 0.01 USD, its lease; this one is expected to cost 0.06" in dear.text


def test_a_call_that_failed_gives_its_reservation_back_and_what_answered_instead_is_billed(
    start_lab, scripts
):
    lab = start_lab(budgets("  all: {usd: 2}\n"))
    lab.says(two=scripts.fails(500), one=scripts.says(200, scripts.completion()))
    before = lab.gateway.budgets.room_usd("default", "auto")
    assert lab.ask("auto").headers["x-router-model"] == "one"
    assert lab.gateway.budgets.room_usd("default", "auto") == pytest.approx(before - ONE_CALL, abs=1e-6)
    lab.tick()
    assert spent(lab) == pytest.approx(ONE_CALL, abs=2e-9)


def test_a_second_place_that_answers_is_billed_after_the_first_has_failed(start_lab, scripts):
    places = '{deployments: [{base_url: "URL", upstream_model: a}, {base_url: "URL", upstream_model: b}], '
    lab = start_lab(budgets("  all: {usd: 1}\n").replace('{base_url: "URL", ', places, 1))
    lab.says(a=scripts.fails(500), b=scripts.says(200, scripts.completion()))
    for _ in range(4):
        assert lab.ask("one").status_code == 200
    lab.tick()
    assert spent(lab) == pytest.approx(4 * ONE_CALL, abs=1e-8)


def test_a_stream_that_its_client_left_is_billed_as_far_as_it_came(start_lab, scripts):
    lab = start_lab(budgets("  all: {usd: 1}\n"))
    lab.says(one=scripts.streams(scripts.piece("a"), scripts.HOLD, scripts.USAGE, scripts.DONE))
    body = {"model": "one", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    with lab.client.stream("POST", "/v1/chat/completions", json=body) as response:
        next(response.iter_text())
    lab.until(lambda: lab.outcomes() == [("one", "aborted")])
    lab.upstreams.asked[-1].released.set()
    lab.tick()
    assert 0 < spent(lab) < 1e-4


def test_a_budget_is_one_tenants_and_of_the_routes_that_it_names(start_lab, scripts):
    keys = "".join(
        f"    - {{sha256: {hashlib.sha256(key.encode()).hexdigest()}, tenant: {tenant}}}\n"
        for key, tenant in (("alices-key", "alice"), ("bobs-key", "bob"))
    )
    lab = start_lab(
        budgets("  alice: {usd: 0.0007, lease_usd: 0.0007, tenant: alice, routes: [cheap], period: total}\n")
        + "access:\n  keys:\n"
        + keys
    )
    lab.says(one=used(scripts, 900))
    ask = lambda model, key: lab.ask(model, headers={"authorization": key}).status_code  # noqa: E731
    assert ask("cheap", ALICE) == 200
    assert ask("cheap", ALICE) == 429
    assert ask("one", ALICE) == 200, "the budget names another route"
    assert ask("cheap", BOB) == 200


@pytest.mark.parametrize(("when_away", "answers"), [("fail_closed", [429]), ("fail_open", [200, 200, 429])])
def test_without_its_store_a_budget_is_closed_or_open_as_far_as_its_local_cap(
    start_lab, scripts, monkeypatch, when_away, answers
):
    async def away(*_):
        raise StoreError("away")

    monkeypatch.setattr(MemoryLedger, "lease", away)
    lab = start_lab(budgets(f"  all: {{usd: 1, when_store_away: {when_away}, local_cap_usd: 0.0013}}\n"))
    lab.says(one=used(scripts, 300))
    statuses = [lab.ask("cheap").status_code for _ in answers]
    assert statuses == answers
    if when_away == "fail_closed":
        refused = lab.ask("cheap")
        assert "cannot be asked for: the store is away" in refused.text
        assert refused.headers["retry-after"] == "1"


def test_amounts_may_change_while_it_runs_and_other_budgets_wait_for_a_restart(start_lab):
    lab = start_lab(budgets("  all: {usd: 1}\n"))

    def settings(text):
        text = budgets(text).replace("URL", "http://127.0.0.1:9/v1")
        return parse_settings(text, source="s", folder=lab.gateway.settings.store.state_dir, environ={})

    lab.gateway.adopt(settings("  all: {usd: 5}\n"))
    lab.tick()
    assert lab.gateway.budgets.told()["all"]["limit_usd"] == 5
    assert lab.gateway.budgets.told()["all"]["held_usd"] == pytest.approx(0.25)
    for text in (
        "  all: {usd: 1, period: day}\n",
        "  other: {usd: 1}\n",
        "  all: {usd: 1}\n  more: {usd: 1}\n",
    ):
        with pytest.raises(ReloadError, match="restart"):
            lab.gateway.adopt(settings(text))
    assert lab.gateway.budgets.told()["all"]["limit_usd"] == 5


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("  all: {usd: 0}\n", "usd"),
        ("  all: {usd: 1, lease_usd: 2}\n", "a part of the budget's 1 USD"),
        ("  all: {usd: 1, period: year}\n", "period"),
        ("  all: {usd: 1, tenant: nobody}\n", "no key has the tenant 'nobody'; there is default"),
        ("  all: {usd: 1, routes: [auto, cheep]}\n", "unknown route 'cheep'; did you mean 'cheap'"),
        ("  All: {usd: 1}\n", "a budget's name is"),
        ("  all: {usd: 1, local_cap_usd: -1}\n", "local_cap_usd"),
    ],
)
def test_what_is_wrong_with_a_budget_is_said(tmp_path, text, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse_settings(budgets(text).replace("URL", "http://x/v1"), source="s", folder=tmp_path, environ={})
