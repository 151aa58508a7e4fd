"""Where the client keeps its state: config, cache, and the short folder for control sockets.

Threat: the control socket lies in a folder that every user can write to (/tmp).
Whoever plants a socket there could take a person's commands and answer them.

Guarantee: a folder that this module returns for a socket is 0700 and ours.

Source: XDG Base Directory; `sun_path` is 104 bytes on macOS and 108 on Linux,
and OpenSSH 9.2 appends 17 to the control path while it binds.
"""

from __future__ import annotations

import os

from runcode.client import platforms
from runcode.client.private_files import ensure_private_folder, is_private_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# "/" + 8 hex + "-" + 19 digits + "-" + 16 hex, and OpenSSH's own suffix of 17.
_SOCKET_NAME_MAX = 1 + 8 + 1 + 19 + 1 + 16 + 17
_SUN_PATH_MAX = 103


def config_folder(environ: Mapping[str, str]) -> str:
    """The folder of the token. Not made here."""
    platform = platforms.current()
    return platform.join(platform.config_base(environ), "runcode")


def cache_folder(environ: Mapping[str, str]) -> str:
    """The folder of sessions and attachments. Not made here."""
    platform = platforms.current()
    return platform.join(platform.cache_base(environ), "runcode")


def ensure_control_folder(environ: Mapping[str, str]) -> str:
    """A short private folder for control sockets: in $XDG_RUNTIME_DIR when that is ours, else /tmp/rc-<uid>.

    Where connections are not shared there are no sockets: then it is in the cache, and holds ssh's logs only.
    """
    if not platforms.current().can_multiplex:
        ensure_private_folder(cache_folder(environ))
        return ensure_private_folder(os.path.join(cache_folder(environ), "run"))
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    folder = os.path.join(runtime, "rc")
    short = len(os.fsencode(folder)) + _SOCKET_NAME_MAX <= _SUN_PATH_MAX
    if os.path.isabs(runtime) and short and is_private_folder(runtime):
        return ensure_private_folder(folder)
    return ensure_private_folder(f"/tmp/rc-{os.geteuid()}")  # noqa: S108 (checked: ours, 0700, no link)
