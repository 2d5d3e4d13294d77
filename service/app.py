"""The application: the chat route as plain ASGI in front of a FastAPI app that carries everything else.

Built from its arguments, with no global: `create_app(settings, learning, shell)`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import asdict
from http import HTTPStatus
from typing import Any, Final

import orjson
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from feedback.api import feedback_router
from feedback.cuts import RECOVERY
from feedback.ids import bare_id
from feedback.intake import FeedbackRefusedError
from feedback.learning import Learning
from feedback.state import Corrections, Reader, State
from service.access import Access
from service.budgets import Budgets
from service.calls import Shell
from service.chat import PATH, ChatRoute, Receive, Scope
from service.client_reply import REQUEST_ID, Message, Send, request_id_of
from service.decision_log import decision_log_of
from service.decisions import PREVIEW_PATH, decisions_router, own_route
from service.embedder import embedder_of
from service.errors import ApiError, BadRequestError, ModelNotFoundError
from service.metrics import Metrics
from service.outcomes import Outcomes
from service.pipeline import Pipeline
from service.reload import ReloadError
from service.routes import quality_models, served_routes
from service.settings import Settings

SMALL_BODY_BYTES: Final = 64 * 1024
RESETS_TOLD: Final = 10


class Gateway:
    """The ASGI callable, and all that it serves with. admin: the operator's own application, for a listener of its own."""

    def __init__(
        self, settings: Settings, learning: Learning, shell: Shell, budgets: Budgets, *, background: bool
    ) -> None:
        clock = lambda: shell.ticks() * 1e-9  # noqa: E731
        self.settings, self.learning = settings, learning
        self.metrics = Metrics()
        self.outcomes = Outcomes(self.metrics.called)
        self.decision_log = decision_log_of(settings, learning, self.outcomes)
        self.access = Access(settings, clock=clock)
        self.budgets = budgets
        self.pipeline = Pipeline(
            settings,
            served_routes(settings, learning.routes),
            shell,
            self.outcomes,
            budgets,
            embedder_of(settings, shell, self.metrics.embedded),
        )
        limit = settings.server.max_body_bytes
        self.chat = ChatRoute(
            self.pipeline, self.access, max_body_bytes=limit, count=self.metrics.request_answered
        )
        self.rest = FastAPI(title="fairlead", lifespan=_lifespan(self, shell, background=background))
        self.created = int(shell.now())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.rest(scope, receive, send)
            return
        if scope["path"] == PATH:
            await self.chat(scope, receive, send)
        else:
            large = self.settings.server.max_body_bytes if scope["path"] == PREVIEW_PATH else SMALL_BODY_BYTES
            await self.rest(scope, _bounded(receive, large), _with_request_id(scope, send))

    def adopt(self, settings: Settings) -> None:
        """Serve these models, routes and keys from now on. Raises ReloadError, and then nothing has changed.

        Where the gateway listens, its store, its timeouts, its embedder, its decision log, and which tenants and routes there
        are, last until a restart.
        """
        scopes = quality_models(settings)
        if fresh := sorted(set(scopes) - set(self.learning.routes)):
            raise ReloadError(f"{', '.join(fresh)}: a new route or tenant begins with a restart")
        if settings.embedder != self.settings.embedder:
            raise ReloadError("embedder: what changed there, or in its projection, begins with a restart")
        self.budgets.adopt(settings.budgets)
        for scope, model in scopes.items():
            self.learning.routes[scope].replica.adopt_model(model)
        self.pipeline.adopt(settings, served_routes(settings, self.learning.routes))
        self.access.adopt(settings)
        self.settings = settings


def create_app(
    settings: Settings,
    learning: Learning,
    shell: Shell,
    budgets: Budgets | None = None,
    *,
    background: bool = True,
) -> Gateway:
    """background: run the loops of learning and budgets within the lifespan; tests tick them themselves."""
    gateway = Gateway(settings, learning, shell, budgets or Budgets(), background=background)
    rest = gateway.rest
    rest.include_router(feedback_router(learning.intake), dependencies=[Depends(_own_feedback(gateway))])
    rest.include_router(decisions_router(gateway.pipeline, learning, gateway.access))
    _add_models(gateway)
    _add_health(gateway)
    add_error_handlers(rest)
    return gateway


