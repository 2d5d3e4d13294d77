"""The shape of the configuration file, as pydantic holds it against what was read. What each field means: `settings`.

Nothing is coerced: "10" is no number, `true` is none either, and NaN and infinity are refused. Rules that need more than
the field itself (a route names known models, a secret is set) read `Surroundings` from the validation's context, so
that they are reported together with all others. No message repeats a value that may hold a secret.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from bandit.newcomers import Newcomers
from bandit.sources import ANCHOR
from feedback.store_url import parse_store_url

MIN_SECRET_BYTES: Final = 32
MODEL_NAME: Final = re.compile(r"[A-Za-z0-9@][A-Za-z0-9_.:/@+-]{0,199}")
ROUTE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
KEY_PREFIX: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
VARIABLE_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
HEADER_NAME: Final = re.compile(r"[A-Za-z0-9-]{1,100}")
BUDGET_NAME: Final = re.compile(r"[a-z0-9_-]{1,64}")
TENANT_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
SHA256: Final = re.compile(r"[0-9A-Fa-f]{64}")
HEADER_VALUE: Final = re.compile(r"[!-~]+")  # visible ASCII: what may stand behind `Bearer `


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a field is held against beyond itself. models: the names of all models in the file; cascades: of all cascades."""

    models: frozenset[str]
    cascades: frozenset[str]
    environ: Mapping[str, str]


