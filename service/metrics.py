"""What Prometheus is told. Every label comes from a closed list: the configuration's routes and models, our own words.

With several gateways on one machine that share a scrape, set PROMETHEUS_MULTIPROC_DIR to an empty folder for all of them:
then each answers for all. Otherwise each answers for itself.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fastapi.responses import Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from service.embedder import How
from service.outcomes import Outcome

if TYPE_CHECKING:
    from service.app import Gateway

SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


@dataclass(frozen=True, slots=True)
class _Series:
    """Of calls to one model on one route that came out alike: looked up once."""

    calls: Counter
    latency: Histogram
    first_byte: Histogram
    tokens_in: Counter
    tokens_out: Counter
    cost: Counter


class Metrics:
    """One registry of its own, so that several gateways may live in one process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._series: dict[tuple[str, str, str], _Series] = {}
        counter, histogram = self._counter, self._histogram
        self._requests = counter(
            "requests", "Chat requests answered, by the status the client saw.", "status"
        )
        self._duration = histogram(
            "request_duration_seconds", "From the request to the last byte of its answer."
        )
        self._calls = counter(
            "calls", "Calls to models, by what became of them.", "route", "model", "outcome"
        )
        self._latency = histogram("call_duration_seconds", "Answered calls, to their last byte.", "model")
        self._first_byte = histogram(
            "call_first_byte_seconds", "Calls, to the first byte of an answer.", "model"
        )
        self._tokens = counter(
            "tokens", "Tokens as billed, or estimated where a client left.", "model", "direction"
        )
        self._cost = counter(
            "cost_usd", "USD at the registry's prices, aborted calls included.", "route", "model"
        )
        self._in_flight = self._gauge("requests_in_flight", "Chat requests under way.", "livesum")
        self._resting = self._gauge(
            "places_resting", "Places given a rest after failures.", "livemax", "model"
        )
        self._denied = self._gauge(
            "retries_denied", "Further calls that the retry budget refused.", "livesum"
        )
        self._queued = self._gauge(
            "feedback_queued", "Feedback on disk that the store does not have yet.", "livemax"
        )
        self._away = self._gauge("store_away", "1 while the store cannot be reached.", "livemax")
        self._budget = self._gauge(
            "budget_usd",
            "Of each budget: its limit, what is spent, what gateways hold.",
            "livemax",
            "budget",
            "what",
        )
        self._embedded = counter(
            "embeddings", "Decisions for which an embedder was wanted, by what became of it.", "outcome"
        )
        self._log_dropped = self._gauge(
            "decision_log_dropped", "Lines of the decision log that were never written.", "livesum"
        )
        self._log_away = self._gauge("decision_log_away", "1 while its disk takes nothing.", "livemax")
        self._events = self._gauge("events_folded", "Events in the posterior.", "livemax", "route")

    def called(self, decision_id: str, outcome: Outcome) -> None:
        if outcome.stages:  # its calls were counted one by one
            return
        key = outcome.route, outcome.model, outcome.status
        series = self._series.get(key) or self._new_series(*key)
        series.calls.inc()
        if outcome.first_byte_s is not None:
            series.first_byte.observe(outcome.first_byte_s)
        if outcome.status == "answered":
            series.latency.observe(outcome.latency_s)
        if outcome.tokens_in is not None and outcome.tokens_out is not None:
            series.tokens_in.inc(outcome.tokens_in)
            series.tokens_out.inc(outcome.tokens_out)
        if outcome.cost_usd is not None:
            series.cost.inc(max(outcome.cost_usd, 0.0))

    def _new_series(self, route: str, model: str, status: str) -> "_Series":
        series = self._series[route, model, status] = _Series(
            calls=self._calls.labels(route, model, status),
            latency=self._latency.labels(model),
            first_byte=self._first_byte.labels(model),
            tokens_in=self._tokens.labels(model, "in"),
            tokens_out=self._tokens.labels(model, "out"),
            cost=self._cost.labels(route, model),
        )
        return series

    def embedded(self, how: How) -> None:
        self._embedded.labels(how).inc()

    def request_answered(self, status: int, duration_s: float | None) -> None:
        """duration_s: to the last byte, None where that was not sent."""
        self._requests.labels(str(status)).inc()
        if duration_s is not None:
            self._duration.observe(duration_s)

    def page(self, gateway: "Gateway") -> Response:
        """What a scrape gets; gauges are read now."""
        self._in_flight.set(gateway.access.at_once)
        self._denied.set(gateway.pipeline.budget.denied)
        self._queued.set(gateway.learning.intake.queued)
        self._away.set(float(gateway.learning.store_error is not None))
        if gateway.decision_log is not None:
            self._log_dropped.set(gateway.decision_log.dropped)
            self._log_away.set(float(gateway.decision_log.error is not None))
        for scope, route in gateway.learning.routes.items():
            self._events.labels(scope).set(route.replica.state.events)
        for name, told in gateway.budgets.told().items():
            for what in ("limit", "spent", "held"):
                if (usd := told[f"{what}_usd"]) is not None:
                    self._budget.labels(name, what).set(usd)
        now_s = gateway.access.clock()
        for name, resting in gateway.pipeline.deployments.resting(now_s).items():
            self._resting.labels(name).set(resting)
        return Response(generate_latest(self._everybodys()), media_type=CONTENT_TYPE_LATEST)

    def _everybodys(self) -> CollectorRegistry:
        """What is told: of this process, or of all that share a folder."""
        folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if not folder:
            return self._registry
        for file in Path(folder).glob("gauge_live*_*.db"):
            if not _is_alive(pid := int(file.stem.rpartition("_")[2])):
                mark_process_dead(pid)  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return registry

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"router_{name}", what, labels, registry=self._registry)

    def _histogram(self, name: str, what: str, *labels: str) -> Histogram:
        return Histogram(f"router_{name}", what, labels, registry=self._registry, buckets=SECONDS)

    def _gauge(self, name: str, what: str, mode: Any, *labels: str) -> Gauge:
        return Gauge(f"router_{name}", what, labels, registry=self._registry, multiprocess_mode=mode)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