def _lifespan(gateway: Gateway, shell: Shell, *, background: bool) -> Any:
    learning, budgets, decision_log = gateway.learning, gateway.budgets, gateway.decision_log

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await learning.start()
        await budgets.tick()
        running = [learning.run(), budgets.run(), *([decision_log.run()] if decision_log else [])]
        loops = [asyncio.create_task(loop) for loop in running if background]
        try:
            yield
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            await shell.upstream.close()
            await budgets.close()
            await learning.close()
            if decision_log is not None:  # which hears of what learning sent last
                await decision_log.close()

    return lifespan


def _own_feedback(gateway: Gateway) -> Any:
    """A dependency of /feedback: feedback on another tenant's decision is answered as on none at all."""

    async def check(request: Request) -> None:
        tenant = gateway.access.caller(request.headers.raw).tenant
        if not gateway.settings.keys:
            return
        try:
            named = (
                request.path_params.get("decision_id") or orjson.loads(await request.body())["decision_id"]
            )
            decision_id = bare_id(named)
        except (orjson.JSONDecodeError, TypeError, KeyError, AttributeError):
            return  # refused as malformed, a step further on
        own_route(gateway.learning.intake, decision_id, tenant)

    return check


def _add_models(gateway: Gateway) -> None:
    def listed(request: Request) -> dict[str, dict[str, Any]]:
        tenant = gateway.access.caller(request.headers.raw).tenant
        return {
            name: {
                "id": name,
                "object": "model",
                "created": gateway.created,
                "owned_by": "router",
                "context_window": max(arm.context_window_tokens for arm in route.arms),
            }
            for name, route in gateway.pipeline.routes[tenant].items()
        }

    @gateway.rest.get("/v1/models")
    async def list_models(request: Request) -> dict[str, Any]:
        """Everything that may stand in `model`: routes first, then each model by its own name."""
        return {"object": "list", "data": list(listed(request).values())}

    @gateway.rest.get("/v1/models/{name:path}")
    async def get_model(name: str, request: Request) -> dict[str, Any]:
        models = listed(request)
        if name not in models:
            raise ModelNotFoundError(name, models)
        return models[name]


def _add_health(gateway: Gateway) -> None:
    learning = gateway.learning

    def closed() -> list[str]:
        return sorted(
            {
                name
                for routes in gateway.pipeline.routes.values()
                for name, route in routes.items()
                if all(model.missing_key_env for model in route.models.values())
            }
        )

    @gateway.rest.get("/healthz")
    async def live() -> dict[str, str]:
        return {"status": "ok"}

    @gateway.rest.get("/readyz")
    async def ready(response: Response) -> dict[str, Any]:
        """503 where a route has no model with a key. Decisions never need the store: its absence is told, no more."""
        without_key, embedder, decision_log = closed(), gateway.pipeline.embedder, gateway.decision_log
        response.status_code = 503 if without_key else 200
        told = {
            "status": "not ready" if without_key else "degraded" if learning.store_error else "ready",
            "routes_without_a_key": without_key,
            "store": learning.store_error or "ok",
            **({} if embedder is None else {"embedder": "resting" if embedder.is_resting else "ok"}),
            **({} if decision_log is None else {"decision_log": decision_log.told()}),
            "feedback_queued": learning.intake.queued,
            "feedback_unsettled": learning.intake.unsettled,
            "feedback_dead_letters": learning.spool.dead_letters(),
        }
        if gateway.settings.keys:  # what was learned is its tenants' business
            return told
        return told | {"routes": {scope: learned_so_far(learning, scope) for scope in learning.routes}}

    if not gateway.settings.keys:

        @gateway.rest.get("/metrics")
        async def metrics() -> Response:
            """For Prometheus. With keys in the configuration it is on the operator's listener only."""
            return gateway.metrics.page(gateway)


