"""What is believed of models before a route has seen a rating: a population prior, fitted from many models' outcomes.

    quality of arm a at x  ~  x' (mean + z_a price_slope + u_a e_0)        before any rating; e_0 the bias

    z_a   log10 of the arm's list price for output, minus the mean over the route's arms (0 where no price is known)
    u_a   how much better the model is known to be than its price says, where it is known by name (0 otherwise)

and how far a route (shared_variance) or one of its arms (arm_variance) may lie from that, for each feature, in units of a
rating's noise variance: a variance of 1/n is a belief worth n ratings. `python -m simulations fit-prior` makes the file
from recorded outcomes; without one `QualityPrior.flat` knows nothing of any model. What the registry says of an arm
(`expected_quality`, `sibling`) moves its prior mean. A wrong prior is unlearned like any other
belief, and believed less for all arms where the rated ones contradict it (bandit.level_spread).
"""

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeGuard

import numpy as np

from bandit.arms import Arm
from bandit.types import Matrix, Vector

VERSION: Final = 2
FLAT_MEAN: Final = 0.7
FLAT_SQUARE: Final = 13.0  # of all features but the bias together, on recorded prompts 11 to 16
FLAT_VARIANCES: Final = (1.0, 1 / 4, 1.0, 1 / 40)  # shared level and slopes, an arm's level and slopes
_ARRAYS: Final = ("mean", "price_slope", "shared_variance", "arm_variance", "typical_x", "typical_square")


@dataclass(frozen=True, slots=True)
class KnownModel:
    """level: its quality minus what its price says, in points / 100; sd: how surely that carries over to a new route."""

    level: float
    sd: float


@dataclass(frozen=True, slots=True, eq=False)
class QualityPrior:
    """See the module. mean, price_slope, shared_variance, arm_variance (d,). typical_x, typical_square (d,): a usual request,
    means of its features and of their squares.

    noise_variance: of a rating about its expectation, held by noise_weight ratings. features: tag of the vectors it was
    fitted for; b"" fits any. known: canonical name -> what is known of the model.
    """

    mean: Vector
    price_slope: Vector
    shared_variance: Vector
    arm_variance: Vector
    typical_x: Vector
    typical_square: Vector
    noise_variance: float
    noise_weight: float
    features: bytes = b""
    known: Mapping[str, KnownModel] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def flat(cls, d: int) -> "QualityPrior":
        """`prior: none`: any model may be anything, and few ratings tell."""
        level, slope, arm_level, arm_slope = FLAT_VARIANCES
        bias = np.eye(1, d)[0]
        return cls(
            mean=FLAT_MEAN * bias,
            price_slope=np.zeros(d),
            shared_variance=np.where(bias > 0, level, slope),
            arm_variance=np.where(bias > 0, arm_level, arm_slope),
            typical_x=bias,
            typical_square=np.where(bias > 0, 1.0, FLAT_SQUARE / max(d - 1, 1)),
            noise_variance=0.1,
            noise_weight=10.0,
        )

    def of(self, arms: Sequence[Arm]) -> "ArmPriors":
        """The prior of each arm, and in the last row of an arm of which nothing is known."""
        z = np.r_[relative_log_prices([arm.price_usd_per_mtok_out for arm in arms]), 0.0]
        means = self.mean + np.outer(z, self.price_slope)
        variances = np.tile(self.arm_variance, (len(z), 1))
        for k, arm in enumerate(arms):
            known = self.known.get(canonical(arm.sibling or arm.name))
            if known is not None:
                means[k, 0] += known.level
                variances[k, 0] = known.sd**2 / self.noise_variance
            if arm.expected_quality is not None:
                means[k, 0] += arm.expected_quality - means[k] @ self.typical_x
                variances[k, 0] = 1.0 / arm.expected_quality_ratings
        return ArmPriors(means, 1.0 / variances)

    def with_other(self, columns: slice, features: bytes) -> "QualityPrior":
        """For vectors whose `columns` mean something else, of mean 0 and variance 1: nothing is expected of these but that they
        vary as they did, and a usual request is worth what it was.
        """
        mean, slope, x = self.mean.copy(), self.price_slope.copy(), self.typical_x.copy()
        mean[0] += mean[columns] @ x[columns]
        slope[0] += slope[columns] @ x[columns]
        mean[columns] = slope[columns] = x[columns] = 0.0
        square = self.typical_square.copy()
        square[columns] = 1.0
        return replace(
            self, mean=mean, price_slope=slope, typical_x=x, typical_square=square, features=features
        )

    def to_json(self) -> str:
        numbers = {name: [_rounded(v) for v in getattr(self, name)] for name in _ARRAYS}
        known = {name: [round(k.level, 4), _rounded(k.sd)] for name, k in sorted(self.known.items())}
        return (
            json.dumps(
                {
                    "version": VERSION,
                    "provenance": dict(self.provenance),
                    "features": self.features.hex(),
                    "noise_variance": _rounded(self.noise_variance),
                    "noise_weight": self.noise_weight,
                    "known": known,
                    **numbers,
                },
                indent=1,
            )
            + "\n"
        )


