"""What a CLI asks of the browser login page, and the one place its answer may go to. Pure.

Owns: reading the query of `/auth/cli-login/` (WIRE.md), and building the address
that the browser is sent to afterwards. Called by the login routes and service.

Threat: anybody can make a person open this page with a query of their own. A port
such as `80@evil.example`, a state that is markup or a header, a second `port`
that another reader would take, or a weaker challenge method must lead nowhere.
Guarantee: the host of an answer is the literal `127.0.0.1`, its port a number
from 1024 on, its path `/callback`; everything else in it is percent-encoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode

from runcode.core.errors import RunCodeError

# A one-shot listener asks the system for a port; below 1024 stands somebody's service.
PORT_MIN: Final = 1024
LABEL_MAX: Final = 40
_PORT = re.compile(r"[1-9][0-9]{3,4}", re.ASCII)
_STATE = re.compile(r"[A-Za-z0-9._~+/=:-]{1,512}", re.ASCII)
# RFC 7636 §4.2: an S256 challenge is 43 characters of base64url.
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,39}", re.ASCII)
_NAMES: Final = ("port", "state", "code_challenge", "code_challenge_method", "client", "machine")
_AGAIN: Final = "run `runcode login` again, and open the address that it prints"


@dataclass(frozen=True)
class LoginRequest:
    """`challenge` is None for a client that knows no code exchange. `client` and `machine` are its own words, or ""."""

    port: int
    state: str
    challenge: str | None
    client: str = ""
    machine: str = ""

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The query again, in one order: for links, hidden fields, and to tell two requests apart."""
        found = [("port", str(self.port)), ("state", self.state)]
        if self.challenge is not None:
            found += [("code_challenge", self.challenge), ("code_challenge_method", "S256")]
        found += [(name, text) for name, text in (("client", self.client), ("machine", self.machine)) if text]
        return tuple(found)

    @property
    def origin(self) -> str:
        """The only origin that an answer goes to."""
        return f"http://127.0.0.1:{self.port}"

    def answer_url(self, answer: Sequence[tuple[str, str]]) -> str:
        return f"{self.origin}/callback?{urlencode([('state', self.state), *answer])}"


def parse_login_request(pairs: Iterable[tuple[str, str]]) -> LoginRequest:
    """Raises `bad_request`; the caller shows that on a page and redirects nowhere."""
    given: dict[str, str] = {}
    for name, text in pairs:
        if name not in _NAMES:
            continue
        if name in given:
            raise _refuse(f"{name} stands twice in it")
        given[name] = text
    port, state = given.get("port", ""), given.get("state", "")
    if _PORT.fullmatch(port) is None or not PORT_MIN <= int(port) <= 65535:
        raise _refuse(f"its port is not a number from {PORT_MIN} to 65535")
    if _STATE.fullmatch(state) is None:
        raise _refuse("its state is missing, or is not one that a client sends")
    challenge, method = given.get("code_challenge"), given.get("code_challenge_method")
    # Never fall back to the plain answer: whoever damages a challenge would get a token into an address.
    if (challenge is None) != (method is None) or (challenge is not None and _CHALLENGE.fullmatch(challenge) is None):
        raise _refuse("its code challenge is damaged")
    if method not in (None, "S256"):
        raise _refuse("its code challenge method is not S256")
    return LoginRequest(
        port=int(port),
        state=state,
        challenge=challenge,
        client=find_label(given.get("client", "")),
        machine=find_label(given.get("machine", "")),
    )


def find_label(text: object) -> str:
    """Only shown, never used: what is not a plain name is left out rather than refused."""
    return text if isinstance(text, str) and _LABEL.fullmatch(text) is not None else ""


def _refuse(why: str) -> RunCodeError:
    return RunCodeError("bad_request", f"this sign-in address cannot be used: {why}", resolution=_AGAIN)
