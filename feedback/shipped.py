"""The population prior that ships with the package: what a fresh gateway believes of models before its first rating."""

from functools import cache
from importlib.resources import files
from typing import Final

from bandit.features import TAG
from bandit.prior import QualityPrior, prior_from_json

FILE: Final = "prior.json"


@cache
def shipped_prior() -> QualityPrior:
    """Fitted for the features of this version; its provenance names its sources."""
    prior = prior_from_json(files("feedback").joinpath(FILE).read_text("utf-8"))
    if prior.features != TAG:
        raise ValueError(
            f"feedback/{FILE} was fitted for features {prior.features.hex()}, these are {TAG.hex()}: "
            "run python -m simulations fit-prior again"
        )
    return prior
