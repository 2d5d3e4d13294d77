import traceback
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bandit.arms import Arm
from feedback.records import policy_tag
from service.config import MAX_FILE_BYTES, load_settings, parse_settings
from service.config_problems import ConfigError
from service.routes import quality_model
from service.settings import (
    AdminSettings,
    Cascade,
    DecisionLogSettings,
    Deployment,
    Key,
    Model,
    Route,
    Rule,
    ServerSettings,
    Settings,
    UpstreamSettings,
    When,
)

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # no test fails for time
FOLDER = Path("/etc/gateway")
SECRET = "0123456789abcdef0123456789abcdef"
NOTHING: Mapping[str, str] = {}

SMALL = """\
models:
  small:
    base_url: http://127.0.0.1:8101/v1
    price_usd_per_mtok_in: 0.1
    price_usd_per_mtok_out: 0.4
routes:
  auto:
    models: [small]
    usd_per_quality: 0.05
"""

FULL = """\
models:
  llama-3.1-8b-instruct:
    base_url: http://127.0.0.1:8101/v1/
    upstream_model: meta-llama/llama-3.1-8b-instruct
    api_key_env: LLAMA_API_KEY
    price_usd_per_mtok_in: 0.1
    price_usd_per_mtok_out: 1e-1
    context_window_tokens: 131072
    tools: false
  gemini-2.5-pro:
    base_url: https://api.example.com/v1
    price_usd_per_mtok_in: 0
    price_usd_per_mtok_out: 10
routes:
  auto:
    models: [llama-3.1-8b-instruct, gemini-2.5-pro]
    strategy: bandit
    objective: balanced
    usd_per_quality: 0.05
    quality_floor: 0.1
    exploration_floor: 0.02
  first:
    models: [gemini-2.5-pro]
    strategy: fixed
server: {host: 0.0.0.0, port: 0, max_body_bytes: 1048576}
store:
  url: redis://:hunter2@redis.example.com:6379/0
  state_dir: var/state
  key_prefix: lr2
  feedback_window_h: 24
  secret_env: ROUTER_SECRET
upstream: {connect_timeout_s: 1, first_byte_timeout_s: 2.5, idle_timeout_s: 3}
"""


def parsed(text: str, environ: Mapping[str, str] = NOTHING) -> Settings:
    return parse_settings(text, source="gateway.yaml", folder=FOLDER, environ=environ)


def problems(text: str, environ: Mapping[str, str] = NOTHING) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parsed(text, environ)
    return str(caught.value).splitlines()


def changed(old: str, new: str) -> str:
    assert SMALL.count(old) == 1
    return SMALL.replace(old, new)


def test_a_full_file_is_read_as_written() -> None:
    settings_ = parsed(
        FULL, {"LLAMA_API_KEY": "sk-llama\n", "ROUTER_SECRET": SECRET, "REDIS_URL": "redis://other"}
    )
    assert settings_.models["llama-3.1-8b-instruct"] == Model(
        arm=Arm("llama-3.1-8b-instruct", 0.1, 0.1, context_window_tokens=131072, tools=False),
        deployments=(
            Deployment(
                "llama-3.1-8b-instruct",
                base_url="http://127.0.0.1:8101/v1",
                upstream_model="meta-llama/llama-3.1-8b-instruct",
                api_key="sk-llama",
            ),
        ),
        price_usd_per_mtok_cached_in=0.1,
    )
    assert settings_.routes["auto"] == Route(
        name="auto",
        models=("llama-3.1-8b-instruct", "gemini-2.5-pro"),
        strategy="bandit",
        objective="balanced",
        usd_per_quality=0.05,
        quality_floor=0.1,
        exploration_floor=0.02,
    )
    assert settings_.server == ServerSettings("0.0.0.0", 0, 1048576)
    assert settings_.store.url == "redis://:hunter2@redis.example.com:6379/0"
    assert settings_.store.state_dir == FOLDER / "var/state"
    assert (settings_.store.key_prefix, settings_.store.feedback_window_h) == ("lr2", 24.0)
    assert settings_.store.secret == SECRET.encode()
    assert settings_.upstream == UpstreamSettings(1.0, 2.5, 3.0)


