"""What each route believes of its models before the first rating: its prior or its classifier, read from their files."""

from functools import partial

from bandit.arms import Arm
from bandit.classifier import Classified, Classifier, classifier_from_json
from bandit.prior import QualityPrior
from feedback.priors import prior_of, shipped_prior
from service.config_shape import FileEntry
from service.fitted import FittedFiles


def priors_of(contents: FileEntry, files: FittedFiles, features: bytes) -> dict[str, QualityPrior | None]:
    """By route; None: nothing is known of any model. features: tag of the vectors that requests are decided on."""
    found: dict[str, QualityPrior | None] = {}
    for name, route in contents.routes.items():
        match route.prior:
            case "none":
                found[name] = None
            case "shipped":
                found[name] = shipped_prior(features)
            case path:
                found[name] = files.read(
                    ("routes", name, "prior"),
                    path,
                    partial(_prior, features),
                    beside="; other than a file it can be shipped or none",
                )
    return found


def classifiers_of(contents: FileEntry, files: FittedFiles, features: bytes) -> dict[str, Classified]:
    """By route. features: as above."""
    told = {name: model.quality for name, model in contents.models.items()}
    found: dict[str, Classified] = {}
    for name, route in contents.routes.items():
        if route.classifier is None:
            continue
        arms = [_arm(model, contents) for model in route.models]

        def classified(data: bytes, arms: list[Arm] = arms) -> Classified:
            return Classified.of(_classifier(features, data), arms, told)

        read = files.read(("routes", name, "classifier"), route.classifier, classified)
        if read is not None:
            found[name] = read
    return found


def _arm(model: str, contents: FileEntry) -> Arm:
    entry = contents.models[model]
    return Arm(model, 0.0, entry.price_usd_per_mtok_out, sibling=entry.sibling or "")


def _prior(features: bytes, data: bytes) -> QualityPrior:
    return prior_of(data.decode("utf-8"), features)


def _classifier(features: bytes, data: bytes) -> Classifier:
    return classifier_from_json(data.decode("utf-8"), features)
