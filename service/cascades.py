"""Cascades of the configuration, as models that routes can list: each with one threshold.

A cascade that names several thresholds is several models, NAME@NUMBER, and who lists NAME lists them all. What one costs is
learned from its calls (bandit.cost); the listed price says what that is a multiple of, and moves with its models' prices.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from bandit.arms import Arm
from service.config_shape import CascadeEntry, FileEntry
from service.settings import Cascade, Model
from service.yaml_lines import Document, Problem

ASKED_ON: Final = 0.5  # share of answers that are taken to be not good enough, before any call was seen


def cascades_of(entries: Mapping[str, CascadeEntry], models: Mapping[str, Model]) -> dict[str, Model]:
    """By the name of a model. models: those that are none."""
    return {
        own: _model(own, entry, accept_from, [models[stage] for stage in entry.models])
        for name, entry in entries.items()
        for own, accept_from in zip(names_of(name, entries), entry.accept_from, strict=True)
    }


def names_of(name: str, entries: Mapping[str, CascadeEntry]) -> tuple[str, ...]:
    """The models that a name in the file stands for."""
    if name not in entries or len(entries[name].accept_from) == 1:
        return (name,)
    return tuple(f"{name}@{number:g}" for number in entries[name].accept_from)


def all_names(names: Iterable[str], entries: Mapping[str, CascadeEntry]) -> tuple[str, ...]:
    return tuple(own for name in names for own in names_of(name, entries))


def _model(name: str, entry: CascadeEntry, accept_from: float, stages: list[Model]) -> Model:
    shares = [ASKED_ON**n for n in range(len(stages))]
    price_in = sum(s * stage.arm.price_usd_per_mtok_in for s, stage in zip(shares, stages, strict=True))
    price_out = sum(s * stage.arm.price_usd_per_mtok_out for s, stage in zip(shares, stages, strict=True))
    return Model(
        arm=Arm(
            name,
            price_usd_per_mtok_in=price_in,
            price_usd_per_mtok_out=price_out,
            context_window_tokens=min(stage.arm.context_window_tokens for stage in stages),
            tools=all(stage.arm.tools for stage in stages),
            images=all(stage.arm.images for stage in stages),
            json_schema=all(stage.arm.json_schema for stage in stages),
        ),
        deployments=tuple(place for stage in stages for place in stage.deployments),
        price_usd_per_mtok_cached_in=price_in,
        withdrawn=all(stage.withdrawn for stage in stages),
        cascade=Cascade(tuple(entry.models), entry.signal, accept_from, entry.judge),
    )


def problems_of_cascades(contents: FileEntry, document: Document) -> list[Problem]:
    """Where one model is needed and a cascade stands for several, or for none that a classifier knows."""
    found = []
    for name, route in contents.routes.items():
        ramped = route.ramp.baseline if route.ramp else None
        for place, model in ((("baseline",), route.baseline), (("ramp", "baseline"), ramped)):
            if model is not None and len(names_of(model, contents.cascades)) > 1:
                sentence = f"'{model}' stands for several models, one for each number of its accept_from; give it one"
                found.append(_problem(document, ("routes", name, *place), sentence))
        listed = [model for model in route.models if model in contents.cascades]
        if listed and route.strategy == "classifier":
            sentence = f"'{listed[0]}' is a cascade, of which no classifier knows how good it is"
            found.append(_problem(document, ("routes", name, "models"), sentence))
    return found


def _problem(document: Document, location: tuple[str, ...], sentence: str) -> Problem:
    return Problem(document.line_of(location), location, sentence)
