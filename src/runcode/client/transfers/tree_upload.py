"""A folder to a workspace, as one stream.

Threat: a link in the folder that leads out of it (to a key, say), or one that
somebody swaps in while we read; a pipe that blocks, a device without end.

Guarantee: every file is opened below its folder's own descriptor and never
through a link; a link travels as a link, and only one that stays inside;
anything else is refused, or left out and named (`skip_special`). The box moves
nothing into place before the digest of what it wrote is the one that we sent.
"""

from __future__ import annotations

import os
import stat

from runcode.client.transfers.exchange import Question, no_progress
from runcode.client.transfers.local_files import local_error
from runcode.core import archive, remote_files, remote_trees
from runcode.core.checksums import ALGORITHMS, Checksum
from runcode.core.errors import RunCodeError
from runcode.core.remote_files import NoDigest
from runcode.core.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from runcode.client.remote import Remote
    from runcode.client.transfers.exchange import Progress

_CHUNK = 256 * 1024
_FOLDER_FLAGS = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_FILE_FLAGS = os.O_RDONLY | _NO_FOLLOW | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


class TreeReceipt(Value):
    """What was copied; `left_out` says what was not, and why. `digest` is of all contents one after the other."""

    files: int
    size: int
    algorithm: str
    digest: str
    left_out: tuple[str, ...]


class Folder(Value):
    """A local folder that a person named. `name` is empty when they mean what is in it."""

    path: str
    name: str
    skip_special: bool


