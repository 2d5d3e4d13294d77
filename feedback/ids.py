"""Decision ids that prove their origin: the age and the route of a feedback are known before any store is asked.

    id  = "rt-" + hex, lower case, of  milliseconds (6 bytes, big-endian) | entropy (8 bytes) | mac (6 bytes)
    mac = BLAKE2b, keyed with the gateway's secret, of the first 14 bytes and the scope "tenant.route"

An id has exactly one spelling. Clock and entropy come in as arguments. All workers and gateways that serve the same routes
share one secret; a previous one still verifies while it is rotated.
"""

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from hashlib import blake2b
from hmac import compare_digest
from pathlib import Path
from secrets import token_hex, token_urlsafe
from typing import Final

TIME_BYTES: Final = 6
ENTROPY_BYTES: Final = 8
MAC_BYTES: Final = 6
SECRET_MIN_BYTES: Final = 32
RESPONSE_PREFIX: Final = "chatcmpl-"

_SPELLING: Final = re.compile(r"rt-([0-9a-f]{40})")
_MAKE_ONE: Final = "make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(48))'"


class SecretError(ValueError):
    """The secret that signs decision ids cannot be used; the message says why and what would do."""


def new_id(secret: bytes, scope: str, *, now_s: float, entropy: bytes) -> str:
    """The id of a decision made for scope at now_s (Unix seconds, kept to the millisecond). entropy: 8 random bytes."""
    if len(entropy) != ENTROPY_BYTES:
        raise ValueError(f"entropy has {len(entropy)} bytes; a decision id takes exactly {ENTROPY_BYTES}")
    claim = int(now_s * 1000).to_bytes(TIME_BYTES, "big") + entropy
    return "rt-" + (claim + _mac(secret, claim, scope)).hex()


def scope_of(decision_id: str, secrets: Sequence[bytes], scopes: Iterable[str]) -> tuple[str, float] | None:
    """The scope that the id was made for and when (Unix seconds); None for an id that is forged or not of these scopes."""
    spelled = _SPELLING.fullmatch(decision_id)
    if spelled is None:
        return None
    raw = bytes.fromhex(spelled[1])
    claim, mac = raw[:-MAC_BYTES], raw[-MAC_BYTES:]
    for scope in scopes:
        if any(compare_digest(mac, _mac(secret, claim, scope)) for secret in secrets):
            return scope, int.from_bytes(claim[:TIME_BYTES], "big") / 1000
    return None


def bare_id(text: str) -> str:
    """The decision id within what a client sends back: the id itself, or the response id that carries it."""
    return text.removeprefix(RESPONSE_PREFIX)


def load_secret(environ_value: str | None, state_dir: Path) -> bytes:
    """The secret from the environment, else from state_dir/secret, which is made once for everyone who shares it."""
    if environ_value is not None:
        return parse_secret(environ_value, origin="the environment")
    path = state_dir / "secret"
    try:
        with suppress(FileExistsError):
            _create(path)
        mode, text = path.stat().st_mode, path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SecretError(f"no secret can be kept in {path}: {error}; set one in the environment") from error
    if mode & 0o077:
        raise SecretError(f"{path} can be read by other users of this machine; run: chmod 600 '{path}'")
    return parse_secret(text, origin=str(path))


def parse_secret(text: str, *, origin: str) -> bytes:
    """The bytes of a written secret, the current or the previous one. origin: where it was found, for the message."""
    secret = text.encode()
    if len(secret) < SECRET_MIN_BYTES:
        raise SecretError(
            f"the secret in {origin} has {len(secret)} bytes, at least {SECRET_MIN_BYTES} are needed; {_MAKE_ONE}"
        )
    return secret


def _mac(secret: bytes, claim: bytes, scope: str) -> bytes:
    key = blake2b(secret).digest()  # BLAKE2b takes keys of up to 64 bytes; a secret may be longer
    return blake2b(claim + scope.encode(), key=key, digest_size=MAC_BYTES).digest()


def _create(path: Path) -> None:
    """Make the file unless it is there (FileExistsError). Linked into place whole: no worker reads a half-written secret."""
    if path.exists():
        raise FileExistsError(path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{token_hex(8)}")
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(token_urlsafe(48) + "\n")
            file.flush()
            os.fsync(descriptor)
        os.link(draft, path)  # fails where another worker was first: its secret is the one
    finally:
        draft.unlink()