def _rounded(number: float) -> float:
    """To five digits, however small: what is above 0 stays above 0."""
    return float(f"{number:.5g}")


@dataclass(frozen=True, slots=True, eq=False)
class ArmPriors:
    """means, precisions (K + 1, d): of each arm's weights; precisions in units of 1 / noise variance."""

    means: Matrix
    precisions: Matrix

    def with_levels_spread(self, factor: float) -> "ArmPriors":
        """With the prior variance of every arm's level times the factor."""
        if factor == 1.0:
            return self
        precisions = self.precisions.copy()
        precisions[:, 0] /= factor
        return ArmPriors(self.means, precisions)

    def with_slopes_spread(self, factor: float) -> "ArmPriors":
        """With the prior variance of all but the level times the factor."""
        if factor == 1.0:
            return self
        precisions = self.precisions / factor
        precisions[:, 0] = self.precisions[:, 0]
        return ArmPriors(self.means, precisions)


def relative_log_prices(usd_per_mtok_out: Sequence[float]) -> Vector:
    """(K,) log10 of each price minus the mean over those that have one; 0 for a model without a price."""
    logs = np.array([math.log10(price) if price > 0 else np.nan for price in usd_per_mtok_out])
    priced = np.isfinite(logs)
    if not priced.any():
        return np.zeros(len(logs))
    relative: Vector = np.where(priced, logs - logs[priced].mean(), 0.0)
    return relative


_DATE: Final = re.compile(r"-(\d{8}|\d{4}-\d\d-\d\d|\d{3,4})(?=-|$)")
# A version after such a word is of the weights; elsewhere it is a generation: llama-v2-70b, deepseek-v3.
_USUAL: Final = re.compile(r"-((instruct|chat|it)(-v\d(\.\d)?)?|preview|latest)(?=-|$)")


def canonical(model: str) -> str:
    """A model's name without provider, date, version of weights, and what every chat model is called.

    >>> canonical("openai/GPT-4o-mini-2024-07-18")
    'gpt-4o-mini'
    """
    name = model.lower().rsplit("/", 1)[-1].removeprefix("open-")
    return _USUAL.sub("", _DATE.sub("", _USUAL.sub("", name)))


def prior_from_json(text: str) -> QualityPrior:
    """A prior file's content. Raises ValueError naming the field and what would be right."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"prior: no JSON: {error}") from error
    if not isinstance(given, dict) or given.get("version") != VERSION:
        raise ValueError(f"prior: should be one JSON object of version {VERSION}, as fit-prior writes it")
    arrays = {name: _array(given, name) for name in _ARRAYS}
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"prior: {', '.join(_ARRAYS)} should be of one length, not {lengths}")
    for name in ("shared_variance", "arm_variance"):
        if not (arrays[name] > 0).all():
            raise ValueError(f"prior: {name} should hold numbers above 0 only")
    if not (arrays["typical_square"] >= 0).all():
        raise ValueError("prior: typical_square should hold numbers of at least 0 only")
    try:
        features = bytes.fromhex(given["features"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"prior: features should be a tag in hexadecimal: {error}") from error
    return QualityPrior(
        **arrays,
        noise_variance=_positive(given, "noise_variance"),
        noise_weight=_positive(given, "noise_weight"),
        features=features,
        known={name: _known(name, pair) for name, pair in _object("known", given.get("known")).items()},
        provenance=_object("provenance", given.get("provenance", {})),
    )


def _object(name: str, value: Any) -> Mapping[str, Any]:
    if isinstance(value, dict):
        return value
    raise ValueError(f"prior: {name} should be an object, not {value!r:.40}")


def _known(name: str, pair: Any) -> KnownModel:
    if not (isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair)) and pair[1] > 0):
        raise ValueError(
            f"prior: known {name!r} should be [level, sd], numbers with sd above 0, not {pair!r:.40}"
        )
    return KnownModel(float(pair[0]), float(pair[1]))


def _array(given: Mapping[str, Any], name: str) -> Vector:
    values = given.get(name)
    if not isinstance(values, list) or not values or not all(_is_number(v) for v in values):
        raise ValueError(f"prior: {name} should be a list of numbers")
    return np.array(values, dtype=np.float64)


def _positive(given: Mapping[str, Any], name: str) -> float:
    value = given.get(name)
    if not _is_number(value) or value <= 0:
        raise ValueError(f"prior: {name} should be a number above 0, not {value!r:.40}")
    return float(value)


def _is_number(value: Any) -> TypeGuard[float]:
    """A finite float, or an integer that is one."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
