"""The gateway's settings as frozen values; what each field of the file means stands here. `service.config` reads the file.

models:   name -> what it is and what it costs         (Model)
routes:   name -> the models to choose from, and how   (Route)
server:   where the gateway listens                    (ServerSettings)
store:    where what was learned is kept               (StoreSettings)
upstream: how long a model may take, how often to try  (UpstreamSettings)
access:   who may use the gateway                      (Key)
admin:    the operator's own listener                  (AdminSettings)
budgets:  name -> what a tenant may spend              (TenantBudget)
embedder: who tells where a request points             (EmbedderSettings)
decision_log: where decisions are kept to be read      (DecisionLogSettings)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from bandit.arms import Arm
from bandit.classifier import Classified
from bandit.embedding import Projection
from bandit.features import SHIPPED, FeatureVersion
from bandit.newcomers import Newcomers
from bandit.prior import QualityPrior
from bandit.sources import ANCHOR
from feedback.budget import Budget
from feedback.priors import shipped_prior

DEFAULT_TENANT: Final = "default"  # of everybody where no key tells tenants apart

StrategyName = Literal["bandit", "fixed", "uniform", "classifier"]
SignalName = Literal["logprob", "judge"]
ObjectiveName = Literal["quality", "balanced", "cost"]


@dataclass(frozen=True, slots=True)
class Deployment:
    """One place where a model is served. Several of one model give the same answers: load is balanced over them.

    name: the model's name, from the second place on with #2, #3, ...
    base_url: any OpenAI-compatible base URL, http or https, without credentials; no slash at its end.
    upstream_model: what this place calls the model; default: the model's own, then its name.
    api_key: the value of the variable named in `api_key_env`, or None if none is named or the variable is unset.
    missing_key_env: the named variable that is unset or empty: the place is unavailable, and this is the reason.
    weight: share of the load beside the model's other places, above 0, at most 1000, default 1.
    max_concurrent: calls at once, 1 to 10^6; None: no limit.
    """

    name: str
    base_url: str
    upstream_model: str
    api_key: str | None = field(default=None, repr=False)
    missing_key_env: str | None = None
    weight: float = 1.0
    max_concurrent: int | None = None


@dataclass(frozen=True, slots=True)
class Cascade:
    """Models that are asked one after the other, the cheapest first, until an answer is good enough; else the last one's.

    models: at least two, in the order asked; none of them a cascade.
    signal: how good an answer is: "logprob" (default; the mean probability of its tokens) or "judge" (a score by the model
        `judge`).
    accept_from: the signal, 0 to 1, from which on an answer is taken. In the file a number; or several, each a model of its
        own named NAME@NUMBER, of which a route that lists NAME learns which is worth it when; default 0.6, 0.8, 0.9, 0.95.
    """

    models: tuple[str, ...]
    signal: SignalName
    accept_from: float
    judge: str | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A model that may be called.

    arm: name; price_usd_per_mtok_in and _out (USD per million tokens, 0 to 10^6, required); context_window_tokens (1 to
        10^9, default 128,000); tools, images, json_schema (can it call tools, see images, keep to a schema; default true).
    deployments: at least one: the model's own base_url, or those listed.
    price_usd_per_mtok_cached_in: for prompt tokens read from the provider's cache; default: as any prompt token.
    reasoning_effort: sent with every request, whatever the client says, so that (model, effort) is an arm of its own;
        one of none, minimal, low, medium, high, xhigh; None: the client's own.
    expected_quality (0 to 1), expected_quality_ratings (default 20): what you expect of it here, a belief worth so many
        ratings; sibling: a model that the prior may know better than this one. All three stand in `arm`.
    withdrawn: it is called no more, though routes list it; what was learned of it is kept. Default false.
    cascade: for one that stands under `cascades` in the file: the models that are called in its place. Its deployments are
        theirs, and its listed price is what they cost if every other answer is good enough.
    """

    arm: Arm
    deployments: tuple[Deployment, ...]
    price_usd_per_mtok_cached_in: float
    reasoning_effort: str | None = None
    withdrawn: bool = False
    cascade: Cascade | None = None

    @property
    def missing_key_env(self) -> str | None:
        """Why the model can be called nowhere, or None."""
        missing = [deployment.missing_key_env for deployment in self.deployments]
        return missing[0] if all(missing) else None

    def cost_usd(self, tokens_in: int, tokens_out: int, *, tokens_cached: int = 0) -> float:
        """What a call is billed. tokens_cached: those of tokens_in that came from the provider's cache."""
        saved = tokens_cached * (self.arm.price_usd_per_mtok_in - self.price_usd_per_mtok_cached_in) * 1e-6
        return self.arm.cost_usd(tokens_in, tokens_out) - saved


