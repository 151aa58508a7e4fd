"""`runcode login`: sign in with a browser, here or elsewhere, or with a pasted API token; verify it, keep it."""

from __future__ import annotations

from runcode.cli.arguments import new_parser, seconds
from runcode.client.settings import load_token, parse_token, save_token
from runcode.core.errors import RunCodeError
from runcode.core.terminal import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context
    from runcode.client.browser_login import Attempt
    from runcode.client.settings import Settings

_PASTED_MAX = 8192


def parse(words: list[str]) -> argparse.Namespace:
    parser = new_parser(
        "login", "Sign in with your browser. The token that it brings is verified, then kept in a 0600 file.", json=True
    )
    parser.add_argument("--no-browser", action="store_true", help="only print the address; you open it")
    parser.add_argument("--paste", action="store_true", help="read a token from a hidden prompt, or from stdin")
    parser.add_argument("--device", action="store_true", help="print a code to type in a browser on any other machine")
    parser.add_argument(
        "--timeout", type=seconds, metavar="N", help="seconds to wait (180; with --device, as long as the code lives)"
    )
    parser.add_argument("--web-base", metavar="URL", help="the console's address, where the browser goes")
    _, rest = parser.parse_known_args(words)
    if any(not word.startswith("-") for word in rest):
        # Most likely the token. It is not repeated: an agent keeps what was printed.
        raise RunCodeError(
            "usage",
            "a token is not given on the command line, where others see it",
            resolution="type `runcode login --paste`, then paste it; or pipe it in",
        )
    return parser.parse_args(words)


def run(options: argparse.Namespace, context: Context) -> int:
    settings = context.settings(options)
    if options.paste or options.token_file is not None or options.token is not None:
        email = ""
        _keep(_read_token(options, settings, context), settings)
        _tell(settings, email, options, context)
        return 0
    if options.device:
        return _run_device(options, settings, context)
    from runcode.client import browser_login

    timeout_s = browser_login.DEFAULT_TIMEOUT_S if options.timeout is None else options.timeout
    attempt = browser_login.Attempt(settings)
    try:
        context.output.notice(f"to sign in, open {attempt.url}")
        if not options.no_browser and not browser_login.open_browser(attempt.url, settings.environ):
            context.output.notice(
                "no browser could be opened here: open that address on this machine, or use `runcode login --paste`"
            )
        context.output.notice(f"waiting for the browser (up to {timeout_s:.0f} s; Ctrl-C ends it) …")
        _finish(attempt, timeout_s, settings, options, context)
    finally:
        attempt.close()
    return 0


def _run_device(options: argparse.Namespace, settings: Settings, context: Context) -> int:
    from runcode.client import device_login
    from runcode.client.api import Api
    from runcode.client.browser_login import machine_label

    api = Api(settings.api_base, None, settings.environ)
    attempt = device_login.start(api, settings, machine_label())
    context.output.notice(f"to sign in, open {attempt.address} in a browser on any machine")
    context.output.notice(f"and type this code there: {attempt.user_code}")
    if attempt.complete_address is not None:
        context.output.notice(f"or open {attempt.complete_address}, and compare the code")
    context.output.notice("never give the code to anybody else; waiting (Ctrl-C ends it) …")
    raw_token, untrusted_email = device_login.wait(api, attempt, options.timeout)
    _keep(parse_token(raw_token), settings)
    _tell(settings, untrusted_email, options, context)
    return 0


def _finish(
    attempt: Attempt, timeout_s: float, settings: Settings, options: argparse.Namespace, context: Context
) -> None:
    """From the browser's answer to a kept token; the browser is told how it ended."""
    words = "The sign-in failed. Your terminal says why; you can close this page."
    answered = False
    try:
        answer = attempt.wait(timeout_s)
        answered = True
        raw_token, untrusted_email = attempt.redeem(answer)
        _keep(parse_token(raw_token), settings)
        _tell(settings, untrusted_email, options, context)
        context.output.flush()
        words = "You are signed in. You can close this page and go back to your terminal."
    except RunCodeError as error:
        if not answered and error.code == "forbidden":
            answered, words = True, "You said no, so nobody was signed in. You can close this page."
        raise
    finally:
        if answered:
            attempt.finish(words)


def _keep(token: str, settings: Settings) -> None:
    """Raises `unauthorized` when the server does not know the token; then nothing is kept."""
    from runcode.client.api import Api

    Api(settings.api_base, token, settings.environ).verify_token()
    save_token(settings, token)


def _tell(settings: Settings, untrusted_email: str, options: argparse.Namespace, context: Context) -> None:
    if options.json:
        # Only a plausible address: what else the other side put there is of no use to a program.
        email = untrusted_email if untrusted_email.isprintable() and "@" in untrusted_email else None
        context.output.json({"api_base": settings.api_base, "web_base": settings.web_base, "email": email})
        return
    whom = f" as {printable(untrusted_email, limit=200)}" if untrusted_email else ""
    context.output.line(f"signed in at {settings.api_base}{whom}; next: runcode list")


def _read_token(options: argparse.Namespace, settings: Settings, context: Context) -> str:
    if options.token_file is not None or options.token is not None:
        return load_token(settings, context.stdin)
    stdin = context.stdin
    if stdin is None:
        return parse_token("")
    if not stdin.isatty():
        return parse_token(stdin.readline(_PASTED_MAX).decode("ascii", "replace"))
    from runcode.client import platforms

    return parse_token(platforms.read_hidden_line(stdin.fileno(), "API token: ", _PASTED_MAX))
