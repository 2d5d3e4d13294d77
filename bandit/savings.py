"""What a router saved, told from its own log: it as it routed, beside every fixed model, chance, and its strategy unramped.

Quality is told of the decisions that were rated, cost of those whose cost is known, each with what the log can say of its
error. A model that could not be chosen now and then (its window was too small, it was resting) is taken as routed there.

Where one model's answers are rated oftener than another's, all decisions count, and to be seen an outcome must be chosen and
rated: with probability p_b rho_b, rho_b the share of model b's answers that were rated. This is right where being rated hangs
on the model and on nothing else; rho is estimated, so no interval holds at every n then.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bandit.comparison import difference, difference_sequence, effective_n, on_these_requests
from bandit.evaluation import Estimate, Log, confidence_sequence
from bandit.types import Matrix, Vector

AS_ROUTED: Final = "as routed"
UNIFORM: Final = "uniform random"
STRATEGY: Final = "the strategy, unramped"
POSSIBLE_IN: Final = 0.95  # of the decisions, for a model to be told of
EFFECTIVE_MIN: Final = 10.0  # outcomes, below which an estimate is no figure to print
EXPECTED_MIN: Final = 5.0  # ratings that a model's answers should have, for their number to mean something
UNEVEN: Final = 4.0  # standard errors by which a model may be rated oftener or seldomer than all


@dataclass(frozen=True, slots=True, eq=False)
class Traffic:
    """n decisions of one route over K models, in the order they were made; 0 where a model was no candidate.

    probabilities, quality_mean, expected_usd, strategy (n, K): as logged; strategy: what a ramped route's own would have
    been, and the probabilities themselves elsewhere. chosen (n,). quality (n,): NaN where unrated; cost_usd (n,): NaN where
    nobody knows.
    """

    models: tuple[str, ...]
    probabilities: Matrix
    quality_mean: Matrix
    expected_usd: Matrix
    strategy: Matrix
    chosen: NDArray[np.int64]
    quality: Vector
    cost_usd: Vector

    def __len__(self) -> int:
        return len(self.chosen)


@dataclass(frozen=True, slots=True)
class Told:
    """A mean. value, se: doubly robust, and its standard error at a fixed n; None where the log is worth too little to say.
    lower, upper: of a quality, hold at every n with 95 %. n: told from; effective_n: what they are worth to this policy.
    expected: what the router itself expected, which need not be so.
    """

    value: float | None = None
    se: float = math.inf
    lower: float = -math.inf
    upper: float = math.inf
    n: int = 0
    effective_n: float = 0.0
    expected: float = math.nan


@dataclass(frozen=True, slots=True)
class Against:
    """As routed minus another policy: of quality, a mean; of cost, all decisions whose cost is known. other_usd: what the other
    policy would have cost, with its standard error; where that is inf, only as expected.
    """

    quality: Told
    paid_usd: float
    other_usd: float
    se_usd: float

    @property
    def saved_usd(self) -> float:
        return self.other_usd - self.paid_usd


@dataclass(frozen=True, slots=True)
class Row:
    """One policy. usd: per request. against: as routed minus it; None for what was routed and for what is expected only."""

    policy: str
    quality: Told
    usd: Told
    against: Against | None


def rows(traffic: Traffic) -> list[Row]:
    """As routed first. ValueError without a single decision."""
    if not len(traffic):
        raise ValueError("no decision, so nothing was saved")
    return [_row(name, target, traffic) for name, target in _targets(traffic)]


def always(model: str) -> str:
    """The policy's name."""
    return f"always {model}"


def possible(traffic: Traffic) -> Mapping[str, float]:
    """Share of the decisions in which each model could be chosen."""
    shares = (traffic.probabilities > 0).mean(axis=0)
    return MappingProxyType(dict(zip(traffic.models, map(float, shares), strict=True)))


def dearest(found: Sequence[Row]) -> str | None:
    """Of the models whose cost was measured, the policy of the one expected to cost most; None where there is none."""
    told = [row for row in found if row.policy.startswith(always("")) and row.usd.value is not None]
    return max(told, key=lambda row: row.usd.expected).policy if told else None


def _targets(traffic: Traffic) -> Iterator[tuple[str, Matrix]]:
    """(policy, (n, K) its probabilities), one at a time: they are large."""
    p, models = traffic.probabilities, traffic.models
    yield AS_ROUTED, p
    if (traffic.strategy != p).any():
        yield STRATEGY, _where_possible(traffic.strategy, p)
    for k, (model, share) in enumerate(possible(traffic).items()):
        if share >= POSSIBLE_IN:
            yield always(model), np.where(p[:, k : k + 1] > 0, np.eye(len(models))[k], p)
    could = p > 0
    yield UNIFORM, could / could.sum(axis=1, keepdims=True)


def _where_possible(target: Matrix, p: Matrix) -> Matrix:
    """As routed where the target wants what could not be chosen, if that is seldom."""
    unseen = ((target > 0) & (p == 0)).any(axis=1, keepdims=True)
    return np.where(unseen, p, target) if unseen.mean() <= 1.0 - POSSIBLE_IN else target