@dataclass(frozen=True, slots=True)
class When:
    """Which requests a rule is for: those that meet everything given. None: anything will do.

    task: one of these, as told in `router.task`. tenant: of one of these. keywords: any of these in the last user
    message, whatever the case. header: each of these with this value. tokens_from, tokens_to: the prompt's estimated
    length, both included. tools, images: the request has some, or has none.
    """

    task: frozenset[str] | None = None
    tenant: frozenset[str] | None = None
    keywords: tuple[str, ...] | None = None
    header: tuple[tuple[str, str], ...] | None = None
    tokens_from: int | None = None
    tokens_to: int | None = None
    tools: bool | None = None
    images: bool | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """Requests that meet `when` go to one of `models` only. name: what people call it; default: rule 1, rule 2, ..."""

    name: str
    when: When
    models: frozenset[str]


@dataclass(frozen=True, slots=True)
class Ramp:
    """How far a route is switched on: `share`, 0 to 1, of its requests go where the strategy says, the others to `baseline`."""

    baseline: str
    share: float


@dataclass(frozen=True, slots=True)
class LatencyLimit:
    """An answer's last byte should be there within `limit_s` with this probability; slower models are left out."""

    limit_s: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Route:
    """A named set of models with a way to choose between them: what a client sends as `model`.

    name: 1 to 64 of a-z 0-9 _ . -; it is part of the store's keys. Never the name of a model.
    models: at least one, in the order listed; cascades among them.
    strategy: "bandit" (default), "fixed" (the first listed that can serve), "uniform" or "classifier" (by the predicted kind
        of request).
    objective: "quality", "balanced" (default) or "cost".
    usd_per_quality: USD that one full point of quality (0 to 1) is worth, above 0, at most 10^6; for "balanced", and
        required when the strategy is "bandit".
    quality_floor: for "cost": how far expected quality may lie below the best model's, 0 to 1, default 0.02.
    exploration_floor: total probability spread over all eligible models, 0.0001 to 0.2, default 0.01.
    rules: narrow the choice before the strategy chooses; the first that fits the request counts.
    budget_usd_per_request: for "quality": what requests may cost on average, in USD, above 0; each gateway paces its own.
    baseline: for "cost": the model that quality_floor is measured from; default: the one that is best over all traffic.
    confidence: for "cost": only models that are above the floor with this probability, 0.5 to 1, are chosen; default: none,
        posterior draws decide, which explores.
    classifier: with, and only with, that strategy: what kind of request this is, and who is good at which.
    prior: what is believed of models before the first rating; in the file "shipped" (default), "none" (None here), or the
        path of a file that fit-prior wrote.
    anchor: the source of ratings that the others are corrected to: "user" (default) or "judge:NAME".
    latency: leave out models that are too likely to be late; the likeliest to be in time always stays. Default: none.
    newcomers: an allowance for trying models that are new beside others (bandit.newcomers); share 0 is none.
    ramp: send only a share of the requests where the strategy says, the others to a baseline; share 0 is shadow.
    sticky_sessions: a conversation stays with its model unless the gain beats the price of a lost prompt cache, default
        true; acts where a model's cached tokens are cheaper, with strategy "bandit".
    hedge_after_s: ask a second model too when the first has not begun to answer by then; default: never.
    """

    name: str
    models: tuple[str, ...]
    strategy: StrategyName
    objective: ObjectiveName
    usd_per_quality: float | None
    quality_floor: float
    exploration_floor: float
    rules: tuple[Rule, ...] = ()
    sticky_sessions: bool = True
    hedge_after_s: float | None = None
    budget_usd_per_request: float | None = None
    baseline: str | None = None
    confidence: float | None = None
    prior: QualityPrior | None = field(default_factory=shipped_prior)
    anchor: str = ANCHOR
    latency: LatencyLimit | None = None
    newcomers: Newcomers = field(default_factory=Newcomers)
    ramp: Ramp | None = None
    classifier: Classified | None = None


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """host: address to listen on. port: 0 to 65535, 0 for any free one. max_body_bytes: longest request, 1 KiB to 1 GiB.

    max_concurrent: chat requests at once, 1 to 10^6, default 1000; one more is turned away with 503.
    workers: processes that share the port, 1 to 64, default 1 (service.workers); limits on requests are each one's own.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    max_body_bytes: int = 4 * 1024 * 1024
    max_concurrent: int = 1000
    workers: int = 1


@dataclass(frozen=True, slots=True)
class Key:
    """A client's key. The file holds its SHA-256 only.

    tenant: whose decisions and feedback it sees, 1 to 32 of a-z 0-9 _ -, default "default".
    max_concurrent, requests_per_minute: what it may do, 1 to 10^6; None: no limit of its own.
    """

    sha256: bytes = field(repr=False)
    tenant: str = "default"
    max_concurrent: int | None = None
    requests_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class AdminSettings:
    """The operator's own listener: host (default 127.0.0.1), port (default 8081, 0 for any), SHA-256 of its key."""

    host: str
    port: int
    key_sha256: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where what was learned is kept.

    url: a Redis server; from the file, else from REDIS_URL, else None: the embedded server. It may hold a password.
    state_dir: directory of the embedded server and the spool; in the file relative to the file's own folder, .state.
    key_prefix: begins every key, 1 to 32 of a-z 0-9 _ -, default "lr".
    feedback_window_h: hours in which feedback on a decision is taken, above 0, at most 8760, default 168.
    secret: at least 32 bytes that authenticate decision ids, from the variable named in `secret_env`; None if none is.
    previous_secret: what `secret` was before, from `previous_secret_env`: ids that it made are still taken.
    """

    url: str | None = field(repr=False)
    state_dir: Path
    key_prefix: str = "lr"
    feedback_window_h: float = 168.0
    secret: bytes | None = field(default=None, repr=False)
    previous_secret: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class TenantBudget:
    """What a tenant (default "default") may spend in a period, all gateways together.

    budget: in the file its name, 1 to 64 of a-z 0-9 _ -, with usd, above 0, at most 4 x 10^6; period, "day", "month" (default;
        both in UTC) or "total"; lease_usd, what one gateway holds of it at most, and so the most that one can overspend and
        that one call may be expected to cost (default: a twentieth); when_store_away, what becomes of requests once the lease
        is used up and the store is away: "fail_open" (default) lets each gateway spend local_cap_usd more (default: one
        lease), "fail_closed" refuses them.
    routes: routes or models that it is for; empty (default): all.
    """

    budget: Budget
    tenant: str
    routes: frozenset[str]

    def covers(self, tenant: str, route: str) -> bool:
        return tenant == self.tenant and (not self.routes or route in self.routes)


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """How long to wait for a model, in seconds, each above 0 and at most 3600.

    connect_timeout_s: until the connection stands, TLS included, default 5.
    first_byte_timeout_s: from sending the request until the head of the reply is there, connecting included, default 60.
    idle_timeout_s: between two chunks of the reply, default 60.
    max_attempts: calls for one request at most, 1 to 10, default 3.
    retry_share: calls beyond the first, over all requests, as a share of them, 0 to 1, default 0.1.
    """

    connect_timeout_s: float = 5.0
    first_byte_timeout_s: float = 60.0
    idle_timeout_s: float = 60.0
    max_attempts: int = 3
    retry_share: float = 0.1


@dataclass(frozen=True, slots=True)
class EmbedderSettings:
    """An embedder, asked where each request points before its model is chosen. By default none is, and words tell.

    base_url: any OpenAI-compatible base URL; its /embeddings are called. api_key: the value of `api_key_env`, if one is named.
    timeout_s: in the file timeout_ms, 1 to 5000, default 50: no request waits longer, then its words have to tell.
    projection: what fit-embedder made of that embedder's vectors; in the file its path. It names the embedder's model.
    """

    base_url: str
    projection: Projection
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 0.05


@dataclass(frozen=True, slots=True)
class DecisionLogSettings:
    """A log of decisions, calls and ratings as JSON lines, for people and `python -m service savings`. By default none is kept.

    folder: of its files; in the file relative to the file's own folder, default "decisions". days: 1 to 3650, default 30;
    older files are removed.
    """

    folder: Path
    days: int = 30


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole file, with what its variables name in the environment.

    keys: who may use the gateway; empty: anybody. admin: None without the operator's listener. budgets: what may be spent.
    """

    models: Mapping[str, Model]
    routes: Mapping[str, Route]
    server: ServerSettings
    store: StoreSettings
    upstream: UpstreamSettings
    keys: tuple[Key, ...] = ()
    admin: AdminSettings | None = None
    budgets: tuple[TenantBudget, ...] = ()
    embedder: EmbedderSettings | None = None
    decision_log: DecisionLogSettings | None = None

    @property
    def features(self) -> FeatureVersion:
        """What the vectors mean that requests are decided on."""
        return SHIPPED if self.embedder is None else self.embedder.projection.version

    @property
    def tenants(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(key.tenant for key in self.keys)) or (DEFAULT_TENANT,)
