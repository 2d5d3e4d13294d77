"""What an upstream's failure means: whose fault it was, whether another may be tried, and what the client is told."""

from collections.abc import Mapping
from typing import Any, Final, Literal

import orjson

from service.errors import ApiError, UpstreamFailedError, UpstreamTimeoutError
from service.retry_after import retry_after_s
from service.upstream import Reply, UpstreamError

Fault = Literal["failed", "timeout", "full", "unfit", "client"]

# The operator's key, account or URL: the client would read it as its own fault.
OURS_TO_MEND: Final = frozenset({401, 402, 403, 404, 405})
TOO_LONG: Final = frozenset({"context_length_exceeded", "string_above_max_length"})
TOO_LONG_WORDS: Final = (
    "maximum context length",
    "context window",
    "prompt is too long",
    "input is too long",
)
RETRY_HEADERS: Final = ("retry-after", "retry-after-ms")
LIMIT_HEADERS: Final = tuple(
    f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")
)
KEPT_HEADERS: Final = frozenset((*RETRY_HEADERS, *LIMIT_HEADERS))


class FailedError(Exception):
    """A call failed before the first byte of an answer.

    error: what the client is told if no other model answers.
    fault: "failed" or "timeout": the place is at fault; "full": it has no room now, `retry_after_s` if it said for how
        long; "unfit": the request is too long for this model; "client": the request itself is wrong.
    """

    def __init__(
        self, error: ApiError, fault: Fault = "failed", *, retry_after_s: float | None = None
    ) -> None:
        super().__init__(error.message)
        self.error, self.fault, self.retry_after_s = error, fault, retry_after_s


def broken(error: UpstreamError, model: str) -> FailedError:
    """The connection failed."""
    message = f"{model}: {error}"
    if error.kind.startswith("timeout"):
        return FailedError(UpstreamTimeoutError(message), "timeout")
    return FailedError(UpstreamFailedError(message))


def refused(reply: Reply, body: bytes, model: str, *, secret: str | None, now: float) -> FailedError:
    """A status that is not 200. secret: never shown, should the upstream repeat it. now: Unix seconds."""
    if not 400 <= reply.status < 600:
        return FailedError(UpstreamFailedError(f"{model} answered with status {reply.status}"))
    error = _told(reply, body, model, secret)
    if reply.status in (429, 503) and (wait := retry_after_s(reply.headers, now=now)) is not None:
        return FailedError(error, "full", retry_after_s=wait)
    if reply.status == 429:
        return FailedError(error, "full")
    if reply.status == 413 or _is_too_long(error):
        return FailedError(error, "unfit")
    if reply.status >= 500 or reply.status in OURS_TO_MEND or reply.status in (408, 409, 425):
        return FailedError(error)
    return FailedError(error, "client")


def kept_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Of an upstream's headers those that a client may see: its limits, and when to come back."""
    return {name: value for name, value in headers.items() if name in KEPT_HEADERS and _sane(value)}


def _told(reply: Reply, body: bytes, model: str, secret: str | None) -> ApiError:
    """The upstream's own error in the OpenAI shape, whatever shape it came in."""
    told = _envelope(body)
    message = told.get("message") if isinstance(told.get("message"), str) else None
    if reply.status in OURS_TO_MEND:
        return UpstreamFailedError(f"{model} refused the gateway's request with status {reply.status}")
    if message and secret:
        message = message.replace(secret, "[key]")
    return ApiError(
        message or f"{model} answered with status {reply.status}",
        status=reply.status,
        type=str(told.get("type") or ("server_error" if reply.status >= 500 else "invalid_request_error")),
        param=told.get("param") if isinstance(told.get("param"), str) else None,
        code=None if told.get("code") is None else str(told["code"]),
        headers=kept_headers(reply.headers),
    )


def _is_too_long(error: ApiError) -> bool:
    text = error.message.lower()
    return error.code in TOO_LONG or (error.status in (400, 422) and any(w in text for w in TOO_LONG_WORDS))


def _envelope(body: bytes) -> dict[str, Any]:
    """The error within the body: {"error": {...}}, {"error": "text"}, {"message": ...} and {"detail": ...} are in use."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    if not isinstance(data, dict):
        return {}
    error = data.get("error")
    if isinstance(error, str):
        return {"message": error}
    if isinstance(error, dict):
        return error
    detail = data.get("detail")
    return {"message": detail} if isinstance(detail, str) else data


def _sane(value: str) -> bool:
    """Fit to be sent on as a header."""
    return value.isascii() and value.isprintable() and len(value) <= 256
