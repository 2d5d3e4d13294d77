"""Why a decision fell as it did: what is stored with it, and what is shown of it.

Per candidate: what is believed of its quality (posterior mean and spread), its expected cost and latency, what the
objective makes of them, and the probability with which it was chosen. Per model left out: a code and a reason.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from math import isfinite
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from bandit.arms import Arm, Exclusion
from bandit.decide import Decision
from bandit.policy import Policy, objective_of
from bandit.posterior import Posterior
from bandit.types import Needs
from feedback.records import BELIEFS, DecisionPrefix, Explanation
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
NEEDS: Final = attrgetter(*Needs.__slots__)
LISTED_KEPT: Final = 64  # choices of candidates that are kept as JSON


def explanation_of(
    route: str,
    policy: Policy,
    posterior: Posterior,
    decision: Decision,
    excluded: Sequence[Exclusion],
    *,
    embedder: str | None = None,
) -> Explanation:
    """What a record holds beside its prefix: all that is needed to make the decision again, and to explain it. embedder: what
    became of asking one, where there is one.
    """
    told = {
        "route": route,
        "policy": _told(cast("Hashable", policy)),
        "log": decision.token,
        "candidates": _listed(decision.candidates),
        "needs": NEEDS(decision.context.needs),
        "excluded": {e.arm: e.code for e in excluded},
    }
    if decision.strategy is not None:
        told["strategy"] = decision.strategy.tolist()
    if embedder is not None:
        told["embedder"] = embedder
    return Explanation(told, decision.probabilities, _beliefs(policy, posterior, decision))


def _beliefs(policy: Policy, posterior: Posterior, decision: Decision) -> NDArray[np.float32]:
    """(K, 5) what was believed of each candidate. quality_mean: within 0..1, which a linear model is not. utility: of the
    expected quality, where the policy weighs any.
    """
    told = np.empty((len(decision.candidates), len(BELIEFS)), np.float32)
    told[:, 0] = np.minimum(np.maximum(decision.quality_mean, 0.0), 1.0)
    told[:, 1] = decision.quality_sd
    told[:, 2] = decision.cost_usd
    told[:, 3] = posterior.cost.latency_s(decision.candidates)
    told[:, 4] = decision.utility if objective_of(policy) is not None else np.nan
    return told


class _Listed:
    """Candidates with their prices, as JSON that is made once for as long as the very same arms are asked for."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, ...], tuple[tuple[Arm, ...], orjson.Fragment]] = {}

    def __call__(self, arms: tuple[Arm, ...]) -> orjson.Fragment:
        key = tuple(map(id, arms))  # nobody else's as long as the arms are kept here
        kept = self._kept.get(key)
        if kept is None:
            if len(self._kept) >= LISTED_KEPT:
                self._kept.clear()
            rows = [(arm.name, arm.price_usd_per_mtok_in, arm.price_usd_per_mtok_out) for arm in arms]
            kept = self._kept[key] = (arms, orjson.Fragment(orjson.dumps(rows)))
        return kept[1]


_listed: Final = _Listed()


def shown(
    explanation: Explanation, *, chosen: str, propensity: float, reasons: Mapping[str, str]
) -> dict[str, Any]:
    """An explanation, as it is read back from a record, in words that need no manual. reasons: sentences for models left
    out, where they are known.
    """
    told = explanation.told
    candidates = [
        {
            "model": name,
            "probability": probability,
            "price_usd_per_mtok_in": price_in,
            "price_usd_per_mtok_out": price_out,
            **dict(zip(BELIEFS, map(_number, belief), strict=True)),
        }
        for (name, price_in, price_out), probability, belief in zip(
            told["candidates"], explanation.probabilities.tolist(), explanation.beliefs.tolist(), strict=True
        )
    ]
    return {
        "route": told["route"],
        "model": chosen,
        "propensity": propensity,
        "choice": _choice(candidates, chosen),
        "candidates": candidates,
        "excluded": [
            {"model": name, "code": code, "reason": reasons.get(name) or CODES.get(code)}
            for name, code in told["excluded"].items()
        ],
        "needs": asdict(Needs(*told["needs"])),
        **({"strategy": _by_name(told)} if "strategy" in told else {}),
        **({"embedder": told["embedder"]} if "embedder" in told else {}),
        "policy": told["policy"],
        "snapshot": told["log"],
    }


def shown_record(
    decision_id: str, prefix: DecisionPrefix, explanation: Explanation, outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """A stored decision, and what became of it as far as this process knows."""
    known: dict[str, Any] = {"model": prefix.arm, "propensity": prefix.propensity}
    if explanation.told:
        known = shown(explanation, chosen=prefix.arm, propensity=prefix.propensity, reasons={})
    return {
        "decision_id": decision_id,
        "decided_at": prefix.decided_at,
        "attempt": prefix.attempt,
        **known,
        "features": prefix.x.tolist(),
        "calls": [asdict(outcome) for outcome in outcomes],
    }


def _by_name(told: Mapping[str, Any]) -> dict[str, float]:
    """Of a ramped route: the probabilities with which its own strategy would have chosen."""
    return {name: p for (name, *_), p in zip(told["candidates"], told["strategy"], strict=True)}


def _number(value: float) -> float | None:
    """To the six digits that a record holds for sure; None where nothing is known, and for an arm that may not be called."""
    return float(f"{value:.6g}") if isfinite(value) else None


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
