"""The pages of the browser login, and the frame that every page of ours stands in. Pure: values in, HTML out.

Threat: a state, a client's name or an e-mail address that is markup; a page that
frames ours; a style or script from elsewhere.
Guarantee: every value goes through `html.escape`; there is no script and no inline
style, and the policy sent along allows neither, so that what slips through does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final
from urllib.parse import urlencode

from runcode.controlplane.services.device_logins import DeviceRequest
from runcode.controlplane.services.login_requests import LoginRequest
from runcode.controlplane.services.web_sessions import WebSessionRecord
from runcode.controlplane.states import SCOPE_CONNECT, SCOPE_MANAGE, SCOPE_READ, SCOPES

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
STYLE_PATH: Final = "/assets/page.css"

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


def content_policy(*, form_action: str = "'none'") -> str:
    """Only our own style sheet; forms go to `form_action`, which browsers also hold against redirects after a form."""
    return f"default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action {form_action}"


def render_page(title: str, body: str) -> str:
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)} · RunCode</title>
<link rel="stylesheet" href="{STYLE_PATH}">
</head>
<body>
<main>
<p class="brand">RunCode</p>
{body}
</main>
</body>
</html>
"""


def render_sign_in(
    next_path: str, proof: str, *, email: str = "", problem: str = "", provider: str | None = None
) -> str:
    """`provider` is what the operator calls the OpenID provider, None where there is none."""
    focus_email, focus_password = ("", " autofocus") if email else (" autofocus", "")
    asked = (
        "<p>A RunCode client asks for access to your account. Sign in first; "
        "nothing is granted before you are asked.</p>"
        if next_path.startswith("/auth/")
        else ""
    )
    elsewhere = (
        ""
        if provider is None
        else f"""<p><a class="button" href="{OIDC_START_PATH}?{escape(urlencode({"next": next_path}))}">Sign in with
{escape(provider)}</a></p>
<p class="note">Or with a password of this server:</p>"""
    )
    return render_page(
        "Sign in",
        f"""<h1>Sign in</h1>
{asked}
{_problem(problem)}
{elsewhere}
<form method="post" action="{SIGN_IN_PATH}">
{_hidden(("next", next_path), ("proof", proof))}
<label for="email">E-mail address</label>
<input id="email" name="email" type="email" autocomplete="username" required maxlength="254"
 value="{escape(email)}"{focus_email}>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required maxlength="1024"
{focus_password}>
<div class="choices"><button type="submit">Sign in</button></div>
</form>
<p class="note">No password, or lost it? Your operator can give you a sign-in link
(<code>runcode-server user sign-in-link</code>), or an API token for <code>runcode login --paste</code>.</p>""",
    )


def render_link(email: str, link: str, proof: str) -> str:
    return render_page(
        "Sign in",
        f"""<h1>Sign in as {escape(email)}?</h1>
<p>This link works once. Use it on a machine of your own.</p>
<form method="post" action="{LINK_PATH}">
{_hidden(("link", link), ("proof", proof))}
<div class="choices"><button type="submit" autofocus>Sign in</button></div>
</form>""",
    )


def render_account(email: str, sessions: Sequence[WebSessionRecord], proof: str, *, problem: str = "") -> str:
    rows = "\n".join(_render_session(session, proof) for session in sessions)
    return render_page(
        "Your account",
        f"""<h1>Your account</h1>
{_problem(problem)}
<p>Signed in as {escape(email)}.</p>
<h2>Signed-in browsers</h2>
<ul>
{rows}
</ul>
<form method="post" action="{SIGN_OUT_PATH}">
{_hidden(("proof", proof))}
<div class="choices">
<button type="submit">Sign out</button>
<button type="submit" name="everywhere" value="yes" class="quiet">Sign out everywhere</button>
</div>
<label><input type="checkbox" name="tokens" value="yes"> and revoke all my API tokens</label>
</form>
<h2>Password</h2>
<form method="post" action="{PASSWORD_PATH}">
{_hidden(("proof", proof))}
<label for="current">Current password</label>
<input id="current" name="current" type="password" autocomplete="current-password" required maxlength="1024">
<label for="new">New password</label>
<input id="new" name="new" type="password" autocomplete="new-password" required minlength="10" maxlength="1024">
<label for="again">New password, once more</label>
<input id="again" name="again" type="password" autocomplete="new-password" required minlength="10" maxlength="1024">
<div class="choices"><button type="submit">Change it, and sign my other browsers out</button></div>
</form>""",
    )


def _render_session(session: WebSessionRecord, proof: str) -> str:
    seen = f"{session.last_seen_at:%Y-%m-%d %H:%M} UTC"
    told = f"{escape(session.browser) or 'unknown browser'} from {escape(session.source)}, last seen {seen}"
    if session.current:
        return f"<li>{told} <strong>(this one)</strong></li>"
    return f"""<li>{told}
<form method="post" action="{END_SESSION_PATH}">
{_hidden(("id", str(session.id)), ("proof", proof))}
<button type="submit" class="quiet">Sign it out</button>
</form></li>"""


