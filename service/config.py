"""The gateway's settings: one YAML file, read once, into frozen values. Every problem in it is reported at once.

    models:   name -> what it is and what it costs         (Model)
    routes:   name -> the models to choose from, and how   (Route)
    server:   where the gateway listens                    (ServerSettings)
    store:    where what was learned is kept               (StoreSettings)
    upstream: how long a model may take                    (UpstreamSettings)

Secrets stand in the environment; the file names their variables. No secret appears in a `repr` or an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from pydantic import ValidationError

from bandit.arms import Arm
from service.config_problems import ConfigError, problems_of
from service.config_shape import FileEntry, ModelEntry, RouteEntry, StoreEntry, Surroundings
from service.yaml_lines import Document, Problem, read_yaml

MAX_FILE_BYTES: Final = 1024 * 1024

StrategyName = Literal["bandit", "fixed", "uniform"]
ObjectiveName = Literal["quality", "balanced", "cost"]


@dataclass(frozen=True, slots=True)
class Model:
    """A model that may be called.

    arm: name; price_usd_per_mtok_in and _out (USD per million tokens, 0 to 10^6, required); context_window_tokens (1 to
        10^9, default 128,000); tools (can it call tools, default true).
    base_url: any OpenAI-compatible base URL, http or https, without credentials; no slash at its end.
    upstream_model: what the upstream calls the model; default: its name here.
    api_key: the value of the variable named in `api_key_env`, or None if none is named or the variable is unset.
    missing_key_env: the named variable that is unset or empty: the model is unavailable, and this is the reason.
    """

    arm: Arm
    base_url: str
    upstream_model: str
    api_key: str | None = field(default=None, repr=False)
    missing_key_env: str | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """A named set of models with a way to choose between them: what a client sends as `model`.

    name: 1 to 64 of a-z 0-9 _ . -; it is part of the store's keys. Never the name of a model.
    models: at least one, in the order listed.
    strategy: "bandit" (default), "fixed" (the first listed that can serve) or "uniform".
    objective: "quality", "balanced" (default) or "cost".
    usd_per_quality: USD that one full point of quality (0 to 1) is worth, above 0, at most 10^6; for "balanced", and
        required when the strategy is "bandit".
    quality_floor: for "cost": how far expected quality may lie below the best model's, 0 to 1, default 0.02.
    exploration_floor: total probability spread over all eligible models, 0.0001 to 0.2, default 0.01.
    """

    name: str
    models: tuple[str, ...]
    strategy: StrategyName
    objective: ObjectiveName
    usd_per_quality: float | None
    quality_floor: float
    exploration_floor: float


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """host: address to listen on. port: 0 to 65535, 0 for any free one. max_body_bytes: longest request, 1 KiB to 1 GiB."""

    host: str = "127.0.0.1"
    port: int = 8080
    max_body_bytes: int = 4 * 1024 * 1024


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
class UpstreamSettings:
    """How long to wait for a model, in seconds, each above 0 and at most 3600.

    connect_timeout_s: until the connection stands, TLS included, default 5.
    first_byte_timeout_s: from sending the request until the head of the reply is there, connecting included, default 60.
    idle_timeout_s: between two chunks of the reply, default 60.
    """

    connect_timeout_s: float = 5.0
    first_byte_timeout_s: float = 60.0
    idle_timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole file, with what its variables name in the environment."""

    models: Mapping[str, Model]
    routes: Mapping[str, Route]
    server: ServerSettings
    store: StoreSettings
    upstream: UpstreamSettings


def load_settings(path: Path, environ: Mapping[str, str]) -> Settings:
    """The settings in the file at `path`. Raises ConfigError, which names every problem with its line."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _whole_file(str(path), f"the file cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise _too_long(str(path))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            str(path), [Problem(line, (), "the file should be UTF-8, and here it is not")]
        ) from None
    return parse_settings(text, source=str(path), folder=path.parent, environ=environ)


def parse_settings(text: str, *, source: str, folder: Path, environ: Mapping[str, str]) -> Settings:
    """The settings in `text`. source: its name in errors. folder: what relative paths are relative to.

    Raises ConfigError, and nothing else, whatever the text.
    """
    if len(text) > MAX_FILE_BYTES:
        raise _too_long(source)
    document = read_yaml(text)
    contents, problems = _validated(document, environ)
    if contents is None or problems:
        raise ConfigError(source, problems)
    return Settings(
        models=MappingProxyType(
            {name: _model(name, entry, environ) for name, entry in contents.models.items()}
        ),
        routes=MappingProxyType({name: _route(name, entry) for name, entry in contents.routes.items()}),
        server=ServerSettings(**contents.server.model_dump()),
        store=_store(contents.store, folder, environ),
        upstream=UpstreamSettings(**contents.upstream.model_dump()),
    )


def _validated(document: Document, environ: Mapping[str, str]) -> tuple[FileEntry | None, list[Problem]]:
    problems = list(document.problems)
    if document.value is None:
        return None, problems
    try:
        return FileEntry.model_validate(document.value, context=_surroundings(document, environ)), problems
    except ValidationError as error:
        return None, problems + problems_of(error, document)


def _surroundings(document: Document, environ: Mapping[str, str]) -> Surroundings:
    models = document.value.get("models") if isinstance(document.value, dict) else None
    return Surroundings(frozenset(models if isinstance(models, dict) else ()), environ)


def _model(name: str, entry: ModelEntry, environ: Mapping[str, str]) -> Model:
    key = environ.get(entry.api_key_env, "").strip() if entry.api_key_env else ""
    return Model(
        arm=Arm(
            name,
            price_usd_per_mtok_in=entry.price_usd_per_mtok_in,
            price_usd_per_mtok_out=entry.price_usd_per_mtok_out,
            context_window_tokens=entry.context_window_tokens,
            tools=entry.tools,
        ),
        base_url=entry.base_url,
        upstream_model=entry.upstream_model or name,
        api_key=key or None,
        missing_key_env=None if key else entry.api_key_env,
    )


def _route(name: str, entry: RouteEntry) -> Route:
    return Route(
        name=name,
        models=tuple(entry.models),
        strategy=entry.strategy,
        objective=entry.objective,
        usd_per_quality=entry.usd_per_quality,
        quality_floor=entry.quality_floor,
        exploration_floor=entry.exploration_floor,
    )


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
