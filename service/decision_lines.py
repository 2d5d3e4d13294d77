"""The lines of the decision log. Every line is a JSON object with `kind` and `decision_id`; ids join them over all files.

decision   decided_at (Unix seconds), scope ("tenant.route" whose learning it fed), route (what was asked for), attempt, model,
           propensity, candidates (names), and in their order: probabilities, quality_mean (expected, 0..1), cost_usd
           (expected), strategy (of a ramped route: the probabilities of its own strategy); excluded (model -> why), and
           policy and features, 8 bytes in hex that name how was decided and on which vectors
call       what one call took: status, model, cost_usd, tokens_in, tokens_out, latency_s; of a cascade all of its calls in one,
           its judge included
rating     source, quality (0..1; null: withdrawn), at: the last of a source counts
charge     what the application says the decision really cost: source, cost_usd, at
"""

from typing import Any, Final

import numpy as np
import orjson

from feedback.events import RATED
from feedback.records import BELIEFS, decode_record
from feedback.store import Feedback
from service.outcomes import Outcome

OPTIONS: Final = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
QUALITY_MEAN, COST_USD = BELIEFS.index("quality_mean"), BELIEFS.index("cost_usd")


def decision_line(scope: str, decision_id: str, record: bytes) -> bytes:
    """Raises MalformedError."""
    prefix, explanation = decode_record(record)
    told = explanation.told
    strategy = {"strategy": told["strategy"]} if "strategy" in told else {}
    return _line(
        "decision",
        decision_id,
        decided_at=prefix.decided_at,
        scope=scope,
        route=told["route"],
        attempt=prefix.attempt,
        model=prefix.arm,
        propensity=prefix.propensity,
        candidates=[name for name, *_ in told["candidates"]],
        probabilities=explanation.probabilities,
        quality_mean=np.ascontiguousarray(explanation.beliefs[:, QUALITY_MEAN]),
        cost_usd=np.ascontiguousarray(explanation.beliefs[:, COST_USD]),
        **strategy,
        excluded=told["excluded"],
        policy=prefix.policy.hex(),
        features=prefix.features.hex(),
    )


def call_line(decision_id: str, outcome: Outcome) -> bytes:
    return _line(
        "call",
        decision_id,
        status=outcome.status,
        model=outcome.model,
        cost_usd=None if outcome.cost_usd is None else outcome.cost_usd + outcome.judging_usd,
        tokens_in=outcome.tokens_in,
        tokens_out=outcome.tokens_out,
        latency_s=outcome.latency_s,
    )


def feedback_line(feedback: Feedback) -> bytes:
    kind, value = ("rating", "quality") if feedback.kind == RATED else ("charge", "cost_usd")
    told: dict[str, Any] = {"source": feedback.source, value: feedback.value, "at": feedback.at}
    return _line(kind, feedback.decision_id, **told)


def _line(kind: str, decision_id: str, **told: Any) -> bytes:
    return orjson.dumps({"kind": kind, "decision_id": decision_id} | told, option=OPTIONS)
