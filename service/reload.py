"""Taking over a changed configuration while requests are served: on SIGHUP, when the operator asks, or when the file changes.

A file that is wrong changes nothing; its problems are logged. Gateways that share the file follow it alike.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from service.config_problems import ConfigError

WATCH_S: Final = 2.0
log = logging.getLogger(__name__)

Reload = Callable[[], None]


class ReloadError(ValueError):
    """A configuration that is right in itself, but that a running gateway cannot take over."""


def reload_and_tell(reload: Reload) -> None:
    """Where nobody waits for the answer it goes to the log."""
    try:
        reload()
    except (ConfigError, ReloadError) as error:
        log.error("the configuration was not taken over: %s", error)  # noqa: TRY400 - its message says all
    else:
        log.info("the configuration was read again")


async def watch(path: Path, reload: Reload) -> None:
    """Read the file again whenever it has changed, until cancelled."""
    seen = _stamp(path)
    while True:
        await asyncio.sleep(WATCH_S)
        stamp = _stamp(path)
        if stamp != seen and stamp is not None:
            seen = stamp
            reload_and_tell(reload)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Changes with the file; None while there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
