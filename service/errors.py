"""What a client is told when its request fails: the OpenAI error envelope, so that every SDK understands it.

ApiError                        any status; the others below are its common shapes
├── BadRequestError         400 a field is wrong, named in `param`
│   └── NoEligibleModelError    no model of the route can serve the request, with the reason for each
├── UnauthorizedError       401 no key, or none that is known here
├── ModelNotFoundError      404 neither a route nor a model of this gateway
├── RequestTimeoutError     408 the body did not come in time
├── PayloadTooLargeError    413 the body is longer than the gateway reads
├── RateLimitError          429 the caller, or every model for it, has done as much as it may; says when to come back
├── BudgetSpentError        429 a budget has no money left for the call
├── UpstreamFailedError     502 every model tried failed
├── UpstreamTimeoutError    504 the model did not answer in time
└── UnavailableError        503 the gateway cannot serve now; says when to come back
"""

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

import orjson

NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
SHOWN_CHARS: Final = 100  # of a caller's own text: enough to recognise it, too little to flood a log


class ApiError(Exception):
    """A failed request, as its client sees it.

    status: HTTP status. type: the class of error in OpenAI's words. param: the field at fault, or None. code: a word for
    programs, or None. headers: extra response headers, names in lower case.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        type: str,  # noqa: A002  the envelope's own word
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.param = param
        self.code = code
        self.headers = headers

    def body(self) -> bytes:
        """{"error": {"message", "type", "param", "code"}} as JSON."""
        error = {
            "message": _encodable(self.message),
            "type": self.type,
            "param": None if self.param is None else _encodable(self.param),
            "code": self.code,
        }
        return orjson.dumps({"error": error})


class BadRequestError(ApiError):
    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, status=400, type="invalid_request_error", param=param, code=code)


class NoEligibleModelError(BadRequestError):
    """reasons: model name -> why it cannot serve this request."""

    def __init__(self, route: str, reasons: Mapping[str, str]) -> None:
        each = "; ".join(f"{model}: {reason}" for model, reason in reasons.items())
        message = f"No model of the route '{_shown(route)}' can serve this request. {each}"
        super().__init__(message, code="no_eligible_model")


class ModelNotFoundError(ApiError):
    """known: what may stand in `model` instead."""

    def __init__(self, model: str, known: Iterable[str]) -> None:
        message = f"The model '{_shown(model)}' does not exist. This gateway serves: {', '.join(known)}."
        super().__init__(
            message, status=404, type="invalid_request_error", param="model", code="model_not_found"
        )


class UnauthorizedError(ApiError):
    """The same words whatever is wrong with the key."""

    def __init__(self) -> None:
        super().__init__(
            "This gateway takes requests with a key of its own: `Authorization: Bearer KEY`.",
            status=401,
            type="authentication_error",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )


class RateLimitError(ApiError):
    """retry_after_s: told in whole seconds, rounded up, and in milliseconds."""

    def __init__(self, message: str, retry_after_s: float, headers: Mapping[str, str] = NO_HEADERS) -> None:
        super().__init__(
            message,
            status=429,
            type="rate_limit_error",
            code="rate_limit_exceeded",
            headers={**headers, **_come_back(retry_after_s)},
        )


class BudgetSpentError(ApiError):
    """OpenAI's own word for it; SDKs are told that asking again is of no use."""

    def __init__(self, message: str) -> None:
        super().__init__(
            message,
            status=429,
            type="insufficient_quota",
            code="insufficient_quota",
            headers={"x-should-retry": "false"},
        )


class PayloadTooLargeError(ApiError):
    def __init__(self, max_body_bytes: int) -> None:
        message = f"The request body is too large; this gateway reads at most {max_body_bytes} bytes."
        super().__init__(message, status=413, type="invalid_request_error", code="payload_too_large")


class RequestTimeoutError(ApiError):
    def __init__(self, timeout_s: float) -> None:
        message = f"The request body did not come within {timeout_s:g} s."
        super().__init__(message, status=408, type="invalid_request_error", code="request_timeout")


class UpstreamFailedError(ApiError):
    def __init__(self, message: str) -> None:
        super().__init__(message, status=502, type="server_error", code="upstream_failed")


class UpstreamTimeoutError(ApiError):
    def __init__(self, message: str) -> None:
        super().__init__(message, status=504, type="server_error", code="upstream_timeout")


class UnavailableError(ApiError):
    """retry_after_s: None where nobody knows when it will be better."""

    def __init__(self, message: str, retry_after_s: float | None = None, *, code: str = "overloaded") -> None:
        headers = NO_HEADERS if retry_after_s is None else _come_back(retry_after_s)
        super().__init__(message, status=503, type="server_error", code=code, headers=headers)


class MethodNotAllowedError(ApiError):
    def __init__(self, allowed: str) -> None:
        super().__init__(
            f"This path takes {allowed}.",
            status=405,
            type="invalid_request_error",
            code="method_not_allowed",
            headers={"allow": allowed},
        )


def _come_back(after_s: float) -> dict[str, str]:
    return {"retry-after": str(math.ceil(after_s)), "retry-after-ms": str(math.ceil(after_s * 1000))}


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"


def _encodable(text: str) -> str:
    """A lone surrogate has no UTF-8: telling of an error must not become one."""
    return text.encode("utf-8", "replace").decode()
