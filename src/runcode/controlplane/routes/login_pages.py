"""The pages of signing in and of consent: their addresses, and their values on the way into the console's templates.

Pure: values in, HTML out. They stand in a frame without navigation, since there is one
question on each, and who asks it is not always who is signed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlencode

import runcode
from runcode.controlplane.console import looks
from runcode.controlplane.services.device_logins import DeviceRequest
from runcode.controlplane.services.login_requests import LoginRequest
from runcode.controlplane.states import SCOPE_CONNECT, SCOPE_MANAGE, SCOPE_READ, SCOPES
from runcode.core.errors import RunCodeError

LOGIN_PATH: Final = "/auth/cli-login/"
ANSWER_PATH: Final = "/auth/cli-login/answer"
SIGN_IN_PATH: Final = "/sign-in"
SIGN_OUT_PATH: Final = "/sign-out"
LINK_PATH: Final = "/sign-in/link"
OIDC_START_PATH: Final = "/sign-in/oidc"
ACCOUNT_PATH: Final = "/account"
PASSWORD_PATH: Final = "/account/password"
END_SESSION_PATH: Final = "/account/sessions/end"
DEVICE_PATH: Final = "/auth/device"
DEVICE_ANSWER_PATH: Final = "/auth/device/answer"

# What the proof of a form is made for.
SIGN_IN: Final = "sign in"
LINK: Final = "sign-in link"
CONSENT: Final = "consent"
DEVICE_CONSENT: Final = "device consent"

_SCOPE_WORDS: Final = {
    SCOPE_READ: "see the workspaces that you may use (always)",
    SCOPE_CONNECT: "open SSH connections to them: run commands, read and change files",
    SCOPE_MANAGE: "start, stop and manage them",
}
_EXPIRIES: Final = (
    ("", "its token is revoked"),
    ("1", "tomorrow"),
    ("7", "in a week"),
    ("30", "in 30 days"),
    ("90", "in 90 days"),
)
_ASKED_BY_CLIENT: Final = (
    "A RunCode client asks for access to your account. Sign in first; nothing is granted before you are asked."
)
_OLDER_CLIENT: Final = (
    "This is an older client: it gets its token in the address of a page on this machine, where your browser's "
    "history keeps it."
)


def render_sign_in(
    next_path: str, proof: str, *, email: str = "", problem: str = "", provider: str | None = None
) -> str:
    """`provider` is what the operator calls the OpenID provider, None where there is none."""
    return _render(
        "sign_in.html",
        asked=_ASKED_BY_CLIENT if next_path.startswith("/auth/") else "",
        action=SIGN_IN_PATH,
        provider=provider,
        provider_address=f"{OIDC_START_PATH}?{urlencode({'next': next_path})}",
        hidden=(("next", next_path), ("proof", proof)),
        email=email,
        problem=problem,
    )


def render_link(email: str, link: str, proof: str) -> str:
    hidden = (("link", link), ("proof", proof))
    return _render("link.html", email=email, action=LINK_PATH, hidden=hidden)


def render_consent(request: LoginRequest, ticket: str, proof: str, *, email: str, source: str) -> str:
    return _render(
        "consent.html",
        heading="Let this client act as you?",
        facts=(
            ("Your account", email),
            ("Answer goes to", f"127.0.0.1:{request.port}, on the machine that runs this browser"),
            ("Your address", source),
        ),
        claims=(("Client", request.client), ("On machine", request.machine)),
        warning="Authorize only if you have just run this on this machine yourself:",
        command="runcode login",
        problem="" if request.challenge is not None else _OLDER_CLIENT,
        action=ANSWER_PATH,
        hidden=(*request.pairs, ("ticket", ticket), ("proof", proof)),
        **_consent_choices(SCOPES),
    )


def render_device_code(user_code: str, proof: str, *, problem: str = "") -> str:
    """Where a code is typed. `user_code` came with the address: it is shown, and nothing more."""
    return _render("device.html", action=DEVICE_PATH, hidden=(("proof", proof),), user_code=user_code, problem=problem)


def render_device_consent(request: DeviceRequest, ticket: str, proof: str, *, email: str, waited_s: int) -> str:
    return _render(
        "consent.html",
        heading="Let this device act as you?",
        facts=(
            ("Your account", email),
            ("Code", request.user_code),
            ("It asked from", request.source),
            ("Waiting for", f"{waited_s} s"),
        ),
        claims=(("Client", request.client), ("On machine", request.machine)),
        warning="Authorize only if you started this yourself, on a machine of yours, and its terminal shows this very "
        "code. Nobody who works for this server will ever send you a code.",
        command="",
        problem="",
        action=DEVICE_ANSWER_PATH,
        hidden=(("user_code", request.user_code), ("ticket", ticket), ("proof", proof)),
        **_consent_choices(request.scopes),
    )


def render_device_done(authorized: bool) -> str:
    said = "The device is signed in in a moment" if authorized else "The device was told no"
    return _render("said.html", heading="Done", text=f"{said}. You can close this page and go back to your terminal.")


def render_failure(status: int, error: RunCodeError) -> tuple[str, dict[str, str]]:
    """A failure outside of all pages (no such address, too fast, a bug of ours) for a browser; and its headers."""
    page = _render("problem.html", here="", number=status, heading=looks.heading_for(status), failure=error)
    return page, looks.page_headers()


def _consent_choices(asked: Sequence[str]) -> dict[str, Any]:
    """The boxes that every consent has; only what was asked for can be ticked, and looking cannot be unticked."""
    scopes = [(scope, _SCOPE_WORDS[scope], scope == SCOPE_READ) for scope in SCOPES if scope in asked]
    return {"scopes": scopes, "expiries": _EXPIRIES}


def _render(template: str, *, here: str = SIGN_IN_PATH, **values: Any) -> str:
    frame = {"viewer": None, "nav": (), "here": here, "version": runcode.__version__, "done": None, "error": None}
    return looks.render(template, **frame, **values)