def test_a_small_file_is_filled_with_the_defaults() -> None:
    settings_ = parsed(SMALL)
    assert settings_.models["small"] == Model(
        Arm("small", 0.1, 0.4), (Deployment("small", "http://127.0.0.1:8101/v1", "small"),), 0.1
    )
    assert settings_.routes["auto"] == Route("auto", ("small",), "bandit", "balanced", 0.05, 0.02, 0.01)
    assert settings_.server == ServerSettings("127.0.0.1", 8080, 4194304)
    assert settings_.store.url is None
    assert settings_.store.state_dir == FOLDER / ".state"
    assert (settings_.store.key_prefix, settings_.store.feedback_window_h) == ("lr", 168.0)
    assert settings_.store.secret is None
    assert settings_.upstream == UpstreamSettings(5.0, 60.0, 60.0)


WIDE = """\
models:
  small:
    price_usd_per_mtok_in: 0.1
    price_usd_per_mtok_out: 0.4
    price_usd_per_mtok_cached_in: 0.01
    images: false
    json_schema: false
    upstream_model: vendor/small
    api_key_env: KEY
    max_concurrent: 8
    deployments:
      - {base_url: "http://a.test/v1"}
      - {base_url: "http://b.test/v1", weight: 3, upstream_model: other, api_key_env: KEY_B, max_concurrent: 2}
  thinking:
    base_url: http://a.test/v1
    price_usd_per_mtok_in: 1
    price_usd_per_mtok_out: 4
    reasoning_effort: high
routes:
  auto:
    models: [small, thinking]
    usd_per_quality: 0.05
    sticky_sessions: false
    hedge_after_s: 2
    rules:
      - name: code to the large
        when: {task: [code], tenant: [acme], keywords: [Traceback], header: {X-Team: core}, tokens_from: 10, tokens_to: 20, tools: true, images: false}
        models: [thinking]
      - models: [small]
  steps:
    models: [judged, sure]
    strategy: uniform
cascades:
  judged: {models: [small, thinking], signal: judge, judge: thinking, accept_from: 0.8}
  sure: {models: [small, thinking], accept_from: [0.7, 0.9]}
access:
  keys:
    - {sha256: DIGEST, tenant: acme, max_concurrent: 4, requests_per_minute: 60}
admin: {port: 0, key_sha256: DIGEST}
upstream: {max_attempts: 4, retry_share: 0.2}
""".replace("DIGEST", "AB" * 32)


def test_places_rules_cascades_keys_and_efforts_are_read_as_written() -> None:
    settings_ = parsed(WIDE, {"KEY": "ka", "KEY_B": "kb"})
    assert settings_.models["small"].deployments == (
        Deployment("small", "http://a.test/v1", "vendor/small", "ka", max_concurrent=8),
        Deployment("small#2", "http://b.test/v1", "other", "kb", weight=3.0, max_concurrent=2),
    )
    assert settings_.models["small"].price_usd_per_mtok_cached_in == 0.01
    assert not settings_.models["small"].arm.images
    assert not settings_.models["small"].arm.json_schema
    assert settings_.models["thinking"].reasoning_effort == "high"
    route = settings_.routes["auto"]
    when = When(
        task=frozenset({"code"}),
        tenant=frozenset({"acme"}),
        keywords=("traceback",),
        header=(("x-team", "core"),),
        tokens_from=10,
        tokens_to=20,
        tools=True,
        images=False,
    )
    assert route.rules == (
        Rule("code to the large", when, frozenset({"thinking"})),
        Rule("rule 2", When(), frozenset({"small"})),
    )
    assert (route.sticky_sessions, route.hedge_after_s) == (False, 2.0)
    assert settings_.routes["steps"].models == ("judged", "sure@0.7", "sure@0.9")
    judged, sure = settings_.models["judged"], settings_.models["sure@0.9"]
    assert judged.cascade == Cascade(("small", "thinking"), "judge", 0.8, "thinking")
    assert sure.cascade == Cascade(("small", "thinking"), "logprob", 0.9)
    small, thinking = settings_.models["small"], settings_.models["thinking"]
    assert judged.deployments == small.deployments + thinking.deployments
    assert judged.arm.price_usd_per_mtok_out == (
        small.arm.price_usd_per_mtok_out + thinking.arm.price_usd_per_mtok_out / 2
    )
    assert (judged.arm.images, judged.arm.json_schema) == (False, False), "it can do what both can"
    assert settings_.keys == (Key(b"\xab" * 32, "acme", 4, 60),)
    assert settings_.tenants == ("acme",)
    assert settings_.admin == AdminSettings("127.0.0.1", 0, b"\xab" * 32)
    assert (settings_.upstream.max_attempts, settings_.upstream.retry_share) == (4, 0.2)
    assert parsed(SMALL).tenants == ("default",)


