"""Routes under a budget: one pacer each, told of what is decided and of what it cost.

Each gateway paces the requests that it serves; as the budget is an average per request, so is that of all together.
"""

from bandit.decide import Decision
from bandit.objective import Quality, QualityUnderBudget
from bandit.pacing import Pacer
from bandit.policy import Policy, aimed, objective_of
from service.outcomes import UNANSWERED, Outcome
from service.routes import ServedRoute


class Pacers:
    """By scope of the route: its budget's ledger, which outlives a reading of the configuration."""

    def __init__(self) -> None:
        self._pacers: dict[str, Pacer] = {}

    def policy(self, policy: Policy, route: ServedRoute) -> Policy:
        """The policy, aimed at what the route's budget can pay for now; as it is where the route has none, or the request
        has an objective of its own.
        """
        pacer = self._of(route)
        if pacer is None or not isinstance(objective_of(policy), Quality | QualityUnderBudget):
            return policy
        return aimed(policy, pacer.objective())

    def decided(self, decision: Decision, route: ServedRoute) -> None:
        """Told at list prices: what a conversation saves by its cache is in its expected cost, and is no new price."""
        pacer = self._of(route)
        if pacer is not None:
            pacer.decided(
                decision.decision_id,
                decision.arm.name,
                [route.models[arm.name].arm for arm in decision.candidates],
                decision.quality_mean,
                decision.cost_usd,
                decision.typical,
            )

    def settled(self, decision_id: str, outcome: Outcome) -> None:
        """A call that is known to have cost nothing, or so much. Where nobody knows, the expectation stands. A cascade is
        settled as a whole.
        """
        if outcome.stage_of is not None:
            return
        cost_usd = outcome.cost_usd
        if outcome.status in UNANSWERED:
            cost_usd = (cost_usd or 0.0) if outcome.stages else 0.0
        if cost_usd is not None:
            for pacer in self._pacers.values():
                pacer.settled(decision_id, cost_usd)

    def _of(self, route: ServedRoute) -> Pacer | None:
        budget = route.configured.budget_usd_per_request if route.configured else None
        if budget is None:
            return None
        scope = route.learned.scope
        pacer = self._pacers.get(scope)
        if pacer is None or pacer.usd_per_request != budget:
            pacer = self._pacers[scope] = Pacer(budget)
        return pacer
