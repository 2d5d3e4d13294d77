"""The straight line of a chat request.

    parse -> features -> candidates (each exclusion with its reason) -> decide -> hand the decision to the recorder
          -> call the model -> reply, with the decision's id in it -> what the call took

Nothing on this line waits for the store. Until the first byte of an answer has come, a failed model is dropped and the
next decision is made among the rest; every attempt is a decision of its own, with an id of its own.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from bandit.arms import Arm, Exclusion, eligible
from bandit.decide import Decision, decide
from bandit.features import context_of
from bandit.latency import LatencyModel, in_time
from bandit.policy import Policy, objective_of
from bandit.types import Context, Vector
from feedback.records import Explanation, encode_record, prefix_of
from service.access import ANYBODY, Caller
from service.budgets import Budgets
from service.calls import Answer, Attempt, Bill, Call, Calls, Line, Shell, Tries
from service.deployments import REASONS, Deployments
from service.embedder import Embedder, Pointed
from service.errors import ApiError, NoEligibleModelError, RateLimitError, UnauthorizedError, UnavailableError
from service.explain import CODES, explanation_of, shown
from service.hedge import hedged
from service.narrowing import narrowed
from service.outcomes import Outcomes
from service.pacers import Pacers
from service.refusals import FailedError
from service.request import ChatRequest, parse_chat
from service.retry_budget import RetryBudget
from service.routes import Routes, ServedRoute, find_route
from service.sessions import Conversation, Held, Sessions, conversation_of, with_cache
from service.settings import Cascade, Model, Settings
from service.signals import judge_request, judge_score, text_of, token_confidence, without_logprobs

AT_FAULT: Final = frozenset({"unavailable", "resting"})  # exclusions that are no doing of the client's


@dataclass(slots=True)
class _Request:
    """One client request on its way. out: models that are no candidates (any more), each with its reason."""

    ask: ChatRequest
    caller: Caller
    route: ServedRoute
    context: Context
    policy: Policy
    policy_tag: bytes
    arms: tuple[Arm, ...]
    out: dict[str, Exclusion]
    tries: Tries
    conversation: Conversation | None
    pointed: Pointed | None
    decisions: int = 0
    asked: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Tried:
    """What came of one attempt. line: what to close when the client has it all."""

    attempt: Attempt
    answer: Answer
    line: Line


class Pipeline:
    """routes: tenant -> what a client may ask for -> how it is served."""

    def __init__(
        self,
        settings: Settings,
        routes: Mapping[str, Routes],
        shell: Shell,
        outcomes: Outcomes,
        budgets: Budgets | None = None,
        embedder: Embedder | None = None,
    ) -> None:
        self.routes, self.outcomes = routes, outcomes
        self.budgets = budgets or Budgets()
        self.deployments = Deployments(settings.models)
        self._shell, self.settings, self.embedder = shell, settings, embedder
        self.calls = Calls(shell, self.deployments, outcomes, settings.upstream)
        self._sessions = Sessions()
        self._pacers = Pacers()
        outcomes.watchers += [self._pacers.settled, self.budgets.settled]
        self.budget = RetryBudget(settings.upstream.retry_share, now_s=self.calls.now_s)

    def adopt(self, settings: Settings, routes: Mapping[str, Routes]) -> None:
        """Serve these models and routes from the next request on; those under way go on as they began."""
        self.deployments.adopt(settings.models)
        self.settings, self.routes = settings, routes

    async def answer(self, ask: ChatRequest, caller: Caller = ANYBODY) -> tuple[Answer, Line]:
        """The answer, up to its first byte, and its line, to be closed when all is said. Raises ApiError."""
        request = await self._received(ask, caller)
        if not caller.is_retry:
            self.budget.request()
        tried = await self._first_that_answers(request)
        tried.answer.headers["x-router-attempts"] = str(request.tries.made)
        tried.answer.headers.update(request.caller.limits)
        return tried.answer, tried.line

    async def preview(self, ask: ChatRequest, caller: Caller = ANYBODY) -> dict[str, Any]:
        """What would be decided now, and why. No model is called and nothing recorded. Raises ApiError."""
        request = await self._received(ask, caller)
        candidates, excluded = self._candidates(request)
        decision_id = self._shell.new_id(request.route.learned.scope)
        decision = self._decide(request, candidates, decision_id)
        explanation = Explanation.decode(self._explanation(request, decision, excluded).encode())
        reasons = {exclusion.arm: exclusion.reason for exclusion in excluded}
        told = shown(explanation, chosen=decision.arm.name, propensity=decision.propensity, reasons=reasons)
        return {"decision_id": None, **told}

    def choose(
        self,
        ask: ChatRequest,
        caller: Caller = ANYBODY,
        *,
        without: Collection[str] = (),
        pointed: Pointed | None = None,
    ) -> Call:
        """A decision that is recorded, and a call that somebody else makes. without: models that failed. Raises ApiError."""
        request = self._request(ask, caller, self._route(ask, caller), pointed)
        request.decisions = len(without)
        for name in without:
            request.out.setdefault(name, Exclusion(name, "unavailable", "failed in this request"))
        for name, model in request.route.models.items():
            if model.cascade is not None:
                request.out.setdefault(name, Exclusion(name, "cascade", CODES["cascade"]))
        attempt = self._attempt(request, None)
        try:
            call = self.calls.open(attempt)
        except FailedError as failed:
            self.budgets.release(attempt.decision.decision_id)
            raise failed.error from failed
        self._hold(request, attempt)
        return call

    def _route(self, ask: ChatRequest, caller: Caller) -> ServedRoute:
        routes = self.routes.get(caller.tenant)
        if routes is None:  # its key was withdrawn while the request was on its way
            raise UnauthorizedError
        return find_route(routes, ask.model)

    async def _received(self, ask: ChatRequest, caller: Caller) -> _Request:
        """With where an embedder says that it points, if there is one and the route looks. Raises ApiError."""
        route = self._route(ask, caller)
        pointed = None
        if self.embedder is not None and route.weighs:
            pointed = await self.embedder.pointed(ask.prompt.user)
        return self._request(ask, caller, route, pointed)

    def _request(
        self, ask: ChatRequest, caller: Caller, route: ServedRoute, pointed: Pointed | None
    ) -> _Request:
        directions = pointed.directions if pointed else None
        context = context_of(ask.prompt, self.settings.features, directions)
        policy, tag = route.policy_for(ask.extension)
        arms, out = narrowed(route.arms, route.rules, ask, caller, context.needs)
        return _Request(
            ask=ask,
            caller=caller,
            route=route,
            context=context,
            policy=policy,
            policy_tag=tag,
            arms=arms,
            out={exclusion.arm: exclusion for exclusion in out},
            tries=Tries(self.settings.upstream.max_attempts - 1, self.budget),
            conversation=conversation_of(ask, caller, route.name) if route.sticks else None,
            pointed=pointed,
        )

    async def _first_that_answers(self, request: _Request) -> _Tried:
        failure: ApiError | None = None
        while True:
            attempt = self._attempt(request, failure)
            try:
                tried = await self._try(request, attempt)
            except FailedError as failed:
                failure = _with_headers(failed.error, request)
                self._drop(request, attempt, failed)
                if failed.fault == "client" or not request.tries.again(self.calls.now_s):
                    raise failure from failed
                continue
            self._hold(request, tried.attempt)
            return tried

    def _hold(self, request: _Request, attempt: Attempt) -> None:
        """The model that is called now holds the conversation's cache."""
        if request.conversation is not None and attempt.model.cascade is None:
            tokens, name = request.context.needs.tokens_in, attempt.model.arm.name
            self._sessions.hold(request.conversation.next, name, tokens, self.calls.now_s)

    async def _try(self, request: _Request, attempt: Attempt) -> _Tried:
        """One attempt, or two where the first is slow and the route hedges. Raises FailedError."""
        if request.route.hedge_after_s is None:
            return await self._make(request, attempt)
        return await hedged(
            self._make(request, attempt),
            lambda: self._second(request),
            request.route.hedge_after_s,
            discard=lambda tried: tried.line.close(),
        )

    def _second(self, request: _Request) -> Any:
        candidates, _ = self._candidates(request)
        if not candidates or not request.tries.again(self.calls.now_s):
            return None
        return self._make(request, self._attempt(request, None))

    async def _make(self, request: _Request, attempt: Attempt) -> _Tried:
        try:
            if attempt.model.cascade is not None:
                return _Tried(attempt, *await self._in_stages(request, attempt, attempt.model.cascade))
            return _Tried(attempt, *await self.calls.make(attempt, request.tries))
        except BaseException:  # cancelled by a hedge, or for its client: what was billed is settled already
            self.budgets.release(attempt.decision.decision_id)
            raise

    def _attempt(self, request: _Request, failure: ApiError | None) -> Attempt:
        """The next decision. failure: raised where nobody is left to ask, if there was one. Raises ApiError."""
        candidates, excluded = self._candidates(request)
        if not candidates:
            raise failure or self._none_left(request, excluded)
        route = request.route
        decision = self._decide(request, candidates, self._shell.new_id(route.learned.scope))
        self._record(request, decision, excluded)
        self._pacers.decided(decision, route)
        self.budgets.reserve(request.caller.tenant, route.name, decision.decision_id, _expected_usd(decision))
        request.decisions += 1
        request.asked.add(decision.arm.name)
        model = route.models[decision.arm.name]
        return Attempt(request.ask, route, model, decision, self._shell.ticks())

    def _candidates(self, request: _Request) -> tuple[tuple[Arm, ...], tuple[Exclusion, ...]]:
        """The models to choose from now, and why not the others."""
        waiting = {
            name: "it was asked in this request already" for name in request.asked if name not in request.out
        }
        arms: Sequence[Arm] = request.arms
        if request.out:
            arms = [arm for arm in arms if arm.name not in request.out]
        able, unable = eligible(arms, request.context.needs, waiting)
        faults = self.deployments.faults([arm.name for arm in able], self.calls.now_s)
        excluded = (*request.out.values(), *unable)
        if faults:
            excluded += tuple(Exclusion(name, fault, REASONS[fault]) for name, fault in faults.items())
            able = tuple(arm for arm in able if arm.name not in faults)
        able, late = self._in_time(request, able)
        able, beyond = self._affordable(request, able)
        excluded += late + beyond
        held = self._held(request)
        return self._kept(request, able, excluded, held) if held else (able, excluded)

    def _in_time(
        self, request: _Request, able: tuple[Arm, ...]
    ) -> tuple[tuple[Arm, ...], tuple[Exclusion, ...]]:
        """Without those that are too likely to be late, where the route has a limit."""
        limit = request.route.configured.latency if request.route.configured else None
        if limit is None or len(able) < 2:
            return able, ()
        replica, needs = request.route.learned.replica, request.context.needs
        model = LatencyModel.fit(replica.state.latencies, now=self._shell.now())
        tokens_out = np.array([replica.posterior.cost.tokens_out(arm.name) for arm in able])
        tokens_out = tokens_out.clip(max=needs.max_tokens_out or np.inf)
        late = model.late([arm.name for arm in able], tokens_out, limit.limit_s)
        return in_time(able, late, limit_s=limit.limit_s, confidence=limit.confidence)

    def _affordable(
        self, request: _Request, able: tuple[Arm, ...]
    ) -> tuple[tuple[Arm, ...], tuple[Exclusion, ...]]:
        """Without those that a budget of the tenant cannot pay for now."""
        room_usd = self.budgets.room_usd(request.caller.tenant, request.route.name)
        if math.isinf(room_usd):
            return able, ()
        costs = self._expected_usd(request, able)
        beyond = {
            arm.name: Exclusion(
                arm.name, "budget", f"expected to cost {usd:.2g} USD; {room_usd:.2g} are left"
            )
            for arm, usd in zip(able, costs, strict=True)
            if usd > room_usd
        }
        return tuple(arm for arm in able if arm.name not in beyond), tuple(beyond.values())

    def _expected_usd(self, request: _Request, arms: tuple[Arm, ...]) -> Vector:
        cost = request.route.learned.replica.posterior.cost
        return cost.expected_usd(arms, request.context.needs, request.context.x)

    def _held(self, request: _Request) -> Held | None:
        key = request.conversation.continued if request.conversation else None
        return self._sessions.held(key, self.calls.now_s) if key else None

    def _kept(
        self, request: _Request, able: tuple[Arm, ...], excluded: tuple[Exclusion, ...], held: Held
    ) -> tuple[tuple[Arm, ...], tuple[Exclusion, ...]]:
        """The conversation's own model alone, if no other is expected to be worth the loss of its cache."""
        place = next((k for k, arm in enumerate(able) if arm.name == held.model), None)
        if place is None:
            return able, excluded
        cached = request.route.models[held.model].price_usd_per_mtok_cached_in
        own = with_cache(able[place], held.tokens, cached, request.context.needs)
        able = (*able[:place], own, *able[place + 1 :])
        posterior = request.route.learned.replica.posterior
        request.policy = self._pacers.policy(request.policy, request.route)
        utility = request.policy.weigh(posterior.belief(request.context, able)).utility
        if objective_of(request.policy) is None or utility[place] < np.max(utility):
            return able, excluded
        reason = f"the conversation stays with {held.model}: no gain beats the price of its lost cache"
        others = tuple(Exclusion(arm.name, "session", reason) for arm in able if arm is not own)
        return (own,), excluded + others

    def _decide(self, request: _Request, candidates: tuple[Arm, ...], decision_id: str) -> Decision:
        if not candidates:
            raise self._none_left(request, self._candidates(request)[1])
        posterior = request.route.learned.replica.posterior
        request.policy = self._pacers.policy(request.policy, request.route)
        return decide(request.policy, posterior, request.context, candidates, decision_id)

    def _record(self, request: _Request, decision: Decision, excluded: tuple[Exclusion, ...]) -> None:
        prefix = prefix_of(
            decision,
            decided_at=self._shell.now(),
            policy=request.policy_tag,
            features=self.settings.features.tag,
            attempt=min(request.decisions, 255),
        )
        explanation = self._explanation(request, decision, excluded)
        request.route.learned.recorder.decided(decision.decision_id, encode_record(prefix, explanation))

    def _explanation(
        self, request: _Request, decision: Decision, excluded: tuple[Exclusion, ...]
    ) -> Explanation:
        posterior = request.route.learned.replica.posterior
        how = request.pointed.how if request.pointed else None
        return explanation_of(request.route.name, request.policy, posterior, decision, excluded, embedder=how)

    def _drop(self, request: _Request, attempt: Attempt, failed: FailedError) -> None:
        """The model that failed is no candidate any more; where the request was too long for it, nor is a shorter one."""
        name, window = attempt.model.arm.name, attempt.model.arm.context_window_tokens
        request.out[name] = Exclusion(name, "unavailable", f"failed in this request: {failed.error.message}")
        if failed.fault == "unfit":
            for arm in request.arms:
                if arm.context_window_tokens < window:
                    reason = f"the request is too long for {name}, whose window is larger"
                    request.out.setdefault(arm.name, Exclusion(arm.name, "context_window", reason))

    def _none_left(self, request: _Request, excluded: tuple[Exclusion, ...]) -> ApiError:
        """The client's doing where a model could serve another request, the operator's where none can be called at all."""
        busy = [e.arm for e in excluded if e.code == "busy"]
        if busy:
            message = (
                f"every model of the route '{request.route.name}' that could serve this has all it can take"
            )
            return RateLimitError(message, self.deployments.free_in_s(busy, self.calls.now_s))
        unpaid = {e.arm for e in excluded if e.code == "budget"}
        if unpaid:
            arms = tuple(arm for arm in request.arms if arm.name in unpaid)
            least_usd = float(self._expected_usd(request, arms).min())
            return self.budgets.refused(request.caller.tenant, request.route.name, least_usd)
        if all(exclusion.code in AT_FAULT for exclusion in excluded):
            message = (
                f"no model of the route '{request.route.name}' can be called now; the gateway's log says why"
            )
            return UnavailableError(message, code="no_model_available")
        return NoEligibleModelError(request.route.name, {e.arm: e.reason for e in excluded})

    async def _in_stages(self, request: _Request, attempt: Attempt, cascade: Cascade) -> tuple[Answer, Line]:
        """A cascade's answer, as `Calls.make` gives a model's. Raises FailedError."""
        bill = Bill(attempt)
        try:
            return await self._good_enough(request, cascade, bill)
        except FailedError as failed:
            self.calls.close(bill, "failed", failed.error.message)
            raise
        except BaseException:
            self.calls.close(bill, "aborted")
            raise

    async def _good_enough(self, request: _Request, cascade: Cascade, bill: Bill) -> tuple[Answer, Line]:
        """One model after the other, until an answer is good enough; else the last one's."""
        wanted = cascade.signal == "logprob" and not request.ask.logprobs_asked
        best: tuple[Answer, Line] | None = None
        stages = self._stages(cascade)
        for model in stages:
            last = model is stages[-1]
            stage = replace(
                bill.attempt,
                model=model,
                bill=bill,
                started=self._shell.ticks(),
                logprobs=wanted and not last,
                last=last,
            )
            try:
                answer, line = await self.calls.make(stage, request.tries)
            except FailedError as failed:
                if failed.fault == "client" or (last and best is None):
                    raise
                continue
            if last:
                return answer, line
            with line:
                content = await _read(answer)
            if bill.calls[-1].status != "answered":  # it broke off
                continue
            score = await self._signal(request, cascade, content, bill)
            shown_ = without_logprobs(content, stream=request.ask.stream) if wanted else content
            best = replace(answer, content=shown_), line
            if score is not None and score >= cascade.accept_from:
                break
        assert best is not None, "the last stage gives its answer, or raises where there is no other"
        self.calls.close(bill, "answered")
        return best  # perhaps a doubtful one, which is better than none

    def _stages(self, cascade: Cascade) -> list[Model]:
        """Those of its models that can be called now, at least one."""
        models = [self.settings.models[name] for name in cascade.models]
        in_use = [model for model in models if not model.withdrawn]
        faults = self.deployments.faults([model.arm.name for model in in_use], self.calls.now_s)
        return [model for model in in_use if model.arm.name not in faults] or in_use

    async def _signal(self, request: _Request, cascade: Cascade, content: bytes, bill: Bill) -> float | None:
        """How good that answer is, 0 to 1; None where nobody can tell."""
        stream = request.ask.stream
        if cascade.signal == "logprob" or cascade.judge is None:
            return token_confidence(content, stream=stream)
        body = judge_request(cascade.judge, request.ask.prompt.user, text_of(content, stream=stream))
        try:
            tried = await self._first_that_answers(await self._received(parse_chat(body), request.caller))
        except ApiError:
            return None  # without its judge no answer is good enough
        with tried.line:
            score = judge_score(await _read(tried.answer))
        judged = self.outcomes.of(tried.attempt.decision.decision_id)
        bill.judging_usd += sum(call.cost_usd or 0.0 for call in judged)
        return score


def _with_headers(error: ApiError, request: _Request) -> ApiError:
    """An error after more than one attempt asks the client's SDK not to multiply them; a full model may be asked again."""
    headers = {**error.headers, **request.caller.limits, "x-router-attempts": str(request.tries.made)}
    if request.tries.made > 1 and error.status >= 500 and "retry-after" not in headers:
        headers["x-should-retry"] = "false"
    error.headers = headers
    return error


def _expected_usd(decision: Decision) -> float:
    return float(decision.cost_usd[decision.chosen])


async def _read(answer: Answer) -> bytes:
    if isinstance(answer.content, bytes):
        return answer.content
    return b"".join([piece async for piece in answer.content])
