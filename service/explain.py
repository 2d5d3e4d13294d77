"""Why a decision fell as it did: what is stored with it, and what is shown of it.

Per candidate: what is believed of its quality (posterior mean and spread), its expected cost and latency, what the
objective makes of them, and the probability with which it was chosen. Per model left out: a code and a reason.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final, cast

import numpy as np
import orjson

from bandit.arms import Exclusion
from bandit.decide import Decision
from bandit.policy import Policy, objective_of
from bandit.posterior import Posterior
from bandit.types import Matrix, Needs
from feedback.records import DecisionPrefix
from service.outcomes import Outcome

CODES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "candidates": "the request did not name it as a candidate",
        "rule": "a rule of the route left it out",
        "context_window": "the request did not fit its window",
        "tools": "the request offered tools and it cannot call them",
        "images": "the request showed images and it cannot see them",
        "json_schema": "the request gave a JSON schema and it keeps to none",
        "unavailable": "it had no key here, or had failed in this request before",
        "busy": "it took no more requests at that moment",
        "resting": "it was given a rest after failures",
        "latency": "it was too likely to be late",
        "session": "the conversation stayed with the model that holds its cache",
        "cascade": "it is several calls, which only a gateway makes",
    }
)
BELIEFS: Final = ("quality_mean", "quality_sd", "cost_usd", "latency_s", "utility")
_UNITS: Final = np.array([1e6, 1e6, 1e12, 1e4, 1e6])  # to what part of one each is told
_NEEDS: Final = attrgetter(*Needs.__slots__)


def beliefs(policy: Policy, posterior: Posterior, decision: Decision) -> Matrix:
    """(K, 5) what was believed of each candidate, in the order of BELIEFS; NaN, null in JSON, where nothing is known.

    quality_mean: within 0..1, which a linear model is not. utility: of the expected quality, where the policy weighs any.
    """
    told = np.empty((len(decision.candidates), len(BELIEFS)))
    told[:, 0] = np.minimum(np.maximum(decision.quality_mean, 0.0), 1.0)
    told[:, 1] = decision.quality_sd
    told[:, 2] = decision.cost_usd
    told[:, 3] = posterior.cost.latency_s(decision.candidates)
    told[:, 4] = decision.utility if objective_of(policy) is not None else np.nan
    rounded: Matrix = (
        np.rint(told * _UNITS) / _UNITS
    )  # an arm that may not be called is worth minus infinity: null too
    return rounded


def explanation_of(
    route: str, policy: Policy, decision: Decision, excluded: Sequence[Exclusion], believed: Matrix
) -> dict[str, Any]:
    """What a record holds beside its prefix: all that is needed to make the decision again, and to explain it."""
    return {
        "route": route,
        "policy": _told(cast("Hashable", policy)),
        "log": decision.token,
        "candidates": [
            [arm.name, p, arm.price_usd_per_mtok_in, arm.price_usd_per_mtok_out]
            for arm, p in zip(decision.candidates, decision.probabilities.tolist(), strict=True)
        ],
        "needs": _NEEDS(decision.context.needs),
        "excluded": {e.arm: e.code for e in excluded},
        "beliefs": believed,
    }


def as_stored(explanation: Mapping[str, Any]) -> Mapping[str, Any]:
    """An explanation as it is read back from a record."""
    stored: Mapping[str, Any] = orjson.loads(orjson.dumps(explanation, option=orjson.OPT_SERIALIZE_NUMPY))
    return stored


def shown(
    explanation: Mapping[str, Any], *, chosen: str, propensity: float, reasons: Mapping[str, str]
) -> dict[str, Any]:
    """An explanation in words that need no manual. reasons: sentences for models left out, where they are known."""
    believed = explanation.get("beliefs") or [[None] * len(BELIEFS)] * len(explanation["candidates"])
    candidates = [
        {
            "model": name,
            "probability": probability,
            "price_usd_per_mtok_in": price_in,
            "price_usd_per_mtok_out": price_out,
            **dict(zip(BELIEFS, belief, strict=True)),
        }
        for (name, probability, price_in, price_out), belief in zip(
            explanation["candidates"], believed, strict=True
        )
    ]
    return {
        "route": explanation["route"],
        "model": chosen,
        "propensity": propensity,
        "choice": _choice(candidates, chosen),
        "candidates": candidates,
        "excluded": [
            {"model": name, "code": code, "reason": reasons.get(name) or CODES.get(code)}
            for name, code in explanation["excluded"].items()
        ],
        "needs": asdict(Needs(*explanation["needs"])),
        "policy": explanation["policy"],
        "snapshot": explanation["log"],
    }


def shown_record(
    decision_id: str, prefix: DecisionPrefix, explanation: Mapping[str, Any], outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """A stored decision, and what became of it as far as this process knows."""
    return {
        "decision_id": decision_id,
        "decided_at": prefix.decided_at,
        "attempt": prefix.attempt,
        **shown(explanation, chosen=prefix.arm, propensity=prefix.propensity, reasons={}),
        "features": prefix.x.tolist(),
        "calls": [asdict(outcome) for outcome in outcomes],
    }


def _choice(candidates: Sequence[Mapping[str, Any]], chosen: str) -> str:
    """exploit: the highest expected utility was chosen; explore: another; only: there was no choice;
    unweighed: the strategy knows no utility.
    """
    if len(candidates) == 1:
        return "only"
    weighed = [candidate for candidate in candidates if candidate["utility"] is not None]
    if not weighed:
        return "unweighed"
    best = max(weighed, key=lambda candidate: float(candidate["utility"]))
    return "exploit" if best["model"] == chosen else "explore"


@lru_cache(maxsize=256)
def _told(policy: Hashable) -> str:
    return repr(policy)
