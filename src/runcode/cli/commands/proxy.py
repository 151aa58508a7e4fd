"""`runcode proxy ID`: the ProxyCommand behind the hosts of `config-ssh`. Not for people."""

from __future__ import annotations

import argparse

from runcode.cli.arguments import bare_parser
from runcode.client import platforms, proxying
from runcode.client import settings as settings_module
from runcode.core.errors import RunCodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runcode.cli.context import Context
    from runcode.client.api import Api


def parse(words: list[str]) -> argparse.Namespace:
    parser = bare_parser("proxy", "Relay ssh to a workspace. ssh runs this for the hosts that `config-ssh` wrote.")
    parser.add_argument("workspace_id", metavar="ID", help="the workspace's number")
    parser.add_argument("--api-base", metavar="URL", help="the server that the host was written for")
    parser.add_argument("--config-home", metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--cache-home", metavar="DIR", help=argparse.SUPPRESS)
    return parser.parse_args(words)


def run(options: argparse.Namespace, context: Context) -> int:
    if not options.workspace_id.isascii() or not options.workspace_id.isdigit() or len(options.workspace_id) > 18:
        raise RunCodeError("usage", "the workspace's number is missing", resolution="run `runcode config-ssh` again")
    settings = settings_module.load_stored_settings(
        context.environ, api_base=options.api_base, config_home=options.config_home, cache_home=options.cache_home
    )
    platforms.make_binary(0, 1)

    def make_api() -> Api:
        from runcode.client.api import Api
        from runcode.client.settings import load_token

        return Api(settings.api_base, load_token(settings), settings.environ, certificates=False)

    return proxying.run(settings, int(options.workspace_id), make_api)
