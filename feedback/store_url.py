"""Where the store is: one URL for a single server, a Sentinel-watched pair, or a cluster.

    redis://host:6379/0            rediss://host:6380/0           unix:///path/to/socket
    redis+sentinel://host:26379,other:26379/SERVICE/0             the primary that the Sentinels name
    redis+cluster://host:6379,other:6379                          any of the cluster's nodes; they name the others

`rediss` means TLS in all of them. Name and password stand before the hosts, in the usual form (user:password@), options of
the client after them (?ssl_ca_certs=/path). No message repeats a URL, since it may hold a password.
"""

from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

RIGHT: Final = (
    "redis://host:6379/0, rediss://host:6379/0, unix:///path/to/socket, redis+sentinel://host:26379,other:26379/SERVICE "
    "or redis+cluster://host:6379,other:6379"
)
PORTS: Final = {"single": 6379, "sentinel": 26379, "cluster": 6379}
FILES: Final = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})
_KINDS: Final[dict[str, Literal["single", "sentinel", "cluster"]]] = {
    "redis": "single",
    "redis+sentinel": "sentinel",
    "redis+cluster": "cluster",
}


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """url: as it was given, for a single server. service: the name that the Sentinels know the primary by. files: (option,
    path) of the certificates that the URL names.
    """

    kind: Literal["single", "sentinel", "cluster"]
    url: str = field(repr=False)
    hosts: tuple[tuple[str, int], ...] = ()
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    service: str = ""
    db: int = 0
    files: tuple[tuple[str, str], ...] = ()


def parse_store_url(url: str) -> StoreAddress:
    """Raises ValueError with one sentence on what would be right."""
    wrong = ValueError(f"should be a Redis URL such as {RIGHT}")
    try:
        parts = urlsplit(url)
        scheme, tls = parts.scheme.replace("rediss", "redis", 1), parts.scheme.startswith("rediss")
        if not url.isprintable() or (parts.scheme != "unix" and scheme not in _KINDS):
            raise wrong
        if parts.scheme == "unix" or _KINDS[scheme] == "single":
            complete = (
                bool(parts.path) if parts.scheme == "unix" else bool(parts.hostname) and parts.port != 0
            )
            if not complete:
                raise wrong
            files = tuple(option for option in parse_qsl(parts.query) if option[0] in FILES)
            return StoreAddress("single", url, tls=tls, files=files)
        return _of_many(url, _KINDS[scheme], tls=tls)
    except ValueError as error:
        raise (error if "should" in str(error) else wrong) from None


def _of_many(url: str, kind: Literal["single", "sentinel", "cluster"], *, tls: bool) -> StoreAddress:
    parts = urlsplit(url)
    identity, _, places = parts.netloc.rpartition("@")
    name, _, password = identity.partition(":")
    hosts = tuple(_host(place, PORTS[kind]) for place in places.split(","))
    path = [unquote(piece) for piece in parts.path.split("/") if piece]
    files = tuple(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    if unknown := sorted({option for option, _ in files} - FILES):
        raise ValueError(f"should have no option {unknown[0]!r:.40}; known: {', '.join(sorted(FILES))}")
    if kind == "cluster" and path not in ([], ["0"]):
        raise ValueError("should name no database: a cluster has only 0")
    if kind == "sentinel" and (not path or len(path) > 2 or not all(n.isdigit() for n in path[1:])):
        raise ValueError(
            "should end with the name that the Sentinels know the primary by, as in .../mymaster"
        )
    service, db = (path[0], int(path[1]) if path[1:] else 0) if kind == "sentinel" else ("", 0)
    named = (unquote(name) or None, unquote(password) or None)
    return StoreAddress(kind, url, hosts, tls, *named, service, db, files)


def _host(place: str, default: int) -> tuple[str, int]:
    parts = urlsplit(f"//{place}")
    if not parts.hostname or parts.port == 0:
        raise ValueError(f"should be a Redis URL such as {RIGHT}")
    return parts.hostname, parts.port or default