def render_consent(request: LoginRequest, ticket: str, proof: str, *, email: str, source: str) -> str:
    plain = (
        ""
        if request.challenge is not None
        else """<p class="problem">This is an older client: it gets its token in the address of a page on this
machine, where your browser's history keeps it.</p>"""
    )
    return render_page(
        "Authorize a client",
        f"""<h1>Let this client act as you?</h1>
<dl>
<dt>Your account</dt><dd>{escape(email)}</dd>
<dt>Client</dt><dd>{_claimed(request.client)}</dd>
<dt>On machine</dt><dd>{_claimed(request.machine)}</dd>
<dt>Answer goes to</dt><dd><code>127.0.0.1:{request.port}</code>, on the machine that runs this browser</dd>
<dt>Your address</dt><dd>{escape(source)}</dd>
</dl>
<p class="warning">Authorize only if you have just run <code>runcode login</code> on this machine yourself.</p>
{plain}
<form method="post" action="{ANSWER_PATH}">
{_hidden(*request.pairs, ("ticket", ticket), ("proof", proof))}
{_consent_choices(SCOPES)}
</form>""",
    )


def render_device_code(user_code: str, proof: str, *, problem: str = "") -> str:
    """Where a code is typed. `user_code` came with the address: it is shown, and nothing more."""
    return render_page(
        "Sign a device in",
        f"""<h1>Sign a device in</h1>
{_problem(problem)}
<p>Type the code that <code>runcode login --device</code> shows in your terminal.</p>
<form method="post" action="{DEVICE_PATH}">
{_hidden(("proof", proof))}
<label for="user_code">Code</label>
<input id="user_code" name="user_code" type="text" autocomplete="off" autocapitalize="characters" spellcheck="false"
 required maxlength="20" placeholder="XXXX-XXXX" value="{escape(user_code)}" autofocus>
<div class="choices"><button type="submit">Continue</button></div>
</form>
<p class="warning">Somebody sent you here with a code? Then close this page: they would act as you.</p>""",
    )


def render_device_consent(request: DeviceRequest, ticket: str, proof: str, *, email: str, waited_s: int) -> str:
    return render_page(
        "Authorize a device",
        f"""<h1>Let this device act as you?</h1>
<dl>
<dt>Your account</dt><dd>{escape(email)}</dd>
<dt>Code</dt><dd><code>{escape(request.user_code)}</code></dd>
<dt>Client</dt><dd>{_claimed(request.client)}</dd>
<dt>On machine</dt><dd>{_claimed(request.machine)}</dd>
<dt>It asked from</dt><dd>{escape(request.source)}</dd>
<dt>Waiting for</dt><dd>{waited_s} s</dd>
</dl>
<p class="warning">Authorize only if you started this yourself, on a machine of yours, and its terminal shows this very
code. Nobody who works for this server will ever send you a code.</p>
<form method="post" action="{DEVICE_ANSWER_PATH}">
{_hidden(("user_code", request.user_code), ("ticket", ticket), ("proof", proof))}
{_consent_choices(request.scopes)}
</form>""",
    )


def render_device_done(authorized: bool) -> str:
    said = "The device is signed in in a moment" if authorized else "The device was told no"
    return render_page("Done", f"<h1>Done</h1><p>{said}. You can close this page and go back to your terminal.</p>")


def _consent_choices(asked: Sequence[str]) -> str:
    """The boxes and buttons that every consent has; only what was asked for can be ticked."""
    boxes = "\n".join(
        f'<label><input type="checkbox" name="scope" value="{scope}" checked{_fixed(scope)}>'
        f" {_SCOPE_WORDS[scope]}</label>"
        for scope in SCOPES
        if scope in asked
    )
    return f"""<p>It will be able to:</p>
{boxes}
<label for="expires_days">Until</label>
<select id="expires_days" name="expires_days">
<option value="">its token is revoked</option>
<option value="1">tomorrow</option>
<option value="7">in a week</option>
<option value="30">in 30 days</option>
<option value="90">in 90 days</option>
</select>
<div class="choices">
<button type="submit" name="answer" value="authorize">Authorize</button>
<button type="submit" name="answer" value="deny" class="quiet">Deny</button>
</div>"""


def _fixed(scope: str) -> str:
    return " disabled" if scope == SCOPE_READ else ""


def render_problem(message: str, resolution: str) -> str:
    return render_page(
        "That did not work",
        f"""<h1>That did not work</h1>
<p class="problem" role="alert">{escape(_sentence(message))}</p>
<p>{escape(_sentence(resolution))}</p>""",
    )


def _claimed(text: str) -> str:
    """A client's own words, marked as such."""
    if not text:
        return '<span class="note">it does not say</span>'
    return f'{escape(text)} <span class="note">(in its own words)</span>'


def _hidden(*pairs: tuple[str, str]) -> str:
    return "\n".join(f'<input type="hidden" name="{escape(name)}" value="{escape(text)}">' for name, text in pairs)


def _problem(text: str) -> str:
    return f'<p class="problem" role="alert">{escape(_sentence(text))}</p>' if text else ""


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""
