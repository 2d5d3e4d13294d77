"""Where each model can be called now: load over its places, and the rest that a failing or full place is given.

Balancing and failover are not routing. Which model answers is the strategy's choice; which of its places is called is
decided here, and cannot change the answer: the one with the fewest calls on it for its weight.

A place is left out while it has no key, is full (as many calls as it may have, or a 429 that asked for time: capacity,
not quality), or is sick (its breaker is open, or it fails much oftener than the others). Never all for sickness: where
every model that could serve a request is sick, they are called all the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from service.breaker import Breaker
from service.outliers import NOTHING, Record, is_outlier
from service.settings import Deployment, Model

Fault = Literal["unavailable", "busy", "resting"]
REASONS: Final[Mapping[Fault, str]] = {
    "unavailable": "the gateway has no key for it",
    "busy": "it takes no more requests for the moment",
    "resting": "it is given a rest after failures",
}
BUSY_S: Final = 1.0  # how long a 429 without retry-after asks for


class Place:
    """A deployment and how it is doing. now_s: monotonic seconds."""

    __slots__ = ("breaker", "busy_until_s", "deployment", "outstanding", "record")

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.breaker, self.record = Breaker(), Record()
        self.outstanding = 0
        self.busy_until_s = float("-inf")

    def fault(self, now_s: float) -> Fault | None:
        limit = self.deployment.max_concurrent
        if self.deployment.missing_key_env is not None:
            return "unavailable"
        if now_s < self.busy_until_s or (limit is not None and self.outstanding >= limit):
            return "busy"
        if not self.breaker.allows(now_s) or self.record.is_out(now_s):
            return "resting"
        return None

    def is_doubtful(self, now_s: float) -> bool:
        """It has a fault, or may come to have one without a call that fails."""
        return (
            self.deployment.max_concurrent is not None
            or self.breaker.is_open
            or self.fault(now_s) is not None
        )

    @property
    def load(self) -> float:
        return (self.outstanding + 1) / self.deployment.weight


@dataclass(slots=True)
class Visit:
    """One call to a place. It is reported once: as answered, failed, refused for capacity, or (at its end) neither."""

    place: Place
    probe: bool
    reported: bool = False


class Deployments:
    """Every place of every model, over reloads of the configuration."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self._places: dict[Deployment, Place] = {}
        self._of_model: dict[str, tuple[Place, ...]] = {}
        self._next = 0
        self._doubtful: set[Place] = set()  # of all others it is known that they have no fault
        self.adopt(models)

    def adopt(self, models: Mapping[str, Model]) -> None:
        """Serve these from now on; a place that stays as it was keeps what is known of it."""
        known = self._places
        self._places = {d: known.get(d) or Place(d) for model in models.values() for d in model.deployments}
        self._of_model = {
            name: tuple(self._places[d] for d in model.deployments) for name, model in models.items()
        }
        self._doubtful = set(self._places.values())

    @property
    def places(self) -> Iterable[Place]:
        return self._places.values()

    def faults(self, models: Iterable[str], now_s: float) -> dict[str, Fault]:
        """The models that cannot be called now, each with why. Sickness counts only while another can be called."""
        self._doubtful = {place for place in self._doubtful if place.is_doubtful(now_s)}
        if not self._doubtful:
            return {}
        faults = {name: fault for name in models if (fault := self._fault(name, now_s)) is not None}
        if all(name in faults for name in models):
            return {name: fault for name, fault in faults.items() if fault != "resting"}
        return faults

    def visit(self, model: str, now_s: float, *, not_again: Iterable[Place] = ()) -> Visit | None:
        """The place to call, counted as called; None where each has been tried. A sick one only if there is no other."""
        places = self._of_model[model]
        if len(places) == 1 and not not_again and places[0] not in self._doubtful:
            places[0].outstanding += 1
            return Visit(places[0], places[0].breaker.begin(now_s))
        fit: list[Place] = []
        sick: list[Place] = []
        for place in places:
            fault = place.fault(now_s) if place not in not_again else "unavailable"
            if fault is None:
                fit.append(place)
            elif fault == "resting":
                sick.append(place)
        choice = fit or (sick if not not_again else ())
        if not choice:
            return None
        self._next += 1  # equal loads take turns
        turned = [*choice[self._next % len(choice) :], *choice[: self._next % len(choice)]]
        place = min(turned, key=lambda place: place.load)
        place.outstanding += 1
        return Visit(place, place.breaker.begin(now_s))

    def begun(self, visit: Visit) -> None:
        """The first byte of an answer is there: enough for a probe, which would else keep others waiting for its end."""
        if visit.probe:
            visit.place.breaker.succeeded(probe=True)
            visit.probe = False

    def answered(self, visit: Visit, now_s: float) -> None:
        visit.reported = True
        visit.place.breaker.succeeded(probe=visit.probe)
        visit.place.record.add(now_s, failed=False)

    def failed(self, visit: Visit, now_s: float, *, timeout: bool = False) -> None:
        visit.reported = True
        place = visit.place
        self._doubtful.add(place)
        place.breaker.failed(now_s, probe=visit.probe, timeout=timeout)
        place.record.add(now_s, failed=True)
        if self._may_leave_out(place, now_s):
            place.record.leave_out(now_s)

    def full(self, visit: Visit, now_s: float, *, retry_after_s: float | None) -> None:
        """The place asked for time. It works; so a breaker that was testing it closes."""
        visit.reported = True
        self._doubtful.add(visit.place)
        visit.place.breaker.succeeded(probe=visit.probe)
        pause_s = BUSY_S if retry_after_s is None else retry_after_s
        visit.place.busy_until_s = max(visit.place.busy_until_s, now_s + pause_s)

    def left(self, visit: Visit) -> None:
        """The call is over, whatever came of it."""
        visit.place.outstanding -= 1
        if not visit.reported:
            visit.place.breaker.abandoned(probe=visit.probe)

    def free_in_s(self, models: Iterable[str], now_s: float) -> float:
        """When the first of these models that are full may have room: seconds from now, at least BUSY_S."""
        waits = [place.busy_until_s - now_s for name in models for place in self._of_model[name]]
        return max(BUSY_S, min(waits, default=BUSY_S))

    def resting(self, now_s: float) -> dict[str, int]:
        """By model: how many of its places are given a rest."""
        return {
            name: sum(place.fault(now_s) == "resting" for place in places)
            for name, places in self._of_model.items()
        }

    def _fault(self, model: str, now_s: float) -> Fault | None:
        faults = [place.fault(now_s) for place in self._of_model[model]]
        if None in faults:
            return None
        return next((fault for fault in ("resting", "busy") if fault in faults), "unavailable")

    def _may_leave_out(self, place: Place, now_s: float) -> bool:
        out = sum(other.record.is_out(now_s) for other in self._places.values())
        if 2 * (out + 1) > len(self._places) or place.record.is_out(now_s):
            return False
        others = [
            other for other in self._places.values() if other is not place and not other.breaker.is_open
        ]
        return is_outlier(
            place.record.tally(now_s), sum((other.record.tally(now_s) for other in others), start=NOTHING)
        )
