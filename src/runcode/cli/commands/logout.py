"""`runcode logout`: forget the saved token."""

from __future__ import annotations

from runcode.cli.arguments import bare_parser
from runcode.client.settings import forget_token

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context


def parse(words: list[str]) -> argparse.Namespace:
    return bare_parser("logout", "Forget the saved token.").parse_args(words)


def run(options: argparse.Namespace, context: Context) -> int:
    settings = context.settings(options)
    if forget_token(settings):
        context.output.line(f"signed out; the token stays valid at {settings.api_base} until it is revoked there")
    else:
        context.output.line("you were not signed in")
    if context.environ.get("RUNCODE_TOKEN"):
        context.output.notice("warning: RUNCODE_TOKEN is still set, and is used")
    return 0
