"""The pages of the browser login, and the frame that every page of ours stands in. Pure: values in, HTML out.

Threat: a state, a client's name or an e-mail address that is markup; a page that
frames ours; a style or script from elsewhere.
Guarantee: every value goes through `html.escape`; there is no script and no inline
style, and the policy sent along allows neither, so that what slips through does nothing.
"""

from __future__ import annotations

from html import escape
from typing import Final

from runcode.controlplane.services.login_requests import LoginRequest

LOGIN_PATH: Final = "/auth/cli-login/"
SIGN_IN_PATH: Final = "/auth/cli-login/sign-in"
ANSWER_PATH: Final = "/auth/cli-login/answer"
STYLE_PATH: Final = "/assets/page.css"

# What a form may say; each name is also the purpose that its proof is made for.
SIGN_IN: Final = "sign in"
ANSWER: Final = "answer"


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


def render_sign_in(request: LoginRequest, proof: str, *, email: str = "", problem: str = "") -> str:
    shown = f'<p class="problem" role="alert">{escape(_sentence(problem))}</p>' if problem else ""
    focus_email, focus_password = ("", " autofocus") if email else (" autofocus", "")
    return render_page(
        "Sign in",
        f"""<h1>Sign in</h1>
<p>A RunCode client asks for access to your account. Sign in first; nothing is granted before you are asked.</p>
{shown}
<form method="post" action="{SIGN_IN_PATH}">
{_hidden(request, proof)}
<label for="email">E-mail address</label>
<input id="email" name="email" type="email" autocomplete="username" required maxlength="254"
 value="{escape(email)}"{focus_email}>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required maxlength="1024"
{focus_password}>
<div class="choices"><button type="submit">Sign in</button></div>
</form>
<p class="note">No password? Your operator can give you an API token, for <code>runcode login --paste</code>.</p>""",
    )


def render_consent(request: LoginRequest, proof: str, *, email: str, source: str) -> str:
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
<p>It will be able to, until its token is revoked:</p>
<ul>
<li>see, start and stop the workspaces that you may use,</li>
<li>open SSH connections to them: run commands, read and change files.</li>
</ul>
<p class="warning">Authorize only if you have just run <code>runcode login</code> on this machine yourself.</p>
{plain}
<form method="post" action="{ANSWER_PATH}">
{_hidden(request, proof)}
<div class="choices">
<button type="submit" name="answer" value="authorize">Authorize</button>
<button type="submit" name="answer" value="deny" class="quiet">Deny</button>
</div>
</form>""",
    )


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


def _hidden(request: LoginRequest, proof: str) -> str:
    pairs = (*request.pairs, ("proof", proof))
    return "\n".join(f'<input type="hidden" name="{escape(name)}" value="{escape(text)}">' for name, text in pairs)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""
