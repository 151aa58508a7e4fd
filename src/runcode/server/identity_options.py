"""`up --oidc-…` as the operator wrote it, read strictly before anything is started.

Owns: which of these options belong together, and reading the secret's file. Called by `main`.
"""

from __future__ import annotations

from argparse import Namespace
from urllib.parse import urlsplit

from runcode.controlplane.services.identities import ISSUER_MAX, parse_domain
from runcode.controlplane.services.oidc_records import OidcPolicy, OidcSettings
from runcode.core import names
from runcode.core.errors import RunCodeError

_SECRET_MAX = 4096


def read_oidc_options(options: Namespace) -> tuple[OidcSettings | None, OidcPolicy]:
    """(None, …) without a provider. Raises `usage` for half of one, `io_error` for a secret that cannot be read."""
    needed = {
        "--oidc-issuer": options.oidc_issuer,
        "--oidc-client-id": options.oidc_client_id,
        "--oidc-client-secret-file": options.oidc_client_secret_file,
    }
    policy = OidcPolicy(domains=frozenset(parse_domain(domain) for domain in options.oidc_domain))
    missing = [name for name, value in needed.items() if not value]
    if len(missing) == len(needed) and not options.oidc_domain and not options.oidc_name:
        return None, policy
    if missing:
        raise RunCodeError(
            "usage", f"an OpenID provider needs {missing[0]} as well", resolution="give it, or none of --oidc-…"
        )
    issuer = _parse_issuer(options.oidc_issuer)
    secret = _read_secret(options.oidc_client_secret_file)
    name = options.oidc_name or urlsplit(issuer).hostname or issuer
    if len(name) > 60 or not name.isprintable():
        raise RunCodeError("usage", "--oidc-name is not a name for a button", resolution="use 1 to 60 characters")
    return OidcSettings(issuer, options.oidc_client_id, secret, name), policy


def _parse_issuer(text: str) -> str:
    """To the letter as the provider writes it: a slash at the end counts (OpenID Connect Discovery §4.3)."""
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
        secure = parts.scheme == "https" or (parts.scheme == "http" and names.is_loopback_host(host))
        rest = (parts.username, parts.password, parts.query or None, parts.fragment or None)
        if not host or not secure or parts.port == 0 or any(part is not None for part in rest):
            raise ValueError
        if len(text) > ISSUER_MAX or not text.isascii() or not text.isprintable() or " " in text:
            raise ValueError
    except ValueError as error:
        raise RunCodeError(
            "usage",
            f"--oidc-issuer {text[:200]!r} is not the issuer of an OpenID provider",
            resolution="write it as the provider's own documents do, for example https://login.example.org",
        ) from error
    return text


def _read_secret(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            secret = file.read(_SECRET_MAX + 1).strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise RunCodeError(
            "io_error",
            f"the OpenID client secret in {path} cannot be read: {reason}",
            resolution="check --oidc-client-secret-file",
        ) from error
    if not 0 < len(secret) <= _SECRET_MAX or not secret.isprintable():
        raise RunCodeError(
            "io_error", f"there is no OpenID client secret in {path}", resolution="put it there, alone on one line"
        )
    return secret
