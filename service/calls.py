"""Calling the model that was chosen: at one of its places, up to the first byte of an answer, and metered to its end.

Until that byte another place of the same model may be tried, which changes nothing about the answer; whether another
model is tried is the pipeline's business. What a call took is told once, however it ended.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final, Self

import orjson

from bandit.decide import Decision
from bandit.statistics import CallStatistics
from feedback.answers import Answered
from service.deployments import Deployments, Place, Visit
from service.errors import UnavailableError, UpstreamFailedError, UpstreamTimeoutError
from service.outcomes import Outcome, Outcomes, Status
from service.refusals import FailedError, broken, kept_headers, refused
from service.reply import Splicer, Usage, as_stream, identity, whole
from service.request import ChatRequest
from service.retry_budget import RetryBudget
from service.routes import ServedRoute
from service.settings import Deployment, Model, UpstreamSettings
from service.splice import replace_values, without_key
from service.sse import EventTooLargeError
from service.upstream import Reply, Upstream, UpstreamError

EVENT_STREAM: Final = "text/event-stream"


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
    headers: dict[str, str]
    content: bytes | AsyncIterator[bytes]


@dataclass(slots=True)
class Tries:
    """How often a request may be tried still. made: calls so far; ended: another one was wanted, and was not to be had."""

    left: int
    budget: RetryBudget
    made: int = 0
    ended: bool = False

    def again(self, now_s: float) -> bool:
        self.ended = self.ended or self.left <= 0 or not self.budget.take(now_s)
        if not self.ended:
            self.left -= 1
        return not self.ended


@dataclass(frozen=True, slots=True)
class Attempt:
    """One decision on its way to its model. started: ticks.

    Where it was for a cascade, model is the one that is called of it, and bill what all of its calls are put on; logprobs:
    asked for on the router's own account; last: with this call the cascade ends.
    """

    ask: ChatRequest
    route: ServedRoute
    model: Model
    decision: Decision
    started: int
    bill: "Bill | None" = None
    logprobs: bool = False
    last: bool = False


@dataclass(slots=True)
class Bill:
    """The calls that one decision for a cascade took. judging_usd: what its judge cost, which is billed on its own."""

    attempt: Attempt
    calls: list[Outcome] = field(default_factory=list)
    judging_usd: float = 0.0
    is_closed: bool = False

    def total(self, status: Status, latency_s: float, error: str | None) -> Outcome:
        costs = [call.cost_usd for call in self.calls if call.cost_usd is not None]
        begun = [call.first_byte_s for call in self.calls if call.first_byte_s is not None]
        return Outcome(
            status=status,
            route=self.attempt.route.name,
            model=self.attempt.decision.arm.name,
            place="",
            latency_s=latency_s,
            first_byte_s=latency_s - self.calls[-1].latency_s + begun[-1] if begun else None,
            tokens_in=sum(call.tokens_in or 0 for call in self.calls),
            tokens_out=sum(call.tokens_out or 0 for call in self.calls),
            tokens_cached=sum(call.tokens_cached for call in self.calls),
            cost_usd=sum(costs) if costs or not self.calls else None,
            estimated=any(call.estimated for call in self.calls),
            error=error,
            stages=len(self.calls),
            judging_usd=self.judging_usd,
        )


@dataclass(slots=True)
class Call:
    """One attempt at one place. first_byte: ticks, 0 until it is there. settled: its outcome was told."""

    attempt: Attempt
    visit: Visit
    usage: Usage
    first_byte: int = 0
    settled: bool = False

    @property
    def deployment(self) -> Deployment:
        return self.visit.place.deployment


class Line:
    """A call's connection to its place. Closing it gives the connection up or back, and the place its turn; once is enough."""

    __slots__ = ("_call", "_calls", "_is_closed", "_reply")

    def __init__(self, calls: "Calls", call: Call) -> None:
        self._calls, self._call = calls, call
        self._reply: Reply | None = None
        self._is_closed = False

    def opened(self, reply: Reply) -> Reply:
        self._reply = reply
        return reply

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._reply is not None:
            self._reply.close()
        self._calls.leave(self._call)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Calls:
    def __init__(
        self, shell: Shell, deployments: Deployments, outcomes: Outcomes, limits: UpstreamSettings
    ) -> None:
        self._shell, self._deployments, self._outcomes = shell, deployments, outcomes
        self._first_byte_timeout_s = limits.first_byte_timeout_s

    @property
    def now_s(self) -> float:
        return self._shell.ticks() * 1e-9

    async def make(self, attempt: Attempt, tries: Tries) -> tuple[Answer, "Line"]:
        """The answer up to its first byte, and its line, to be closed when all is said. Raises FailedError."""
        name = attempt.model.arm.name
        visited: list[Place] = []
        failure = FailedError(UnavailableError(f"{name} takes no more requests for the moment", 1), "full")
        while (visit := self._deployments.visit(name, self.now_s, not_again=visited)) is not None:
            if visited and not tries.again(self.now_s):
                self._deployments.left(visit)
                break
            visited.append(visit.place)
            tries.made += 1
            try:
                return await self._call(Call(attempt, visit, Usage()))
            except FailedError as failed:
                failure = failed
                if failed.fault in ("unfit", "client"):
                    break  # another place of the same model would say the same
        raise failure

    def open(self, attempt: Attempt) -> Call:
        """A call that somebody else makes, who reports of it with `tell` and ends it with `leave`. Raises FailedError."""
        visit = self._deployments.visit(attempt.model.arm.name, self.now_s)
        if visit is None:
            message = f"{attempt.model.arm.name} takes no more requests for the moment"
            raise FailedError(UnavailableError(message, 1), "full")
        return Call(attempt, visit, Usage())

    def tell(self, call: Call, failed: FailedError | None = None) -> None:
        """What came of a call that somebody else made; what it took stands in its usage."""
        if failed is not None:
            self._failed(call, failed)
            return
        self._begun(call)
        self._finished(call)

    async def _call(self, call: Call) -> tuple[Answer, "Line"]:
        model, place = call.attempt.model, call.deployment
        url, body = f"{place.base_url}/chat/completions", _body(call.attempt, place)
        line = Line(self, call)
        try:
            reply = line.opened(await self._shell.upstream.send(url, _headers(place), body))
            return await self._receive(call, reply), line
        except UpstreamError as error:
            failed = broken(error, model.arm.name)
            self._failed(call, failed)
            line.close()
            raise failed from error
        except FailedError as failed:
            self._failed(call, failed)
            line.close()
            raise
        except BaseException:
            line.close()
            raise

    async def _receive(self, call: Call, reply: Reply) -> Answer:
        attempt, name, asked = call.attempt, call.attempt.model.arm.name, call.attempt.ask
        if reply.status != 200:
            body = await reply.read()
            raise refused(reply, body, name, secret=call.deployment.api_key, now=self._shell.now())
        headers = kept_headers(reply.headers)
        headers["content-type"] = reply.headers.get("content-type", "application/json")
        headers["x-router-decision-id"] = attempt.decision.decision_id
        headers["x-router-route"] = attempt.route.name
        headers["x-router-model"] = name
        ours = identity(attempt.decision.decision_id, name)
        if EVENT_STREAM in headers["content-type"]:
            if not asked.stream:
                raise FailedError(UpstreamFailedError(f"{name} sent a stream where none was asked for"))
            headers |= {"cache-control": "no-cache", "x-accel-buffering": "no"}
            splicer = Splicer(ours, call.usage, usage_asked=asked.usage_asked)
            first = await self._first(reply, splicer, name)
            self._begun(call)
            return Answer(200, headers, self._metered(call, reply, splicer, first))
        try:
            body = whole(await reply.read(), ours, call.usage)
            if asked.stream:  # a place that does not stream: its answer comes in one piece
                body = as_stream(body, usage_asked=asked.usage_asked)
                headers |= {"content-type": EVENT_STREAM, "cache-control": "no-cache"}
        except ValueError as error:
            told = UpstreamFailedError(f"{name} answered 200 with something that is no answer")
            raise FailedError(told) from error
        self._begun(call)
        self._finished(call)
        return Answer(200, headers, body)

    async def _first(self, reply: Reply, splicer: Splicer, model: str) -> bytes:
        """A stream up to its first event with something of an answer; a stream without one in time has failed.

        What comes before, comments that keep a connection alive, is held back: until then another model may be tried.
        """
        head, usage = b"", splicer.usage
        try:
            async with asyncio.timeout(self._first_byte_timeout_s):
                while not (usage.failed or splicer.is_done):
                    head += splicer.feed(await reply.chunk())
                    if usage.pieces and not usage.failed:
                        return head
        except EventTooLargeError as error:
            raise FailedError(UpstreamFailedError(f"{model}: {error}")) from error
        except TimeoutError:
            message = f"{model} began no answer within {self._first_byte_timeout_s:g} s"
            raise FailedError(UpstreamTimeoutError(message), "timeout") from None
        what = "told of an error" if usage.failed else "ended its stream"
        raise FailedError(UpstreamFailedError(f"{model} {what} before it answered"))

    async def _metered(
        self, call: Call, reply: Reply, splicer: Splicer, first: bytes
    ) -> AsyncIterator[bytes]:
        """The rest of a stream. After its first byte nothing is tried again: a failure is told in the stream."""
        name, secret, usage = call.attempt.model.arm.name, call.deployment.api_key, call.usage
        yield first
        try:
            while not splicer.is_done:
                events = splicer.feed(await reply.chunk())
                if events:
                    yield events.replace(secret.encode(), b"[key]") if secret and usage.failed else events
        except (UpstreamError, EventTooLargeError) as error:
            yield self._broke_off(call, f"{name} failed in the middle of its answer: {error}")
        else:
            if usage.failed:
                self._failed(call, FailedError(UpstreamFailedError(f"{name} told of an error in its answer")))
            elif not usage.finished and not usage.done:
                yield self._broke_off(call, f"{name} ended its stream in the middle of its answer")
            else:
                self._finished(call)

    def _broke_off(self, call: Call, message: str) -> bytes:
        error = UpstreamFailedError(message)
        self._failed(call, FailedError(error))
        return b"data: " + error.body() + b"\n\n"

    def _begun(self, call: Call) -> None:
        call.first_byte = self._shell.ticks()
        self._deployments.begun(call.visit)

    def _finished(self, call: Call) -> None:
        self._deployments.answered(call.visit, self.now_s)
        attempt, usage = call.attempt, call.usage
        context = attempt.decision.context
        answer = Answered(
            x=context.x,
            tokens_in=usage.tokens_in,
            tokens_in_estimated=context.needs.tokens_in,
            tokens_out=usage.tokens_out,
            first_byte_s=1e-9 * (call.first_byte - attempt.started),
            latency_s=1e-9 * (self._shell.ticks() - attempt.started),
            at=self._shell.now(),
        )
        attempt.route.learned.recorder.answered(attempt.model.arm.name, answer)
        self._settle(call, "answered")

    def _failed(self, call: Call, failed: FailedError) -> None:
        """A place at fault is reported so; a full one asked for time; a request at fault leaves the place its good name."""
        now_s = self.now_s
        match failed.fault:
            case "failed" | "timeout":
                self._deployments.failed(call.visit, now_s, timeout=failed.fault == "timeout")
                arm = call.attempt.model.arm.name
                call.attempt.route.learned.recorder.called(arm, CallStatistics(failures=1))
                self._settle(call, "failed", failed.error.message)
            case "full":
                self._deployments.full(call.visit, now_s, retry_after_s=failed.retry_after_s)
                self._settle(call, "full", failed.error.message)
            case _:
                self._deployments.answered(call.visit, now_s)
                self._settle(call, "refused", failed.error.message)

    def leave(self, call: Call) -> None:
        """The call's connection is given up or back. Where nothing was told of it yet, its client has left."""
        if not call.settled:
            self._settle(call, "aborted")
        self._deployments.left(call.visit)

    def _settle(self, call: Call, status: Status, error: str | None = None) -> None:
        call.settled = True
        attempt, usage = call.attempt, call.usage
        tokens_in, tokens_out = usage.tokens_in, usage.tokens_out
        produced = bool(call.first_byte) or status == "aborted"
        estimated = produced and (tokens_in is None or tokens_out is None)
        if estimated:
            tokens_in = attempt.decision.context.needs.tokens_in if tokens_in is None else tokens_in
            tokens_out = usage.pieces if tokens_out is None else tokens_out
        cost_usd = None
        if tokens_in is not None and tokens_out is not None:
            cost_usd = attempt.model.cost_usd(tokens_in, tokens_out, tokens_cached=usage.tokens_cached)
        outcome = Outcome(
            status=status,
            route=attempt.route.name,
            model=attempt.model.arm.name,
            place=call.deployment.name,
            latency_s=(self._shell.ticks() - attempt.started) * 1e-9,
            first_byte_s=(call.first_byte - attempt.started) * 1e-9 if call.first_byte else None,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            tokens_cached=usage.tokens_cached,
            cost_usd=cost_usd,
            estimated=estimated,
            error=error,
            stage_of=attempt.decision.arm.name if attempt.bill else None,
        )
        self._outcomes.add(attempt.decision.decision_id, outcome)
        if attempt.bill is not None:
            attempt.bill.calls.append(outcome)
            if attempt.last and (status in ("answered", "aborted") or call.first_byte):
                self.close(attempt.bill, status, error)

    def close(self, bill: Bill, status: Status, error: str | None = None) -> None:
        """The last word on a cascade's answer is said: what all its calls took, told and learned of it once."""
        if bill.is_closed:
            return
        bill.is_closed = True
        attempt = bill.attempt
        total = bill.total(status, 1e-9 * (self._shell.ticks() - attempt.started), error)
        self._outcomes.add(attempt.decision.decision_id, total)
        recorder, arm = attempt.route.learned.recorder, attempt.decision.arm
        if status == "failed":
            recorder.called(arm.name, CallStatistics(failures=1))
        if status != "answered" or total.cost_usd is None or total.first_byte_s is None:
            return
        context, answered = attempt.decision.context, bill.calls[-1]
        answer = Answered(
            x=context.x,
            tokens_in=answered.tokens_in,
            tokens_in_estimated=context.needs.tokens_in,
            tokens_out=answered.tokens_out,
            first_byte_s=total.first_byte_s,
            latency_s=total.latency_s,
            at=self._shell.now(),
        )
        recorder.answered(arm.name, answer)
        charged = CallStatistics.charged(
            round(1e9 * (total.cost_usd + bill.judging_usd)),
            listed_in_nano_usd=round(1e3 * (answered.tokens_in or 0) * arm.price_usd_per_mtok_in),
            listed_out_nano_usd_per_token=round(1e3 * arm.price_usd_per_mtok_out),
        )
        recorder.called(arm.name, charged)


def _headers(place: Deployment) -> dict[str, str]:
    headers = {"content-type": "application/json", "accept-encoding": "identity"}
    if place.api_key is not None:
        headers["authorization"] = f"Bearer {place.api_key}"
    return headers


def _body(attempt: Attempt, place: Deployment) -> bytes:
    """The client's bytes with the place's name of the model, with usage asked for in a stream, without what is ours."""
    ask, effort = attempt.ask, attempt.model.reasoning_effort
    values = {"model": orjson.dumps(place.upstream_model)}
    if ask.stream and not ask.usage_asked:
        values["stream_options"] = orjson.dumps({**(ask.stream_options or {}), "include_usage": True})
    if effort is not None:
        values["reasoning_effort"] = orjson.dumps(effort)
    if attempt.logprobs:
        values["logprobs"] = b"true"
    return replace_values(without_key(ask.body, "router") if ask.extended else ask.body, values)
