"""A folder from a workspace, as one stream.

Threat: the box chooses every name, link, size and mode. It may try to write
outside the target, through a link that it sent or that is already there, over a
device, twice under names that this disk cannot tell apart, or without end.

Guarantee: everything lands in a new 0700 folder beside its target, whose files are
made exclusively and whose links are made last, so that no name leads through
one; the target is touched only when the whole stream was checked. Then a new
target appears in one step; in an existing one no link is followed, no folder is
replaced by a file or the reverse, and each file is replaced whole.
"""

from __future__ import annotations

import os
import stat

from runcode.client.transfers.exchange import Exchange, find_answer, no_answer, no_progress
from runcode.client.transfers.local_files import local_error, remote_name, require_room, umask, write_all
from runcode.client.transfers.staging import Stage
from runcode.client.transfers.tree_upload import TreeReceipt
from runcode.core import archive, remote_trees
from runcode.core.archive import Entry
from runcode.core.checksums import ALGORITHMS, Checksum
from runcode.core.errors import RunCodeError, UnsafeInput
from runcode.core.remote_files import NoDigest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    _T = TypeVar("_T")

    from runcode.client.remote import Remote
    from runcode.client.transfers.exchange import Progress

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_NEW_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW | getattr(os, "O_CLOEXEC", 0)
# Links wait in memory until all files are there.
_LINK_BYTES_MAX = 16 * 1024 * 1024
_ROOM_CHECKED_EVERY = 64 * 1024 * 1024


def download_tree(
    remote: Remote, path: str, out: str, *, skip_special: bool = False, progress: Progress = no_progress
) -> tuple[str, TreeReceipt]:
    """Download a folder as `out`, or into it when it is there already; returns where it is.

    `FOLDER/.` means what is in it, as with `cp -r`. `skip_special` leaves out, and
    names, what is neither a file, a folder nor a link that stays inside.
    """
    target = _find_target(path, out)
    for algorithm in ALGORITHMS:
        with Stage(target) as stage:
            reader = _TreeReader(_Unpacker(stage, skip_special), algorithm, progress)
            command = remote_trees.render_tree_download(
                reader.nonce, algorithm=algorithm, workdir=remote.session.workdir, path=path
            )
            try:
                reader.run(remote, command)
                receipt = reader.finish()
            except NoDigest:
                continue
            stage.move_into_place()
            return target, receipt
    raise NoDigest


def _find_target(path: str, out: str) -> str:
    """Raises `unsafe_path` for a target that is neither a folder nor new."""
    last = path.rstrip("/").rpartition("/")[2]
    target = out.rstrip("/") or "/"
    name = remote_name(path)
    if os.path.isdir(out) and last not in ("", ".", "..") and name is not None:
        target = os.path.join(out, name)
        if os.path.islink(target):
            raise RunCodeError("unsafe_path", f"{target!r} is a link", resolution="choose another `--out`")
    if os.path.lexists(target) and not os.path.isdir(target):
        raise RunCodeError("unsafe_path", f"{target!r} is not a folder", resolution="choose another `--out`")
    return target