def learned_so_far(learning: Learning, scope: str) -> dict[str, Any]:
    route = learning.routes[scope]
    state, anchor, reader = route.replica.state, route.replica.model.anchor, Reader()
    ratings = state.on_one_scale(reader, anchor=anchor)
    counters = asdict(route.replica.counters)
    return {
        "cursor": state.cursor,
        "digest": state.digest(),
        "events": state.events,
        "skipped": state.skipped,
        "rated": state.rated,
        "decisions_unwritten": route.recorder.waiting,
        "decisions_dropped": route.recorder.dropped,
        "arms": {
            arm: {
                "ratings": round(s.n, 3),
                "mean_quality": round(s.xr[0] / s.weight, 4) if s.weight > 1e-6 else None,
            }
            for arm, s in ratings.items()
        },
        "anchor": anchor,
        "sources": _sources(state, reader.corrections(state.ratings, state.weight_now(), anchor)),
        "alarms": [asdict(alarm) for alarm in state.alarms],
        "resets": [asdict(cut) for cut in state.cuts if cut.cause != RECOVERY][-RESETS_TOLD:],
    } | counters


def _sources(state: State, corrections: Corrections) -> dict[str, Any]:
    """By source: its ratings of each arm, and what makes them the anchor's: quality = (rating - offset) / clarity, where
    clarity is not 0, which is to say that they tell nothing.
    """
    told: dict[str, Any] = {}
    for (arm, source), s in state.ratings.items():
        correction = corrections.get((arm, source))
        ratings = {"ratings": round(state.weight_now() * s.n, 3)}
        told.setdefault(source, {})[arm] = ratings | (asdict(correction) if correction else {})
    return told


def add_error_handlers(app: FastAPI) -> None:
    """Every error in the OpenAI envelope."""

    @app.exception_handler(ApiError)
    async def told(_: Request, error: ApiError) -> Response:
        return _response(error)

    @app.exception_handler(FeedbackRefusedError)
    async def refused(_: Request, error: FeedbackRefusedError) -> Response:
        headers = {"retry-after": "1"} if error.status == 503 else {}
        kind = "server_error" if error.status >= 500 else "invalid_request_error"
        return _response(
            ApiError(
                str(error),
                status=error.status,
                type=kind,
                param=error.param,
                code=error.code,
                headers=headers,
            )
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return _response(_invalid(error))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}"
        code = HTTPStatus(error.status_code).name.lower()
        kind = "invalid_request_error" if error.status_code < 500 else "server_error"
        return _response(ApiError(message, status=error.status_code, type=kind, code=code))

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> Response:
        message = "the gateway failed on this request; its log says why"
        return _response(ApiError(message, status=500, type="server_error", code="internal_error"))


def _bounded(receive: Receive, limit_bytes: int) -> Receive:
    """A request's body up to so many bytes."""
    read = 0

    async def receive_bounded() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > limit_bytes:
            raise HTTPException(
                413, f"The request body is too large; at most {limit_bytes} bytes are read here."
            )
        return message

    return receive_bounded


def _invalid(error: RequestValidationError) -> ApiError:
    """422 naming the field and what would be right; 400 where the body is no JSON at all."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return BadRequestError(f"the body is not one JSON object: {first.get('ctx', {}).get('error', '')}")
    field = ".".join(str(part) for part in first["loc"] if part not in ("body", "header")) or None
    message = first["msg"].removeprefix("Value error, ")
    told = f"{field}: {message}" if field else message
    return ApiError(told, status=422, type="invalid_request_error", param=field, code=first["type"])


def _response(error: ApiError) -> Response:
    return Response(error.body(), error.status, dict(error.headers), media_type="application/json")


def _with_request_id(scope: Scope, send: Send) -> Send:
    request_id = request_id_of(scope["headers"])

    async def send_with_id(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (REQUEST_ID, request_id)]
        await send(message)

    return send_with_id