@pytest.mark.parametrize(
    ("old", "new", "where", "what"),
    [
        ('      - {base_url: "http://a.test/v1"}', "      - {base_ulr: x}", "12: models.small.deployments[0].base_ulr", "did you mean 'base_url'"),
        ("    price_usd_per_mtok_cached_in: 0.01", "    base_url: http://c.test", "5: models.small.base_url", "stands beside `deployments`"),
        ("reasoning_effort: high", "reasoning_effort: hihg", "18: models.thinking.reasoning_effort", "did you mean 'high'"),
        ("models: [thinking]\n", "models: [thinknig]\n", "28: routes.auto.rules[0].models[0]", "did you mean 'thinking'"),
        ("tokens_from: 10", "tokens_form: 10", "27: routes.auto.rules[0].when.tokens_form", "did you mean 'tokens_from'"),
        ("X-Team: core", "'X Team': core", "27: routes.auto.rules[0].when.header.X Team", "name of a header"),
        ("tenant: [acme]", "tenant: [Acme]", "27: routes.auto.rules[0].when.tenant[0]", "lower-case"),
        ("models: [judged, sure]", "models: [judged, sue]", "31: routes.steps.models[1]", "did you mean 'sure'"),
        ("    strategy: uniform\n", "    usd_per_quality: 1\n    ramp: {baseline: sure, share: 0.5}\n", "33: routes.steps.ramp.baseline", "give it one"),
        ("    strategy: uniform\n", "    usd_per_quality: 1\n    strategy: classifier\n    classifier: f\n", "31: routes.steps.models", "no classifier knows"),
        ("judge: thinking, ", "", "34: cascades.judged.judge", "the model that judges"),
        ("judge: thinking, ", "judge: sure, ", "34: cascades.judged.judge", "a cascade is made of models"),
        ("accept_from: 0.8", "accept_from: 1.8", "34: cascades.judged.accept_from[0]", "less than or equal to 1"),
        ("[0.7, 0.9]", "[0.9, 0.7]", "35: cascades.sure.accept_from", "ascending"),
        ("sure: {models: [small, thinking], accept", "sure: {models: [small], accept", "35: cascades.sure.models", "at least two models"),
        ("  sure: {models", "  small: {models", "35: cascades.small", "a model has this name too"),
        ("signal: judge, ", "signl: judge, ", "34: cascades.judged.signl", "did you mean 'signal'"),
        ("{sha256: ABAB", "{sha256: sk-secret-key-in-the-file, x: ABAB", "38: access.keys[0].sha256", "never the key itself"),
        ("port: 0, key_sha256", "port: 0, key", "39: admin.key_sha256", "required"),
        ("max_attempts: 4", "max_attempts: 0", "40: upstream.max_attempts", "greater than or equal to 1"),
    ],
)  # fmt: skip
def test_what_is_wrong_deep_in_the_file_is_told_there(old: str, new: str, where: str, what: str) -> None:
    assert WIDE.count(old) == 1, old
    found = problems(WIDE.replace(old, new), {"KEY": "ka", "KEY_B": "kb"})
    assert any(f"gateway.yaml:{where}: " in problem and what in problem for problem in found), found
    assert not any("sk-secret" in problem for problem in found)


def test_a_rule_can_only_narrow_the_choice_of_its_route() -> None:
    text = WIDE.replace(
        "  steps:\n    models: [judged, sure]",
        "  steps:\n    rules: [{models: [small]}]\n    models: [thinking]",
    )
    found = problems(text, {"KEY": "ka", "KEY_B": "kb"})
    assert any("a rule names 'small', which this route does not list" in problem for problem in found), found


def test_a_key_is_listed_for_one_tenant_only() -> None:
    twice = WIDE.replace("  keys:\n", "  keys:\n    - {sha256: " + "ab" * 32 + "}\n")
    assert any("a key more than once" in problem for problem in problems(twice, {"KEY": "a", "KEY_B": "b"}))


