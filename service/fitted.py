"""The files that `fit-prior`, `fit-classifier` and `fit-embedder` wrote, as a configuration names them."""

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from service.yaml_lines import Document, Problem

MAX_FILE_BYTES: Final = 16 * 1024 * 1024
Read = TypeVar("Read")


class FittedFiles:
    """folder: what relative paths are relative to. problems: with the files read so far, each at its line."""

    def __init__(self, document: Document, folder: Path) -> None:
        self.problems: list[Problem] = []
        self._document, self._folder = document, folder

    def read(
        self, location: tuple[str | int, ...], path: str, parse: Callable[[bytes], Read], *, beside: str = ""
    ) -> Read | None:
        """What parse makes of the file that stands there; where it raises ValueError, None and a problem. beside: what else
        than a file might have been meant.
        """
        try:
            return parse(_contents(self._folder / path))
        except OSError as error:
            told = f"the file cannot be read: {error.strerror or error}{beside}"
        except ValueError as error:
            told = str(error)
        self.problems.append(Problem(self._document.line_of(location), location, told))
        return None


def _contents(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"the file has more than {MAX_FILE_BYTES} bytes; no fit writes one so long")
    return data
