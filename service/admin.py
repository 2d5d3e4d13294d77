"""The operator's own application, on a listener of its own (loopback unless told otherwise) and with a key of its own.

    GET  /metrics         for Prometheus; the one page that asks for no key, with /healthz
    GET  /admin/status    what was learned, and how each place of each model is doing
    GET  /admin/models    the registry: every model with its prices
    POST /admin/reload    read the configuration file again

A configuration is taken over whole or not at all.
"""

from dataclasses import asdict
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import Response

from service.access import admin_only
from service.app import Gateway, add_error_handlers, learned_so_far
from service.config import AdminSettings, Model
from service.config_problems import ConfigError
from service.deployments import Place
from service.errors import BadRequestError
from service.reload import Reload, ReloadError


def admin_app(gateway: Gateway, settings: AdminSettings, reload: Reload) -> FastAPI:
    """reload: reads the configuration file again. Raises ConfigError or ReloadError where nothing was taken over."""

    async def operator(request: Request) -> None:
        admin_only(request.headers.raw, settings.key_sha256)

    app = FastAPI(title="fairlead admin", docs_url=None, redoc_url=None, openapi_url=None)
    add_error_handlers(app)

    @app.get("/healthz")
    async def live() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return gateway.metrics.page(gateway)

    @app.get("/admin/status", dependencies=[Depends(operator)])
    async def status() -> dict[str, Any]:
        now_s = gateway.access.clock()
        return {
            "routes": {scope: learned_so_far(gateway.learning, scope) for scope in gateway.learning.routes},
            "places": {
                place.deployment.name: _place(place, now_s) for place in gateway.pipeline.deployments.places
            },
        }

    @app.get("/admin/models", dependencies=[Depends(operator)])
    async def models() -> dict[str, Any]:
        return {name: _model(model) for name, model in gateway.settings.models.items()}

    @app.post("/admin/reload", dependencies=[Depends(operator)])
    async def read_again() -> dict[str, Any]:
        try:
            reload()
        except (ConfigError, ReloadError) as error:
            raise BadRequestError(str(error), code="configuration_refused") from error
        return {"status": "reloaded", "models": sorted(gateway.settings.models)}

    return app


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
        "reasoning_effort": model.reasoning_effort,
        "deployments": places,
    }
