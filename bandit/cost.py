"""Expected cost of a call: tokens are learned, prices are read from the registry when deciding.

    E[cost] = correction x (price_in x E[tokens_in] + price_out x E[tokens_out])

    E[tokens_in]  = estimate x (billed + k t) / (estimated + k t)     t = the pooled mean estimate of a prompt
    E[tokens_out] = (k T + tokens_out) / (k + calls)                  T = the pooled mean answer over all arms
    correction    = (reported + k c) / (listed + k c)                 c = the mean listed cost of the reported calls

Each is a sample mean shrunk by k pseudo-calls to what is known without the arm, so a new arm starts at the pool's mean.
A price change acts on the next decision and spoils nothing that was learned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from bandit.arms import Arm
from bandit.statistics import CallStatistics
from bandit.types import Needs, Vector

PSEUDO_CALLS: Final = 5.0  # k
TYPICAL_TOKENS_OUT: Final = 300.0  # an answer's length before any was seen
NO_CALLS: Final = CallStatistics()


@dataclass(frozen=True, slots=True, eq=False)
class CostModel:
    """What calls are expected to take, from the statistics of each arm by name."""

    calls: Mapping[str, CallStatistics]
    pooled: CallStatistics

    @classmethod
    def fit(cls, calls: Mapping[str, CallStatistics]) -> "CostModel":
        return cls(calls, sum(calls.values(), start=NO_CALLS))

    def expected_usd(self, arms: Sequence[Arm], needs: Needs) -> Vector:
        """(K,) expected cost of each arm's answer to this request in USD."""
        return np.array([self._expected_usd(arm, needs) for arm in arms])

    def tokens_out(self, arm: str) -> float:
        """Expected length of the arm's answer in tokens."""
        seen, pooled = self.calls.get(arm, NO_CALLS), self.pooled
        pool_mean = (PSEUDO_CALLS * TYPICAL_TOKENS_OUT + pooled.tokens_out) / (PSEUDO_CALLS + pooled.calls)
        return (PSEUDO_CALLS * pool_mean + seen.tokens_out) / (PSEUDO_CALLS + seen.calls)

    def _expected_usd(self, arm: Arm, needs: Needs) -> float:
        seen = self.calls.get(arm.name, NO_CALLS)
        tokens_in = needs.tokens_in * self._tokens_in_ratio(seen)
        tokens_out = self.tokens_out(arm.name)
        if needs.max_tokens_out is not None:
            tokens_out = min(tokens_out, needs.max_tokens_out)
        return self._corrected(arm.cost_usd(tokens_in, tokens_out), arm.name, seen)

    def _tokens_in_ratio(self, seen: CallStatistics) -> float:
        pooled = self.pooled
        prior = PSEUDO_CALLS * (pooled.tokens_in_estimated / pooled.calls if pooled.calls else 1.0)
        return (seen.tokens_in + prior) / (seen.tokens_in_estimated + prior)

    def _corrected(self, listed_usd: float, arm: str, seen: CallStatistics) -> float:
        if listed_usd == 0 and seen.unpriced_calls:  # a model without a price costs what was reported
            return 1e-9 * seen.unpriced_nano_usd / (PSEUDO_CALLS + seen.unpriced_calls)
        listed = seen.listed_in_nano_usd + seen.listed_out_nano_usd_per_token * self.tokens_out(arm)
        if listed == 0 or not seen.reported_calls:
            return listed_usd
        prior = PSEUDO_CALLS * listed / seen.reported_calls
        return listed_usd * (seen.reported_nano_usd + prior) / (listed + prior)
