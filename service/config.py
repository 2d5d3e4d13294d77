"""Reading the configuration: one YAML file, once, into `service.settings`. Every problem in it is reported at once.

Secrets stand in the environment; the file names their variables. No secret appears in a `repr` or an error.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from pydantic import ValidationError

from bandit.arms import Arm
from bandit.classifier import Classified
from bandit.embedding import Projection, projection_from_json
from bandit.features import SHIPPED
from bandit.newcomers import Newcomers
from bandit.prior import QualityPrior
from feedback.budget import Budget, nano
from service.beliefs import classifiers_of, priors_of
from service.cascades import all_names, cascades_of, problems_of_cascades
from service.config_problems import ConfigError, problems_of
from service.config_shape import (
    AdminEntry,
    BudgetEntry,
    CascadeEntry,
    DecisionLogEntry,
    DeploymentEntry,
    EmbedderEntry,
    FileEntry,
    KeyEntry,
    ModelEntry,
    NewcomersEntry,
    RouteEntry,
    RuleEntry,
    StoreEntry,
    Surroundings,
)
from service.fitted import FittedFiles
from service.settings import (
    AdminSettings,
    DecisionLogSettings,
    Deployment,
    EmbedderSettings,
    Key,
    LatencyLimit,
    Model,
    Ramp,
    Route,
    Rule,
    ServerSettings,
    Settings,
    StoreSettings,
    TenantBudget,
    UpstreamSettings,
    When,
)
from service.yaml_lines import Document, Problem, read_yaml

MAX_FILE_BYTES: Final = 1024 * 1024

WEIGHING_ONLY: Final = (
    "anchor",
    "baseline",
    "budget_usd_per_request",
    "confidence",
    "exploration_floor",
    "newcomers",
    "objective",
    "quality_floor",
    "sticky_sessions",
    "usd_per_quality",
)
WEIGHS_NOTHING: Final = "acts only where models are weighed: with `strategy: bandit`, or classifier"
WITHOUT_EFFECT: Final[Mapping[str, tuple[tuple[str, ...], str]]] = MappingProxyType(  # by strategy
    {
        "fixed": (WEIGHING_ONLY, WEIGHS_NOTHING),
        "uniform": (WEIGHING_ONLY, WEIGHS_NOTHING),
        "classifier": (
            ("anchor", "newcomers", "prior"),
            "acts only with `strategy: bandit`; what is believed of each model stands in the classifier's file",
        ),
    }
)
LEASES: Final = 20  # that a budget is good for, where the file does not say


def load_settings(path: Path, environ: Mapping[str, str]) -> Settings:
    """The settings in the file at `path`. Raises ConfigError, which names every problem with its line."""
    return parse_settings(read_file(path), source=str(path), folder=path.parent, environ=environ)


def read_file(path: Path) -> str:
    """The file's text. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _whole_file(str(path), f"the file cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise _too_long(str(path))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            str(path), [Problem(line, (), "the file should be UTF-8, and here it is not")]
        ) from None


def parse_settings(text: str, *, source: str, folder: Path, environ: Mapping[str, str]) -> Settings:
    """The settings in `text`. source: its name in errors. folder: what relative paths are relative to.

    Raises ConfigError, and nothing else, whatever the text.
    """
    if len(text) > MAX_FILE_BYTES:
        raise _too_long(source)
    document = read_yaml(text)
    contents, problems = _validated(document, environ)
    if contents is not None:
        problems += _routes_without_models(contents, document) + problems_of_cascades(contents, document)
        problems += _fields_without_effect(contents, document)
    if contents is None or problems:
        raise ConfigError(source, problems)
    files = FittedFiles(document, folder)
    embedder = _embedder(contents.embedder, files, environ)
    if files.problems:  # what else was fitted has to fit the embedder
        raise ConfigError(source, files.problems)
    features = embedder.projection.version.tag if embedder else SHIPPED.tag
    beliefs = _Beliefs(priors_of(contents, files, features), classifiers_of(contents, files, features))
    if files.problems:
        raise ConfigError(source, files.problems)
    return Settings(
        models=MappingProxyType(_models(contents, environ)),
        routes=MappingProxyType(
            {name: _route(name, entry, contents.cascades, beliefs) for name, entry in contents.routes.items()}
        ),
        server=ServerSettings(**contents.server.model_dump()),
        store=_store(contents.store, folder, environ),
        upstream=UpstreamSettings(**contents.upstream.model_dump()),
        keys=tuple(_key(entry) for entry in contents.access.keys) if contents.access else (),
        admin=_admin(contents.admin) if contents.admin else None,
        budgets=tuple(_budget(name, entry, contents.cascades) for name, entry in contents.budgets.items()),
        embedder=embedder,
        decision_log=_decision_log(contents.decision_log, folder),
    )


