"""The straight line of a chat request.

    parse -> features -> candidates (each exclusion with its reason) -> decide -> hand the decision to the recorder
          -> upstream -> reply, with the decision's id in it -> what the call took

Nothing on this line waits for the store. Until the first byte of an answer has come, a failed model is dropped and the
next decision is made among the rest; every attempt is a decision of its own, with an id of its own.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import astuple, dataclass, replace
from typing import Any, Final

import orjson

from bandit.arms import Exclusion, eligible
from bandit.decide import Decision, decide
from bandit.features import context_of
from bandit.statistics import CallStatistics
from bandit.types import Context
from feedback.records import encode_record, prefix_of
from service.config import Model
from service.errors import ApiError, NoEligibleModelError, UpstreamFailedError, UpstreamTimeoutError
from service.reply import Usage, identity, streamed, whole
from service.request import ChatRequest
from service.routes import ServedRoute, find_route
from service.splice import replace_values
from service.sse import EventTooLargeError
from service.upstream import Reply, Upstream, UpstreamError

# The operator's key, account or URL: the client would read it as its own fault.
OURS_TO_MEND: Final = frozenset({401, 402, 403, 404, 405})
# Another model may well answer; so it may after every 5xx.
TRY_ANOTHER_STATUS: Final = OURS_TO_MEND | {408, 409, 413, 425, 429}
KEPT_HEADERS: Final = ("content-type", "retry-after", "retry-after-ms")


@dataclass(frozen=True, slots=True)
class Shell:
    """What the pipeline takes from outside. now: Unix seconds; ticks: monotonic nanoseconds; new_id: scope -> id."""

    upstream: Upstream
    now: Callable[[], float]
    ticks: Callable[[], int]
    new_id: Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply whose first byte is there. content: the whole body, or what yields it; headers are lower-case."""

    status: int
    headers: Mapping[str, str]
    content: bytes | AsyncIterator[bytes]


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One decision on its way to its model; started: ticks when it was sent."""

    ask: ChatRequest
    route: ServedRoute
    model: Model
    decision: Decision
    started: int


class Pipeline:
    """routes: what a client may ask for -> how it is served."""

    def __init__(self, routes: Mapping[str, ServedRoute], shell: Shell) -> None:
        self.routes = routes
        self._shell = shell

    @asynccontextmanager
    async def answer(self, ask: ChatRequest) -> AsyncIterator[Answer]:
        """The answer, up to its first byte; leaving the block closes the upstream. Raises ApiError."""
        route = find_route(self.routes, ask.model)
        context = context_of(ask.prompt)
        async with AsyncExitStack() as stack:
            yield await self._first_that_answers(ask, route, context, stack)

    async def _first_that_answers(
        self, ask: ChatRequest, route: ServedRoute, context: Context, stack: AsyncExitStack
    ) -> Answer:
        unavailable = {name: reason for name, m in route.models.items() if (reason := _missing_key(m))}
        failure: ApiError | None = None
        for number in range(len(route.models) + 1):
            candidates, excluded = eligible(route.arms, context.needs, unavailable)
            if not candidates:
                raise failure or _none_left(route, excluded)
            scope = route.learned.scope
            posterior = route.learned.replica.posterior
            decision = decide(route.policy, posterior, context, candidates, self._shell.new_id(scope))
            self._record(route, decision, excluded, attempt=number)
            attempt = _Attempt(ask, route, route.models[decision.arm.name], decision, self._shell.ticks())
            try:
                return await self._send(attempt, stack)
            except _FailedError as failed:
                failure = failed.error
                unavailable[decision.arm.name] = f"failed in this request: {failure.message}"
                self._called(attempt, CallStatistics(failures=1))
        raise AssertionError("every attempt takes a candidate away")

    def _record(
        self, route: ServedRoute, decision: Decision, excluded: tuple[Exclusion, ...], *, attempt: int
    ) -> None:
        prefix = prefix_of(
            decision, decided_at=self._shell.now(), policy=route.policy_tag, attempt=min(attempt, 255)
        )
        explanation = {
            "route": route.name,
            "policy": repr(route.policy),
            "log": decision.token,
            "candidates": [
                [arm.name, p, arm.price_usd_per_mtok_in, arm.price_usd_per_mtok_out]
                for arm, p in zip(decision.candidates, decision.probabilities.tolist(), strict=True)
            ],
            "needs": astuple(decision.context.needs),
            "excluded": {e.arm: e.code for e in excluded},
        }
        route.learned.recorder.decided(decision.decision_id, encode_record(prefix, explanation))

    async def _send(self, attempt: _Attempt, stack: AsyncExitStack) -> Answer:
        """Raises _FailedError where another model may be tried, ApiError where the client is told."""
        model = attempt.model
        async with AsyncExitStack() as trial:
            try:
                call = self._shell.upstream.send(
                    f"{model.base_url}/chat/completions", _headers(model), _body(attempt.ask, model)
                )
                reply = await trial.enter_async_context(call)
                answer = await self._receive(attempt, reply)
            except UpstreamError as error:
                raise _FailedError(_told(error, model.arm.name)) from error
            stack.push_async_exit(trial.pop_all())
            return answer

    async def _receive(self, attempt: _Attempt, reply: Reply) -> Answer:
        headers = {name: reply.headers[name] for name in KEPT_HEADERS if _sane(reply.headers.get(name))}
        headers["x-router-decision-id"] = attempt.decision.decision_id
        headers["x-router-route"] = attempt.route.name
        headers["x-router-model"] = attempt.model.arm.name
        if reply.status != 200:
            return await _refused(attempt, reply, headers)
        usage, ours = Usage(), identity(attempt.decision.decision_id, attempt.model.arm.name)
        if "text/event-stream" in reply.headers.get("content-type", ""):
            headers |= {"cache-control": "no-cache", "x-accel-buffering": "no"}
            events = streamed(reply.chunks(), ours, usage, usage_asked=attempt.ask.usage_asked)
            first = await _first(events, usage, attempt.model.arm.name)
            return Answer(200, headers, self._metered(attempt, events, first, usage))
        try:
            body = whole(await reply.read(), ours, usage)
        except ValueError as error:
            message = f"{attempt.model.arm.name} answered 200 with something that is no answer"
            raise _FailedError(UpstreamFailedError(message)) from error
        self._finished(attempt, usage, first_byte=self._shell.ticks())
        return Answer(200, headers, body)

    async def _metered(
        self, attempt: _Attempt, events: AsyncIterator[bytes], first: bytes, usage: Usage
    ) -> AsyncIterator[bytes]:
        """The rest of a stream. After its first byte nothing is tried again: a failure is told in the stream."""
        first_byte = self._shell.ticks()
        yield first
        try:
            async for event in events:
                yield event
        except (UpstreamError, EventTooLargeError) as error:
            self._called(attempt, CallStatistics(failures=1))
            message = f"{attempt.model.arm.name} failed in the middle of its answer: {error}"
            yield b"data: " + UpstreamFailedError(message).body() + b"\n\n"
        else:
            if usage.failed:
                self._called(attempt, CallStatistics(failures=1))
            else:
                self._finished(attempt, usage, first_byte=first_byte)

    def _finished(self, attempt: _Attempt, usage: Usage, *, first_byte: int) -> None:
        timed = CallStatistics(
            timed=1,
            latency_us=(self._shell.ticks() - attempt.started) // 1000,
            first_byte_us=(first_byte - attempt.started) // 1000,
        )
        if usage.tokens_in is None or usage.tokens_out is None:
            self._called(attempt, timed)
            return
        metered = replace(
            timed,
            calls=1,
            tokens_in=usage.tokens_in,
            tokens_in_estimated=attempt.decision.context.needs.tokens_in,
            tokens_out=usage.tokens_out,
        )
        self._called(attempt, metered)

    def _called(self, attempt: _Attempt, calls: CallStatistics) -> None:
        attempt.route.learned.recorder.called(attempt.decision.arm.name, calls)


class _FailedError(Exception):
    """A model failed before its first byte; error: what the client is told if no other model answers."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.message)
        self.error = error


