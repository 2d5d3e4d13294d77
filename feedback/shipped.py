"""The population prior that ships with the package: what a fresh gateway believes of models before its first rating."""

from functools import cache
from importlib.resources import files
from typing import Final

from bandit.features import NAMES, TAG
from bandit.prior import QualityPrior, prior_from_json

FILE: Final = "prior.json"
POINTING: Final = [k for k, name in enumerate(NAMES) if name.startswith("words-")]  # what versions differ in


def shipped_prior(features: bytes = TAG) -> QualityPrior:
    """Fitted for the shipped features; its provenance names its sources. For another version's vectors, whose directions
    are others: all that it knows but for those.
    """
    prior = _read()
    return prior if features == TAG else prior.with_other(POINTING, features)


@cache
def _read() -> QualityPrior:
    prior = prior_from_json(files("feedback").joinpath(FILE).read_text("utf-8"))
    if prior.features != TAG:
        raise ValueError(
            f"feedback/{FILE} was fitted for features {prior.features.hex()}, these are {TAG.hex()}: "
            "run python -m simulations fit-prior again"
        )
    return prior
