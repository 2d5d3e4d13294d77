"""Each strategy through a real gateway: what is asked, of whom, and what is told of it."""

import json

import httpx
import pytest

from bandit.types import Needs
from feedback.records import decode_record

HELLO = [{"role": "user", "content": "hi"}]
HEAD = """
models:
  small: {base_url: "URL", price_usd_per_mtok_in: 1, price_usd_per_mtok_out: 2, price_usd_per_mtok_cached_in: 0.1}
  large: {base_url: "URL", price_usd_per_mtok_in: 10, price_usd_per_mtok_out: 20}
upstream: {connect_timeout_s: 2, first_byte_timeout_s: 5, idle_timeout_s: 5}
routes:
"""


def everybody_answers(lab, scripts):
    lab.says(**{name: scripts.says(200, scripts.completion(name)) for name in ("small", "large")})


def records(lab, route: str = "auto"):
    recorder = lab.gateway.learning.routes[f"default.{route}"].recorder
    return [decode_record(record) for record in recorder._unwritten.values()]


RULES = (
    HEAD
    + """
  auto:
    models: [small, large]
    strategy: fixed
    rules:
      - {name: traces, when: {keywords: [traceback]}, models: [large]}
      - {name: summaries, when: {task: [summary]}, models: [small]}
      - {name: long prompts, when: {tokens_from: 500}, models: [large]}
      - {name: tools, when: {tools: true}, models: [large]}
      - {name: core team, when: {header: {x-team: core}}, models: [large]}
  mixed:
    models: [small, large]
    usd_per_quality: 0.05
    rules: [{when: {keywords: [urgent]}, models: [large]}]
"""
)


@pytest.mark.parametrize(
    ("fields", "headers", "chosen"),
    [
        ({}, {}, "small"),
        ({"messages": [{"role": "user", "content": "TraceBack (most recent call last)"}]}, {}, "large"),
        (
            {"router": {"task": "summary"}, "messages": [{"role": "user", "content": "x " * 2000}]},
            {},
            "small",
        ),
        ({"messages": [{"role": "user", "content": "x " * 2000}]}, {}, "large"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, {}, "large"),
        ({}, {"x-team": "core"}, "large"),
        ({}, {"x-team": "other"}, "small"),
    ],
)
def test_the_first_rule_that_fits_the_request_narrows_the_choice(start_lab, scripts, fields, headers, chosen):
    lab = start_lab(RULES)
    everybody_answers(lab, scripts)
    assert lab.ask(headers=headers, **fields).json()["model"] == chosen


def test_rules_narrow_and_the_bandit_chooses_among_the_rest(start_lab, scripts):
    lab = start_lab(RULES)
    everybody_answers(lab, scripts)
    for _ in range(5):
        assert lab.ask("mixed", messages=[{"role": "user", "content": "urgent!"}]).json()["model"] == "large"
    lab.ask("mixed")
    *ruled, free = records(lab, "mixed")
    assert all(e.told["excluded"] == {"small": "rule"} and p.propensity == 1.0 for p, e in ruled)
    assert len(free[1].told["candidates"]) == 2


CASCADE = (
    HEAD
    + """
  auto: {models: [thrifty], strategy: fixed}
  judged: {models: [graded], strategy: fixed}
cascades:
  thrifty: {models: [small, large], accept_from: 0.8}
  graded: {models: [small, large], signal: judge, judge: large, accept_from: 0.7}
"""
)


def sure(scripts, text: str, logprob: float):
    reply = scripts.completion(text)
    tokens = [{"token": word, "logprob": logprob, "bytes": None, "top_logprobs": []} for word in text.split()]
    reply["choices"][0]["logprobs"] = {"content": tokens}
    return scripts.says(200, reply)


def test_a_confident_answer_of_the_cheap_model_is_taken(start_lab, scripts):
    lab = start_lab(CASCADE)
    lab.says(small=sure(scripts, "four words it is", -0.1))
    response = lab.ask()
    assert (response.json()["model"], response.headers["x-router-attempts"]) == ("small", "1")
    assert lab.outcomes() == [("small", "answered"), ("thrifty", "answered")]
    assert lab.upstreams.asked[0].body["logprobs"] is True
    assert "logprobs" not in response.json()["choices"][0]  # asked for on the router's own account
    assert "logprobs" in lab.ask(logprobs=True).json()["choices"][0]


