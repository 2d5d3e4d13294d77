"""Who may use the gateway: a bearer key names its tenant. Only keys' SHA-256 are kept, and a key is found by that digest.

Without keys in the configuration everybody is the one tenant "default". What a key may do is held here too: so many
requests at once, so many a minute. The gateway as a whole turns requests away before it would fall behind.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from hmac import compare_digest
from types import MappingProxyType
from typing import Final

from service.errors import RateLimitError, UnauthorizedError, UnavailableError
from service.rate_limit import RateLimit
from service.settings import DEFAULT_TENANT, Key, Settings

RawHeaders = Iterable[tuple[bytes, bytes]]
NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
AUTHORIZATION: Final = b"authorization"
RETRY_COUNT: Final = b"x-stainless-retry-count"
RETRY_AFTER_S: Final = 1


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. raw: the request's headers, names in lower case. is_retry: its SDK sends the request once more.

    limits: headers that tell the caller what it may still do.
    """

    tenant: str = DEFAULT_TENANT
    raw: Sequence[tuple[bytes, bytes]] = ()
    is_retry: bool = False
    limits: Mapping[str, str] = field(default_factory=lambda: NO_HEADERS)

    def header(self, name: str) -> str | None:
        """The first header of this name (in lower case)."""
        wanted = name.encode()
        return next((value.decode("latin-1") for key, value in self.raw if key == wanted), None)


ANYBODY: Final = Caller()


class _Holder:
    """A key at work."""

    __slots__ = ("at_once", "key", "rate")

    def __init__(self, key: Key) -> None:
        self.key, self.at_once = key, 0
        self.rate = RateLimit(key.requests_per_minute) if key.requests_per_minute else None


class Admission:
    """A request that was let in. It is let go once, before its last byte is sent: its client may then ask again at once."""

    __slots__ = ("_access", "_holder", "_open", "caller")

    def __init__(self, access: "Access", holder: _Holder | None, caller: Caller) -> None:
        self._access, self._holder, self._open, self.caller = access, holder, True, caller

    def let_go(self) -> None:
        if self._open:
            self._open = False
            self._access.at_once -= 1
            if self._holder:
                self._holder.at_once -= 1


class Access:
    """clock: monotonic seconds."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float]) -> None:
        self.at_once = 0
        self.clock = clock
        self._holders: dict[bytes, _Holder] = {}
        self.adopt(settings)

    def adopt(self, settings: Settings) -> None:
        """These keys and limits from now on. A key that stays as it was keeps its count."""
        known = self._holders
        self._max_at_once = settings.server.max_concurrent
        self._holders = {
            key.sha256: holder if (holder := known.get(key.sha256)) and holder.key == key else _Holder(key)
            for key in settings.keys
        }

    def caller(self, headers: Sequence[tuple[bytes, bytes]]) -> Caller:
        """Whose request it is. Raises UnauthorizedError."""
        holder = self._holder(headers)
        return Caller(holder.key.tenant if holder else DEFAULT_TENANT, headers, _is_retry(headers))

    def admit(self, headers: Sequence[tuple[bytes, bytes]]) -> "Admission":
        """The caller, counted until it is let go. Raises UnauthorizedError, RateLimitError, UnavailableError."""
        holder = self._holder(headers)
        if self.at_once >= self._max_at_once:
            raise UnavailableError("the gateway has as many requests as it can serve", RETRY_AFTER_S)
        limits = self._counted(holder) if holder else NO_HEADERS
        tenant = holder.key.tenant if holder else DEFAULT_TENANT
        self.at_once += 1
        if holder:
            holder.at_once += 1
        return Admission(self, holder, Caller(tenant, headers, _is_retry(headers), limits))

    def _holder(self, headers: RawHeaders) -> _Holder | None:
        if not self._holders:
            return None
        holder = self._holders.get(sha256(bearer(headers) or b"").digest())
        if holder is None:
            raise UnauthorizedError
        return holder

    def _counted(self, holder: _Holder) -> Mapping[str, str]:
        limit = holder.key.max_concurrent
        if limit is not None and holder.at_once >= limit:
            raise RateLimitError(f"this key may have {limit} requests at once", RETRY_AFTER_S)
        if holder.rate is None:
            return NO_HEADERS
        allowance = holder.rate.request(self.clock())
        if not allowance.allowed:
            message = f"this key may send {allowance.limit} requests a minute"
            raise RateLimitError(message, allowance.retry_after_s, allowance.headers())
        return allowance.headers()


def admin_only(headers: RawHeaders, digest: bytes) -> None:
    """Raises UnauthorizedError unless the bearer key has this SHA-256."""
    if not compare_digest(sha256(bearer(headers) or b"").digest(), digest):
        raise UnauthorizedError


def bearer(headers: RawHeaders) -> bytes | None:
    """The key in the one `Authorization: Bearer KEY`; None where there is none, or two that could disagree."""
    found = [value for name, value in headers if name == AUTHORIZATION]
    if len(found) != 1:
        return None
    scheme, _, key = found[0].partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" and key.strip() else None


def _is_retry(headers: RawHeaders) -> bool:
    return any(name == RETRY_COUNT and value not in (b"", b"0") for name, value in headers)
