"""The `runcode` in `~/.local/bin` that `install-path` makes, and takes away again.

Guarantee: a file or link there that we did not make, by our own record of it, is
neither replaced nor removed.
"""

from __future__ import annotations

import os

from runcode.client import platforms
from runcode.client.private_files import ensure_private_folder, read_private_file, remove_file, write_private_file
from runcode.core.errors import RunCodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runcode.client.settings import Settings

_RECORD = "path-link"


def link_path(settings: Settings) -> str:
    return os.path.join(platforms.current().home(settings.environ), ".local", "bin", "runcode")


def is_on_path(settings: Settings) -> bool:
    folders = settings.environ.get("PATH", "").split(os.pathsep)
    return os.path.dirname(link_path(settings)) in [folder.rstrip("/") for folder in folders]


def install_link(settings: Settings, program: str) -> bool:
    """Link to `program`. Says whether anything had to change. Raises `conflict` over what is not ours."""
    path = link_path(settings)
    found = _find_target(path)
    if found == program or os.path.abspath(program) == path:
        return False
    if os.path.lexists(path) and not _is_ours(settings, found):
        if found is not None and os.path.realpath(path) == os.path.realpath(program):
            # Another installer's link to this very program does what is wanted.
            return False
        raise RunCodeError(
            "conflict",
            f"{path} is there already, and is not ours",
            resolution="move it away, then retry",
        )
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        # First the record: a link that we cannot prove to be ours could never be removed again.
        ensure_private_folder(settings.config_folder)
        write_private_file(os.path.join(settings.config_folder, _RECORD), os.fsencode(program))
        if found is None:
            os.symlink(program, path)
            return True
        temporary = f"{path}.{os.urandom(6).hex()}.tmp"
        os.symlink(program, temporary)
        os.replace(temporary, path)
    except FileExistsError as error:
        raise RunCodeError(
            "conflict", f"{path} was made just now by somebody else", resolution="move it away, then retry"
        ) from error
    except OSError as error:
        raise RunCodeError("io_error", f"cannot link {path}: {error.strerror}") from error
    return True


def remove_link(settings: Settings) -> bool:
    """Says whether our link was there. Raises `conflict` when something else is."""
    path = link_path(settings)
    if not os.path.lexists(path):
        return False
    if not _is_ours(settings, _find_target(path)):
        raise RunCodeError("conflict", f"{path} is not ours", resolution="remove it yourself if you do not want it")
    removed = remove_file(path)
    remove_file(os.path.join(settings.config_folder, _RECORD))
    return removed


def _find_target(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _is_ours(settings: Settings, target: str | None) -> bool:
    record = read_private_file(os.path.join(settings.config_folder, _RECORD))
    return target is not None and record is not None and os.fsencode(target) == record
