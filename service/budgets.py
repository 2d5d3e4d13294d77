"""What may be spent: budgets of tenants, held by all gateways together, that every call draws on before it is made.

A call reserves what it is expected to cost from leases in this process's memory (feedback.budget) and waits for nothing;
what it was billed is settled behind it. Models that a budget cannot pay for now are no candidates: that is decided before
the choice, so the logged propensities stay exact.
"""

import asyncio
import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from feedback.budget import NANO_PER_USD, Purse, nano
from feedback.spool import Spool
from feedback.store import StoreError
from service.errors import ApiError, BudgetSpentError, RateLimitError
from service.outcomes import Outcome
from service.reload import ReloadError
from service.settings import TenantBudget

TICK_S: Final = 0.2
LONGEST_PAUSE_S: Final = 2.0
RETRY_AFTER_S: Final = 1.0
log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Held:
    """One budget of the file, and this process's share of it."""

    settings: TenantBudget
    purse: Purse


class Budgets:
    """purses: of each budget of the file. journal: where what was spent waits on disk for the store; closed with this."""

    def __init__(
        self, purses: Sequence[tuple[TenantBudget, Purse]] = (), journal: Spool | None = None
    ) -> None:
        self._held = [_Held(settings, purse) for settings, purse in purses]
        self._drawn: dict[str, list[Purse]] = {}
        self._journal = journal

    def room_usd(self, tenant: str, route: str) -> float:
        """What one call may cost now; infinite where no budget covers it."""
        return min((held.purse.room_usd() for held in self._covering(tenant, route)), default=math.inf)

    def reserve(self, tenant: str, route: str, decision_id: str, usd: float) -> None:
        """Set the expected cost of a call aside in every budget that covers it. There was room just now (`room_usd`); should
        it be gone, by midnight or by rounding, the call is billed all the same.
        """
        purses = [held.purse for held in self._covering(tenant, route)]
        for purse in purses:
            purse.draw(decision_id, usd)
        if purses:
            self._drawn[decision_id] = purses

    def _covering(self, tenant: str, route: str) -> list[_Held]:
        return [held for held in self._held if held.settings.covers(tenant, route)]

    def settled(self, decision_id: str, outcome: Outcome) -> None:
        """What a call was billed. One that failed before anything was produced says nothing yet: another place of the same
        model may be tried, and whoever gives the decision up calls `release`. A cascade is settled as a whole.
        """
        if outcome.stage_of is not None:
            return
        if outcome.cost_usd is not None:
            self._settle(decision_id, outcome.cost_usd)
        elif outcome.status in ("answered", "aborted"):
            self._settle(decision_id, None)

    def release(self, decision_id: str) -> None:
        """Nothing comes of this decision any more, and nothing was billed that is not settled."""
        self._settle(decision_id, 0.0)

    def _settle(self, decision_id: str, usd: float | None) -> None:
        for purse in self._drawn.pop(decision_id, ()):
            purse.settle(decision_id, usd)

    def refused(self, tenant: str, route: str, usd: float) -> ApiError:
        """Why no call can be made that is expected to cost so much."""
        poorest = min(self._covering(tenant, route), key=lambda held: held.purse.room_usd())
        return _refusal(poorest.purse, usd)

    def adopt(self, settings: Sequence[TenantBudget]) -> None:
        """Take over new amounts. Raises ReloadError where the budgets are others, and then nothing has changed."""
        new = {s.budget.name: s for s in settings}
        if set(new) != {held.settings.budget.name for held in self._held}:
            raise ReloadError("a budget begins, and ends, with a restart; its amounts may change meanwhile")
        for held in self._held:
            name, before = held.settings.budget.name, held.settings
            if (new[name].tenant, new[name].budget.period) != (before.tenant, before.budget.period):
                raise ReloadError(
                    f"the budget '{name}' has another tenant or period: that begins with a restart"
                )
        for held in self._held:
            held.settings = new[held.settings.budget.name]
            held.purse.budget = held.settings.budget

    def told(self) -> dict[str, dict[str, Any]]:
        """For operators: by budget, in USD."""
        return {held.settings.budget.name: _told(held) for held in self._held}

    async def tick(self) -> bool:
        """Settle what was spent and fill up the leases; False where the store could not be asked."""
        fine = True
        for held in self._held:
            try:
                await held.purse.tick()
            except StoreError as error:
                fine = False
                log.debug("the budget %s cannot be asked for: %s", held.settings.budget.name, error)
        return fine

    async def run(self) -> None:
        """Tick until cancelled; after a failure with growing pauses."""
        pause = TICK_S
        while self._held:
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - as in feedback.learning
            pause = TICK_S if await self.tick() else min(2 * pause, LONGEST_PAUSE_S)

    async def close(self) -> None:
        for held in self._held:
            try:
                await held.purse.close()
            except StoreError as error:
                log.warning(
                    "the budget %s keeps its lease until it ends, the store is away: %s",
                    held.settings.budget.name,
                    error,
                )
        if self._journal is not None:
            await self._journal.close()


def _refusal(purse: Purse, usd: float) -> ApiError:
    budget, account = purse.budget, purse.account
    each = "" if budget.period == "total" else f" a {budget.period}"
    what = f"the budget '{budget.name}' of {_usd(budget.limit_nano_usd)}{each}"
    if nano(usd) > budget.lease_nano_usd:
        return BudgetSpentError(
            f"{what} lets one call cost at most {_usd(budget.lease_nano_usd)}, its lease; "
            f"this one is expected to cost {usd:.2g} USD"
        )
    if account is None or purse.away:
        return RateLimitError(f"{what} cannot be asked for: the store is away", RETRY_AFTER_S)
    if budget.limit_nano_usd - account.spent < budget.lease_nano_usd:
        held = f", and gateways hold {_usd(account.held)}" if account.held else ""
        return BudgetSpentError(f"{what} is used up: {_usd(account.spent)} are spent{held}")
    return RateLimitError(f"{what} has room, but not here at this moment", RETRY_AFTER_S)


def _usd(nano_usd: int) -> str:
    return f"{nano_usd / NANO_PER_USD:.6g} USD"


def _told(held: _Held) -> dict[str, Any]:
    budget, account = held.settings.budget, held.purse.account
    return {
        "tenant": held.settings.tenant,
        "routes": sorted(held.settings.routes),
        "period": budget.period,
        "limit_usd": budget.limit_nano_usd / NANO_PER_USD,
        "spent_usd": None if account is None else account.spent / NANO_PER_USD,
        "held_usd": None if account is None else account.held / NANO_PER_USD,
        "room_here_usd": held.purse.room_usd(),
        "store_away": held.purse.away,
    }
