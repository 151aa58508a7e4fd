"""Where the details of an unexpected exception go: a private file, never the terminal.

The token is taken out of it, should a library have put it into a message.
"""

from __future__ import annotations

import os
import traceback

from runcode.client.paths import cache_folder
from runcode.client.private_files import ensure_private_folder, write_private_file
from runcode.core.errors import RunCodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def record_crash(error: BaseException, environ: Mapping[str, str]) -> str:
    """Write the traceback down; returns the reference for the message."""
    reference = os.urandom(4).hex()
    text = "".join(traceback.format_exception(error))
    for secret in _secrets(environ):
        text = text.replace(secret, "[token]")
    try:
        ensure_private_folder(cache_folder(environ))
        folder = ensure_private_folder(os.path.join(cache_folder(environ), "errors"))
        path = os.path.join(folder, f"{reference}.log")
        write_private_file(path, text.encode("utf-8", "replace"))
    except (RunCodeError, OSError):
        return f"reference {reference}; its details could not be written down: {type(error).__name__}"
    return f"reference {reference}, details in {path}"


def _secrets(environ: Mapping[str, str]) -> list[str]:
    from runcode.client.paths import config_folder
    from runcode.client.private_files import read_private_file

    found = [environ.get("RUNCODE_TOKEN", "")]
    try:
        found.append(
            (read_private_file(os.path.join(config_folder(environ), "token")) or b"").decode("ascii", "replace")
        )
    except (RunCodeError, OSError):
        pass
    return [secret.strip() for secret in found if secret.strip()]
