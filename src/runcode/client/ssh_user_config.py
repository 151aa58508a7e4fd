"""The person's own `~/.ssh/config`: our block goes in or out, and nothing else changes.

Owns: what that one file holds afterwards. Called by `config-ssh` and `doctor`; the
text is made by `core.sshblock`, the file is replaced by `client.person_files`.

Threat: our text could break every ssh of this person, or what stands above it
could change what our hosts mean.

Guarantee: before the file is replaced the real ssh has read the new text, and
has said of a host of ours what we meant; else it stays as it was.
"""

from __future__ import annotations

import os

from runcode.client import platforms
from runcode.client.person_files import read_person_file, replace_person_file
from runcode.client.private_files import FileLock, ensure_private_folder
from runcode.core import sshblock
from runcode.core.errors import RunCodeError
from runcode.core.terminal import printable
from runcode.core.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runcode.client.settings import Settings
    from runcode.core.sshblock import HostEntry

_ATTEMPTS = 5
_CHECK_TIMEOUT_S = 20.0


class Change(Value):
    """What a run would do, or did. `before` is None where there is no file yet."""

    path: str
    before: bytes | None
    after: bytes

    @property
    def is_needed(self) -> bool:
        return (self.before or b"") != self.after


def config_path(settings: Settings) -> str:
    return os.path.join(platforms.current().home(settings.environ), ".ssh", "config")


def plan_change(settings: Settings, entries: list[HostEntry] | None) -> Change:
    """What the file would hold with these hosts, or without any of ours (None). Nothing is written."""
    path = config_path(settings)
    before = read_person_file(path)
    if entries:
        after = sshblock.insert_block(before or b"", sshblock.render_block(entries))
    else:
        after = sshblock.remove_blocks(before or b"")
    return Change(path=path, before=before, after=after)


def apply_change(settings: Settings, entries: list[HostEntry] | None) -> Change:
    """Plan, let ssh check it, back up, replace. Raises `unsafe_path`, `io_error`, or `busy`."""
    ensure_private_folder(settings.cache_folder)
    with FileLock(os.path.join(settings.cache_folder, "config-ssh.lock")):
        for _ in range(_ATTEMPTS):
            change = plan_change(settings, entries)

            def check(candidate: str, change: Change = change) -> None:
                _ask_ssh(candidate, change, settings, entries or [])

            if not change.is_needed or replace_person_file(change.path, change.before, change.after, check=check):
                return change
    raise RunCodeError("busy", f"{change.path} keeps changing under us", resolution="close its editor, then retry")


def _ask_ssh(candidate: str, change: Change, settings: Settings, entries: list[HostEntry]) -> None:
    """`ssh -G` reads the new text and must resolve a host of ours as we meant it.

    One that ssh already rejected is the person's to mend; we leave it as it is.
    """
    from runcode.client.openssh_probe import resolve_host

    if not entries:
        return
    entry = entries[0]
    found = resolve_host(candidate, entry.alias, settings.environ, timeout_s=_CHECK_TIMEOUT_S)
    if isinstance(found, str):
        reason = printable(found.replace(candidate, change.path))
        raise RunCodeError(
            "io_error",
            f"ssh does not accept {change.path} with our hosts in it, so it was left as it is: {reason}",
            resolution="mend the file so that `ssh -G example` works, then retry",
        )
    wanted = {"hostname": sshblock.GATEWAY_NAME, "user": entry.title, "stricthostkeychecking": "true"}
    # `ssh -G` prints `true` for yes.
    if any(found.get(name) != value for name, value in wanted.items()) or "proxycommand" not in found:
        raise RunCodeError(
            "io_error",
            f"with {change.path} as it is, ssh would not use our hosts as meant; it was left alone",
            resolution="look for a `Match` or `Include` above the hosts of RunCode in it",
        )
