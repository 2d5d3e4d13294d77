"""A classifier instead of a posterior: the kind of request is predicted, and each model's quality is looked up by kind.

    p(c | x) = softmax(W x)_c             c: a kind of request, a task family at one level of difficulty
    quality of model m at x = sum_c p(c | x) q[c, m]

W is multinomial logistic regression; q is what recorded outcomes or the registry say. Nothing here learns while it serves:
ratings are logged like any others, so a route may become a bandit later and know them. `Classified` is a quality model
beside `bandit.quality`: policy, objective, propensities and exploration floor are the same.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from bandit.arms import Arm
from bandit.prediction import Draws, Prediction
from bandit.prior import canonical
from bandit.sources import ANCHOR
from bandit.statistics import RatingStatistics
from bandit.types import Matrix, Vector

VERSION: Final = 1
NOISE_VARIANCE: Final = 0.05  # of a rating: logged with each decision; the choice does not depend on it


@dataclass(frozen=True, slots=True)
class Kind:
    """A task family at one level of difficulty; level: "easy", "hard", or "" for a family that is not divided."""

    task: str
    level: str = ""


@dataclass(frozen=True, slots=True)
class Classifier:
    """weights (C, d), shares (C,): of each kind in what it was fitted on. quality: canonical model name -> (C,).

    features: the tag of the feature map. digest: names the content, for comparison and for a policy's tag.
    """

    kinds: tuple[Kind, ...] = field(repr=False, compare=False)
    weights: Matrix = field(repr=False, compare=False)
    shares: Vector = field(repr=False, compare=False)
    quality: Mapping[str, Vector] = field(repr=False, compare=False)
    features: bytes = field(repr=False, compare=False)
    provenance: Mapping[str, Any] = field(repr=False, compare=False)
    digest: str = ""

    def probabilities(self, x: Vector) -> Vector:
        """(C,) of each kind of request."""
        scores = self.weights @ x
        p: Vector = np.exp(scores - scores.max())
        p /= p.sum()
        return p

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(kind.task for kind in self.kinds))

    def of_model(self, arm: Arm, told: Mapping[str, float]) -> Vector:
        """(C,) the arm's quality. told: task -> quality, as the registry has it; it shifts both levels of that task alike.

        Raises ValueError for an arm of which neither says enough, and for a task that the file does not know.
        """
        unknown = sorted(set(told) - set(self.tasks))
        if unknown:
            raise ValueError(f"{arm.name} has a quality for {unknown[0]!r}; known: {', '.join(self.tasks)}")
        known = self.quality.get(canonical(arm.sibling or arm.name))
        missing = [task for task in self.tasks if task not in told]
        if known is None and missing:
            raise ValueError(
                f"the classifier knows no quality of {arm.name}; give the model `quality:` for {', '.join(missing)}, "
                "or a `sibling` that it knows"
            )
        quality = self._typical() if known is None else known.copy()
        for task, value in told.items():
            rows = [c for c, kind in enumerate(self.kinds) if kind.task == task]
            quality[rows] += value - float(np.average(quality[rows], weights=self.shares[rows]))
        return quality.clip(0.0, 1.0)

    def _typical(self) -> Vector:
        """(C,) the mean over all models: what tells easy from hard for a model that the file does not know."""
        if not self.quality:
            return np.zeros(len(self.kinds))
        typical: Vector = np.mean(list(self.quality.values()), axis=0)
        return typical

    def to_json(self) -> str:
        content = {
            "version": VERSION,
            "features": self.features.hex(),
            "provenance": dict(self.provenance),
            "kinds": [[kind.task, kind.level] for kind in self.kinds],
            "shares": self.shares.tolist(),
            "quality": {model: values.tolist() for model, values in sorted(self.quality.items())},
            "weights": self.weights.tolist(),
        }
        return json.dumps(content) + "\n"


@dataclass(frozen=True, slots=True)
class Classified:
    """The quality model of a route. quality: each arm's (C,), in the order of `arms`."""

    classifier: Classifier
    arms: tuple[str, ...]
    quality: tuple[tuple[float, ...], ...]

    @classmethod
    def of(
        cls, classifier: Classifier, arms: Sequence[Arm], told: Mapping[str, Mapping[str, float]]
    ) -> "Classified":
        """told: arm -> task -> quality, from the registry. Raises ValueError where the qualities are not known."""
        rows = tuple(tuple(classifier.of_model(arm, told.get(arm.name, {})).tolist()) for arm in arms)
        return cls(classifier, tuple(arm.name for arm in arms), rows)

    def fit(
        self, ratings: Mapping[str, RatingStatistics], d: int, entry_prices: Mapping[str, float]
    ) -> "ClassifiedPosterior":
        """The same whatever the ratings."""
        if self.classifier.weights.shape[1] != d:
            fitted = self.classifier.weights.shape[1]
            raise ValueError(f"the classifier is for {fitted} features, the vectors have {d}: fit it anew")
        rows = {name: np.array(row) for name, row in zip(self.arms, self.quality, strict=True)}
        return ClassifiedPosterior(self.classifier, rows, NOISE_VARIANCE)

    @property
    def anchor(self) -> str:
        """It makes no difference."""
        return ANCHOR

    def steps(
        self, ratings: Mapping[str, RatingStatistics], d: int, entry_prices: Mapping[str, float]
    ) -> Iterator[None]:
        """None: it is quickly done."""
        return iter(())


