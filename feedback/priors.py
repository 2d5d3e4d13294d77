"""Population priors: the one that ships with the package, and files of one's own. What a fresh gateway believes of models."""

from functools import cache
from importlib.resources import files
from typing import Final

from bandit.features import DIMENSION, POINTING, TAG
from bandit.prior import QualityPrior, prior_from_json

FILE: Final = "prior.json"


def prior_of(text: str, features: bytes = TAG) -> QualityPrior:
    """A prior file's content, for vectors of that version. Raises ValueError saying what would be right."""
    prior = prior_from_json(text)
    if prior.features not in (b"", features):
        raise ValueError(
            f"was fitted for features {prior.features.hex()}, these are {features.hex()}: run fit-prior again, with "
            "--embedder FILE if the gateway has one, and without if it has none"
        )
    if len(prior.mean) != DIMENSION:
        raise ValueError(
            f"was fitted for {len(prior.mean)} features, these are {DIMENSION}: run fit-prior again"
        )
    return prior


def shipped_prior(features: bytes = TAG) -> QualityPrior:
    """Fitted for the shipped features; its provenance names its sources. For another version's vectors, whose directions
    are others: all that it knows but for those.
    """
    prior = _shipped()
    return prior if features == TAG else prior.with_other(POINTING, features)


@cache
def _shipped() -> QualityPrior:
    return prior_of(files("feedback").joinpath(FILE).read_text("utf-8"))