def test_a_model_is_unavailable_only_if_every_place_lacks_its_key() -> None:
    assert parsed(WIDE, {"KEY": "ka"}).models["small"].missing_key_env is None
    assert parsed(WIDE, {}).models["small"].missing_key_env == "KEY"


def test_cached_tokens_are_billed_at_their_own_price() -> None:
    model = parsed(WIDE, {}).models["small"]
    assert model.cost_usd(1000, 100, tokens_cached=800) == pytest.approx(
        (200 * 0.1 + 800 * 0.01 + 100 * 0.4) / 1e6
    )


@pytest.mark.parametrize("store", ["", "store: {key_prefix: x}\n"])
def test_the_store_may_be_named_in_the_environment(store: str) -> None:
    assert (
        parsed(SMALL + store, {"REDIS_URL": "redis://localhost:6379"}).store.url == "redis://localhost:6379"
    )
    assert parsed(SMALL + store, {"REDIS_URL": ""}).store.url is None


def test_an_absolute_state_directory_stays_where_it_is() -> None:
    assert parsed(SMALL + "store: {state_dir: /var/lib/gateway}").store.state_dir == Path("/var/lib/gateway")


@pytest.mark.parametrize("environ", [{}, {"KEY": ""}, {"KEY": "  "}])
def test_a_model_whose_key_is_not_set_is_kept_with_the_reason(environ: Mapping[str, str]) -> None:
    model = parsed(
        changed("    price_usd_per_mtok_in", "    api_key_env: KEY\n    price_usd_per_mtok_in"), environ
    )
    (deployment,) = model.models["small"].deployments
    assert (deployment.api_key, model.models["small"].missing_key_env) == (None, "KEY")


def test_no_secret_shows_in_the_settings() -> None:
    shown = repr(parsed(FULL, {"LLAMA_API_KEY": "sk-llama", "ROUTER_SECRET": SECRET}))
    for secret in ("sk-llama", "hunter2", SECRET):
        assert secret not in shown


def test_no_secret_shows_in_an_error_or_its_traceback() -> None:
    text = (
        FULL.replace("http://127.0.0.1:8101/v1/", "http://user:pass-in-url@127.0.0.1/v1")
        .replace("LLAMA_API_KEY", "sk-in-the-file")
        .replace("redis://:hunter2@redis", "http://:hunter2@redis")
        .replace("upstream: {", "upstream: {api_key: sk-somewhere, ")
    )
    environ = {"ROUTER_SECRET": "too-short-secret"}
    with pytest.raises(ConfigError) as caught:
        parsed(text, environ)
    shown = "".join(traceback.format_exception(caught.value))
    assert len(str(caught.value).splitlines()) == 5
    for secret in ("pass-in-url", "sk-in-the-file", "hunter2", "sk-somewhere", "too-short-secret"):
        assert secret not in shown


def test_every_problem_is_listed_with_its_line_its_path_and_what_would_be_right() -> None:
    text = FULL.replace(
        "gemini-2.5-pro]\n    strategy: bandit", "gemini-2.5-por]\n    strategy: bandti"
    ).replace("    upstream_model", "    upstream_modle")
    text += "server: {}\n"
    found = problems(text, {"ROUTER_SECRET": "short"})
    assert found == [
        "gateway.yaml:4: models.llama-3.1-8b-instruct.upstream_modle: unknown field; did you mean 'upstream_model'?",
        "gateway.yaml:16: routes.auto.models[1]: unknown model 'gemini-2.5-por'; did you mean 'gemini-2.5-pro'?",
        "gateway.yaml:17: routes.auto.strategy: unknown word 'bandti'; did you mean 'bandit'?",
        "gateway.yaml:31: store.secret_env: ROUTER_SECRET is too short; it should hold at least 32 random bytes",
        "gateway.yaml:33: server: duplicate key; it stands on line 25 already",
    ]