def test_a_doubtful_answer_is_not_taken_and_both_calls_are_billed_and_recorded(start_lab, scripts):
    lab = start_lab(CASCADE)
    lab.says(small=sure(scripts, "a b", -1.0), large=scripts.says(200, scripts.completion("sure")))
    response = lab.ask()
    assert response.json()["model"] == "large"
    assert response.json()["choices"][0]["message"]["content"] == "sure"
    assert lab.outcomes() == [("small", "answered"), ("large", "answered"), ("thrifty", "answered")]
    ((decided, _),) = records(lab)
    assert decided.arm == "thrifty"
    small, large, whole = lab.gateway.outcomes.of(response.headers["x-router-decision-id"])
    assert (small.stage_of, large.stage_of, whole.stages) == ("thrifty", "thrifty", 2)
    assert whole.cost_usd == small.cost_usd + large.cost_usd > 0
    assert "logprobs" not in lab.upstreams.asked[1].body


def test_what_a_cascade_costs_and_who_is_called_is_learned_from_its_calls(start_lab, scripts):
    lab = start_lab(CASCADE)
    lab.says(small=sure(scripts, "a b", -0.1), large=scripts.says(200, scripts.completion("sure")))
    for _ in range(40):  # the first answer is always good enough
        response = lab.ask()
    lab.tick()
    replica = lab.gateway.learning.routes["default.auto"].replica
    calls = replica.state.calls
    assert (calls["small"].calls, calls["thrifty"].calls, "large" in calls) == (40, 40, False)
    (call, whole) = lab.gateway.outcomes.of(response.headers["x-router-decision-id"])
    arm = lab.gateway.settings.models["thrifty"].arm
    needs = Needs(tokens_in=1)  # what the prompt was estimated to be
    listed = arm.cost_usd(call.tokens_in, replica.posterior.cost.tokens_out("thrifty"))
    (expected,) = replica.posterior.cost.expected_usd([arm], needs)
    assert whole.cost_usd == call.cost_usd < expected < 0.4 * listed, (
        "on its way from the listed price to what it costs"
    )


def test_a_budget_is_billed_all_calls_of_a_cascade_at_once(start_lab, scripts):
    lab = start_lab(CASCADE + "budgets: {all: {usd: 10, lease_usd: 5}}\n")
    lab.tick()
    lab.says(small=sure(scripts, "a b", -1.0), large=scripts.says(200, scripts.completion("sure")))
    whole = lab.gateway.outcomes.of(lab.ask().headers["x-router-decision-id"])[-1]
    lab.says(small=scripts.fails(500), large=scripts.fails(500))
    assert lab.ask().status_code == 500
    lab.tick()
    lab.tick()
    told = lab.gateway.budgets.told()["all"]
    assert told["spent_usd"] == pytest.approx(whole.cost_usd)


def test_a_client_that_leaves_a_cascade_is_billed_what_was_produced(start_lab, scripts):
    lab = start_lab(CASCADE)
    lab.says(small=sure(scripts, "a b", -1.0), large=scripts.silent())
    with pytest.raises(httpx.TimeoutException):
        lab.client.post("/v1/chat/completions", json={"model": "auto", "messages": HELLO}, timeout=0.5)
    lab.until(lambda: lab.outcomes()[-1][0] == "thrifty")
    assert lab.outcomes() == [("small", "answered"), ("large", "aborted"), ("thrifty", "aborted")]
    small, _, whole = next(iter(lab.gateway.outcomes._kept.values()))
    assert whole.cost_usd >= small.cost_usd > 0


