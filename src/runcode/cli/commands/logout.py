"""`runcode logout`: forget the saved token; `--revoke` ends it on the server first."""

from __future__ import annotations

from runcode.cli.arguments import bare_parser
from runcode.client.settings import forget_token, load_settings, load_token
from runcode.core.errors import RunCodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context
    from runcode.client.settings import Settings


def parse(words: list[str]) -> argparse.Namespace:
    parser = bare_parser("logout", "Forget the saved token.")
    parser.add_argument("--revoke", action="store_true", help="end the token on the server too, wherever it is used")
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    return parser.parse_args(words)


def run(options: argparse.Namespace, context: Context) -> int:
    # The saved token, at the base that it is for: what the environment says is not what is forgotten here.
    environ = {n: v for n, v in context.environ.items() if n not in ("RUNCODE_TOKEN", "RUNCODE_API_BASE")}
    settings = load_settings(environ)
    revoked = options.revoke and _revoke(settings)
    forgotten = forget_token(settings)
    if options.json:
        context.output.json({"signed_out": forgotten, "revoked": revoked, "api_base": settings.api_base})
    elif not forgotten:
        context.output.line("you were not signed in")
    elif revoked:
        context.output.line(f"signed out, and the token was revoked at {settings.api_base}")
    else:
        context.output.line(f"signed out; the token stays valid at {settings.api_base} until it is revoked there")
    if context.environ.get("RUNCODE_TOKEN"):
        context.output.notice("warning: RUNCODE_TOKEN is still set, and is used")
    return 0


def _revoke(settings: Settings) -> bool:
    """Raises when the server did not end the token: it is then kept here, so that this can be tried again."""
    from runcode.client.api import Api

    try:
        Api(settings.api_base, load_token(settings), settings.environ).revoke_token()
    except RunCodeError as error:
        if error.code == "no_token":
            return False
        if error.code == "unauthorized":
            # The server does not know it any more, which is what was asked for.
            return True
        missing = error.code in ("not_found", "http_error", "forbidden")
        raise RunCodeError(
            error.code,
            f"the token was not revoked, and is still saved: {error.message}",
            resolution=(
                f"revoke it at {settings.web_base}, then run `runcode logout`"
                if missing
                else "retry, or forget it here only: `runcode logout`"
            ),
        ) from error
    return True
