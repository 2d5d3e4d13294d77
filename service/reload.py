"""Taking over a changed configuration while requests are served: on SIGHUP, when the operator asks, or when the file changes.

A file that is wrong changes nothing; its problems are logged. Gateways that share the file follow it alike.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from service.config import read_file
from service.config_problems import ConfigError
from service.registry import with_model, write_whole
from service.settings import Settings

WATCH_S: Final = 2.0
log = logging.getLogger(__name__)


class ReloadError(ValueError):
    """A configuration that is right in itself, but that a running gateway cannot take over."""


class ConfigurationFile:
    """parse: text -> settings, or ConfigError. adopt: serves with them from now on, or raises ReloadError."""

    def __init__(
        self, path: Path, parse: Callable[[str], Settings], adopt: Callable[[Settings], None]
    ) -> None:
        self._path, self._parse, self._adopt = path, parse, adopt

    def reload(self) -> None:
        """Raises ConfigError or ReloadError, and then nothing has changed."""
        self._adopt(self._parse(read_file(self._path)))

    def reload_and_tell(self) -> None:
        """Where nobody waits for the answer it goes to the log."""
        try:
            self.reload()
        except (ConfigError, ReloadError) as error:
            log.error("the configuration was not taken over: %s", error)  # noqa: TRY400 - its message says all
        else:
            log.info("the configuration was read again")

    def set_model(self, name: str, fields: Mapping[str, Any], routes: Sequence[str]) -> None:
        """Set these fields of a model in the file, and add it to these routes; then as `reload`."""
        before = read_file(self._path)
        self._parse(before)
        try:
            text = with_model(before, name, fields, routes)
        except KeyError as error:
            raise ReloadError(f"the file has no route {error} any more; read it again first") from error
        self._adopt(self._parse(text))
        try:
            write_whole(self._path, text)
        except OSError as error:
            self._adopt(self._parse(before))
            raise ReloadError(f"{self._path} cannot be written: {error.strerror}") from error

    async def watch(self) -> None:
        """Read the file again whenever it has changed, until cancelled."""
        seen = self._stamp()
        while True:
            await asyncio.sleep(WATCH_S)
            stamp = self._stamp()
            if stamp != seen and stamp is not None:
                seen = stamp
                self.reload_and_tell()

    def _stamp(self) -> tuple[int, int, int] | None:
        """Changes with the file; None while there is none."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size