def test_a_cascade_is_weighed_beside_its_models_and_a_rating_is_its_own(start_lab, scripts):
    lab = start_lab(
        HEAD
        + """
  auto: {models: [small, large, thrifty], usd_per_quality: 0.05}
cascades:
  thrifty: {models: [small, large], accept_from: [0.5, 0.9]}
"""
    )
    lab.says(small=sure(scripts, "a b", -0.3), large=scripts.says(200, scripts.completion("sure")))
    for _ in range(60):
        response = lab.ask()
        rated = {"decision_id": response.json()["id"], "rating": 1}
        assert lab.client.post("/feedback", json=rated).status_code == 202
    lab.tick()
    rated = lab.gateway.learning.routes["default.auto"].replica.state.ratings_per_arm()
    assert set(rated) <= {"small", "large", "thrifty@0.5", "thrifty@0.9"}
    assert {"thrifty@0.5", "thrifty@0.9"} & set(rated)
    told = lab.client.post("/v1/decision", json={"model": "auto", "messages": HELLO}).json()
    assert {arm["model"] for arm in told["candidates"]} == {"small", "large", "thrifty@0.5", "thrifty@0.9"}
    assert lab.ask("thrifty@0.9").json()["model"] == "large"


def test_a_model_that_tells_no_probabilities_gives_no_signal(start_lab, scripts):
    lab = start_lab(CASCADE)
    everybody_answers(lab, scripts)
    assert lab.ask().json()["model"] == "large"


def test_a_stream_is_held_back_until_its_signal_is_known_and_then_comes_whole(start_lab, scripts):
    lab = start_lab(CASCADE)
    token = {"content": [{"token": "a", "logprob": -0.01}]}
    choice = {"index": 0, "delta": {"content": "a"}, "finish_reason": None, "logprobs": token}
    lab.says(
        small=scripts.streams(scripts.piece(choices=[choice]), scripts.piece(finish="stop"), scripts.DONE)
    )
    text = lab.ask(stream=True).text
    assert '"a"' in text
    assert "logprob" not in text
    assert text.endswith("data: [DONE]\n\n")
    choice["logprobs"]["content"][0]["logprob"] = -3
    doubtful = scripts.streams(scripts.piece(choices=[choice]), scripts.piece(finish="stop"), scripts.DONE)
    lab.says(small=doubtful, large=scripts.streams(scripts.piece("b", "stop"), scripts.DONE))
    response = lab.ask(stream=True)
    assert (response.headers["x-router-model"], '"a"' in response.text) == ("large", False)
    lab.until(lambda: lab.outcomes()[-1] == ("thrifty", "answered"))
    assert lab.outcomes()[-3:] == [("small", "answered"), ("large", "answered"), ("thrifty", "answered")]


@pytest.mark.parametrize(
    ("grade", "model"), [("90", "small"), ("Grade: 75.", "small"), ("20", "large"), ("good", "large")]
)
def test_a_judge_is_shown_question_and_answer_and_its_grade_counts(start_lab, scripts, grade, model):
    lab = start_lab(CASCADE)
    lab.says(
        small=scripts.says(200, scripts.completion("the answer")),
        large=scripts.says(200, scripts.completion(grade)),
    )
    assert lab.ask("judged").json()["model"] == model
    judged = lab.upstreams.asked[1].body["messages"]
    assert "hi" in judged[1]["content"]
    assert "the answer" in judged[1]["content"]
    judging = [o for kept in lab.gateway.outcomes._kept.values() for o in kept if o.route == "large"]
    assert [(o.model, o.status, o.stage_of) for o in judging] == [("large", "answered", None)], (
        "billed on its own"
    )


def test_a_doubtful_answer_is_better_than_none(start_lab, scripts):
    lab = start_lab(CASCADE)
    lab.says(small=sure(scripts, "a b", -1.0), large=scripts.fails(500))
    assert lab.ask().json()["model"] == "small"
    assert lab.outcomes() == [("small", "answered"), ("large", "failed"), ("thrifty", "answered")]
    lab.says(small=scripts.fails(500))
    assert lab.ask().status_code == 500
    assert lab.outcomes()[-3:] == [("small", "failed"), ("large", "failed"), ("thrifty", "failed")]


def test_a_cascade_whose_first_model_fails_goes_on_with_the_next(start_lab, scripts):
    lab = start_lab(CASCADE)
    lab.says(small=scripts.fails(500), large=scripts.says(200, scripts.completion("sure")))
    assert lab.ask().json()["model"] == "large"
    lab.says(small=scripts.fails(400))
    assert lab.ask().status_code == 400, "the request's own fault is no other model's business"