@pytest.mark.parametrize(
    ("old", "new", "where", "what"),
    [
        ("    base_url: http://127.0.0.1:8101/v1\n", "", "2: models.small.base_url", "missing"),
        ("0.4", '"0.4"', "5: models.small.price_usd_per_mtok_out", "should be a number, not text"),
        ("0.4", "true", "5: models.small.price_usd_per_mtok_out", "should be a number, not true"),
        ("0.4", "", "5: models.small.price_usd_per_mtok_out", "should be a number, not nothing"),
        ("0.4", "-1", "5: models.small.price_usd_per_mtok_out", "greater than or equal to 0, not -1"),
        ("0.4", ".nan", "5: models.small.price_usd_per_mtok_out", "finite"),
        ("0.4", "1e999", "5: models.small.price_usd_per_mtok_out", "finite"),
        ("0.4", "1_000", "5: models.small.price_usd_per_mtok_out", "not text"),
        ("0.4", "1\n    tools: 1", "6: models.small.tools", "true or false, not the number 1"),
        ("0.4", "1\n    tools: yes", "6: models.small.tools", "true or false, not text"),
        ("0.4", "1\n    context_window_tokens: 1.5", "6: models.small.context_window_tokens", "whole number"),
        ("0.4", "1\n    context_window_tokens: 0", "6: models.small.context_window_tokens", "not 0"),
        ("0.4", '1\n    upstream_model: ""', "6: models.small.upstream_model", "printable"),
        ("http://127.0.0.1:8101/v1", "ftp://x/v1", "3: models.small.base_url", "http or https"),
        ("http://127.0.0.1:8101/v1", "localhost:8101", "3: models.small.base_url", "http or https"),
        ("http://127.0.0.1:8101/v1", "http://x:99999/v1", "3: models.small.base_url", "http or https"),
        ("http://127.0.0.1:8101/v1", "http://[::1/v1", "3: models.small.base_url", "http or https"),
        ("http://127.0.0.1:8101/v1", "http://u@x/v1", "3: models.small.base_url", "api_key_env"),
        ("http://127.0.0.1:8101/v1", "http://x/v1?key=1", "3: models.small.base_url", "query"),
        ("models: [small]", "models: []", "8: routes.auto.models", "at least one"),
        ("models: [small]", "models: small", "8: routes.auto.models", "should be a list, not text"),
        ("models: [small]", "models: [small, small]", "8: routes.auto.models", "more than once"),
        ("models: [small]", "models: [1.5]", "8: routes.auto.models[0]", "quotes"),
        ("    usd_per_quality: 0.05\n", "", "7: routes.auto.usd_per_quality", "worth in USD"),
        ("usd_per_quality: 0.05", "usd_per_quality: 0", "9: routes.auto.usd_per_quality", "greater than 0"),
        ("0.05", "1\n    exploration_floor: 0.3", "10: routes.auto.exploration_floor", "0.2, not 0.3"),
        ("0.05", "1\n    quality_floor: 2", "10: routes.auto.quality_floor", "1, not 2"),
        ("  auto:", "  Auto:", "7: routes.Auto", "lower-case"),
        ("  auto:", '  "a}b{c":', "7: routes.a}b{c", "lower-case"),
        ("  auto:", '  "..":', "7: routes...", "lower-case"),
        ("  auto:", f"  {'a' * 65}:", f"7: routes.{'a' * 65}", "1 to 64"),
        ("  auto:", "  8:", "7: routes", "the key '8' is not text"),
        ("0.05\n", "1\nserver: {port: 99999}\n", "10: server.port", "65535, not 99999"),
        ("0.05\n", '1\nserver: {host: "a\\nb"}\n', "10: server.host", "printable"),
        ("0.05\n", "1\nserver: {max_body_bytes: 10}\n", "10: server.max_body_bytes", "1024"),
        ("0.05\n", "1\nserver: []\n", "10: server", "mapping of fields, not a list"),
        (
            "0.05\n",
            "1\nupstream: {idle_timeout_s: -1}\n",
            "10: upstream.idle_timeout_s",
            "greater than 0, not -1",
        ),
        (
            "0.05\n",
            "1\nupstream: {connect_timeout_s: 0}\n",
            "10: upstream.connect_timeout_s",
            "greater than 0",
        ),
        ("0.05\n", "1\nstore: {feedback_window_h: 0}\n", "10: store.feedback_window_h", "greater than 0"),
        ("0.05\n", '1\nstore: {key_prefix: "a{b}"}\n', "10: store.key_prefix", "lower-case"),
        ("0.05\n", '1\nstore: {state_dir: ""}\n', "10: store.state_dir", "printable"),
        ("0.05\n", "1\nstore: {url: localhost}\n", "10: store.url", "redis://"),
        ("0.05\n", "1\nstore: {url: 'redis://'}\n", "10: store.url", "redis://"),
        ("0.05\n", "1\nstore: {secret_env: NOT_SET}\n", "10: store.secret_env", "NOT_SET is not set"),
        ("0.05\n", "1\ndecision_log: {days: 0}\n", "10: decision_log.days", "greater than or equal to 1"),
        ("0.05\n", "1\ndecision_log: {day: 3}\n", "10: decision_log.day", "did you mean 'days'?"),
        (
            "0.05\n",
            "1\nembedder: {base_url: http://e/v1, projection: nowhere.json}\n",
            "10: embedder.projection",
            "the file cannot be read: No such file",
        ),
        (
            "0.05\n",
            "1\nembedder: {base_url: http://e/v1}\n",
            "10: embedder.projection",
            "missing; this field is required",
        ),
        (
            "0.05\n",
            "1\nembedder: {base_url: http://e/v1, projection: p, api_key_env: NOT_SET}\n",
            "10: embedder.api_key_env",
            "NOT_SET is not set",
        ),
        (
            "0.05\n",
            "1\nembedder: {base_url: http://e/v1, projection: p, timeout_ms: 0}\n",
            "10: embedder.timeout_ms",
            "greater than or equal to 1",
        ),
        (
            "0.05\n",
            "1\n    prior: shiped\n",
            "10: routes.auto.prior",
            "the file cannot be read: No such file or directory; other than a file it can be shipped or none",
        ),
        ("0.05\n", "1\nservr: {}\n", "10: servr", "did you mean 'server'?"),
        (
            "0.05\n",
            "1\nzzz: {}\n",
            "10: zzz",
            "known: access, admin, budgets, cascades, decision_log, embedder, models, routes, server, store, upstream",
        ),
    ],
)
def test_a_wrong_value_is_told_where_it_stands_and_what_is_wrong(
    old: str, new: str, where: str, what: str
) -> None:
    (problem,) = problems(changed(old, new))
    assert problem.startswith(f"gateway.yaml:{where}: ")
    assert what in problem


