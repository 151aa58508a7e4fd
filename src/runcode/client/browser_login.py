"""Browser login, the client's half: an address to open, an answer on loopback, a token (WIRE.md).

Owns: the state and the code verifier of one attempt, the page's address, the
exchange. The token itself is verified and kept by the command.

Threat: the address is seen by other users (`ps`), kept in histories and logs.

Guarantee: with a server that knows the code exchange no token ever stands in an
address, and a code is worth nothing without the verifier, which never leaves
this process but to the API base. State and verifier are 256 random bits each.

Source: RFC 7636 (S256), RFC 8252.
"""

from __future__ import annotations

import os
import re

from runcode.client import platforms
from runcode.client.loopback import Listener
from runcode.core.errors import RunCodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from runcode.client.loopback import Answer
    from runcode.client.settings import Settings

DEFAULT_TIMEOUT_S = 180.0
_LABEL = re.compile(r"[^A-Za-z0-9 ._-]", re.ASCII)
_PASTE = "run `runcode login --paste`"


class Attempt:
    """One sign-in: listening from the moment it is made; `close` it, or `finish` it with words for the browser."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        state, self._verifier = _random_text(), _random_text()
        self._listener = Listener(state, settings.environ)
        self.url = _render_url(settings, self._listener.port, state, _challenge(self._verifier))

    def wait(self, timeout_s: float) -> Answer:
        """Raises `timed_out`, or `forbidden` when the person pressed Deny."""
        answer = self._listener.wait(timeout_s)
        if answer is None:
            raise RunCodeError("timed_out", "login timed out", resolution=_PASTE)
        if answer.code is None and answer.token is None:
            raise RunCodeError("forbidden", "the sign-in was denied in the browser", resolution=f"retry, or {_PASTE}")
        return answer

    def redeem(self, answer: Answer) -> tuple[str, str]:
        """(raw token, the e-mail address that the server names). Raises whatever the exchange meets."""
        if answer.code is None:
            return answer.token or "", answer.untrusted_email
        from runcode.client.api import Api

        token, email = Api(self._settings.api_base, None, self._settings.environ).redeem_code(
            answer.code, self._verifier
        )
        return token, email or answer.untrusted_email

    def finish(self, words: str) -> None:
        self._listener.finish(words)

    def close(self) -> None:
        self._listener.close()


def open_browser(url: str, environ: Mapping[str, str]) -> bool:
    """Start the person's browser, without waiting for it. Says whether anything was started."""
    from runcode.client.processes import find_program

    for command in platforms.current().browser_commands(environ, url):
        try:
            program = command[0] if os.path.isabs(command[0]) else find_program(command[0], environ)
            _start_detached([program, *command[1:]], environ)
            return True
        except (RunCodeError, OSError):
            continue
    return False


def _start_detached(argv: list[str], environ: Mapping[str, str]) -> None:
    import subprocess

    environment = {name: value for name, value in environ.items() if name != "RUNCODE_TOKEN"}
    null = subprocess.DEVNULL
    # A session of its own: Ctrl-C here must not close the browser.
    child = subprocess.Popen(
        argv, env=environment, stdin=null, stdout=null, stderr=null, start_new_session=os.name == "posix"
    )
    # It outlives us, and that is meant.
    child.returncode = 0


def _render_url(settings: Settings, port: int, state: str, challenge: str) -> str:
    from urllib.parse import urlencode

    query = {"port": str(port), "state": state, "code_challenge": challenge, "code_challenge_method": "S256"}
    labels = {"client": settings.client, "machine": machine_label()}
    query |= {name: text for name, label in labels.items() if (text := _label(label))}
    return f"{settings.web_base}/auth/cli-login/?{urlencode(query)}"


def _label(text: str) -> str:
    """What the consent page shows of us; plain letters, or it would leave it out."""
    return _LABEL.sub("-", text)[:40].lstrip(" ._-")


def machine_label() -> str:
    """What this machine calls itself, as a plain label; "" where it does not say."""
    import socket

    try:
        return _label(socket.gethostname().split(".")[0])
    except OSError:
        return ""


def _random_text() -> str:
    """43 characters of base64url, from 32 random bytes."""
    return _base64url(os.urandom(32))


def _challenge(verifier: str) -> str:
    import hashlib

    return _base64url(hashlib.sha256(verifier.encode("ascii")).digest())


def _base64url(raw: bytes) -> str:
    import base64

    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")
