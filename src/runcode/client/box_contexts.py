"""Ask a workspace what it is, in one round trip. Called by `cli.commands.context`."""

from __future__ import annotations

from runcode.client.transfers.exchange import Exchange
from runcode.core import remote_context
from runcode.core.errors import RunCodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runcode.client.remote import Remote
    from runcode.core.remote_context import BoxContext


class _Look(Exchange):
    def __init__(self) -> None:
        super().__init__()
        self.text = bytearray()

    def restart(self) -> None:
        self.text.clear()

    def take(self, chunk: memoryview) -> None:
        self.text += chunk
        if len(self.text) > remote_context.ANSWER_MAX:
            raise RunCodeError("io_error", "the workspace prints too much", resolution="quieten its rc files")


def load_context(remote: Remote) -> BoxContext:
    """Everything in it is the box's own word."""
    look = _Look()
    look.run(remote, remote_context.render_context(look.nonce, workdir=remote.session.workdir))
    return remote_context.parse_context(bytes(look.text), look.nonce)
