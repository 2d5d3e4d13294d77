"""What a router knows beforehand in a simulation, by the name that the option --prior has for it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from bandit.features import TAG
from bandit.prior import KnownModel, QualityPrior, canonical
from feedback.priors import prior_of, shipped_prior
from simulations import fit_prior
from simulations.datasets import Dataset
from simulations.pools import Priors
from simulations.world import Facts, Features

SURELY: Final = 0.1  # sd with which a wrong prior is believed: as surely as the shipped one believes a name


def prior_of_all(where: str, features: bytes = TAG) -> QualityPrior | None:
    """A prior that does not depend on the data it is played on. features: tag of the vectors. Raises ValueError, OSError."""
    match where:
        case "none":
            return None
        case "shipped":
            return shipped_prior(features)
        case "leave-out" | "upside-down":
            raise ValueError(
                f"--prior {where}: goes with several folders (run, bench); here name none, shipped or a file"
            )
        case _:
            return prior_of(Path(where).read_text("utf-8"), features)


def priors_of_each(
    where: str, features: Features | None = None
) -> Callable[[Sequence[Dataset]], Priors] | None:
    """What gives the router's prior for each pool, under the name that the option has. features: of its vectors."""
    features = features or Facts()
    match where:
        case "none":
            return None
        case "leave-out":
            return lambda datasets: {where: fit_prior.leave_out(datasets, features)}
        case "upside-down":
            return lambda datasets: {where: _upside_down(datasets, features)}
        case _:
            prior = prior_of_all(where, features.tag)
            return lambda datasets: {where: dict.fromkeys((data.name for data in datasets), prior)}


def _upside_down(datasets: Sequence[Dataset], features: Features) -> dict[str, QualityPrior]:
    fitted = fit_prior.leave_out(datasets, features)
    return {data.name: upside_down(fitted[data.name], data) for data in datasets}


def upside_down(prior: QualityPrior, data: Dataset) -> QualityPrior:
    """The same, but surely wrong: each model of the data is expected as far above their mean as it lies below it."""
    nameless = replace(prior, known={})
    expected = nameless.of(data.arms).means[: len(data.arms)] @ prior.typical_x
    levels = data.quality.mean(axis=0)
    wrong = 2.0 * np.mean(levels) - levels - expected
    known = {
        canonical(arm.name): KnownModel(float(level), SURELY)
        for arm, level in zip(data.arms, wrong, strict=True)
    }
    return replace(nameless, known=known)
