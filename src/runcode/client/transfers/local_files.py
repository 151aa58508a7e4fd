"""This machine's half of a transfer: what is read, and where a download lands.

Owns: opening what a person named, temporary names, and the one step that gives a
download its final name.

Threat: a folder in which others may write, or a target that is a link, a pipe or
a device; a name that a hostile box chose.

Guarantee: only plain files are read and replaced; a temporary file is made
exclusively, 0600, never through a link; a link in the target's place is replaced,
not followed. A partial file that `--resume` keeps is ours, plain, and not linked
from elsewhere, or it is refused.
"""

from __future__ import annotations

import os
import stat

from runcode.core.errors import RunCodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_CLOSE_ON_EXEC = getattr(os, "O_CLOEXEC", 0)
# What a download leaves free, so that a box that sends without end does not stop this machine.
DISK_RESERVE = 128 * 1024 * 1024
READ_MAX = 256 * 1024
_WRITE_BACK_SIZE = 8 * 1024 * 1024
# An unseekable source is kept this far, for an attempt that never started.
# Far more than fits into the pipe to ssh: nobody has read it then.
_REPLAY_MAX = 4 * 1024 * 1024


class Source:
    """Something to upload: `read` from the start, after each `rewind`.

    `size` and `mode` (permission bits) are None where nobody knows them.
    """

    def __init__(self, descriptor: int, name: str, *, size: int | None, mode: int | None) -> None:
        self.descriptor, self.name, self.size, self.mode = descriptor, name, size, mode
        self._start = os.lseek(descriptor, 0, os.SEEK_CUR) if size is not None else 0
        self._buffer = memoryview(bytearray(READ_MAX))
        self._replay: list[bytes] | None = []
        self._replayed = 0
        self._kept = 0

    def seek(self, offset: int) -> None:
        """Only where the size is known."""
        os.lseek(self.descriptor, self._start + offset, os.SEEK_SET)

    def rewind(self) -> None:
        if self.size is not None:
            self.seek(0)
        elif self._replay is None:
            raise RunCodeError("network", "the connection did not take the input", resolution="send it once more")
        else:
            self._replayed = 0

    def read(self, most: int) -> bytes | memoryview:
        """Up to `most` bytes, empty at the end; what it returns holds until the next call."""
        if self.size is not None or self._replay is None:
            return self._read(most)
        if self._replayed < len(self._replay):
            self._replayed += 1
            return self._replay[self._replayed - 1]
        chunk = bytes(self._read(most))
        self._kept += len(chunk)
        if self._kept > _REPLAY_MAX:
            self._replay = None
        else:
            self._replay.append(chunk)
            self._replayed += 1
        return chunk

    def _read(self, most: int) -> memoryview:
        try:
            return self._buffer[: os.readv(self.descriptor, [self._buffer[:most]])]
        except OSError as error:
            raise local_error(error, self.name) from error

    def close(self) -> None:
        os.close(self.descriptor)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_details: object) -> None:
        self.close()