STICKY = (
    HEAD
    + """
  auto: {models: [small, large], objective: balanced, usd_per_quality: 0.05}
  loose: {models: [small, large], objective: balanced, usd_per_quality: 0.05, sticky_sessions: false}
"""
)
LONG = [{"role": "user", "content": "word " * 8000}]


def turns(reply: str = "small"):
    return [*LONG, {"role": "assistant", "content": reply}, {"role": "user", "content": "and now?"}]


def test_a_conversation_stays_with_the_model_that_holds_its_cache(start_lab, scripts):
    lab = start_lab(STICKY)
    everybody_answers(lab, scripts)
    first = lab.ask(messages=LONG, router={"candidates": ["small"]}).json()
    assert first["model"] == "small"
    for _ in range(8):
        assert lab.ask(messages=turns()).json()["model"] == "small"
    prefix, explanation = records(lab)[-1]
    assert explanation.told["excluded"] == {"large": "session"}
    ((name, price_in, _),) = explanation.told["candidates"]
    assert (name, explanation.probabilities.tolist(), prefix.propensity) == ("small", [1.0], 1.0)
    assert 0.1 < price_in < 0.15  # nearly all of the prompt at the cached price, as it was decided on


def test_another_conversation_or_a_route_that_does_not_stick_is_decided_freely(start_lab, scripts):
    lab = start_lab(STICKY)
    everybody_answers(lab, scripts)
    lab.ask(messages=LONG, router={"candidates": ["small"]})
    lab.ask(messages=[{"role": "user", "content": "other"}, *turns()[1:]])
    assert "session" not in records(lab)[-1][1].told["excluded"].values()
    lab.ask("loose", messages=LONG, router={"candidates": ["small"]})
    lab.ask("loose", messages=turns())
    assert records(lab, "loose")[-1][1].told["excluded"] == {}


@pytest.mark.parametrize(
    "name",
    [
        {"router": {"session": "s-1"}},
        {"headers": {"x-session-id": "s-1"}},
        {"headers": {"x-claude-code-session-id": "s-1"}},
        {"prompt_cache_key": "s-1"},
    ],
)
def test_a_conversation_is_known_by_the_name_that_the_client_gives_it(start_lab, scripts, name):
    lab = start_lab(STICKY)
    everybody_answers(lab, scripts)
    wishes = {"candidates": ["small"]} | name.get("router", {})
    lab.ask(messages=LONG, **{**name, "router": wishes})
    lab.ask(messages=LONG, **name)
    assert records(lab)[-1][1].told["excluded"] == {"large": "session"}


def test_a_conversation_leaves_when_the_gain_beats_the_lost_cache(start_lab, scripts):
    """The large model is rated far above the small one: worth more than the cache, and then it is left."""
    lab = start_lab(STICKY)
    everybody_answers(lab, scripts)
    for model, rating in (("small", 0.0), ("large", 1.0)) * 30:
        decision = lab.ask(messages=LONG, router={"candidates": [model], "session": f"{model}"}).json()["id"]
        assert (
            lab.client.post("/feedback", json={"decision_id": decision, "rating": rating}).status_code == 202
        )
        lab.tick()
    lab.ask(messages=LONG, router={"candidates": ["small"], "session": "s"})
    lab.ask(messages=LONG, router={"session": "s", "objective": "quality"})
    told = lab.client.get(f"/v1/decisions/{list(lab.gateway.outcomes._kept)[-1]}").json()
    assert told["excluded"] == []
    assert told["model"] == "large"


HEDGED = HEAD + "\n  auto: {models: [small, large], strategy: fixed, hedge_after_s: 0.05}\n"


def test_a_slow_model_is_overtaken_by_a_second_one_and_blamed_for_nothing(start_lab, scripts):
    lab = start_lab(HEDGED)
    lab.says(small=scripts.silent(), large=scripts.says(200, scripts.completion("quick")))
    response = lab.ask()
    assert response.json()["model"] == "large"
    lab.until(lambda: len(lab.outcomes()) == 2)
    assert sorted(lab.outcomes()) == [("large", "answered"), ("small", "aborted")]
    assert lab.upstreams.asked[0].left.wait(30)


