"""The person's own `~/.ssh/config`: our block goes in or out, and nothing else changes.

Owns: reading and replacing that one file and its `config.bak`. Called by
`config-ssh` only; the text is made by `core.sshblock`.

Threat: the file may be a link into somebody else's folder, a fifo, half-written,
or changed by an editor while we work; our text could break every ssh of this
person.

Guarantee: it is replaced in one step by a file with the same mode (0600 when
new), where a link points and not in the link's place, after the one before was
copied to `config.bak`. Before that the real ssh has read the new text and said
of a host of ours what we meant. A change by somebody else in between is kept,
and the work begun again.
"""

from __future__ import annotations

import os
import stat
import tempfile

from runcode.client import platforms
from runcode.client.private_files import FileLock, ensure_private_folder
from runcode.core import sshblock
from runcode.core.errors import RunCodeError
from runcode.core.terminal import printable
from runcode.core.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runcode.client.settings import Settings
    from runcode.core.sshblock import HostEntry

# A config that a person keeps is far smaller; reading a device by mistake ends here.
SIZE_MAX = 8 * 1024 * 1024
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


def plan_change(settings: Settings, entries: list[HostEntry] | None) -> Change:
    """What the file would hold with these hosts, or without any of ours (None). Nothing is written."""
    path = os.path.join(platforms.current().home(settings.environ), ".ssh", "config")
    before = _read(path)
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
            if not change.is_needed or _replace(change, settings, entries or []):
                return change
    raise RunCodeError("busy", f"{change.path} keeps changing under us", resolution="close its editor, then retry")


def _read(path: str) -> bytes | None:
    """The file's bytes through a link, or None. Raises `unsafe_path` for what is no file of ours."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _cannot("read", path, error) from error
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RunCodeError("unsafe_path", f"{path} is not a plain file")
        if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
            raise RunCodeError("unsafe_path", f"{path} belongs to somebody else")
        content = file.read(SIZE_MAX + 1)
    if len(content) > SIZE_MAX:
        raise RunCodeError("unsafe_path", f"{path} is too large to be an ssh config")
    return content


def _replace(change: Change, settings: Settings, entries: list[HostEntry]) -> bool:
    """False when somebody else changed the file meanwhile; then nothing was written."""
    named_folder = os.path.dirname(change.path)
    real_path = os.path.realpath(change.path)
    mode = 0o600
    temporary = backup = None
    try:
        if not os.path.isdir(named_folder):
            os.makedirs(named_folder, mode=0o700)
        if change.before is not None:
            mode = stat.S_IMODE(os.stat(real_path).st_mode)
        temporary = _write_beside(real_path, change.after, mode)
        _ask_ssh(temporary, change, settings, entries)
        if change.before is not None:
            backup = _write_beside(change.path + ".bak", change.before, mode)
        if _read(change.path) != change.before or os.path.realpath(change.path) != real_path:
            return False
        if backup is not None:
            os.replace(backup, change.path + ".bak")
            backup = None
        os.replace(temporary, real_path)
        temporary = None
        return True
    except OSError as error:
        raise _cannot("replace", real_path, error) from error
    finally:
        for left_over in (temporary, backup):
            if left_over is not None:
                os.unlink(left_over)


def _write_beside(path: str, content: bytes, mode: int) -> str:
    """A whole file under a name of its own in the folder of `path`."""
    descriptor, temporary = tempfile.mkstemp(prefix=".runcode-", dir=os.path.dirname(path))
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
            # While it is written it is 0600; a wider mode is the person's own choice.
            os.chmod(temporary, mode)
    except OSError:
        os.unlink(temporary)
        raise
    return temporary


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


def _cannot(verb: str, path: str, error: OSError) -> RunCodeError:
    return RunCodeError("io_error", f"cannot {verb} {path}: {error.strerror or type(error).__name__}")