async def _first(events: AsyncIterator[bytes], usage: Usage, model: str) -> bytes:
    """A stream up to its first event with something of an answer; a stream without one has failed.

    What comes before, comments that keep a connection alive, is held back: until then another model may be tried.
    """
    head = b""
    try:
        async for piece in events:
            head += piece
            if usage.failed:
                break
            if b'"choices"' in piece:
                return head
    except EventTooLargeError as error:
        raise _FailedError(UpstreamFailedError(f"{model}: {error}")) from error
    what = "told of an error" if usage.failed else "ended its stream"
    raise _FailedError(UpstreamFailedError(f"{model} {what} before it answered"))


async def _refused(attempt: _Attempt, reply: Reply, headers: dict[str, str]) -> Answer:
    """A status that is not 200: another model's turn, or the client's own mistake, told as the upstream told it."""
    body, name = await reply.read(), attempt.model.arm.name
    if not 400 <= reply.status < 600:
        raise _FailedError(UpstreamFailedError(f"{name} answered with status {reply.status}"))
    error = _upstream_error(reply, body, name)
    if reply.status in TRY_ANOTHER_STATUS or reply.status >= 500 or error.code == "context_length_exceeded":
        raise _FailedError(error)
    return Answer(reply.status, headers | {"content-type": "application/json"}, error.body())


