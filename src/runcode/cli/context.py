"""What every command is given: environment, output, and settings and API made when first asked for.

Tests hand in an environment and an Output of their own.
"""

from __future__ import annotations

import sys

from runcode.client.settings import Settings, load_settings, load_token

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping
    from typing import BinaryIO

    from runcode.cli.output import Output
    from runcode.client.api import Api
    from runcode.client.remote import Remote


class Context:
    def __init__(self, environ: Mapping[str, str], output: Output, stdin: BinaryIO | None = None) -> None:
        self.environ = environ
        self.output = output
        self._stdin = stdin

    @property
    def stdin(self) -> BinaryIO | None:
        return self._stdin if self._stdin is not None else getattr(sys.stdin, "buffer", None)

    def settings(self, options: argparse.Namespace) -> Settings:
        """Raises `usage` or `insecure_base` for a base that will not do."""
        if getattr(options, "token", None) is not None:
            self.output.notice("warning: `--token` is visible to others in `ps`; use `--token-file` or RUNCODE_TOKEN")
        return load_settings(
            self.environ,
            api_base=getattr(options, "api_base", None),
            web_base=getattr(options, "web_base", None),
            workspace=getattr(options, "workspace", None),
            token_file=getattr(options, "token_file", None),
            token_option=getattr(options, "token", None),
            agent_session=getattr(options, "agent_session", None),
        )

    def api(self, settings: Settings) -> Api:
        """Raises `no_token`."""
        from runcode.client.api import Api

        return Api(settings.api_base, load_token(settings, self.stdin), self.environ)

    def remote(self, settings: Settings, wanted: str | None) -> Remote:
        """The named workspace, else the attached one, with a session that is good for a while."""
        from runcode.client import remote, sessions, workspaces

        def make_api() -> Api:
            return self.api(settings)

        workspace_id = workspaces.resolve_id(settings, wanted, make_api)
        session, _ = sessions.load_session(settings, workspace_id, make_api)
        return remote.Remote(settings, session, make_api)
