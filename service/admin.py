"""The operator's own application, on a listener of its own (loopback unless told otherwise) and with a key of its own.

    GET  /metrics         for Prometheus; the one page that asks for no key, with /healthz
    GET  /admin/status    what was learned, and how each place of each model is doing
    GET  /admin/budgets   what each budget's limit is, what is spent, and what gateways hold of it
    GET  /admin/models    the registry: every model with its prices
    PUT  /admin/models/N  set fields of a model, or add one: {"price_usd_per_mtok_in": 1, ..., "routes": ["auto"]}
    DELETE /admin/models/N  withdraw a model: it is called no more, and what was learned of it is kept
    POST /admin/reload    read the configuration file again

What is changed here is written to the configuration file, which gateways may share. A change is taken over whole or not
at all.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import orjson
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import Response

from service.access import admin_only
from service.app import Gateway, add_error_handlers, learned_so_far
from service.config_problems import ConfigError
from service.deployments import Place
from service.errors import BadRequestError, ModelNotFoundError
from service.reload import ConfigurationFile, ReloadError
from service.settings import AdminSettings, Model


def admin_app(gateway: Gateway, settings: AdminSettings, file: ConfigurationFile) -> FastAPI:
    async def operator(request: Request) -> None:
        admin_only(request.headers.raw, settings.key_sha256)

    app = FastAPI(title="fairlead admin", docs_url=None, redoc_url=None, openapi_url=None)
    add_error_handlers(app)
    app.include_router(_pages(gateway), dependencies=[Depends(operator)])
    app.include_router(_changes(gateway, file), dependencies=[Depends(operator)])

    @app.get("/healthz")
    async def live() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return gateway.metrics.page(gateway)

    return app


def _pages(gateway: Gateway) -> APIRouter:
    router = APIRouter()

    @router.get("/admin/budgets")
    async def budgets() -> dict[str, Any]:
        return gateway.budgets.told()

    @router.get("/admin/status")
    async def status() -> dict[str, Any]:
        now_s = gateway.access.clock()
        return {
            "routes": {scope: learned_so_far(gateway.learning, scope) for scope in gateway.learning.routes},
            "places": {
                place.deployment.name: _place(place, now_s) for place in gateway.pipeline.deployments.places
            },
        }

    @router.get("/admin/models")
    async def models() -> dict[str, Any]:
        return {name: _model(model) for name, model in gateway.settings.models.items()}

    return router


def _changes(gateway: Gateway, file: ConfigurationFile) -> APIRouter:
    router = APIRouter()

    @router.put("/admin/models/{name:path}")
    async def put_model(name: str, request: Request) -> dict[str, Any]:
        fields = _object(await request.body())
        routes = fields.pop("routes", [])
        if not isinstance(routes, list) or any(route not in gateway.settings.routes for route in routes):
            known = ", ".join(gateway.settings.routes)
            raise BadRequestError(f"routes must be a list of routes of this gateway: {known}", param="routes")
        with _refusals():
            file.set_model(name, fields, routes)
        return _model(gateway.settings.models[name])

    @router.delete("/admin/models/{name:path}")
    async def withdraw(name: str) -> dict[str, Any]:
        if name not in gateway.settings.models:
            raise ModelNotFoundError(name, gateway.settings.models)
        with _refusals():
            file.set_model(name, {"withdrawn": True}, [])
        return _model(gateway.settings.models[name])

    @router.post("/admin/reload")
    async def read_again() -> dict[str, Any]:
        with _refusals():
            file.reload()
        return {"status": "reloaded", "models": sorted(gateway.settings.models)}

    return router


@contextmanager
def _refusals() -> Iterator[None]:
    """What is wrong with a configuration, as an answer to the operator."""
    try:
        yield
    except (ConfigError, ReloadError) as error:
        raise BadRequestError(str(error), code="configuration_refused") from error


def _object(body: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the body is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise BadRequestError("the body must be one JSON object of a model's fields")
    return fields


def _place(place: Place, now_s: float) -> dict[str, Any]:
    tally = place.record.tally(now_s)
    return {
        "state": place.fault(now_s) or "ready",
        "outstanding": place.outstanding,
        "recent_calls": tally.calls,
        "recent_failures": tally.failures,
    }


def _model(model: Model) -> dict[str, Any]:
    """Without its keys."""
    places = [
        {
            "name": d.name,
            "base_url": d.base_url,
            "upstream_model": d.upstream_model,
            "has_key": not d.missing_key_env,
        }
        for d in model.deployments
    ]
    return {
        **asdict(model.arm),
        "price_usd_per_mtok_cached_in": model.price_usd_per_mtok_cached_in,
        "cascade": model.cascade and asdict(model.cascade),
        "reasoning_effort": model.reasoning_effort,
        "withdrawn": model.withdrawn,
        "deployments": places,
    }