def test_a_quick_model_is_not_hedged(start_lab, scripts):
    lab = start_lab(HEDGED.replace("0.05", "5"))
    everybody_answers(lab, scripts)
    assert [lab.ask().json()["model"] for _ in range(3)] == ["small"] * 3
    assert lab.upstreams.models_asked() == ["small"] * 3


def test_where_the_first_fails_and_the_second_is_under_way_the_second_answers(start_lab, scripts):
    lab = start_lab(HEDGED)
    lab.says(small=scripts.silent(), large=scripts.fails(500))
    lab.says(small=scripts.held(scripts.says(200, scripts.completion("late"))))

    async def fails_and_lets_the_first_go(peer):
        lab.upstreams.asked[0].released.set()
        await scripts.fails(500)(peer)

    lab.says(large=fails_and_lets_the_first_go)
    assert lab.ask().json()["model"] == "small"
    assert sorted(lab.outcomes()) == [("large", "failed"), ("small", "answered")]


def test_a_model_at_two_efforts_is_two_arms(start_lab, scripts):
    lab = start_lab(
        """
models:
  quick: {base_url: "URL", upstream_model: vendor/m, reasoning_effort: low, price_usd_per_mtok_in: 1, price_usd_per_mtok_out: 2}
  deep: {base_url: "URL", upstream_model: vendor/m, reasoning_effort: high, price_usd_per_mtok_in: 1, price_usd_per_mtok_out: 2}
routes:
  auto: {models: [quick, deep], strategy: fixed}
"""
    )
    lab.says(**{"vendor/m": scripts.says(200, scripts.completion())})
    assert lab.ask(reasoning_effort="medium").json()["model"] == "quick"
    assert lab.ask(router={"candidates": ["deep"]}).json()["model"] == "deep"
    assert [asked.body["reasoning_effort"] for asked in lab.upstreams.asked] == ["low", "high"]


PLACES = """
models:
  m:
    price_usd_per_mtok_in: 1
    price_usd_per_mtok_out: 2
    deployments:
      - {base_url: "URL", upstream_model: here, api_key_env: UPSTREAM_KEY}
      - {base_url: "URL", upstream_model: there}
routes:
  auto: {models: [m], strategy: fixed}
"""


def test_load_is_spread_over_the_places_of_a_model_and_failover_stays_within_one_decision(start_lab, scripts):
    lab = start_lab(PLACES)
    lab.says(here=scripts.says(200, scripts.completion()), there=scripts.says(200, scripts.completion()))
    for _ in range(6):
        assert lab.ask().json()["model"] == "m"
    assert sorted(lab.upstreams.models_asked()) == ["here"] * 3 + ["there"] * 3
    assert all((b"authorization" in a.head.lower()) == (a.model == "here") for a in lab.upstreams.asked)
    lab.says(here=scripts.fails(503))
    for _ in range(2):
        assert lab.ask().status_code == 200
    calls = list(lab.gateway.outcomes._kept.values())
    assert len(calls) == 8  # one decision per request
    failed_over = next(of for of in calls if len(of) == 2)
    assert [(o.place, o.status) for o in failed_over] == [("m", "failed"), ("m#2", "answered")]


def test_a_wish_changes_one_request_and_is_recorded_with_it(start_lab, scripts):
    lab = start_lab(STICKY)
    everybody_answers(lab, scripts)
    lab.ask(router={"objective": "cost", "quality_floor": 0.5, "exploration_floor": 0.0001})
    lab.ask()
    (wished, first), (plain, second) = records(lab)
    assert "Cost(quality_floor=0.5, " in first.told["policy"]
    assert "floor=0.0001" in first.told["policy"]
    assert "Balanced(usd_per_quality=0.05)" in second.told["policy"]
    assert wished.policy != plain.policy
    assert first.probabilities[0] > 0.99  # the cheap one


def test_streams_and_answers_of_every_strategy_carry_their_decision(start_lab, scripts):
    lab = start_lab(RULES)
    lab.says(small=scripts.streams(scripts.piece("a", "stop"), scripts.DONE))
    response = lab.ask("mixed", stream=True, router={"candidates": ["small"]})
    first = json.loads(response.text.split("\n\n")[0][6:])
    assert first["id"] == f"chatcmpl-{response.headers['x-router-decision-id']}"
