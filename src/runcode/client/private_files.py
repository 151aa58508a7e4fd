"""Folders and files that only this person may read or write.

Owns: every write below the config and the cache folder, and the locks there.

Threat: another user of this machine plants a folder, a link or a file where a
key, a token or a control socket will be, or waits to read a half-written one.

Guarantee: a folder is 0700, a real folder and ours, or `unsafe_path` is raised
and nothing was written; a file appears whole, 0600 from its first byte, or not
at all. On Windows the user profile's ACLs stand in for mode bits.
"""

from __future__ import annotations

import os
import stat

from runcode.core.errors import RunCodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

FILE_SIZE_MAX = 256 * 1024
_HAS_OWNERS = hasattr(os, "geteuid")
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_CLOSE_ON_EXEC = getattr(os, "O_CLOEXEC", 0)


def ensure_private_folder(path: str) -> str:
    """Make `path` (and its parents) if it is missing; raise `unsafe_path` unless it is a 0700 folder of ours.

    A folder of ours with a wider mode is narrowed when nobody but us could have
    written to it; one that others could write is refused, since they may have
    planted something in it already.
    """
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        status = os.lstat(path)
    except OSError as error:
        raise _cannot("make the folder", path, error) from error
    _check_folder(path, status)
    if _HAS_OWNERS and stat.S_IMODE(status.st_mode) != 0o700:
        os.chmod(path, 0o700)
    return path


def _check_folder(path: str, status: os.stat_result) -> None:
    if not stat.S_ISDIR(status.st_mode):
        raise RunCodeError("unsafe_path", f"{path} is a link or a file, not a folder of ours")
    if not _HAS_OWNERS:
        return
    if status.st_uid != os.geteuid():
        raise RunCodeError("unsafe_path", f"the folder {path} belongs to somebody else")
    if status.st_mode & 0o022:
        raise RunCodeError("unsafe_path", f"others may write to the folder {path}")


def is_private_folder(path: str) -> bool:
    """Is there a folder at `path` that `ensure_private_folder` would accept?"""
    try:
        _check_folder(path, os.lstat(path))
    except (OSError, RunCodeError):
        return False
    return True


def write_private_file(path: str, content: bytes) -> None:
    """Replace `path` with a 0600 file of this content, in one step. Its folder must be private already."""
    temporary = f"{path}.{os.urandom(6).hex()}.tmp"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW | _CLOSE_ON_EXEC, 0o600)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except OSError as error:
        remove_file(temporary)
        raise _cannot("write", path, error) from error


def read_private_file(path: str) -> bytes | None:
    """The content of a file of ours, or None when there is none.

    Raises `unsafe_path` for a link, a special file, somebody else's, one that
    others may write, or one larger than any that we write.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | _NO_FOLLOW | _CLOSE_ON_EXEC | getattr(os, "O_NONBLOCK", 0))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if os.path.islink(path):
            raise RunCodeError("unsafe_path", f"{path} is a link, not a file of ours") from error
        raise _cannot("read", path, error) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RunCodeError("unsafe_path", f"{path} is not a plain file")
        if _HAS_OWNERS and (status.st_uid != os.geteuid() or status.st_mode & 0o022):
            raise RunCodeError("unsafe_path", f"{path} belongs to somebody else, or others may write it")
        if status.st_size > FILE_SIZE_MAX:
            raise RunCodeError("unsafe_path", f"{path} is too large to be a file of ours")
        content = b""
        while chunk := os.read(descriptor, FILE_SIZE_MAX):
            content += chunk
        return content
    except OSError as error:
        raise _cannot("read", path, error) from error
    finally:
        os.close(descriptor)


def remove_file(path: str) -> bool:
    """Remove a file if it is there (a link itself, never what it points to). Says whether it was."""
    try:
        os.unlink(path)
    except OSError:
        return False
    return True


def remove_folder(path: str) -> None:
    """Remove a folder of plain files. A link in its place is left alone."""
    if not is_private_folder(path):
        return
    for name in os.listdir(path):
        remove_file(os.path.join(path, name))
    try:
        os.rmdir(path)
    except OSError as error:
        raise _cannot("remove the folder", path, error) from error


class FileLock:
    """An exclusive lock between processes, held inside `with`.

    Held is the file that has the name now: whoever waited for one that was removed
    meanwhile tries again, so that two never hold "the" lock.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1

    def __enter__(self) -> FileLock:
        try:
            while True:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | _NO_FOLLOW | _CLOSE_ON_EXEC, 0o600)
                try:
                    _lock(self._descriptor)
                    if _is_named(self._descriptor, self._path):
                        return self
                except BaseException:
                    os.close(self._descriptor)
                    raise
                os.close(self._descriptor)
        except OSError as error:
            raise _cannot("lock", self._path, error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def remove(self) -> None:
        """While it is held: what it guards is gone. (Windows keeps a file that is open.)"""
        remove_file(self._path)


def _is_named(descriptor: int, path: str) -> bool:
    try:
        named = os.lstat(path)
    except FileNotFoundError:
        return False
    held = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)


def _lock(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined,unused-ignore]
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def _cannot(verb: str, path: str, error: OSError) -> RunCodeError:
    return RunCodeError("io_error", f"cannot {verb} {path}: {error.strerror or type(error).__name__}")
