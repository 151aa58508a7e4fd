"""What the parts of an OpenID sign-in hand to one another. Light: most processes have no provider to speak to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class OidcSettings:
    """What the operator registered there. `name` is what people read on the button."""

    issuer: str
    client_id: str
    client_secret: str = field(repr=False)
    name: str = "your organisation"


@dataclass(frozen=True)
class Attempt:
    """What one sign-in is bound to: kept by the browser that began it, held against what comes back."""

    state: str
    nonce: str
    verifier: str
    redirect_uri: str


@dataclass(frozen=True)
class OidcPolicy:
    """`domains`: whose verified addresses get an account by themselves; none: linked and invited people only."""

    domains: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Claims:
    """What a provider's signed answer says. `verified_email` is None unless the provider says that it verified it."""

    issuer: str
    subject: str
    verified_email: str | None


class Provider(Protocol):
    """The port to one OpenID provider; `oidc_provider.OidcProvider` is the real one."""

    settings: OidcSettings

    async def authorization_url(self, attempt: Attempt) -> str:
        """Where the browser goes. Raises `unavailable`."""
        ...

    async def require_issuer(self, raw_issuer: str | None) -> None:
        """Raises `forbidden` when an answer is another provider's."""
        ...

    async def redeem(self, code: str, attempt: Attempt) -> Claims:
        """Code for claims. Raises `forbidden` for whatever does not hold, `unavailable` for a provider that fails."""
        ...

    async def close(self) -> None: ...