def _upstream_error(reply: Reply, body: bytes, model: str) -> ApiError:
    """The upstream's own error in the OpenAI shape, whatever shape it came in."""
    told = _envelope(body)
    message = told.get("message") if isinstance(told.get("message"), str) else None
    if reply.status in OURS_TO_MEND:
        return UpstreamFailedError(f"{model} refused the gateway's request with status {reply.status}")
    return ApiError(
        message or f"{model} answered with status {reply.status}",
        status=reply.status,
        type=str(told.get("type") or ("server_error" if reply.status >= 500 else "invalid_request_error")),
        param=told.get("param") if isinstance(told.get("param"), str) else None,
        code=None if told.get("code") is None else str(told["code"]),
        headers={name: reply.headers[name] for name in KEPT_HEADERS[1:] if _sane(reply.headers.get(name))},
    )


def _envelope(body: bytes) -> dict[str, Any]:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    error = data.get("error") if isinstance(data, dict) else None
    return error if isinstance(error, dict) else {}


def _told(error: UpstreamError, model: str) -> ApiError:
    message = f"{model}: {error}"
    return UpstreamTimeoutError(message) if error.kind.startswith("timeout") else UpstreamFailedError(message)


def _sane(value: str | None) -> bool:
    """Fit to be sent on as a header."""
    return value is not None and value.isascii() and value.isprintable()


def _none_left(route: ServedRoute, excluded: tuple[Exclusion, ...]) -> ApiError:
    """The client's doing where a model could serve another request, the operator's where none can be called at all."""
    if all(exclusion.code == "unavailable" for exclusion in excluded):
        message = f"no model of the route '{route.name}' can be called now; the gateway's log says why"
        return ApiError(message, status=503, type="server_error", code="no_model_available")
    return NoEligibleModelError(route.name, {e.arm: e.reason for e in excluded})


def _missing_key(model: Model) -> str | None:
    return None if model.missing_key_env is None else "the gateway has no key for it"


def _headers(model: Model) -> dict[str, str]:
    headers = {"content-type": "application/json", "accept-encoding": "identity"}
    if model.api_key is not None:
        headers["authorization"] = f"Bearer {model.api_key}"
    return headers


def _body(ask: ChatRequest, model: Model) -> bytes:
    """The client's bytes with the upstream's name of the model, and with usage asked for in a stream."""
    values = {"model": orjson.dumps(model.upstream_model)}
    if ask.stream and not ask.usage_asked:
        values["stream_options"] = orjson.dumps({**(ask.stream_options or {}), "include_usage": True})
    return replace_values(ask.body, values)