@dataclass(frozen=True, slots=True)
class _Beliefs:
    """By route, from the files that it names."""

    priors: Mapping[str, QualityPrior | None]
    classifiers: Mapping[str, Classified]


def _validated(document: Document, environ: Mapping[str, str]) -> tuple[FileEntry | None, list[Problem]]:
    problems = list(document.problems)
    if document.value is None:
        return None, problems
    try:
        return FileEntry.model_validate(document.value, context=_surroundings(document, environ)), problems
    except ValidationError as error:
        return None, problems + problems_of(error, document)


def _fields_without_effect(contents: FileEntry, document: Document) -> list[Problem]:
    """What a file says of a route and its strategy never looks at."""
    problems = []
    for name, route in contents.routes.items():
        fields, sentence = WITHOUT_EFFECT.get(route.strategy, ((), ""))
        for field in fields:
            if field in route.model_fields_set:
                where: tuple[str | int, ...] = ("routes", name, field)
                problems.append(Problem(document.line_of(where), where, sentence))
    return problems


def _routes_without_models(contents: FileEntry, document: Document) -> list[Problem]:
    closed = [
        ("routes", name, "models")
        for name, route in contents.routes.items()
        if all(_is_withdrawn(model, contents) for model in route.models)
    ]
    sentence = "every model that the route lists is withdrawn; leave it one"
    return [Problem(document.line_of(location), location, sentence) for location in closed]


def _is_withdrawn(name: str, contents: FileEntry) -> bool:
    cascade = contents.cascades.get(name)
    return all(contents.models[model].withdrawn for model in (cascade.models if cascade else [name]))


def _surroundings(document: Document, environ: Mapping[str, str]) -> Surroundings:
    return Surroundings(_names_in(document, "models"), _names_in(document, "cascades"), environ)


def _names_in(document: Document, section: str) -> frozenset[str]:
    named = document.value.get(section) if isinstance(document.value, dict) else None
    return frozenset(named if isinstance(named, dict) else ())


def _models(contents: FileEntry, environ: Mapping[str, str]) -> dict[str, Model]:
    models = {name: _model(name, entry, environ) for name, entry in contents.models.items()}
    return models | cascades_of(contents.cascades, models)


def _model(name: str, entry: ModelEntry, environ: Mapping[str, str]) -> Model:
    cached = entry.price_usd_per_mtok_cached_in
    return Model(
        arm=Arm(
            name,
            price_usd_per_mtok_in=entry.price_usd_per_mtok_in,
            price_usd_per_mtok_out=entry.price_usd_per_mtok_out,
            context_window_tokens=entry.context_window_tokens,
            tools=entry.tools,
            images=entry.images,
            json_schema=entry.json_schema,
            expected_quality=entry.expected_quality,
            expected_quality_ratings=entry.expected_quality_ratings,
            sibling=entry.sibling or "",
        ),
        deployments=_deployments(name, entry, environ),
        price_usd_per_mtok_cached_in=entry.price_usd_per_mtok_in if cached is None else cached,
        reasoning_effort=entry.reasoning_effort,
        withdrawn=entry.withdrawn,
    )


def _deployments(name: str, entry: ModelEntry, environ: Mapping[str, str]) -> tuple[Deployment, ...]:
    """The places listed, or the one that the model itself names. What a place does not say, its model says for it."""
    listed = entry.deployments or [DeploymentEntry(base_url=entry.base_url or "")]
    deployments = []
    for number, place in enumerate(listed, start=1):
        variable = place.api_key_env or entry.api_key_env
        key = environ.get(variable, "").strip() if variable else ""
        deployments.append(
            Deployment(
                name=name if number == 1 else f"{name}#{number}",
                base_url=place.base_url,
                upstream_model=place.upstream_model or entry.upstream_model or name,
                api_key=key or None,
                missing_key_env=None if key else variable,
                weight=place.weight,
                max_concurrent=place.max_concurrent or entry.max_concurrent,
            )
        )
    return tuple(deployments)


