"""The classifiers of routes with `strategy: classifier`: their files read, and held against the models of the route."""

from collections.abc import Mapping
from pathlib import Path

from bandit.arms import Arm
from bandit.classifier import Classified, Classifier, classifier_from_json
from bandit.features import TAG
from service.config_shape import FileEntry
from service.yaml_lines import Document, Problem

MAX_FILE_BYTES = 16 * 1024 * 1024


def classifiers_of(
    contents: FileEntry, document: Document, folder: Path
) -> tuple[dict[str, Classified], list[Problem]]:
    """By route. folder: what relative paths are relative to."""
    found: dict[str, Classified] = {}
    problems: list[Problem] = []
    for name, route in contents.routes.items():
        if route.classifier is None:
            continue
        location: tuple[str | int, ...] = ("routes", name, "classifier")
        try:
            found[name] = Classified.of(
                _read(folder / route.classifier),
                [
                    Arm(
                        m,
                        0.0,
                        contents.models[m].price_usd_per_mtok_out,
                        sibling=contents.models[m].sibling or "",
                    )
                    for m in route.models
                ],
                _told(contents),
            )
        except OSError as error:
            told = f"the file cannot be read: {error.strerror or error}"
            problems.append(Problem(document.line_of(location), location, told))
        except ValueError as error:
            problems.append(Problem(document.line_of(location), location, str(error)))
    return found, problems


def _told(contents: FileEntry) -> Mapping[str, Mapping[str, float]]:
    return {name: model.quality for name, model in contents.models.items()}


def _read(path: Path) -> Classifier:
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"the file has more than {MAX_FILE_BYTES} bytes; fit-classifier writes none so long")
    return classifier_from_json(data.decode("utf-8"), TAG)