class _Unpacker:
    """Makes entries below the stage. Links and second names come last (`finish`)."""

    def __init__(self, stage: Stage, skip_special: bool) -> None:
        self.files = 0
        self.size = 0
        self.left_out: list[str] = []
        self._stage, self._skip_special = stage, skip_special
        self._mask = umask()
        self._descriptor = -1
        self._left = 0
        self._entry: Entry | None = None
        self._links: list[tuple[bytes, bytes]] = []
        self._link_bytes = 0
        self._room_checked_at = 0

    @property
    def place(self) -> str:
        return self._stage.target

    def take(self, entry: Entry) -> None:
        name = b"/".join(entry.parts)
        if os.name == "nt" and not all(archive.is_windows_name(part) for part in entry.parts):
            raise UnsafeInput(f"the workspace sent the name {os.fsdecode(name)!r}", code="unsafe_path")
        if entry.kind == archive.FOLDER:
            self._make_folder(entry, name)
        elif entry.kind == archive.FILE:
            self._descriptor = self._make_file(name)
            self._entry, self._left = entry, entry.size
            if not self._left:
                self._end_file()
        elif entry.kind == archive.HARD_LINK:
            self._make_second_name(entry, name)
        elif entry.kind == archive.LINK and archive.is_inner_link(entry.untrusted_link, len(entry.parts) - 1):
            self._link_bytes += len(name) + len(entry.untrusted_link) + 64
            if self._link_bytes > _LINK_BYTES_MAX:
                raise UnsafeInput("the workspace sent too many links", code="unsafe_path", resolution="copy less of it")
            self._links.append((name, entry.untrusted_link))
        else:
            why = "a link that leaves the folder" if entry.kind == archive.LINK else "neither a file nor a folder"
            self._leave_out(f"{os.fsdecode(name)!r} there is {why}")

    def write(self, piece: memoryview) -> None:
        self._left -= len(piece)
        self.size += len(piece)
        if self.size - self._room_checked_at > _ROOM_CHECKED_EVERY:
            self._room_checked_at = self.size
            require_room(self._stage.folder, _ROOM_CHECKED_EVERY)
        write_all(self._descriptor, piece)
        if not self._left:
            self._end_file()

    def finish(self) -> None:
        """All contents are there: now nothing is written any more, and links can do no harm."""
        for name, target in self._links:
            self._make_link(name, target)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _make_file(self, name: bytes) -> int:
        return self._with_parents(name, lambda n: os.open(n, _NEW_FILE_FLAGS, 0o600, dir_fd=self._stage.descriptor))

    def _end_file(self) -> None:
        assert self._entry is not None
        mode = self._entry.mode & ~self._mask
        if mode != 0o600:
            os.fchmod(self._descriptor, mode)
        os.utime(self._descriptor, (self._entry.mtime, self._entry.mtime))
        self.close()
        self.files += 1

    def _make_folder(self, entry: Entry, name: bytes) -> None:
        mode = entry.mode & ~self._mask | 0o700
        if not entry.parts:
            os.fchmod(self._stage.descriptor, mode)
            return
        self._with_parents(name, lambda n: os.mkdir(n, 0o700, dir_fd=self._stage.descriptor))
        os.chmod(name, mode, dir_fd=self._stage.descriptor)

    def _make_link(self, name: bytes, target: bytes) -> None:
        self._with_parents(name, lambda n: os.symlink(target, n, dir_fd=self._stage.descriptor))

    def _make_second_name(self, entry: Entry, name: bytes) -> None:
        first = b"/".join(archive.parse_member_name(entry.untrusted_link))
        root = self._stage.descriptor
        try:
            # No link exists yet, so this cannot lead through one.
            if not stat.S_ISREG(os.lstat(first, dir_fd=root).st_mode):
                raise FileNotFoundError
            self._with_parents(
                name, lambda n: os.link(first, n, src_dir_fd=root, dst_dir_fd=root, follow_symlinks=False)
            )
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UnsafeInput(
                "the workspace sent a second name of a file that it did not send", code="unsafe_path"
            ) from error
        self.files += 1

    def _with_parents(self, name: bytes, make: Callable[[bytes], _T]) -> _T:
        """`make(name)`, after its folders were made if they are missing."""
        try:
            try:
                return make(name)
            except FileNotFoundError:
                parts = name.split(b"/")
                for depth in range(1, len(parts)):
                    try:
                        os.mkdir(b"/".join(parts[:depth]), 0o755 & ~self._mask | 0o700, dir_fd=self._stage.descriptor)
                    except FileExistsError:
                        pass
                return make(name)
        except (FileExistsError, NotADirectoryError) as error:
            raise UnsafeInput(
                f"the workspace sent {os.fsdecode(name)!r} twice, or as names that this disk cannot tell apart",
                code="unsafe_path",
                resolution="nothing was written: rename one of them there",
            ) from error

    def _leave_out(self, what: str) -> None:
        if not self._skip_special:
            raise UnsafeInput(what, code="unsafe_path", resolution="leave such things out with `--skip-special`")
        if len(self.left_out) < 1000:
            self.left_out.append(what)


class _TreeReader(Exchange):
    """The answer: noise, marker, header, a tar stream; its digest on stderr."""

    def __init__(self, unpacker: _Unpacker, algorithm: str, progress: Progress) -> None:
        super().__init__()
        self._unpacker, self._progress = unpacker, progress
        self._checksum = Checksum(algorithm)
        self._archive = archive.ArchiveReader()
        self._head: bytes | None = b""
        self._failure: RunCodeError | None = None

    def take(self, chunk: memoryview) -> None:
        if self._failure is not None:
            return
        if self._head is not None:
            self._head += chunk
            found = find_answer(self._head, self.nonce)
            if found is None:
                return
            self._head, chunk = None, memoryview(found[1])
            try:
                remote_trees.parse_tree_header(found[0])
            except RunCodeError as error:
                self._failure = error
                return
        self._checksum.update(chunk)
        try:
            for event in self._archive.feed(chunk):
                if isinstance(event, Entry):
                    self._unpacker.take(event)
                else:
                    self._unpacker.write(event)
        except OSError as error:
            raise local_error(error, self._unpacker.place) from error
        self._progress(self._unpacker.size, None)

    def run(self, remote: Remote, command: str) -> None:
        try:
            super().run(remote, command)
        finally:
            self._unpacker.close()

    def finish(self) -> TreeReceipt:
        if self._failure is not None:
            raise self._failure
        if self._head is not None:
            raise no_answer()
        digest, status = remote_trees.parse_tree_ending(self.stderr_answer())
        if not self._archive.ended or digest != self._checksum.word():
            raise RunCodeError("io_error", "the folder arrived damaged or cut short", resolution="retry")
        if status:
            raise RunCodeError(
                "io_error",
                f"the workspace could not read all of the folder: {self._complaint()}",
                resolution="check its permissions there, or retry when nobody writes to it",
            )
        try:
            self._unpacker.finish()
        except OSError as error:
            raise local_error(error, self._unpacker.place) from error
        unpacker = self._unpacker
        return TreeReceipt(
            files=unpacker.files,
            size=unpacker.size,
            algorithm=self._checksum.algorithm,
            digest=digest,
            left_out=tuple(unpacker.left_out),
        )

    def _complaint(self) -> str:
        lines = [line for line in self.stderr.split(b"\n") if line.startswith(b"tar: ")]
        return lines[0][5:200].decode("utf-8", "replace") if lines else "its tar gave no reason"
