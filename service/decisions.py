"""Telling what was decided: `POST /v1/decision` asks what would be, `GET /v1/decisions/{id}` what was and came of it."""

from typing import Any, Final

from fastapi import APIRouter, Request

from feedback.ids import bare_id
from feedback.intake import Intake, Route
from feedback.learning import Learning
from feedback.records import MalformedError, decode_record, is_explained
from feedback.store import StoreError
from service.access import Access
from service.errors import ApiError, UnavailableError
from service.explain import shown_record
from service.pipeline import Pipeline
from service.request import parse_chat

PREVIEW_PATH: Final = "/v1/decision"
FORGED: Final = ""  # an id that nobody ever made


def decisions_router(pipeline: Pipeline, learning: Learning, access: Access) -> APIRouter:
    router = APIRouter()

    @router.post(PREVIEW_PATH)
    async def preview(request: Request) -> dict[str, Any]:
        """The decision on a chat request, without making it: takes the very body of /v1/chat/completions."""
        admission = access.admit(request.headers.raw)
        try:
            return await pipeline.preview(parse_chat(await request.body()), admission.caller)
        finally:
            admission.let_go()

    @router.get("/v1/decisions/{decision_id}")
    async def decision(decision_id: str, request: Request) -> dict[str, Any]:
        """A decision of the feedback window: what was believed, what was left out and why, and what its calls took."""
        decision_id = bare_id(decision_id)
        route = own_route(learning.intake, decision_id, access.caller(request.headers.raw).tenant)
        prefix, explanation = await _record(route, decision_id)
        return shown_record(decision_id, prefix, explanation, pipeline.outcomes.of(decision_id))

    return router


def own_route(intake: Intake, decision_id: str, tenant: str) -> Route:
    """The decision's route. Raises FeedbackRefusedError; another tenant's id is answered as one that nobody made."""
    route = intake.route_of(decision_id)
    return route if route.scope.split(".", 1)[0] == tenant else intake.route_of(FORGED)


async def _record(route: Route, decision_id: str) -> Any:
    """Raises ApiError."""
    held = route.recorder.record_of(decision_id)
    try:
        record = held
        if held is None or not is_explained(held):
            record = await _stored(route, decision_id, otherwise=held)
        if record is not None:
            return decode_record(record)
    except MalformedError as error:
        message = "the record of this decision is damaged"
        raise ApiError(message, status=500, type="server_error", code="decision_damaged") from error
    message = "this decision is not stored: it is too fresh to be read elsewhere, or its gateway died before it was written"
    raise ApiError(
        message, status=404, type="invalid_request_error", param="decision_id", code="decision_not_found"
    )


async def _stored(route: Route, decision_id: str, *, otherwise: bytes | None) -> bytes | None:
    """The record as the store has it, or else what is held of it. Raises ApiError where neither can be told."""
    try:
        return await route.log.get_decision(decision_id) or otherwise
    except StoreError as error:
        if otherwise is None:
            raise UnavailableError("the store of decisions is away; ask again later", 1) from error
        return otherwise