def open_source(path: str) -> Source:
    """The file that a person named: plain, or refused before anything is sent."""
    try:
        # Non-blocking: opening a pipe must not hang; for a plain file it changes nothing.
        descriptor = os.open(path, os.O_RDONLY | _CLOSE_ON_EXEC | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise local_error(error, path) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        is_folder = stat.S_ISDIR(status.st_mode)
        hint = "copy a folder with `-r`" if is_folder else "only plain files are copied"
        raise RunCodeError("unsafe_path", f"{path!r} is not a plain file", resolution=hint)
    return Source(
        descriptor, os.path.basename(os.path.abspath(path)), size=status.st_size, mode=stat.S_IMODE(status.st_mode)
    )


def open_stdin(descriptor: int = 0) -> Source:
    """Our own stdin, of any kind; a plain file's size is known. The caller's descriptor stays open."""
    try:
        own = os.dup(descriptor)
        status = os.fstat(own)
    except OSError:
        own = os.open(os.devnull, os.O_RDONLY)
        status = os.fstat(own)
    size = None
    if stat.S_ISREG(status.st_mode):
        size = max(0, status.st_size - os.lseek(own, 0, os.SEEK_CUR))
    return Source(own, "stdin", size=size, mode=None)


class Landing:
    """A local file under a temporary name until `finish` gives it its own.

    Leaving the `with` block without `finish` removes it; with a `resume_key` it
    stays for the next attempt, unless `discard` was called.
    """

    def __init__(self, target: str, *, resume_key: str = "") -> None:
        self.target = target
        self.folder = os.path.dirname(target) or "."
        self.path = os.path.join(self.folder, f".runcode-{resume_key or os.urandom(8).hex()}.part")
        self._keeping = bool(resume_key)
        self._descriptor = -1
        self._finished = False
        self._unsynced = 0

    def __enter__(self) -> Landing:
        flags = os.O_RDWR | os.O_CREAT | _CLOSE_ON_EXEC | _NO_FOLLOW | getattr(os, "O_NONBLOCK", 0)
        try:
            if self._keeping:
                self._descriptor = os.open(self.path, flags, 0o600)
                self._check_kept()
            else:
                self._make_new(flags | os.O_EXCL)
        except OSError as error:
            if os.path.islink(self.path):
                raise RunCodeError("unsafe_path", f"{self.path!r} is a link", resolution="remove it") from error
            raise local_error(error, self.folder) from error
        return self

    def _make_new(self, flags: int) -> None:
        try:
            self._descriptor = os.open(self.path, flags, 0o600)
        except OSError:
            raise  # it was not made, or is not ours
        except BaseException:
            # A signal just then; nobody calls __exit__ when __enter__ raises.
            self._unlink()
            raise

    def _check_kept(self) -> None:
        status = os.fstat(self._descriptor)
        others = hasattr(os, "geteuid") and (status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or others:
            os.close(self._descriptor)
            raise RunCodeError("unsafe_path", f"{self.path!r} is not a partial file of ours", resolution="remove it")
        if not _try_lock(self._descriptor):
            os.close(self._descriptor)
            raise RunCodeError("busy", "another `--resume` of the same transfer is running")

    @property
    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def read_prefix(self, size: int, feed: Callable[[bytes], object]) -> None:
        """Pass the first `size` bytes that are there to `feed`."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        while size and (chunk := os.read(self._descriptor, min(size, 1024 * 1024))):
            size -= len(chunk)
            feed(chunk)

    def go_on_at(self, offset: int, expected_size: int) -> None:
        """Drop what is behind `offset`. Raises `io_error` when the disk has no room for the rest."""
        require_room(self.folder, expected_size - offset)
        os.ftruncate(self._descriptor, offset)
        os.lseek(self._descriptor, offset, os.SEEK_SET)

    def write(self, chunk: bytes | memoryview) -> None:
        try:
            write_all(self._descriptor, chunk)
            self._unsynced += len(chunk)
            if self._unsynced >= _WRITE_BACK_SIZE:
                self._write_back()
        except OSError as error:
            raise local_error(error, self.target) from error

    def _write_back(self) -> None:
        """Have the disk begin now, so that the sync at the end waits less: Linux writes what it is told to forget."""
        if hasattr(os, "posix_fadvise"):
            at = os.lseek(self._descriptor, 0, os.SEEK_CUR)
            os.posix_fadvise(self._descriptor, at - self._unsynced, self._unsynced, os.POSIX_FADV_DONTNEED)
        self._unsynced = 0

    def discard(self) -> None:
        """What arrived is damaged: nothing of it is worth keeping."""
        self._keeping = False

    def finish(self, mode: int) -> None:
        try:
            os.fchmod(self._descriptor, mode & ~umask())
            os.fsync(self._descriptor)
            os.replace(self.path, self.target)
        except OSError as error:
            raise local_error(error, self.target) from error
        self._finished = True

    def __exit__(self, *_details: object) -> None:
        empty = self.size == 0
        os.close(self._descriptor)
        if not self._finished and (empty or not self._keeping):
            self._unlink()

    def _unlink(self) -> None:
        try:
            os.unlink(self.path)
        except OSError:
            pass


def find_target(path: str, out: str) -> str:
    """Where the remote `path` lands: `out`, or in that folder under its remote name. Raises `unsafe_path`."""
    target = out
    if os.path.isdir(out) or out.endswith("/"):
        name = remote_name(path)
        if name is None:
            raise RunCodeError("usage", f"{path!r} does not name a file", resolution="name the local file with `--out`")
        target = os.path.join(out, name)
    try:
        mode = os.lstat(target).st_mode
    except FileNotFoundError:
        return target
    except OSError as error:
        raise local_error(error, target) from error
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        raise RunCodeError("unsafe_path", f"{target!r} is not a plain file", resolution="choose another `--out`")
    return target


def remote_name(path: str) -> str | None:
    """The last name of a remote path, or None where it has none of its own (`.`, `..`, `/`)."""
    name = path.rstrip("/").rpartition("/")[2]
    return None if name in ("", ".", "..") else name


def require_room(folder: str, size: int) -> None:
    """Raises `io_error` when the disk cannot take `size` more bytes and keep its reserve."""
    if not hasattr(os, "statvfs") or size < 1024 * 1024:
        return
    disk = os.statvfs(folder)
    if disk.f_bavail * disk.f_frsize < size + DISK_RESERVE:
        raise RunCodeError("io_error", f"there is no room for {size} bytes here", resolution="free some disk space")


def write_all(descriptor: int, chunk: bytes | memoryview) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]


def local_error(error: OSError, path: str) -> RunCodeError:
    code = "not_found" if isinstance(error, FileNotFoundError) else "io_error"
    return RunCodeError(code, f"{path!r} here: {error.strerror or type(error).__name__}", resolution="check the path")


def umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _try_lock(descriptor: int) -> bool:
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except ImportError:
        pass  # Windows: the one who opens it for writing first wins at the rename
    return True
