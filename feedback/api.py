"""POST /feedback: how an answer did, by a user's rating, a judge's score, or what it really cost. DELETE takes a rating
back. (A null in a POST is no withdrawal: clients write null for what they do not give.)
"""

from secrets import token_hex
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from feedback.events import CHARGED, COST_MAX_USD, RATED
from feedback.ids import bare_id
from feedback.intake import FeedbackRefusedError, Intake, Value, overall
from feedback.store import Answer


def _number_between(low: float, high: float, unit: str) -> BeforeValidator:
    """One sentence for whatever is wrong with a number: what it must be."""

    def check(value: Any) -> Any:
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (numeric and low <= value <= high):
            raise ValueError(f"must be a number from {low:g} to {high:g}{unit}")
        return None if value is None else value + 0.0  # -0.0 becomes 0.0

    return BeforeValidator(check)


Share = Annotated[float, Field(ge=0.0, le=1.0)]
Key = Annotated[str, Field(min_length=1, max_length=255)]
Judge = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:/-]{0,63}$")]


class FeedbackBody(BaseModel):
    """At least one of rating, judge_score and cost_usd. Fields of other names do nothing, and the answer names them."""

    model_config = ConfigDict(extra="allow")

    decision_id: Annotated[str, Field(min_length=1, max_length=255)]
    """The `id` of a chat completion, or the x-router-decision-id header of its response."""
    rating: Annotated[Share | None, _number_between(0, 1, "")] = None
    """A user's rating from 0 (useless) to 1 (right)."""
    judge_score: Annotated[Share | None, _number_between(0, 1, "")] = None
    """A judge's score from 0 to 1."""
    judge: Judge = "judge"
    """Which judge: every judge is a source of its own."""
    cost_usd: Annotated[float | None, _number_between(0, COST_MAX_USD, " USD")] = None
    """What the call really cost in USD, where that differs from list price times tokens."""
    idempotency_key: Key | None = None
    """A repeated key with the same value is a duplicate, with another value a conflict; a new key revises."""

    @model_validator(mode="after")
    def _something_given(self) -> "FeedbackBody":
        if self.rating is None and self.judge_score is None and self.cost_usd is None:
            raise ValueError("give at least one of rating (0..1), judge_score (0..1) and cost_usd (USD)")
        return self

    def values(self, key: str | None) -> list[Value]:
        given = (
            ("rating", RATED, "user", self.rating),
            ("judge_score", RATED, f"judge:{self.judge}", self.judge_score),
            ("cost_usd", CHARGED, "application", self.cost_usd),
        )
        return [Value(name, kind, source, v, key) for name, kind, source, v in given if v is not None]


def feedback_router(intake: Intake) -> APIRouter:
    router = APIRouter()

    @router.post("/feedback", status_code=202, openapi_extra={"requestBody": _SCHEMA})
    async def give_feedback(
        body: Annotated[FeedbackBody, Depends(_body)], idempotency_key: Annotated[Key | None, Header()] = None
    ) -> dict[str, Any]:
        """202 with what became of it: applied, duplicate, revised, or queued (on disk here, applied later)."""
        return await give(intake, body, idempotency_key)

    @router.delete("/feedback/{decision_id}", status_code=202)
    async def withdraw_feedback(
        decision_id: Annotated[str, Path(max_length=255)],
        judge: Annotated[Judge | None, Query()] = None,
        idempotency_key: Annotated[Key | None, Header()] = None,
    ) -> dict[str, Any]:
        """The user's rating, or that judge's score, is to count as if it had never been given: withdrawn, duplicate or
        queued. Without an Idempotency-Key every call takes back what counts at that moment.
        """
        name, source = ("rating", "user") if judge is None else ("judge_score", f"judge:{judge}")
        key = idempotency_key or f"withdrawal {token_hex(16)}"
        values = [Value(name, RATED, source, None, key)]
        decision_id = bare_id(decision_id)
        answers = await intake.give(decision_id, values)
        _refuse_conflicts(values, answers)
        return {"decision_id": decision_id, "status": overall(answers), "results": _told(values, answers)}

    return router


async def give(intake: Intake, body: FeedbackBody, idempotency_key: str | None = None) -> dict[str, Any]:
    """What became of a feedback. Raises FeedbackRefusedError."""
    decision_id = bare_id(body.decision_id)
    values = body.values(body.idempotency_key or idempotency_key)
    answers = await intake.give(decision_id, values)
    _refuse_conflicts(values, answers)
    told = {"decision_id": decision_id, "status": overall(answers), "results": _told(values, answers)}
    return told | ({"ignored": sorted(body.model_extra)} if body.model_extra else {})


_SCHEMA: Final = {
    "required": True,
    "content": {"application/json": {"schema": FeedbackBody.model_json_schema()}},
}


async def _body(request: Request) -> FeedbackBody:
    """The body as JSON, whatever content type it claims: a bare `curl -d` is welcome too."""
    try:
        return FeedbackBody.model_validate_json(await request.body())
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


def _told(values: list[Value], answers: list[Answer | None]) -> dict[str, str]:
    return {
        value.name: "queued" if answer is None else answer.value
        for value, answer in zip(values, answers, strict=True)
    }


def _refuse_conflicts(values: list[Value], answers: list[Answer | None]) -> None:
    """Raises FeedbackRefusedError for the first value that was refused; its message tells what became of the others."""
    for value, answer in zip(values, answers, strict=True):
        if answer not in _REFUSED:
            continue
        status, why, code = _REFUSED[answer]
        others = {name: told for name, told in _told(values, answers).items() if name != value.name}
        besides = "".join(f"; {name}: {told}" for name, told in others.items())
        raise FeedbackRefusedError(status, f"{value.name} {why}{besides}", param=value.name, code=code)


_REFUSED: Final[dict[Answer | None, tuple[int, str, str]]] = {
    Answer.CONFLICT: (
        409,
        "was given before with another value; to revise it send a new idempotency_key",
        "feedback_conflict",
    ),
    Answer.NOTHING_GIVEN: (404, "was not given, or was withdrawn before", "nothing_to_withdraw"),
    Answer.TOO_MANY: (409, "was given too often for this decision", "too_many_feedbacks"),
    Answer.MALFORMED: (409, "cannot be joined: the record of this decision is damaged", "decision_damaged"),
}
