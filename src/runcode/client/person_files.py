"""Files that belong to the person, not to us: read, and replaced in one step or not at all.

Owns: the replacement itself. Called for `~/.ssh/config` and for the settings of
coding agents, each of which knows what it may change in its own file.

Threat: the file may be a link into somebody else's folder, a fifo, huge, or
changed by an editor while we work.

Guarantee: only a plain file of this user is read or replaced; the new one is
whole, on disk and has the same mode (0600 when new) before it takes the old one's
place; a link stays a link, and what it points to is replaced; the content before
is in `<name>.bak` by then; a change by somebody else in between is never lost.
"""

from __future__ import annotations

import os
import stat
import tempfile

from runcode.core.errors import RunCodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# A file that a person keeps is far smaller; reading a device by mistake ends here.
SIZE_MAX = 8 * 1024 * 1024


def read_person_file(path: str) -> bytes | None:
    """The file's bytes, through a link, or None. Raises `unsafe_path` for what is no plain file of ours."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _cannot("read", path, error) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RunCodeError("unsafe_path", f"{path} is not a plain file")
        if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
            raise RunCodeError("unsafe_path", f"{path} belongs to somebody else")
        content = b""
        while len(content) <= SIZE_MAX and (chunk := os.read(descriptor, SIZE_MAX)):
            content += chunk
    except OSError as error:
        raise _cannot("read", path, error) from error
    finally:
        os.close(descriptor)
    if len(content) > SIZE_MAX:
        raise RunCodeError("unsafe_path", f"{path} is too large for what it should be")
    return content


def replace_person_file(
    path: str, before: bytes | None, after: bytes, *, check: Callable[[str], None] = lambda _candidate: None
) -> bool:
    """Put `after` where `before` was read; False, and nothing written, when that is not there any more.

    `check` is given the new file's own path before it takes the place, and raises
    what it has against it.
    """
    real_path = os.path.realpath(path)
    left_over: list[str] = []
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        mode = 0o600 if before is None else stat.S_IMODE(os.stat(real_path).st_mode)
        candidate = _write_beside(real_path, after, mode)
        left_over.append(candidate)
        check(candidate)
        if before is not None:
            left_over.append(_write_beside(path + ".bak", before, mode))
        if read_person_file(path) != before or os.path.realpath(path) != real_path:
            return False
        if before is not None:
            os.replace(left_over[1], path + ".bak")
            del left_over[1]
        os.replace(candidate, real_path)
        left_over.clear()
        return True
    except OSError as error:
        raise _cannot("replace", real_path, error) from error
    finally:
        for temporary in left_over:
            os.unlink(temporary)


def _write_beside(path: str, content: bytes, mode: int) -> str:
    """A whole file under a name of its own in the folder of `path`."""
    descriptor, temporary = tempfile.mkstemp(prefix=".runcode-", dir=os.path.dirname(path))
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # While it was written it was 0600; a wider mode is the person's own choice.
        os.chmod(temporary, mode)
    except OSError:
        os.unlink(temporary)
        raise
    return temporary


def _cannot(verb: str, path: str, error: OSError) -> RunCodeError:
    return RunCodeError("io_error", f"cannot {verb} {path}: {error.strerror or type(error).__name__}")