@pytest.mark.parametrize("name", ["sm all", "", "-small", "s" * 201, "small\\n", "\\u00fcber"])
def test_a_model_has_a_name_that_fits_a_header_and_a_log(name: str) -> None:
    first, *_ = problems(SMALL.replace("small", f'"{name}"'))
    assert first.startswith("gateway.yaml:2: models.")
    assert "a model's name is 1 to 200" in first


def test_a_route_may_not_have_the_name_of_a_model() -> None:
    (problem,) = problems(changed("  auto:", "  small:"))
    assert problem.startswith("gateway.yaml:7: routes.small: a model has this name too")


@pytest.mark.parametrize(
    "strategy", ["strategy: fixed", "strategy: uniform", "objective: quality", "objective: cost"]
)
def test_what_quality_is_worth_is_needed_only_where_it_is_weighed(strategy: str) -> None:
    assert parsed(changed("usd_per_quality: 0.05", strategy)).routes["auto"].usd_per_quality is None


def test_an_anchor_is_a_source_as_ratings_name_theirs() -> None:
    anchored = changed("usd_per_quality: 0.05", "usd_per_quality: 0.05\n    anchor: judge:unit-tests")
    settings = parsed(anchored)
    assert settings.routes["auto"].anchor == "judge:unit-tests"
    model = quality_model(settings, "auto")
    assert model.anchor == "judge:unit-tests"
    other = parsed(changed("usd_per_quality: 0.05", "usd_per_quality: 0.05\n    anchor: user"))
    assert policy_tag(model) != policy_tag(quality_model(other, "auto")), "records tell the two apart"
    (problem,) = problems(changed("usd_per_quality: 0.05", "usd_per_quality: 0.05\n    anchor: unit tests"))
    assert "routes.auto.anchor: 'unit tests' is no source of ratings: use `user`, or `judge:NAME`" in problem


