"""What people and programs type, accepted by allowlist or refused as `bad_request`.

Threat: names end up in terminals, pages and logs; a control byte or a 64 KB
label is somebody trying something.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from runcode.core import hostkeys
from runcode.core.errors import RunCodeError, UnsafeInput
from runcode.core.hostkeys import PublicKey
from runcode.core.names import CLIENT_NAME_MAX

EMAIL_MAX = 254
NAME_MAX = 64
CUSTOM_TITLE_MAX = 120
IDLE_MIN_S = 60
IDLE_MAX_S = 30 * 24 * 3600
LIMIT_MAX = 1_000_000
PASSWORD_MIN = 10
PASSWORD_MAX = 1024
# No key that we accept is longer; the comment is not kept.
_PUBLIC_KEY_LINE_MAX = 8192
_EMAIL = re.compile(r"[a-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[a-z0-9](?:[a-z0-9.-]{0,187}[a-z0-9])?", re.ASCII)
_RUNTIME = re.compile(r"[a-z][a-z0-9-]{0,39}", re.ASCII)


class _Unset:
    """An argument that was not given, where None means something."""


UNSET = _Unset()


def parse_email(raw_email: str) -> str:
    """Lower-cased, so that one mailbox is one user."""
    email = raw_email.strip().lower()
    if len(email) > EMAIL_MAX or _EMAIL.fullmatch(email) is None or ".." in email:
        raise RunCodeError("bad_request", "that is not an e-mail address", resolution="use the form name@example.org")
    return email


def parse_password(raw_password: str) -> str:
    if not PASSWORD_MIN <= len(raw_password) <= PASSWORD_MAX:
        raise RunCodeError(
            "bad_request",
            "that password cannot be used",
            resolution=f"use {PASSWORD_MIN} to {PASSWORD_MAX} characters",
        )
    return raw_password


def parse_label(raw_label: str, *, what: str, limit: int = NAME_MAX, may_be_empty: bool = False) -> str:
    """One printable line of at most `limit` characters."""
    label = raw_label.strip()
    if len(label) > limit or not label.isprintable() or not (label or may_be_empty):
        least = 0 if may_be_empty else 1
        raise RunCodeError(
            "bad_request", f"that {what} cannot be used", resolution=f"use {least} to {limit} printable characters"
        )
    return label


def parse_client(raw_client: object) -> str:
    """The client's own name for itself (`claude-code`, `codex`, …); absent is `unknown`."""
    if raw_client is None or raw_client == "":
        return "unknown"
    if not isinstance(raw_client, str) or len(raw_client) > CLIENT_NAME_MAX or not raw_client.isprintable():
        raise RunCodeError(
            "bad_request",
            "client is not a text that can be used",
            resolution=f"send at most {CLIENT_NAME_MAX} printable characters",
        )
    return raw_client.strip() or "unknown"


def parse_ttl(raw_ttl: object, *, default_s: int, cap_s: int) -> int:
    """A wish in whole seconds, capped. A bool, a float or a text is refused."""
    if raw_ttl is None:
        return min(default_s, cap_s)
    if type(raw_ttl) is not int or raw_ttl < 1:
        raise RunCodeError(
            "bad_request", "ttl is not a positive whole number of seconds", resolution="send a JSON integer"
        )
    return min(raw_ttl, cap_s)


def parse_client_key(raw_public_key: object) -> PublicKey:
    try:
        if isinstance(raw_public_key, str) and len(raw_public_key) > _PUBLIC_KEY_LINE_MAX:
            raise UnsafeInput("a public key is too large")
        return hostkeys.parse_public_key(raw_public_key.strip() if isinstance(raw_public_key, str) else raw_public_key)
    except UnsafeInput as error:
        raise RunCodeError(
            "bad_request",
            f"public_key cannot be used: {error.message}",
            resolution="send one line of an Ed25519, ECDSA or RSA (2,048 bits or more) public key",
        ) from error


def parse_runtime_name(raw_name: str) -> str:
    if _RUNTIME.fullmatch(raw_name) is None:
        raise RunCodeError("bad_request", "that is not the name of a runtime", resolution="use for example `local`")
    return raw_name


def parse_idle_stop(raw_idle: object) -> int | None:
    """Seconds without use after which a workspace is stopped; 0 is never, None the server's default."""
    if raw_idle is None or (type(raw_idle) is int and (raw_idle == 0 or IDLE_MIN_S <= raw_idle <= IDLE_MAX_S)):
        return raw_idle
    raise RunCodeError(
        "bad_request",
        "that idle time cannot be used",
        resolution=f"use {IDLE_MIN_S} to {IDLE_MAX_S} seconds, 0 for never, or none for the server's default",
    )


def parse_limit(raw_limit: object, *, what: str) -> int | None:
    """How many of something a person may have; None: as many as the server's default says."""
    if raw_limit is None or (type(raw_limit) is int and 0 <= raw_limit <= LIMIT_MAX):
        return raw_limit
    raise RunCodeError(
        "bad_request", f"{what} is not a number that can be used", resolution=f"use 0 to {LIMIT_MAX}, or none"
    )


def parse_size(raw_size: object, offered: Collection[str]) -> str:
    """One of the sizes that this server offers."""
    if isinstance(raw_size, str) and raw_size in offered:
        return raw_size
    raise RunCodeError(
        "bad_request", "there is no such size here", resolution=f"use one of: {', '.join(sorted(offered))}"
    )


def parse_role(raw_role: object, roles: Collection[str], *, what: str) -> str:
    if isinstance(raw_role, str) and raw_role in roles:
        return raw_role
    raise RunCodeError("bad_request", f"that is not a {what}", resolution=f"use {' or '.join(f'`{r}`' for r in roles)}")
