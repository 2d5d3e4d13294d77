from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.errors import (
    ApiError,
    BadRequestError,
    MethodNotAllowedError,
    ModelNotFoundError,
    NoEligibleModelError,
    PayloadTooLargeError,
    UpstreamFailedError,
    UpstreamTimeoutError,
)

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # no test fails for time


def envelope(error: ApiError) -> Mapping[str, Any]:
    body = orjson.loads(error.body())
    assert list(body) == ["error"]
    inner: Mapping[str, Any] = body["error"]
    assert list(inner) == ["message", "type", "param", "code"]
    return inner


@pytest.mark.parametrize(
    ("error", "status", "kind", "param", "code"),
    [
        (
            BadRequestError("x", param="messages[0].role"),
            400,
            "invalid_request_error",
            "messages[0].role",
            None,
        ),
        (NoEligibleModelError("auto", {}), 400, "invalid_request_error", None, "no_eligible_model"),
        (ModelNotFoundError("gpt", ["auto"]), 404, "invalid_request_error", "model", "model_not_found"),
        (PayloadTooLargeError(9), 413, "invalid_request_error", None, "payload_too_large"),
        (UpstreamFailedError("x"), 502, "server_error", None, "upstream_failed"),
        (UpstreamTimeoutError("x"), 504, "server_error", None, "upstream_timeout"),
        (MethodNotAllowedError("POST"), 405, "invalid_request_error", None, "method_not_allowed"),
        (ApiError("x", status=409, type="conflict"), 409, "conflict", None, None),
    ],
)
def test_each_error_has_its_status_and_fills_the_envelope(
    error: ApiError, status: int, kind: str, param: str | None, code: str | None
) -> None:
    inner = envelope(error)
    assert error.status == status
    assert (inner["type"], inner["param"], inner["code"]) == (kind, param, code)
    assert inner["message"] == error.message == str(error)


def test_no_eligible_model_gives_the_reason_for_each() -> None:
    message = NoEligibleModelError("auto", {"small": "the window is too short", "old": "no key"}).message
    assert "'auto'" in message
    assert "small: the window is too short" in message
    assert "old: no key" in message


def test_an_unknown_model_is_told_what_there_is() -> None:
    message = ModelNotFoundError("gpt-5", ["auto", "llama"]).message
    assert "'gpt-5' does not exist" in message
    assert "auto, llama" in message


def test_a_megabyte_of_model_name_is_not_sent_back() -> None:
    assert len(ModelNotFoundError("x" * 1_000_000, ["auto"]).body()) < 500


def test_unavailable_says_when_to_come_back() -> None:
    assert dict(MethodNotAllowedError("POST").headers) == {"allow": "POST"}
    assert dict(UpstreamFailedError("x").headers) == {}


@PATIENT
@given(st.text(st.characters(exclude_categories=()), max_size=40))
@example("\ud800")
def test_any_text_even_a_lone_surrogate_has_a_body(text: str) -> None:
    inner = envelope(BadRequestError(text, param=text))
    assert inner["message"] == inner["param"] == text.encode("utf-8", "replace").decode()