@pytest.mark.parametrize("strategy", ["fixed", "uniform"])
@pytest.mark.parametrize(
    "field",
    ["usd_per_quality: 0.05", "objective: quality", "exploration_floor: 0.02", "sticky_sessions: true", "newcomers: {share: 0.1}", "anchor: user"],
)  # fmt: skip
def test_what_a_strategy_never_looks_at_is_told(strategy: str, field: str) -> None:
    (problem,) = problems(changed("usd_per_quality: 0.05", f"strategy: {strategy}\n    {field}"))
    name = field.partition(":")[0]
    assert f"routes.auto.{name}: acts only where models are weighed: with `strategy: bandit`" in problem


def test_a_wrong_environment_is_told_with_the_name_of_its_variable() -> None:
    (problem,) = problems(SMALL, {"REDIS_URL": "localhost:6379"})
    assert "REDIS_URL in the environment should be a Redis URL" in problem
    keyed = changed("    price_usd_per_mtok_in", "    api_key_env: KEY\n    price_usd_per_mtok_in")
    (problem,) = problems(keyed, {"KEY": "sk-a\r\nx-injected: 1"})
    assert "models.small.api_key_env: the value of KEY holds blanks" in problem
    assert "injected" not in problem


def test_thousands_of_problems_do_not_flood_the_terminal() -> None:
    found = problems(SMALL + "zzz: 1\n" * 5000)
    assert len(found) == 101
    assert found[-1] == "gateway.yaml: and 4900 more problems"


@PATIENT
@given(st.text(max_size=200))
def test_any_text_is_settings_or_a_config_error(text: str) -> None:
    parses_or_refuses(text)


@PATIENT
@given(st.data())
def test_any_damage_to_a_file_is_settings_or_a_config_error(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(FULL)))
    end = data.draw(st.integers(start, min(len(FULL), start + 30)))
    inserted = data.draw(st.text(max_size=6) | st.text(":-[]{}#&*!|>'\"%@`,? \n\t~01.eE_", max_size=12))
    parses_or_refuses(FULL[:start] + inserted + FULL[end:])


def parses_or_refuses(text: str) -> None:
    try:
        parsed(text, {"LLAMA_API_KEY": "sk-llama", "ROUTER_SECRET": SECRET})
    except ConfigError as error:
        for line in str(error).split("\n"):
            assert line.startswith("gateway.yaml:")


def test_a_file_is_read_and_relative_paths_start_at_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.encode())
    assert load_settings(path, NOTHING).store.state_dir == tmp_path / ".state"


@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        (b"", 1, "empty"),
        (b"# only a comment\n", 1, "empty"),
        (b"models:\n  \xff\xfe", 2, "UTF-8"),
        (b"#" * (MAX_FILE_BYTES + 1), 1, "longer than 1048576 bytes"),
        ("# é".encode() * MAX_FILE_BYTES, 1, "longer than 1048576 bytes"),
    ],
    ids=["empty", "a comment", "not UTF-8", "too long", "too long in bytes"],
)
def test_a_file_that_cannot_be_a_configuration_is_told_so(
    tmp_path: Path, content: bytes, line: int, what: str
) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=what) as caught:
        load_settings(path, NOTHING)
    assert str(caught.value).startswith(f"{path}:{line}: ")


def test_a_missing_file_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.yaml:1: the file cannot be read: No such file"):
        load_settings(tmp_path / "nowhere.yaml", NOTHING)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(tmp_path, NOTHING)


def test_a_decision_log_is_kept_where_the_file_says_so_and_relative_to_it():
    def kept(section):
        return parse_settings(SMALL + section, source="s", folder=FOLDER, environ=NOTHING).decision_log

    assert kept("") is None
    assert kept("decision_log: {}\n") == DecisionLogSettings(FOLDER / "decisions", 30)
    assert kept("decision_log: {days: 3650, folder: /var/log}\n") == DecisionLogSettings(
        Path("/var/log"), 3650
    )


@pytest.mark.parametrize(
    ("section", "near"),
    [
        ("    ramp: {baselin: small, share: 0}", "baseline"),
        ("    newcomers: {rating: 3}", "ratings"),
        ("    latency: {limit: 3}", "limit_s"),
        ("embedder: {base_ur: http://e/v1}", "base_url"),
        ("budgets: {all: {used: 3}}", "usd"),
    ],
)
def test_an_unknown_field_of_any_section_is_named_beside_the_nearest(section, near):
    with pytest.raises(ConfigError, match=f"did you mean '{near}'"):
        parse_settings(f"{SMALL}{section}\n", source="s", folder=FOLDER, environ=NOTHING)