def open_folder(path: str, *, skip_special: bool = False) -> Folder:
    """Raises `unsafe_path` for anything that is not a folder. `FOLDER/.` means what is in it, as with `cp -r`."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise local_error(error, path) from error
    if not stat.S_ISDIR(mode):
        raise RunCodeError("unsafe_path", f"{path!r} is not a folder", resolution="leave `-r` away for a file")
    means_content = path.rstrip("/").rpartition("/")[2] in ("", ".", "..")
    return Folder(
        path=path, name="" if means_content else os.path.basename(os.path.abspath(path)), skip_special=skip_special
    )


def upload_tree(remote: Remote, folder: Folder, path: str, progress: Progress = no_progress) -> TreeReceipt:
    """Put a folder on the workspace as `path`, or into it when it is there already.

    A new target appears whole, in one step. In an existing one every file is
    replaced whole, and none before all have arrived and were checked.
    """
    for algorithm in ALGORITHMS:
        writer = _TreeWriter(folder, algorithm, progress)
        command = remote_trees.render_tree_upload(
            writer.nonce,
            algorithm=algorithm,
            workdir=remote.session.workdir,
            path=path,
            name=folder.name,
        )
        writer.run(remote, command)
        try:
            return writer.finish()
        except NoDigest:
            continue
    raise NoDigest


class _TreeWriter(Question):
    """The stream: the tree, the list of its files, the digest of their contents; one line as the answer."""

    def __init__(self, folder: Folder, algorithm: str, progress: Progress) -> None:
        super().__init__()
        self._folder, self._algorithm, self._progress = folder, algorithm, progress
        self._pieces = self._render()

    def restart(self) -> None:
        super().restart()
        self._pieces.close()
        self._pieces = self._render()

    def next_chunk(self) -> bytes | memoryview:
        """Small pieces are joined: a write for each header would cost more than the copy."""
        pieces: list[bytes | memoryview] = []
        size = 0
        for piece in self._pieces:
            pieces.append(piece)
            size += len(piece)
            if size >= _CHUNK:
                break
        return b"".join(pieces)

    def finish(self) -> TreeReceipt:
        line = self.answer()
        if line != b"ok":
            raise remote_files.parse_failure(line)
        return TreeReceipt(
            files=len(self._names),
            size=self._size,
            algorithm=self._algorithm,
            digest=self._checksum.word(),
            left_out=tuple(self._left_out),
        )

    def _render(self) -> Generator[bytes | memoryview, None, None]:
        self._checksum = Checksum(self._algorithm)
        self._names: list[bytes] = []
        self._left_out: list[str] = []
        self._size = 0
        self._buffer = memoryview(bytearray(_CHUNK))
        try:
            root = os.open(self._folder.path, _FOLDER_FLAGS)
        except OSError as error:
            raise local_error(error, self._folder.path) from error
        yield from self._render_folder(root, (), os.fstat(root))
        yield from _render_file(remote_trees.LIST, b"".join(name + b"\0" for name in self._names))
        # The last one: a stream that was cut anywhere lacks it.
        yield from _render_file(remote_trees.SUM, self._checksum.word().encode() + b"\n")
        yield archive.END

    def _render_folder(
        self, descriptor: int, parts: tuple[bytes, ...], status: os.stat_result
    ) -> Iterator[bytes | memoryview]:
        """Takes over the descriptor."""
        try:
            if len(parts) > archive.DEPTH_MAX:
                raise RunCodeError("unsafe_path", f"{_shown(parts)} is too deep", resolution="copy less of it")
            # Ours to enter and to tidy up there, whatever its mode here.
            mode = stat.S_IMODE(status.st_mode) | 0o700
            yield archive.render_header(
                b"/".join((remote_trees.TREE, *parts)) + b"/",
                kind=archive.FOLDER,
                mode=mode,
                mtime=int(status.st_mtime),
            )
            for name in sorted(os.listdir(descriptor)):
                yield from self._render_entry(descriptor, name, (*parts, os.fsencode(name)))
        except OSError as error:
            raise local_error(error, _shown(parts)) from error
        finally:
            os.close(descriptor)

    def _render_entry(self, folder: int, name: str, parts: tuple[bytes, ...]) -> Iterator[bytes | memoryview]:
        status = os.lstat(name, dir_fd=folder)
        if stat.S_ISDIR(status.st_mode):
            inner = os.open(name, _FOLDER_FLAGS | _NO_FOLLOW, dir_fd=folder)
            yield from self._render_folder(inner, parts, os.fstat(inner))
        elif stat.S_ISREG(status.st_mode):
            yield from self._render_plain(os.open(name, _FILE_FLAGS, dir_fd=folder), parts)
        elif stat.S_ISLNK(status.st_mode):
            target = os.fsencode(os.readlink(name, dir_fd=folder))
            if archive.is_inner_link(target, len(parts) - 1):
                header = archive.render_header(_tree_name(parts), kind=archive.LINK, link=target, mode=0o777)
                yield header
            else:
                self._leave_out(parts, "is a link that leaves the folder")
        else:
            self._leave_out(parts, "is neither a file nor a folder nor a link")

    def _render_plain(self, descriptor: int, parts: tuple[bytes, ...]) -> Iterator[bytes | memoryview]:
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise RunCodeError("unsafe_path", f"{_shown(parts)} was exchanged while it was read")
            left = status.st_size
            yield archive.render_header(
                _tree_name(parts), size=left, mode=stat.S_IMODE(status.st_mode), mtime=int(status.st_mtime)
            )
            while left:
                size = os.readv(descriptor, [self._buffer[:left]])
                if not size:
                    raise RunCodeError("io_error", f"{_shown(parts)} shrank while it was read", resolution="retry")
                left -= size
                piece = bytes(self._buffer[:size])
                self._checksum.update(piece)
                yield piece
            yield archive.padding(status.st_size)
        finally:
            os.close(descriptor)
        self._names.append(b"/".join(parts))
        self._size += status.st_size
        self._progress(self._size, None)

    def _leave_out(self, parts: tuple[bytes, ...], why: str) -> None:
        if not self._folder.skip_special:
            raise RunCodeError(
                "unsafe_path", f"{_shown(parts)} {why}", resolution="leave such things out with `--skip-special`"
            )
        self._left_out.append(f"{_shown(parts)} {why}")


def _tree_name(parts: tuple[bytes, ...]) -> bytes:
    return b"/".join((remote_trees.TREE, *parts))


def _render_file(name: bytes, content: bytes) -> Iterator[bytes]:
    yield archive.render_header(name, size=len(content), mode=0o600)
    yield content
    yield archive.padding(len(content))


def _shown(parts: tuple[bytes, ...]) -> str:
    return repr(os.fsdecode(b"/".join(parts)))