def nearest(word: str, known: frozenset[str]) -> str:
    """The end of a sentence on an unknown word: what was probably meant, or all there is to choose from."""
    near = get_close_matches(word, sorted(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(sorted(known))}"


def redis_url_fault(url: str) -> str | None:
    """What is wrong with a store's URL, in words that do not repeat it; None if it will do."""
    try:
        parse_store_url(url)
    except ValueError as error:
        return str(error)
    return None


def _wrong(sentence: str) -> PydanticCustomError:
    return PydanticCustomError("config", "{sentence}", {"sentence": sentence})


def _surroundings(info: ValidationInfo) -> Surroundings:
    assert isinstance(info.context, Surroundings)
    return info.context


def _model_name(name: str) -> str:
    if not MODEL_NAME.fullmatch(name):
        raise _wrong(
            "a model's name is 1 to 200 letters, digits or _ . : / @ + -, and begins with a letter or digit"
        )
    return name


def _route_name(name: str, info: ValidationInfo) -> str:
    if not ROUTE_NAME.fullmatch(name):
        raise _wrong(
            "a route's name is 1 to 64 lower-case letters, digits or _ . -, and begins with a letter or digit"
        )
    if name in _surroundings(info).models | _surroundings(info).cascades:
        raise _wrong("a model has this name too; a client's `model` must mean one of them")
    return name


def _known_model(name: str, info: ValidationInfo) -> str:
    return _known(name, _surroundings(info).models | _surroundings(info).cascades)


def _plain_model(name: str, info: ValidationInfo) -> str:
    """One that is called itself."""
    if name in _surroundings(info).cascades:
        raise _wrong(f"{name!r:.100} is a cascade, and a cascade is made of models")
    return _known(name, _surroundings(info).models)


def _known(name: str, known: frozenset[str]) -> str:
    if name not in known:
        raise _wrong(f"unknown model {name!r:.100}{nearest(name, known)}")
    return name


def _cascade_name(name: str, info: ValidationInfo) -> str:
    if name in _surroundings(info).models:
        raise _wrong("a model has this name too; a client's `model` must mean one of them")
    return _model_name(name)


def _distinct(names: list[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise _wrong(f"lists {', '.join(twice)} more than once; each model once")
    return names


def _stages(names: list[str]) -> list[str]:
    if len(names) < 2:
        raise _wrong("a cascade asks at least two models, one after the other, the cheapest first")
    return _distinct(names)


def _several(given: Any) -> Any:
    """One of it is a list of one."""
    return given if isinstance(given, list) else [given]


def _ascending(numbers: list[float]) -> list[float]:
    if sorted(set(numbers)) != numbers:
        raise _wrong("lists its numbers in ascending order, each once")
    return numbers


def _base_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        complete = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        complete = False
    if not complete or not url.isascii() or not url.isprintable() or " " in url:
        raise _wrong("should be an http or https URL such as https://api.example.com/v1")
    if "@" in parts.netloc:
        raise _wrong(
            "holds credentials; put the key into the environment and name its variable in api_key_env"
        )
    if "?" in url or "#" in url:
        raise _wrong("should end with its path: a query or a fragment cannot be part of a base URL")
    return url.rstrip("/")


def _printable(text: str) -> str:
    if not text or not text.isprintable() or len(text) > 256:
        raise _wrong("should be 1 to 256 printable characters")
    return text


def _variable_name(name: str) -> str:
    if not VARIABLE_NAME.fullmatch(name):
        raise _wrong(
            "should be the name of an environment variable (letters, digits, _), never the secret itself"
        )
    return name


def _usable_key(variable: str, info: ValidationInfo) -> str:
    key = _surroundings(info).environ.get(variable, "").strip()
    if key and not HEADER_VALUE.fullmatch(key):
        raise _wrong(f"the value of {variable} holds blanks or characters that no key has")
    return variable


def _set(variable: str, info: ValidationInfo) -> str:
    if not _surroundings(info).environ.get(variable, "").strip():
        raise _wrong(f"{variable} is not set")
    return variable


def _usable_secret(variable: str, info: ValidationInfo) -> str:
    secret = _surroundings(info).environ.get(variable, "").strip()
    if not secret.isascii():
        raise _wrong(f"{variable} should hold printable ASCII, as the commands that make secrets write it")
    if len(secret) < MIN_SECRET_BYTES:
        state = "is too short" if secret else "is not set"
        raise _wrong(f"{variable} {state}; it should hold at least {MIN_SECRET_BYTES} random bytes")
    return variable


def _redis_url(url: Any, info: ValidationInfo) -> Any:
    from_environment = url is None
    if from_environment:
        url = _surroundings(info).environ.get("REDIS_URL") or None
    if isinstance(url, str) and (fault := redis_url_fault(url)) is not None:
        raise _wrong(f"REDIS_URL in the environment {fault}" if from_environment else fault)
    return url


def _key_prefix(prefix: str) -> str:
    if not KEY_PREFIX.fullmatch(prefix):
        raise _wrong("should be 1 to 32 lower-case letters, digits or _ -, beginning with a letter or digit")
    return prefix


def _one_place(url: str | None, info: ValidationInfo) -> str | None:
    """Where a model is served: at one URL, or at each of its deployments."""
    deployments = info.data.get("deployments", ())  # () where they are wrong themselves
    if url is None and deployments is None:
        raise _wrong(
            "missing; this field is required (or `deployments`, for a model served in several places)"
        )
    if url is not None and deployments:
        raise _wrong("stands beside `deployments`; give every deployment its own base_url instead")
    return url


def _header_name(name: str) -> str:
    if not HEADER_NAME.fullmatch(name):
        raise _wrong("should be the name of a header: letters, digits and -")
    return name.lower()


def _tenant(name: str) -> str:
    if not TENANT_NAME.fullmatch(name):
        raise _wrong(
            "a tenant's name is 1 to 32 lower-case letters, digits or _ -, and begins with a letter or digit"
        )
    return name


def _sha256(digest: str) -> str:
    if not SHA256.fullmatch(digest):
        raise _wrong(
            "should be the SHA-256 of the key, 64 hex digits, never the key itself: printf %s KEY | sha256sum"
        )
    return digest.lower()


def _own_keys(keys: "list[KeyEntry]") -> "list[KeyEntry]":
    digests = [key.sha256 for key in keys]
    if len(set(digests)) != len(digests):
        raise _wrong("lists a key more than once; which tenant is it of?")
    return keys


def _rules_of_this_route(rules: "list[RuleEntry]", info: ValidationInfo) -> "list[RuleEntry]":
    """A rule can only narrow the choice."""
    listed = info.data.get("models", [])
    for rule in rules:
        for name in rule.models:
            if listed and name not in listed:
                raise _wrong(
                    f"a rule names {name!r:.100}, which this route does not list{nearest(name, frozenset(listed))}"
                )
    return rules


def _classifier_of_this_route(file: str | None, info: ValidationInfo) -> str | None:
    strategy = info.data.get("strategy")
    if strategy == "classifier" and file is None:
        raise _wrong("missing: `strategy: classifier` needs a file that fit-classifier wrote")
    if strategy is not None and strategy != "classifier" and file is not None:
        raise _wrong("acts only with `strategy: classifier`")
    return file


def _judge(judge: str | None, info: ValidationInfo) -> str | None:
    if info.data.get("signal") == "judge" and judge is None:
        raise _wrong("missing: `signal: judge` needs the name of the model that judges")
    return judge


def _budget(budget: float | None, info: ValidationInfo) -> float | None:
    objective = info.data.get("objective")
    if budget is not None and objective is not None and objective != "quality":
        raise _wrong("acts only with `objective: quality`: the best quality that the budget can pay for")
    return budget


def _baseline_of_this_route(name: str | None, info: ValidationInfo) -> str | None:
    objective = info.data.get("objective")
    if name is not None and objective is not None and objective != "cost":
        raise _wrong("acts only with `objective: cost`: the model that quality_floor is measured from")
    return _listed(name, info)


def _confidence(confidence: float | None, info: ValidationInfo) -> float | None:
    objective = info.data.get("objective")
    if confidence is not None and objective is not None and objective != "cost":
        raise _wrong("acts only with `objective: cost`: how sure a model must be above the floor")
    return confidence


def _ramp_of_this_route(ramp: "RampEntry | None", info: ValidationInfo) -> "RampEntry | None":
    if ramp is not None:
        _listed(ramp.baseline, info)
    return ramp


def _budget_name(name: str) -> str:
    if not BUDGET_NAME.fullmatch(name):
        raise _wrong("a budget's name is 1 to 64 of a-z 0-9 _ -")
    return name


def _lease(lease_usd: float | None, info: ValidationInfo) -> float | None:
    usd = info.data.get("usd")
    if lease_usd is not None and usd is not None and lease_usd > usd:
        raise _wrong(f"one gateway's lease is a part of the budget's {usd:g} USD")
    return lease_usd


def _budgets_of_this_file(
    budgets: "dict[str, BudgetEntry]", info: ValidationInfo
) -> "dict[str, BudgetEntry]":
    """Of tenants that have a key, and for routes or models that there are."""
    routes, access = info.data.get("routes"), info.data.get("access")
    if routes is None:
        return budgets
    served = frozenset(routes) | _surroundings(info).models | _surroundings(info).cascades
    tenants = {key.tenant for key in access.keys} if access else {"default"}
    for name, budget in budgets.items():
        if budget.tenant not in tenants:
            raise _wrong(
                f"{name}: no key has the tenant '{budget.tenant}'; there is {', '.join(sorted(tenants))}"
            )
        for route in budget.routes:
            if route not in served:
                raise _wrong(f"{name}: unknown route '{route}'" + nearest(route, served))
    return budgets


def _listed(name: str | None, info: ValidationInfo) -> str | None:
    """One of the route's own models."""
    listed = info.data.get("models", [])
    if name is not None and listed and name not in listed:
        raise _wrong(f"names {name!r:.100}, which this route does not list{nearest(name, frozenset(listed))}")
    return name


def _source(name: str) -> str:
    """As ratings name theirs."""
    if not re.fullmatch(r"user|judge:[A-Za-z0-9][A-Za-z0-9_.:/-]{0,63}", name):
        raise _wrong(f"{name!r:.100} is no source of ratings: use `user`, or `judge:NAME`")
    return name


def _worth(worth: float | None, info: ValidationInfo) -> float | None:
    weighed = (
        info.data.get("strategy") in ("bandit", "classifier") and info.data.get("objective") == "balanced"
    )
    if worth is None and weighed:
        raise _wrong("missing: `objective: balanced` needs what one full point of quality is worth in USD")
    return worth


Price = Annotated[float, Field(ge=0, le=1e6)]
Timeout = Annotated[float, Field(gt=0, le=3600)]
Usd = Annotated[float, Field(gt=0, le=4e6)]
Share = Annotated[float, Field(ge=0, le=1)]
Printable = Annotated[str, AfterValidator(_printable)]
VariableName = Annotated[str, AfterValidator(_variable_name)]
ModelName = Annotated[str, AfterValidator(_known_model)]
PlainModelName = Annotated[str, AfterValidator(_plain_model)]
KeyVariable = Annotated[VariableName, AfterValidator(_usable_key)]
Digest = Annotated[str, AfterValidator(_sha256)]
Limit = Annotated[int, Field(ge=1, le=1_000_000)]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )


class DeploymentEntry(_Section):
    base_url: Annotated[str, AfterValidator(_base_url)]
    upstream_model: Printable | None = None
    api_key_env: KeyVariable | None = None
    weight: float = Field(default=1.0, gt=0, le=1000)
    max_concurrent: Limit | None = None


class ModelEntry(_Section):
    deployments: Annotated[list[DeploymentEntry], Field(min_length=1, max_length=100)] | None = None
    base_url: Annotated[
        Annotated[str, AfterValidator(_base_url)] | None,
        AfterValidator(_one_place),
        Field(validate_default=True),
    ] = None
    upstream_model: Printable | None = None
    api_key_env: KeyVariable | None = None
    max_concurrent: Limit | None = None
    price_usd_per_mtok_in: Price
    price_usd_per_mtok_out: Price
    price_usd_per_mtok_cached_in: Price | None = None
    context_window_tokens: int = Field(default=128_000, ge=1, le=1_000_000_000)
    tools: bool = True
    images: bool = True
    json_schema: bool = True
    withdrawn: bool = False
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    expected_quality: Share | None = None
    expected_quality_ratings: float = Field(default=20.0, gt=0, le=1e6)
    sibling: Printable | None = None
    quality: dict[Printable, Share] = Field(default_factory=dict)


class WhenEntry(_Section):
    task: Annotated[list[Printable], Field(min_length=1)] | None = None
    tenant: Annotated[list[Annotated[str, AfterValidator(_tenant)]], Field(min_length=1)] | None = None
    keywords: Annotated[list[Printable], Field(min_length=1)] | None = None
    header: dict[Annotated[str, AfterValidator(_header_name)], Printable] | None = None
    tokens_from: Annotated[int, Field(ge=1)] | None = None
    tokens_to: Annotated[int, Field(ge=1)] | None = None
    tools: bool | None = None
    images: bool | None = None


class RuleEntry(_Section):
    name: Printable | None = None
    when: WhenEntry = Field(default_factory=WhenEntry)
    models: Annotated[list[ModelName], Field(min_length=1), AfterValidator(_distinct)]


class CascadeEntry(_Section):
    models: Annotated[list[PlainModelName], Field(max_length=8), AfterValidator(_stages)]
    signal: Literal["logprob", "judge"] = "logprob"
    judge: Annotated[PlainModelName | None, AfterValidator(_judge), Field(validate_default=True)] = None
    accept_from: Annotated[
        list[Share], BeforeValidator(_several), Field(min_length=1, max_length=8), AfterValidator(_ascending)
    ] = Field(default=[0.6, 0.8, 0.9, 0.95])


class RampEntry(_Section):
    baseline: ModelName
    share: Share


class LatencyEntry(_Section):
    limit_s: Timeout
    confidence: float = Field(default=0.9, gt=0, lt=1)


class NewcomersEntry(_Section):
    ratings: float = Field(default=Newcomers().ratings, ge=1, le=10_000)
    share: float = Field(default=Newcomers().share, ge=0, le=0.5)
    usd_per_request: Annotated[float, Field(gt=0, le=1e6)] | None = None


class RouteEntry(_Section):
    models: Annotated[list[ModelName], Field(min_length=1), AfterValidator(_distinct)]
    strategy: Literal["bandit", "fixed", "uniform", "classifier"] = "bandit"
    objective: Literal["quality", "balanced", "cost"] = "balanced"
    usd_per_quality: Annotated[
        Annotated[float, Field(gt=0, le=1e6)] | None, AfterValidator(_worth), Field(validate_default=True)
    ] = None
    quality_floor: float = Field(default=0.02, ge=0, le=1)
    exploration_floor: float = Field(default=0.01, ge=0.0001, le=0.2)
    budget_usd_per_request: Annotated[
        Annotated[float, Field(gt=0, le=1e6)] | None, AfterValidator(_budget)
    ] = None
    baseline: Annotated[ModelName | None, AfterValidator(_baseline_of_this_route)] = None
    confidence: Annotated[Annotated[float, Field(gt=0.5, lt=1)] | None, AfterValidator(_confidence)] = None
    prior: Printable = "shipped"
    anchor: Annotated[str, AfterValidator(_source)] = ANCHOR
    latency: LatencyEntry | None = None
    newcomers: NewcomersEntry = Field(default_factory=NewcomersEntry)
    ramp: Annotated[RampEntry | None, AfterValidator(_ramp_of_this_route)] = None
    rules: Annotated[list[RuleEntry], AfterValidator(_rules_of_this_route)] = Field(default_factory=list)
    classifier: Annotated[
        Printable | None, AfterValidator(_classifier_of_this_route), Field(validate_default=True)
    ] = None
    sticky_sessions: bool = True
    hedge_after_s: Timeout | None = None


class ServerEntry(_Section):
    host: Printable = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    max_body_bytes: int = Field(default=4 * 1024 * 1024, ge=1024, le=1024 * 1024 * 1024)
    max_concurrent: Limit = 1000
    workers: int = Field(default=1, ge=1, le=64)


class KeyEntry(_Section):
    sha256: Digest
    tenant: Annotated[str, AfterValidator(_tenant)] = "default"
    max_concurrent: Limit | None = None
    requests_per_minute: Limit | None = None


class AccessEntry(_Section):
    keys: Annotated[list[KeyEntry], Field(min_length=1), AfterValidator(_own_keys)]


class AdminEntry(_Section):
    host: Printable = "127.0.0.1"
    port: int = Field(default=8081, ge=0, le=65535)
    key_sha256: Digest


class StoreEntry(_Section):
    url: Annotated[str | None, BeforeValidator(_redis_url), Field(validate_default=True)] = None
    state_dir: Printable = ".state"
    key_prefix: Annotated[str, AfterValidator(_key_prefix)] = "lr"
    feedback_window_h: float = Field(default=168.0, gt=0, le=8760)
    secret_env: Annotated[VariableName, AfterValidator(_usable_secret)] | None = None
    previous_secret_env: Annotated[VariableName, AfterValidator(_usable_secret)] | None = None


class UpstreamEntry(_Section):
    connect_timeout_s: Timeout = 5.0
    first_byte_timeout_s: Timeout = 60.0
    idle_timeout_s: Timeout = 60.0
    max_attempts: int = Field(default=3, ge=1, le=10)
    retry_share: float = Field(default=0.1, ge=0, le=1)


class EmbedderEntry(_Section):
    base_url: Annotated[str, AfterValidator(_base_url)]
    projection: Printable
    api_key_env: Annotated[KeyVariable, AfterValidator(_set)] | None = None
    timeout_ms: float = Field(default=50.0, ge=1, le=5000)


class DecisionLogEntry(_Section):
    days: int = Field(default=30, ge=1, le=3650)
    folder: Printable = "decisions"


class BudgetEntry(_Section):
    usd: Usd
    period: Literal["day", "month", "total"] = "month"
    tenant: Annotated[str, AfterValidator(_tenant)] = "default"
    routes: Annotated[list[Printable], AfterValidator(_distinct)] = Field(default_factory=list)
    lease_usd: Annotated[Usd | None, AfterValidator(_lease)] = None
    when_store_away: Literal["fail_open", "fail_closed"] = "fail_open"
    local_cap_usd: Annotated[float, Field(ge=0, le=4e6)] | None = None


class FileEntry(_Section):
    """The whole file."""

    models: Annotated[dict[Annotated[str, AfterValidator(_model_name)], ModelEntry], Field(min_length=1)]
    cascades: dict[Annotated[str, AfterValidator(_cascade_name)], CascadeEntry] = Field(default_factory=dict)
    routes: Annotated[dict[Annotated[str, AfterValidator(_route_name)], RouteEntry], Field(min_length=1)]
    server: ServerEntry = Field(default_factory=ServerEntry)
    access: AccessEntry | None = None
    admin: AdminEntry | None = None
    # An absent section is validated as an empty one: its address may come from the environment.
    store: StoreEntry = Field(default={}, validate_default=True)
    upstream: UpstreamEntry = Field(default_factory=UpstreamEntry)
    embedder: EmbedderEntry | None = None
    decision_log: DecisionLogEntry | None = None
    budgets: Annotated[
        dict[Annotated[str, AfterValidator(_budget_name)], BudgetEntry], AfterValidator(_budgets_of_this_file)
    ] = Field(default_factory=dict)
