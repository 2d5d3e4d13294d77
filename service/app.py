"""The application: the chat route as plain ASGI in front of a FastAPI app that carries everything else.

Built from its arguments, with no global: `create_app(settings, learning, shell)`.
"""

import asyncio
import contextlib
import re
import uuid
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from feedback.api import feedback_router
from feedback.intake import FeedbackRefusedError
from feedback.learning import Learning
from service.chat import PATH, ChatRoute, Message, Receive, Scope, Send
from service.config import Settings
from service.errors import ApiError, BadRequestError
from service.pipeline import Pipeline, Shell
from service.routes import ServedRoute, find_route, served_routes

SMALL_BODY_BYTES: Final = 64 * 1024
RESETS_TOLD: Final = 10
_SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/-]{1,128}")


@dataclass(frozen=True, slots=True)
class Gateway:
    """The ASGI callable."""

    chat: ChatRoute
    rest: FastAPI

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.rest(scope, receive, send)
            return
        send = _with_request_id(scope, send)
        if scope["path"] == PATH:
            await self.chat(scope, receive, send)
        else:
            await self.rest(scope, _bounded(receive), send)


def create_app(settings: Settings, learning: Learning, shell: Shell, *, background: bool = True) -> Gateway:
    """background: run the learning loop within the lifespan; tests tick it themselves."""
    routes = served_routes(settings, learning.routes)
    pipeline = Pipeline(routes, shell)
    rest = FastAPI(title="fairlead", lifespan=_lifespan(learning, shell, background=background))
    rest.include_router(feedback_router(learning.intake))
    _add_models(rest, routes, created=int(shell.now()))
    _add_health(rest, learning, routes)
    _add_error_handlers(rest)
    return Gateway(ChatRoute(pipeline, max_body_bytes=settings.server.max_body_bytes), rest)


def _lifespan(learning: Learning, shell: Shell, *, background: bool) -> Any:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await learning.start()
        loop = asyncio.create_task(learning.run()) if background else None
        try:
            yield
        finally:
            if loop is not None:
                loop.cancel()
                await asyncio.gather(loop, return_exceptions=True)
            await shell.upstream.close()
            await learning.close()

    return lifespan


def _add_models(app: FastAPI, routes: dict[str, ServedRoute], *, created: int) -> None:
    listed = [
        {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "router",
            "context_window": max(arm.context_window_tokens for arm in route.arms),
        }
        for name, route in routes.items()
    ]

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """Everything that may stand in `model`: routes first, then each model by its own name."""
        return {"object": "list", "data": listed}

    @app.get("/v1/models/{name:path}")
    async def get_model(name: str) -> dict[str, Any]:
        find_route(routes, name)
        return next(model for model in listed if model["id"] == name)


def _add_health(app: FastAPI, learning: Learning, routes: dict[str, ServedRoute]) -> None:
    closed = [name for name, route in routes.items() if all(m.missing_key_env for m in route.models.values())]

    @app.get("/healthz")
    async def live() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def ready(response: Response) -> dict[str, Any]:
        """503 where a route has no model with a key. Decisions never need the store: its absence is told, no more."""
        response.status_code = 503 if closed else 200
        return {
            "status": "not ready" if closed else "degraded" if learning.store_error else "ready",
            "routes_without_a_key": closed,
            "store": learning.store_error or "ok",
            "feedback_queued": learning.intake.queued,
            "feedback_unsettled": learning.intake.unsettled,
            "feedback_dead_letters": learning.spool.dead_letters(),
            "routes": {scope: _learned(learning, scope) for scope in learning.routes},
        }


def _learned(learning: Learning, scope: str) -> dict[str, Any]:
    route = learning.routes[scope]
    state, ratings = route.replica.state, route.replica.state.ratings_per_arm()
    counters = asdict(route.replica.counters)
    return {
        "cursor": state.cursor,
        "digest": state.digest(),
        "events": state.events,
        "skipped": state.skipped,
        "decisions_unwritten": route.recorder.waiting,
        "decisions_dropped": route.recorder.dropped,
        "arms": {
            arm: {"ratings": round(s.n, 3), "mean_quality": round(s.xr[0] / s.n, 4) if s.n > 1e-6 else None}
            for arm, s in ratings.items()
        },
        "alarms": [asdict(alarm) for alarm in state.alarms],
        "resets": [asdict(cut) for cut in state.cuts[-RESETS_TOLD:]],
    } | counters


def _add_error_handlers(app: FastAPI) -> None:
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


def _bounded(receive: Receive) -> Receive:
    """A request's body up to SMALL_BODY_BYTES: no route but the chat needs more."""
    read = 0

    async def receive_bounded() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > SMALL_BODY_BYTES:
            raise HTTPException(
                413, f"The request body is too large; at most {SMALL_BODY_BYTES} bytes are read here."
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
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    request_id = given if _SANE_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex.encode()

    async def send_with_id(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
        await send(message)

    return send_with_id
