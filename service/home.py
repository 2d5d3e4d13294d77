"""Where a router lives: its secret, its store, its spool, and the clock and randomness of its shell.

The gateway and the router within an application open the same things in the same way.
"""

import hashlib
import logging
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import Final
from urllib.parse import urlsplit

from feedback.budget import Purse
from feedback.embedded import EmbeddedServer
from feedback.ids import load_secret, new_id
from feedback.learning import Identity, Learning
from feedback.memory_store import MemoryStore
from feedback.redis_store import RedisStore
from feedback.spool import Spool
from feedback.store import Store, StoreError, StoreUnfitError
from service.budgets import Budgets
from service.calls import Shell
from service.routes import quality_models
from service.settings import Settings, StoreSettings
from service.upstream import AiohttpUpstream

PATIENCE_S: Final = 3.0
log = logging.getLogger("service")


@dataclass(frozen=True, slots=True)
class Home:
    """Where what is learned is kept. store_url: None for this process's memory. spool: of feedback for that store and no
    other. patience_s: how long an empty store is left to gateways that may know more than a fresh one does.
    """

    store_url: str | None
    spool: Path
    embedded: EmbeddedServer | None = None
    patience_s: float = 0.0


def home_of(settings: Settings, stack: ExitStack, *, ephemeral: bool) -> Home:
    if ephemeral:
        log.warning("ephemeral: everything that is learned ends with this process")
        return Home(None, Path(stack.enter_context(TemporaryDirectory(prefix="ephemeral-"))))
    spools = settings.store.state_dir / "spool"
    if settings.store.url is None:
        embedded = EmbeddedServer.start(settings.store.state_dir)
        stack.callback(embedded.stop)
        home = Home(embedded.url, spools / "embedded", embedded, 0.0 if embedded.owner else PATIENCE_S)
    else:
        home = Home(settings.store.url, spools / _name_of(settings.store), patience_s=PATIENCE_S)
    for other in sorted(spools.glob("*/*.spool")):
        if other.parent != home.spool and other.stat().st_size > 0:
            log.warning(
                "%s holds feedback for another store; start the gateway on that store to send it", other
            )
    return home


def _name_of(store: StoreSettings) -> str:
    """A folder's name for a store: the same for the same server, database and prefix, whatever the password."""
    url = urlsplit(store.url or "")
    hosts = url.netloc.rpartition("@")[2]  # several for a cluster or Sentinels
    place = hosts if "," in hosts else f"{url.hostname}:{url.port}"
    where = f"{place}{url.path}?{url.query}#{store.key_prefix}"
    return hashlib.blake2b(where.encode(), digest_size=6).hexdigest()


def secret_of(settings: Settings) -> bytes:
    """What authenticates decision ids. Raises SecretError."""
    given = settings.store.secret
    return load_secret(None if given is None else given.decode(), settings.store.state_dir)


async def open_learning(settings: Settings, secret: bytes, home: Home) -> Learning:
    """Not started yet. Raises SpoolError, and StoreUnfitError for a store that can never do."""
    worker, previous = token_hex(8), settings.store.previous_secret
    store = await _store(settings, home)
    return Learning(
        store,
        await Spool.open(home.spool, worker=worker, clock=time.time),
        quality_models(settings),
        identity=Identity(
            worker, [secret, *([previous] if previous else [])], settings.store.feedback_window_h * 3600
        ),
        clock=time.time,
        features=settings.features.tag,
        patience_s=home.patience_s,
        revive=home.embedded.ensure if home.embedded else None,
    )


async def open_budgets(settings: Settings, learning: Learning, home: Home) -> Budgets:
    """At the store where learning keeps what it learns. Raises SpoolError."""
    if not settings.budgets:
        return Budgets()
    replica = token_hex(8)
    journal = await Spool.open(home.spool / "spent", worker=replica, clock=time.time)
    names = {tenants.budget.name for tenants in settings.budgets}
    for entry in journal.pending():
        if entry.payload.get("budget") not in names:
            await journal.bury(entry, "the configuration has no budget of this name any more")
    purses = [
        Purse(
            tenants.budget,
            learning.store.ledger(tenants.tenant),
            replica=replica,
            clock=time.time,
            ticks=time.monotonic,
            journal=journal,
        )
        for tenants in settings.budgets
    ]
    return Budgets(list(zip(settings.budgets, purses, strict=True)), journal)


def shell_of(settings: Settings, secret: bytes) -> Shell:
    return Shell(
        upstream=AiohttpUpstream(settings.upstream),
        now=time.time,
        ticks=time.monotonic_ns,
        new_id=partial(_new_id, secret),
    )


async def _store(settings: Settings, home: Home) -> Store:
    if home.store_url is None:
        return MemoryStore()
    ttl_ms = round(settings.store.feedback_window_h * 3_600_000)
    store = RedisStore(home.store_url, prefix=settings.store.key_prefix, decision_ttl_ms=ttl_ms)
    try:
        log.info("store: version %s", await store.probe())
    except StoreUnfitError:
        await store.close()
        raise
    except StoreError as error:
        log.warning("the store is away (%s): starting without it", error)
    return store


def _new_id(secret: bytes, scope: str) -> str:
    return new_id(secret, scope, now_s=time.time(), entropy=os.urandom(8))
