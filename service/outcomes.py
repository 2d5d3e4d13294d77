"""What became of each attempt: kept for a while to be read by its decision's id, and told to whoever counts.

answered   the answer is complete
aborted    the client left first: what was produced is billed, and says nothing about the model
failed     the model failed, before or within its answer
full       the model had no room for it: capacity, not quality
refused    the model found the request itself wrong, or too long
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Literal, Protocol

KEPT: Final = 5_000

Status = Literal["answered", "aborted", "failed", "full", "refused"]
# Where nobody knows what such a call cost, it cost nothing.
UNANSWERED: Final[tuple[Status, ...]] = ("failed", "full", "refused")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One call to a model. place: the deployment called. tokens: None where nobody knows; estimated: they are a guess.

    latency_s: until the end; first_byte_s: until the first byte of an answer, None where none came.
    stage_of: the cascade that the call was made for; stages: of a cascade as a whole, how many calls it took: each of them
    is told of as well, and this is their sum. judging_usd: what its judge cost besides, in calls of decisions of their own.
    """

    status: Status
    route: str
    model: str
    place: str
    latency_s: float
    first_byte_s: float | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    tokens_cached: int = 0
    cost_usd: float | None = None
    estimated: bool = False
    error: str | None = None
    stage_of: str | None = None
    stages: int = 0
    judging_usd: float = 0.0


class Watcher(Protocol):
    def __call__(self, decision_id: str, outcome: Outcome, /) -> None: ...


class Outcomes:
    """watchers: told of every outcome as it comes."""

    def __init__(self, *watchers: Watcher) -> None:
        self.watchers = list(watchers)
        self._kept: OrderedDict[str, list[Outcome]] = OrderedDict()

    def add(self, decision_id: str, outcome: Outcome) -> None:
        """A decision has more than one where several places of its model were called."""
        self._kept.setdefault(decision_id, []).append(outcome)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        for watcher in self.watchers:
            watcher(decision_id, outcome)

    def of(self, decision_id: str) -> tuple[Outcome, ...]:
        """What this process knows of the decision's calls, the oldest first."""
        return tuple(self._kept.get(decision_id, ()))