@dataclass(frozen=True, slots=True, eq=False)
class ClassifiedPosterior:
    """rows: arm -> (C,). An arm that the route no longer lists is expected to be worth nothing."""

    classifier: Classifier
    rows: Mapping[str, Vector]
    noise_variance: float

    def draws(self, x: Vector, arms: Sequence[str]) -> Draws:
        return Draws(self._matrix(arms) @ self.classifier.probabilities(x), np.zeros((1, len(arms))))

    def predict(self, x: Vector, arms: Sequence[str]) -> Prediction:
        return Prediction(self._matrix(arms) @ self.classifier.probabilities(x), np.zeros((len(arms),) * 2))

    def typical(self, arms: Sequence[str]) -> Vector:
        typical: Vector = self._matrix(arms) @ self.classifier.shares
        return typical

    def steps(self) -> Iterator[None]:
        """None: nothing is drawn."""
        return iter(())

    def _matrix(self, arms: Sequence[str]) -> Matrix:
        nothing = np.zeros(len(self.classifier.kinds))
        return np.stack([self.rows.get(arm, nothing) for arm in arms])


def classifier_from_json(text: str, features: bytes) -> Classifier:
    """A file of fit-classifier, for vectors of these features. Raises ValueError naming the field and what is right."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON: {error}") from error
    if not isinstance(given, dict) or given.get("version") != VERSION:
        raise ValueError(f"should be one JSON object of version {VERSION}, as fit-classifier writes it")
    if given.get("features") != features.hex():
        raise ValueError(
            f"was fitted for features {given.get('features')!r:.40}, these are {features.hex()!r}: "
            "run python -m simulations fit-classifier again"
        )
    kinds = _kinds(given.get("kinds"))
    C = len(kinds)
    shares = _numbers("shares", given.get("shares"), (C,))
    if (shares < 0).any() or abs(float(shares.sum()) - 1.0) > 1e-6:
        raise ValueError("shares should be at least 0 and sum to 1")
    weights = given.get("weights")
    width = len(weights[0]) if isinstance(weights, list) and weights and isinstance(weights[0], list) else 0
    quality = given.get("quality")
    if not isinstance(quality, dict):
        raise ValueError("quality should map models to one number for each kind")  # noqa: TRY004 - of the file
    rows = {name: _numbers(f"quality of {name!r:.100}", row, (C,)) for name, row in quality.items()}
    for name, row in rows.items():
        if (row < 0).any() or (row > 1).any():
            raise ValueError(f"quality of {name!r:.100} should be numbers from 0 to 1")
    provenance = given.get("provenance", {})
    return Classifier(
        kinds=kinds,
        weights=_numbers("weights", weights, (C, width)),
        shares=shares,
        quality=rows,
        features=features,
        provenance=provenance if isinstance(provenance, dict) else {},
        digest=hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest(),
    )


def _kinds(given: Any) -> tuple[Kind, ...]:
    if not isinstance(given, list) or not given:
        raise ValueError("kinds should be a list of [task, level], at least one")
    for pair in given:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise ValueError(f"kinds should hold pairs [task, level], not {pair!r:.100}")
    return tuple(Kind(task, level) for task, level in given)


def _numbers(name: str, given: Any, shape: tuple[int, ...]) -> Matrix:
    try:
        array = np.array(given, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.array(np.nan)
    if array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"{name} should be {' x '.join(map(str, shape))} finite numbers")
    return array