def _route(name: str, entry: RouteEntry, cascades: Mapping[str, CascadeEntry], beliefs: _Beliefs) -> Route:
    return Route(
        name=name,
        models=all_names(entry.models, cascades),
        strategy=entry.strategy,
        objective=entry.objective,
        usd_per_quality=entry.usd_per_quality,
        quality_floor=entry.quality_floor,
        exploration_floor=entry.exploration_floor,
        rules=tuple(_rule(number, rule, cascades) for number, rule in enumerate(entry.rules, start=1)),
        sticky_sessions=entry.sticky_sessions,
        hedge_after_s=entry.hedge_after_s,
        budget_usd_per_request=entry.budget_usd_per_request,
        baseline=entry.baseline,
        confidence=entry.confidence,
        prior=beliefs.priors[name],
        anchor=entry.anchor,
        latency=None if entry.latency is None else LatencyLimit(**entry.latency.model_dump()),
        newcomers=_newcomers(entry.newcomers),
        ramp=None if entry.ramp is None else Ramp(entry.ramp.baseline, entry.ramp.share),
        classifier=beliefs.classifiers.get(name),
    )


def _budget(name: str, entry: BudgetEntry, cascades: Mapping[str, CascadeEntry]) -> TenantBudget:
    lease_usd = entry.usd / LEASES if entry.lease_usd is None else entry.lease_usd
    budget = Budget(
        name,
        limit_nano_usd=nano(entry.usd),
        lease_nano_usd=nano(lease_usd),
        period=entry.period,
        when_away=entry.when_store_away,
        local_cap_nano_usd=nano(lease_usd if entry.local_cap_usd is None else entry.local_cap_usd),
    )
    return TenantBudget(budget, entry.tenant, frozenset(all_names(entry.routes, cascades)))


def _embedder(
    entry: EmbedderEntry | None, files: FittedFiles, environ: Mapping[str, str]
) -> EmbedderSettings | None:
    if entry is None:
        return None
    projection = files.read(("embedder", "projection"), entry.projection, _projection)
    if projection is None:
        return None
    return EmbedderSettings(
        base_url=entry.base_url,
        projection=projection,
        api_key=environ[entry.api_key_env].strip() if entry.api_key_env else None,
        timeout_s=entry.timeout_ms / 1000,
    )


def _decision_log(entry: DecisionLogEntry | None, folder: Path) -> DecisionLogSettings | None:
    return None if entry is None else DecisionLogSettings(folder / entry.folder, entry.days)


def _projection(data: bytes) -> Projection:
    return projection_from_json(data.decode("utf-8"))


def _newcomers(entry: NewcomersEntry) -> Newcomers:
    limit = math.inf if entry.usd_per_request is None else entry.usd_per_request
    return Newcomers(entry.ratings, entry.share, limit)


def _rule(number: int, entry: RuleEntry, cascades: Mapping[str, CascadeEntry]) -> Rule:
    when = entry.when
    return Rule(
        name=entry.name or f"rule {number}",
        when=When(
            task=None if when.task is None else frozenset(when.task),
            tenant=None if when.tenant is None else frozenset(when.tenant),
            keywords=None if when.keywords is None else tuple(word.lower() for word in when.keywords),
            header=None if when.header is None else tuple(when.header.items()),
            tokens_from=when.tokens_from,
            tokens_to=when.tokens_to,
            tools=when.tools,
            images=when.images,
        ),
        models=frozenset(all_names(entry.models, cascades)),
    )


def _key(entry: KeyEntry) -> Key:
    return Key(
        sha256=bytes.fromhex(entry.sha256),
        tenant=entry.tenant,
        max_concurrent=entry.max_concurrent,
        requests_per_minute=entry.requests_per_minute,
    )


def _admin(entry: AdminEntry) -> AdminSettings:
    return AdminSettings(entry.host, entry.port, bytes.fromhex(entry.key_sha256))


def _store(entry: StoreEntry, folder: Path, environ: Mapping[str, str]) -> StoreSettings:
    return StoreSettings(
        url=entry.url,
        state_dir=folder / entry.state_dir,
        key_prefix=entry.key_prefix,
        feedback_window_h=entry.feedback_window_h,
        secret=_secret(entry.secret_env, environ),
        previous_secret=_secret(entry.previous_secret_env, environ),
    )


def _secret(variable: str | None, environ: Mapping[str, str]) -> bytes | None:
    return environ[variable].strip().encode() if variable else None


def _too_long(source: str) -> ConfigError:
    return _whole_file(source, f"the file is longer than {MAX_FILE_BYTES} bytes; a configuration never is")


def _whole_file(source: str, sentence: str) -> ConfigError:
    return ConfigError(source, [Problem(1, (), sentence)])
