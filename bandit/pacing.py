"""Pacing: the best quality within B USD per request on average, over a stream without end whose costs settle late.

    lambda = argmin_{l >= 0}  l (1 + (credit - RESERVE) / H) + mean_i max_a (m_ia - l c_ia / B)   i: the last M requests
    credit <- min(credit + 1 - c / B, CREDIT_MAX)                                                 in units of B
    arm a may be called iff c_a / B <= max(1, (1 + credit) / 2), or it is the cheapest

m_ia, c_ia are the expected quality and cost of arm a for request i, both as of today: costs at today's price, and quality as
what was expected of it beyond the arm's typical quality then, plus the typical quality that is expected now. (As it was
expected then, a model that recovers leaves the dual too high, and money unspent, for M requests.) The dual problem is convex
and piecewise linear in one number, so it is solved anew every R requests instead of followed with a learning rate: nothing
to tune over a 500-fold range of prices, and a new price or belief acts at once. (Agrawal, Devanur, Linear contextual bandits
with knapsacks, NIPS 2016; Balseiro, Lu, Mirrokni, arXiv 2011.10124.)

The credit is the guard. Where costs are predicted rightly and the cheapest arm costs at most B it never falls below 0: n
requests cost at most n B from the start, and (n + CREDIT_MAX) B in any window. A dear call may be expected to take half of
it, for it may well cost twice that. What a prediction missed is corrected when the call's cost is known, and is paid back by
the dual, which steers the credit to RESERVE: enough for a dear call, and little to spend at once when a time in which nothing
was worth its price is over. Predictions that are wrong on the whole are multiplied by the ratio of real to predicted cost
over the last calls.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np

from bandit.arms import Arm
from bandit.objective import QualityUnderBudget
from bandit.types import Matrix, Vector

WINDOW: Final = 512  # M
EVERY: Final = 16  # R
HORIZON: Final = 150.0  # H: requests over which credit returns to its reserve
RESERVE: Final = 20.0  # requests' worth of budget
CREDIT_MAX: Final = 60.0  # requests' worth of budget that may be saved up
CALL_SHARE: Final = 0.5  # of the credit that one call beyond the budget may be expected to take
RATIO_REQUESTS: Final = 300.0  # over how many requests predicted and real costs are compared
RATIO_PSEUDO: Final = 30.0  # requests' worth of budget that hold their ratio at 1
PRICE_JUMP: Final = 1.5  # a price that changed by such a factor is solved for at once
PRESENT: Final = 64  # an arm that was no candidate of so many requests in a row is gone
UNSETTLED_MAX: Final = 20_000  # decisions whose real cost may still come
BISECTIONS: Final = 30
DUAL_MIN: Final = 1e-12  # less is none
DUAL_MAX: Final = 1e9  # more is: the cheapest, whatever its quality
TYPICAL_TOKENS: Final = (500.0, 300.0)  # in and out: what two prices of one arm are compared at


class Pacer:
    """One stream's ledger; it reads no clock and no random number. usd_per_request: B, above 0.

    credit: in units of B, below 0 is debt. dual: quality that B USD are worth now. requests: so many so far.
    """

    def __init__(self, usd_per_request: float) -> None:
        if not 0 < usd_per_request < math.inf:
            raise ValueError(f"a budget is a number of USD per request above 0, not {usd_per_request!r}")
        self.usd_per_request = usd_per_request
        self.credit, self.dual, self.requests = 0.0, 0.0, 0
        self._offers = _Offers()
        self._predicted_usd = self._real_usd = 0.0  # of settled calls, old ones fading
        self._unsettled: OrderedDict[str, tuple[float, float]] = OrderedDict()  # USD predicted, and charged

    @property
    def ratio(self) -> float:
        """Real over predicted cost of the calls settled lately."""
        pseudo_usd = RATIO_PSEUDO * self.usd_per_request
        return (pseudo_usd + self._real_usd) / (pseudo_usd + self._predicted_usd)

    def objective(self) -> QualityUnderBudget:
        """What the next decision is to aim at; its costs are as predicted, so the budget is divided by the ratio."""
        predicted_usd = self.usd_per_request / self.ratio
        allowance_usd = predicted_usd * max(1.0, CALL_SHARE * (1.0 + self.credit))
        return QualityUnderBudget(predicted_usd, self.dual, allowance_usd)

    def decided(
        self,
        decision_id: str,
        chosen: str,
        candidates: Sequence[Arm],
        quality: Vector,
        cost_usd: Vector,
        typical: Vector | None = None,
    ) -> None:
        """After a decision: its expected cost is charged, once. candidates: at their list prices, for any other is taken for a
        price that changed. quality, cost_usd (K,): expected, of each candidate, at what this request would really cost.
        typical (K,): its expected quality over all traffic; None: what is believed of it never changes.
        """
        if decision_id in self._unsettled:
            return
        expected = float(cost_usd[[arm.name for arm in candidates].index(chosen)])
        typical = np.zeros(len(quality)) if typical is None else typical
        news = self._offers.add(self.requests, candidates, quality, cost_usd, typical)
        self._unsettled[decision_id] = (expected, expected * self.ratio)
        if len(self._unsettled) > UNSETTLED_MAX:
            self._unsettled.popitem(last=False)
        self._credit(1.0 - expected * self.ratio / self.usd_per_request)
        self.requests += 1
        if news or self.requests < EVERY or self.requests % EVERY == 0:  # at first every request counts
            self._solve()

    def settled(self, decision_id: str, cost_usd: float) -> None:
        """After a call's cost became known: what was charged for it is corrected, once. A cost for a decision that is
        not known, or settled before, changes nothing. A call that failed settles at 0.
        """
        predicted, charged = self._unsettled.pop(decision_id, (0.0, None))
        if charged is None:
            return
        self._credit((charged - cost_usd) / self.usd_per_request)
        if cost_usd > 0:  # a failed call says nothing of what an answer costs
            kept = 1.0 - 1.0 / RATIO_REQUESTS
            self._predicted_usd = kept * self._predicted_usd + predicted
            self._real_usd = kept * self._real_usd + cost_usd

    def _credit(self, units: float) -> None:
        """Debt beyond its horizon is forgiven: from there on only the cheapest arm is called anyway."""
        self.credit = max(min(self.credit + units, CREDIT_MAX), -HORIZON)

    def _solve(self) -> None:
        quality, cost_usd = self._offers.present(self.requests)
        cost = cost_usd * (self.ratio / self.usd_per_request)
        self.dual = solved_dual(quality, cost, 1.0 + (self.credit - RESERVE) / HORIZON, near=self.dual)


def solved_dual(quality: Matrix, cost: Matrix, target: float, *, near: float = 1.0) -> float:
    """The smallest l >= 0 at which argmax_a (quality - l cost) of each row costs at most `target` on average.

    quality, cost (M, K), quality -inf where an arm is no candidate. It is where l target + mean_i max_a (...) is least: the
    mean cost is minus the slope of the second term, and falls as l grows. near: where to begin looking. Where not even the
    cheapest arms are within the target: an l so high that they are chosen.
    """
    rows = np.arange(len(quality))

    def within(price: float) -> bool:
        chosen = np.argmax(quality - price * cost, axis=1)
        return float(cost[rows, chosen].mean()) <= target

    if within(0.0):
        return 0.0
    low, high = 0.0, near or 1.0
    while not within(high):
        low, high = high, 2.0 * high
        if high > DUAL_MAX:
            return DUAL_MAX
    while low == 0.0 and high > DUAL_MIN and within(high / 2.0):
        high /= 2.0
    low = max(low, high / 2.0)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2.0
        low, high = (low, middle) if within(middle) else (middle, high)
    return high


class _Offers:
    """What the last M requests offered: expected quality and cost by arm, in two rings with a column for each arm.

    Quality is kept as what it was beyond the arm's typical one, to which today's is added: what was learned since counts.
    """

    def __init__(self) -> None:
        self._columns: dict[str, int] = {}
        self._last_seen: dict[str, int] = {}
        self._prices: dict[str, float] = {}
        self._beyond, self._cost_usd = np.full((WINDOW, 0), -np.inf), np.zeros((WINDOW, 0))
        self._typical = np.zeros(0)

    def add(
        self, request: int, arms: Sequence[Arm], quality: Vector, cost_usd: Vector, typical: Vector
    ) -> bool:
        """Whether an arm is new or its price another."""
        news = False
        for arm in arms:
            news |= self._welcome(arm)
            self._last_seen[arm.name] = request
        row, columns = request % WINDOW, [self._columns[arm.name] for arm in arms]
        self._beyond[row], self._cost_usd[row] = -np.inf, 0.0
        self._beyond[row, columns], self._cost_usd[row, columns] = quality - typical, cost_usd
        self._typical[columns] = typical
        return news

    def present(self, requests: int) -> tuple[Matrix, Matrix]:
        """(quality, cost in USD) (M, K) over the arms that are still offered; rows that offered none of them are left out."""
        columns = [k for name, k in self._columns.items() if requests - self._last_seen[name] <= PRESENT]
        quality = self._beyond[: min(requests, WINDOW), columns] + self._typical[columns]
        cost_usd = self._cost_usd[: min(requests, WINDOW), columns]
        some = np.isfinite(quality).any(axis=1)
        return quality[some], cost_usd[some]

    def _welcome(self, arm: Arm) -> bool:
        """A column for an arm that is new; costs at today's price for one whose price has changed. Whether it is new, or its
        price far from what it was.
        """
        price = arm.cost_usd(*TYPICAL_TOKENS)
        before = self._prices.get(arm.name)
        self._prices[arm.name] = price
        if before is None:
            self._columns[arm.name] = len(self._typical)
            self._typical = np.append(self._typical, 0.0)
            self._beyond = np.column_stack([self._beyond, np.full(WINDOW, -np.inf)])
            self._cost_usd = np.column_stack([self._cost_usd, np.zeros(WINDOW)])
            return True
        if price != before:
            self._cost_usd[:, self._columns[arm.name]] *= price / before if before > 0 else 0.0
        return not before / PRICE_JUMP <= price <= before * PRICE_JUMP
