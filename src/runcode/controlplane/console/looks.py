"""Templates into pages: the one place that turns values into HTML. Pure, but for reading its own files once.

Called by the page routes, which hand over records as services gave them.

Threat: titles, names, commands, reasons and error texts that are markup, that hide
or reorder what stands beside them (bidi controls), or that carry control bytes; a
page that loads or runs anything from elsewhere.
Guarantee: every value that a template prints goes through `_shown` (only printable
characters come out, a newline and a tab apart) and is escaped; no template says
`safe`, and a name that it does not know is an error. The policy sent along forbids
inline code and style, so that what slips through does nothing.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from runcode.controlplane.console import wording
from runcode.controlplane.console.static_files import find_address
from runcode.core.terminal import printable_text

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

_TEMPLATES: Final = Path(__file__).with_name("templates")
_HEADINGS: Final = {
    400: "That cannot be done",
    401: "Sign in first",
    403: "That is not for you",
    404: "There is nothing here",
    409: "Not as it is now",
    429: "Too fast",
    500: "Something broke here",
    503: "Not just now",
}


def render(template: str, **values: Any) -> str:
    """The page or part that `template` is, with `values` as its names."""
    return _load_environment().get_template(template).render(values)


def render_part(template: str, **values: Any) -> tuple[Markup, str]:
    """A live part of a page, ready to stand in it, and the digest of what it shows, which stands in it as `seen`."""
    from markupsafe import Markup

    blank = render(template, **values, seen="")
    digest = hashlib.sha256(blank.encode()).hexdigest()[:16]
    return Markup(render(template, **values, seen=digest)), digest  # noqa: S704


def content_policy(*, form_action: str, scripts: bool) -> str:
    """Only our own style and pictures; forms go to `form_action`, which browsers also hold against redirects.

    A page before a sign-in, or one that asks a single question, has no script at all. On the
    others text becomes markup only by the one policy of console.js, and never a script.
    """
    sources = "default-src 'none'; style-src 'self'; img-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
    if scripts:
        sources += "script-src 'self'; connect-src 'self'; require-trusted-types-for 'script'; trusted-types default; "
    return f"{sources}form-action {form_action}"


def page_headers(*, form_action: str = "'none'", scripts: bool = False) -> dict[str, str]:
    """What a page's answer has beside what the edge gives every answer."""
    return {
        "Content-Security-Policy": content_policy(form_action=form_action, scripts=scripts),
        # Not `no-referrer`: browsers then send `Origin: null` with our own forms (fetch.spec.whatwg.org).
        "Referrer-Policy": "same-origin",
    }


def heading_for(status: int) -> str:
    return _HEADINGS.get(status, "That did not work")


@cache
def _load_environment() -> jinja2.Environment:
    # Not at import: a server that shows no page never pays for it.
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.globals["asset"] = find_address
    environment.filters.update(wording.FILTERS)
    return environment


def _shown(value: Any) -> Any:
    """What a template prints, made fit to be read. Markup is only what our own templates have rendered before."""
    if value is None:
        return ""
    if type(value) is str:
        return printable_text(value)
    return value
