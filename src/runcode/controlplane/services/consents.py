"""What a person is asked before a client gets a token, and what they answered: for browsers and for devices alike.

Owns: the name that such a token gets, the bounds that a consent form sets, and the
moment at which one consent page was shown (`ConsentTicket`). Called by `browser_logins`,
`device_logins` and their routes.

Guarantee: one page shown is one answer. A page that was shown more than ten minutes
ago, or for another browser or request, asks anew.
"""

from __future__ import annotations

import datetime
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from runcode.controlplane.records import Caller
from runcode.controlplane.services import inputs
from runcode.controlplane.services.tokens import TokenBounds, parse_expiry_days, parse_scopes
from runcode.controlplane.store.models import UserRow
from runcode.core.errors import RunCodeError

SHOWN_FOR: Final = datetime.timedelta(minutes=10)
_TICKET = re.compile(r"([0-9]{1,12})\.[A-Za-z0-9_-]{22}", re.ASCII)
_SKEW: Final = datetime.timedelta(seconds=5)


@dataclass(frozen=True)
class Consent:
    """What the person let the client do; less than they may do themselves, if they like."""

    scopes: tuple[str, ...]
    expires_at: datetime.datetime | None

    @property
    def bounds(self) -> TokenBounds:
        return TokenBounds(scopes=self.scopes, expires_at=self.expires_at)

    def as_json(self) -> dict[str, Any]:
        return {
            "scopes": list(self.scopes),
            "expires_at": None if self.expires_at is None else self.expires_at.isoformat(),
        }


def parse_consent(raw_scopes: Iterable[str], raw_days: str, now: datetime.datetime) -> Consent:
    """From the boxes of a consent form. Raises `bad_request`."""
    return Consent(scopes=parse_scopes(raw_scopes), expires_at=parse_expiry_days(raw_days, now))


def consent_from_json(kept: dict[str, Any]) -> Consent:
    raw_expiry = kept["expires_at"]
    expires_at = None if raw_expiry is None else datetime.datetime.fromisoformat(raw_expiry)
    return Consent(scopes=tuple(kept["scopes"]), expires_at=expires_at)


def make_ticket(now: datetime.datetime) -> str:
    """Names one consent page that is shown now."""
    return f"{int(now.timestamp())}.{secrets.token_urlsafe(16)}"


def require_current(ticket: str, now: datetime.datetime) -> None:
    """Raises `forbidden` for a page that was shown too long ago. Its proof says that it was shown at all."""
    found = _TICKET.fullmatch(ticket)
    shown_at = datetime.datetime.fromtimestamp(int(found[1]), datetime.timezone.utc) if found is not None else None
    if shown_at is None or not now - SHOWN_FOR < shown_at <= now + _SKEW:
        raise RunCodeError(
            "forbidden", "this page was open for too long", resolution="go back to your terminal and start again"
        )


def name_token(how: str, client: str, machine: str) -> str:
    """`browser login: claude-code on anns-laptop`; the words are the client's own."""
    asked_by = " on ".join(part for part in (client, machine) if part)
    return (f"{how}: {asked_by}" if asked_by else how)[: inputs.NAME_MAX]


def as_client_of(user: UserRow) -> Caller:
    """For the audit: a client that acts on its person's consent, and has no token yet."""
    return Caller(user_id=user.id, email=user.email, is_admin=user.is_admin, token_id=None, token_expires_at=None)