def _row(name: str, target: Matrix, traffic: Traffic) -> Row:
    believed, model_usd = np.clip(traffic.quality_mean, 0.0, 1.0), np.nan_to_num(traffic.expected_usd)
    unseen = ((target > 0) & (traffic.probabilities == 0)).any()
    if unseen:  # in shadow nobody sees what the strategy would get
        quality, usd = (Told(expected=_mean(target, model)) for model in (believed, model_usd))
        return Row(name, quality, usd, None)
    scale = max(float(np.nanmax(traffic.cost_usd, initial=0.0)), 1e-12)  # a log's outcomes lie within 0..1
    rated = _log(traffic, target, believed, traffic.quality, uneven=is_uneven(traffic))
    billed = _log(traffic, target, model_usd / scale, traffic.cost_usd / scale)
    even = not is_uneven(traffic)
    quality = Told() if rated is None else _quality(rated, even=even)
    usd = Told() if billed is None else _scaled(billed, scale)
    against = None if name == AS_ROUTED else _against(rated, usd, traffic)
    return Row(name, quality, usd, against)


def is_uneven(traffic: Traffic) -> bool:
    """Some model's answers were rated oftener than others', and not by chance."""
    shares = rated_shares(traffic)
    return bool((shares != shares[0]).any())


def rated_shares(traffic: Traffic) -> Vector:
    """(K,) the share of each model's answers that were rated; that of all answers where the model's own may be the same."""
    rated = ~np.isnan(traffic.quality)
    of_all = rated.mean()
    asked = np.bincount(traffic.chosen, minlength=len(traffic.models))
    own = np.bincount(traffic.chosen, rated, minlength=len(traffic.models)) / np.maximum(asked, 1)
    sd = np.sqrt(of_all * (1.0 - of_all) / np.maximum(asked, 1))
    many = asked * of_all >= EXPECTED_MIN
    shares: Vector = np.where(many & (np.abs(own - of_all) > UNEVEN * sd), own, of_all)
    return shares


def _log(
    traffic: Traffic, target: Matrix, model: Matrix, outcome: Vector, *, uneven: bool = False
) -> Log | None:
    """Of the decisions whose outcome is known; None without any, or where the target wants what is never seen."""
    known = ~np.isnan(outcome)
    if not known.any():
        return None
    p, chosen = traffic.probabilities, traffic.chosen
    if uneven:
        p = p * rated_shares(traffic)
        p = np.column_stack([p, 1.0 - p.sum(axis=1)])  # the last column: nothing was seen
        target, model = (np.column_stack([m, np.zeros(len(m))]) for m in (target, model))
        chosen = np.where(known, chosen, len(traffic.models))
        outcome, known = np.nan_to_num(outcome), np.ones_like(known)
    if ((target > 0) & (p == 0))[known].any():
        return None
    return Log(p[known], chosen[known], outcome[known], target[known], model[known])


def _as_seen(log: Log) -> Log:
    """Without the model where the target is as routed: what came of it is all there is to know."""
    alike = (log.target == log.probabilities).all(axis=1, keepdims=True)
    return replace(log, predicted=np.where(alike, 0.0, log.predicted))


def _quality(log: Log, *, even: bool) -> Told:
    found = on_these_requests(_as_seen(log))
    found = Estimate(min(max(found.value, 0.0), 1.0), found.se)
    if not even or (log.target == log.probabilities).all():  # of what was routed nothing is unknown
        return _told(log, found)
    lower, upper = confidence_sequence(_as_seen(log))
    return _told(log, found, float(lower[-1]), float(upper[-1]))


def _told(log: Log, found: Estimate, lower: float = -math.inf, upper: float = math.inf) -> Told:
    effective = effective_n(log)
    known = math.isfinite(found.se) and effective >= EFFECTIVE_MIN
    return Told(
        value=found.value if known else None,
        se=found.se if known else math.inf,
        lower=lower,
        upper=upper,
        n=len(log.outcome),
        effective_n=effective,
        expected=_mean(log.target, log.predicted),
    )


def _scaled(log: Log, scale: float) -> Told:
    found = on_these_requests(_as_seen(log))
    known = math.isfinite(found.se) and effective_n(log) >= EFFECTIVE_MIN
    return Told(
        value=scale * found.value if known else None,
        se=scale * found.se if known else math.inf,
        n=len(log.outcome),
        effective_n=effective_n(log),
        expected=scale * _mean(log.target, log.predicted),
    )


def _against(rated: Log | None, usd: Told, traffic: Traffic) -> Against:
    quality = Told() if rated is None else _lost(rated, traffic)
    paid = float(np.nansum(traffic.cost_usd))
    per_request = usd.expected if usd.value is None else usd.value
    return Against(quality, paid, usd.n * per_request, usd.n * usd.se)


def _lost(rated: Log, traffic: Traffic) -> Told:
    """What was routed minus the target."""
    seen = _as_seen(rated)
    found = on_these_requests(seen)
    if not is_uneven(traffic):
        lower, upper = difference_sequence(seen)
        return _told(rated, Estimate(difference(seen), found.se), float(lower[-1]), float(upper[-1]))
    target = np.column_stack([traffic.probabilities, np.zeros(len(traffic))])
    if ((target > 0) & (rated.probabilities == 0)).any():
        return Told(n=len(rated.outcome))
    routed = on_these_requests(replace(rated, target=target))
    return _told(rated, Estimate(routed.value - found.value, routed.se + found.se))  # at most


def _mean(target: Matrix, model: Matrix) -> float:
    return float((target * model).sum(axis=1).mean())
