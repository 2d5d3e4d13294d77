"""The router within an application: the gateway's own decisions, record and feedback, without a hop.

    async with Router.open("gateway.yaml") as router:
        choice = router.route([{"role": "user", "content": "What is 12 times 12?"}])
        reply = await my_client.ask(choice.base_url, choice.upstream_model, ...)
        router.record(choice, tokens_in=14, tokens_out=9)
        await router.feedback(choice.decision_id, rating=1)

The application calls the model itself; everything else is the gateway's code, configuration and store. Decisions and
records cost microseconds and wait for nothing. All of it belongs to one event loop.
"""

import asyncio
import os
import weakref
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from feedback.api import FeedbackBody, give
from feedback.learning import Learning
from service.calls import Call
from service.config import load_settings
from service.decision_log import decision_log_of
from service.embedder import Pointed
from service.errors import BadRequestError, UpstreamFailedError, UpstreamTimeoutError
from service.home import home_of, open_budgets, open_learning, secret_of, shell_of
from service.outcomes import Outcomes
from service.pipeline import Pipeline
from service.refusals import FailedError
from service.request import parse_chat
from service.routes import served_routes


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Choice:
    """Whom to ask. propensity: the probability with which this model was chosen. One that is never recorded counts as
    given up when it is let go: neither good nor bad. call: for `Router.record`.
    """

    decision_id: str
    model: str
    base_url: str
    upstream_model: str
    api_key: str | None = field(repr=False)
    reasoning_effort: str | None
    propensity: float
    call: Call = field(repr=False)


class Router:
    def __init__(self, pipeline: Pipeline, learning: Learning) -> None:
        self.pipeline, self.learning = pipeline, learning

    @classmethod
    @asynccontextmanager
    async def open(
        cls, config: str | Path, *, environ: Mapping[str, str] = os.environ, ephemeral: bool = False
    ) -> AsyncIterator["Router"]:
        """The router of this configuration, learning while the block is open.

        ephemeral: keep nothing, the store is this process's memory. Raises ConfigError and what opening a store raises.
        """
        settings = load_settings(Path(config), environ)
        with ExitStack() as stack:
            secret = secret_of(settings)
            home = home_of(settings, stack, ephemeral=ephemeral)
            learning = await open_learning(settings, secret, home)
            budgets = await open_budgets(settings, learning, home)
            shell = shell_of(settings, secret)
            outcomes = Outcomes()
            decision_log = decision_log_of(settings, learning, outcomes)
            pipeline = Pipeline(settings, served_routes(settings, learning.routes), shell, outcomes, budgets)
            await learning.start()
            await budgets.tick()
            loops = [learning.run(), budgets.run(), *([decision_log.run()] if decision_log else [])]
            running = [asyncio.create_task(loop) for loop in loops]
            try:
                yield cls(pipeline, learning)
            finally:
                for loop in running:
                    loop.cancel()
                await asyncio.gather(*running, return_exceptions=True)
                await shell.upstream.close()
                await budgets.close()
                await learning.close()
                if decision_log is not None:
                    await decision_log.close()

    def route(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        model: str = "auto",
        without: Collection[str] = (),
        embedding: Sequence[float] | None = None,
        **fields: Any,
    ) -> Choice:
        """The model to ask. without: models that have failed this request already. embedding: of the last user message, by
        the configuration's embedder, which is not asked here; without one the words guess. fields: of a chat request, such as
        `tools`, `max_tokens` or the router's own `router`. Raises ApiError.
        """
        ask = parse_chat(orjson.dumps({"model": model, "messages": messages, **fields}))
        call = self.pipeline.choose(ask, without=without, pointed=self._pointed(embedding))
        place, decision = call.deployment, call.attempt.decision
        choice = Choice(
            decision_id=decision.decision_id,
            model=decision.arm.name,
            base_url=place.base_url,
            upstream_model=place.upstream_model,
            api_key=place.api_key,
            reasoning_effort=call.attempt.model.reasoning_effort,
            propensity=decision.propensity,
            call=call,
        )
        weakref.finalize(choice, self.pipeline.calls.leave, call)
        return choice

    def _pointed(self, embedding: Sequence[float] | None) -> Pointed | None:
        if embedding is None:
            return None
        embedder = self.pipeline.settings.embedder
        if embedder is None:
            raise BadRequestError(
                "the configuration has no embedder to read an embedding of", param="embedding"
            )
        try:
            return Pointed(embedder.projection.directions(embedding), "embedded")
        except ValueError as error:
            raise BadRequestError(str(error), param="embedding") from None

    def record(
        self,
        choice: Choice,
        *,
        tokens_in: int | None = None,
        tokens_out: int | None = None,
        tokens_cached: int = 0,
        failed: str | None = None,
        timeout: bool = False,
    ) -> None:
        """What the call took, once, when its answer is complete; or why it failed. Raises ValueError the second time."""
        call = choice.call
        if call.settled:
            raise ValueError(f"{choice.decision_id} was recorded before")
        call.usage.read(
            {
                "prompt_tokens": tokens_in,
                "completion_tokens": tokens_out,
                "prompt_tokens_details": {"cached_tokens": tokens_cached},
            }
        )
        error = None
        if timeout:
            error = FailedError(
                UpstreamTimeoutError(failed or f"{choice.model} did not answer in time"), "timeout"
            )
        elif failed is not None:
            error = FailedError(UpstreamFailedError(failed))
        self.pipeline.calls.tell(call, error)
        self.pipeline.budgets.release(choice.decision_id)  # of a call that failed: others are settled by now

    async def feedback(self, decision_id: str, **values: Any) -> dict[str, Any]:
        """As POST /feedback: rating, judge_score (with judge), cost_usd, idempotency_key. Raises pydantic's
        ValidationError for values that are none, FeedbackRefusedError for a decision that cannot be rated.
        """
        return await give(self.learning.intake, FeedbackBody(decision_id=decision_id, **values))
