"""Learning as a service runs it: every route's log, replica and recorder, the intake, and the tick that drives them.

One tick writes what requests left behind, sends queued feedback, and folds what is new. Requests never wait for it.
`run` ticks for ever; tests and simulations call `tick` themselves.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final

from bandit.features import TAG
from bandit.prediction import QualityModel
from feedback.cuts import RECOVERY
from feedback.events import Reset, encode_reset
from feedback.intake import Intake, Route
from feedback.recorder import Recorder
from feedback.replica import Replica, catch_up
from feedback.spool import Spool
from feedback.store import Log, Store, StoreError, StoreGoneError, log_name

TICK_S: Final = 0.2
LONGEST_PAUSE_S: Final = 0.5  # after failures; while a breaker is open nothing is asked
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who writes and who may rate. worker: unique to this process; secrets: the newest first, each MACs decision ids;
    window_s: how long a decision may be rated, in seconds.
    """

    worker: str
    secrets: Sequence[bytes]
    window_s: float


class Learning:
    """routes: "tenant.route" -> its learning. store: where it is kept; closed with this. store_error: why the store could not
    be reached last time, or None.
    """

    def __init__(  # noqa: PLR0913 - all that a process takes from outside
        self,
        store: Store,
        spool: Spool,
        models: Mapping[str, QualityModel],
        *,
        identity: Identity,
        clock: Callable[[], float],
        features: bytes = TAG,
        patience_s: float = 0.0,
        revive: Callable[[], object] | None = None,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        """models: scope -> the route's quality model. clock: Unix seconds; ticks: monotonic seconds. features: tag of the
        vectors that are decided on. patience_s: how long this process, while it knows nothing, leaves an empty store to
        others who may know something. revive: called when the store is gone, to bring back an embedded one.
        """
        replica_on = partial(Replica, features=features, patience_s=patience_s, clock=ticks)
        self.routes: Mapping[str, Route] = MappingProxyType(
            {
                scope: _route(
                    scope,
                    store.log(log_name(scope, features)),
                    identity.worker,
                    partial(replica_on, model=model),
                    features,
                )
                for scope, model in models.items()
            }
        )
        self.spool = spool
        self.intake = Intake(
            self.routes, spool, secrets=identity.secrets, clock=clock, window_s=identity.window_s
        )
        self.store_error: str | None = None
        self.store, self._revive, self._clock = store, revive, clock

    async def start(self) -> None:
        """Fold what is stored. A store that is away stops nothing: decisions begin with the prior."""
        await self.intake.sort_out()
        for route in self.routes.values():
            try:
                await catch_up(route.replica)
            except StoreError as error:
                self._store_away(error)

    async def tick(self) -> None:
        """Write, send, fold: once, for every route. Every step is taken, whatever became of the others: a store that is
        full still gives, and one damaged route is no other route's business. Then StoreError, if any step failed.
        """
        failed = [error for scope in self.routes for error in await self._tick_route(scope)]
        if failed:
            raise failed[-1]
        if self.store_error is not None:
            log.warning("the store is back")
            self.store_error = None

    async def _tick_route(self, scope: str) -> list[StoreError]:
        failed: list[StoreError] = []
        for step in (
            self.routes[scope].recorder.flush,
            partial(self.intake.resend, scope),
            partial(self._fold, scope),
        ):
            try:
                await step()
            except StoreError as error:
                failed.append(error)
            except (
                Exception
            ) as error:  # whatever it is, the other steps and routes go on, and operators see it
                log.exception("learning failed in %s", scope)
                failed.append(
                    StoreError(f"learning failed in {scope}: {type(error).__name__}; the log says more")
                )
        return failed

    async def _fold(self, scope: str) -> None:
        replica = self.routes[scope].replica
        before = len(replica.state.cuts) and replica.state.cuts[-1].position
        sent = self.intake.sent(scope)
        history = await replica.poll()
        for cut in replica.state.cuts:
            if not before or cut.position > before:
                log.log(
                    logging.INFO if cut.cause == RECOVERY else logging.WARNING, "%s: %s", scope, cut.told()
                )
        await self.intake.settle(scope, history, sent)

    async def reset(
        self, scope: str, arm: str, *, source: str | None = None, factor: float, key: str
    ) -> bool:
        """An operator's reset: the arm's sums by source (None: by all) are multiplied by factor. Of several with one key
        the first takes place. False where the store holds no log yet; StoreError where it cannot be asked.
        """
        if not 0.0 <= factor <= 1.0:
            raise ValueError(f"a reset leaves a share from 0 to 1 of what is known, not {factor!r}")
        event = Reset(arm, source, factor, "operator", self._clock())
        return await self.routes[scope].log.append(encode_reset(event), once=f"operator:{key}") is not None

    async def run(self) -> None:
        """Tick until cancelled; after a failure with growing pauses."""
        pause = TICK_S
        while True:
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - only so that replicas do not march in step
            try:
                await self.tick()
                pause = TICK_S
            except StoreError as error:
                self._store_away(error)
                pause = min(2 * pause, LONGEST_PAUSE_S)

    async def close(self) -> None:
        """Write what waits, if the store takes it, and let go of everything."""
        try:
            await self.tick()
            await self.intake.leave()
        except StoreError as error:
            log.warning("closing with the store away (%s); feedback is in the spool", error)
        finally:
            await self.spool.close()
            await self.store.close()

    def _store_away(self, error: StoreError) -> None:
        if self.store_error is None:
            log.warning("the store is away (%s): deciding from memory, feedback waits in the spool", error)
        self.store_error = str(error)
        if self._revive is not None and isinstance(error, StoreGoneError):
            self._revive()


def _route(
    scope: str, events: Log, worker: str, replica_on: Callable[[Log], Replica], features: bytes
) -> Route:
    recorder = Recorder(events, worker=f"{worker}/{scope}", features=features)
    return Route(scope, events, replica_on(events), recorder)
