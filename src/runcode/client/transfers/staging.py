"""Where a downloaded folder is made, and how it comes into place.

Owns: the temporary folder beside (or in) the target, and the move.

Threat: the target already holds links, or things of another kind under the names
that come; somebody changes it while we look.

Guarantee: the temporary folder is new and 0700; before anything moves, every clash
was found; each step opens folders without following a link, so that a move cannot
leave the target; a file or a link there is replaced, never written through.
"""

from __future__ import annotations

import os
import stat

from runcode.client.transfers.local_files import local_error
from runcode.core.errors import RunCodeError

FOLDER_FLAGS = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)


class Stage:
    """The new folder on the target's disk. `descriptor` is what is unpacked below; gone after the `with`."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._is_new = not os.path.isdir(target)
        self.folder = (os.path.dirname(target) or ".") if self._is_new else target
        self.path = os.path.join(self.folder, f".runcode-{os.urandom(8).hex()}.part")
        self.descriptor = -1

    def __enter__(self) -> Stage:
        try:
            os.mkdir(self.path, 0o700)
            os.mkdir(os.path.join(self.path, "tree"), 0o700)
            self.descriptor = os.open(os.path.join(self.path, "tree"), FOLDER_FLAGS | _NO_FOLLOW)
        except BaseException as error:
            # Also a signal: nobody calls __exit__ when this raises.
            self._remove()
            if isinstance(error, OSError):
                raise local_error(error, self.folder) from error
            raise
        return self

    def __exit__(self, *_details: object) -> None:
        os.close(self.descriptor)
        self._remove()

    def _remove(self) -> None:
        import shutil

        shutil.rmtree(self.path, ignore_errors=True)

    def move_into_place(self) -> None:
        """Everything is there and checked."""
        try:
            if self._is_new:
                # Fails when something has come to stand there, unless it is an empty folder.
                os.rename(os.path.join(self.path, "tree"), self.target)
                return
            root = os.open(self.target, FOLDER_FLAGS)
            try:
                _check_clashes(self.descriptor, root, "")
                _merge(self.descriptor, root)
            finally:
                os.close(root)
        except OSError as error:
            raise local_error(error, self.target) from error


def _check_clashes(new: int, old: int, path: str) -> None:
    """Raises `unsafe_path` when a folder stands where a file comes, or the reverse, or a link where a folder comes."""
    for name in os.listdir(new):
        status = os.lstat(name, dir_fd=new)
        try:
            there = os.lstat(name, dir_fd=old)
        except FileNotFoundError:
            continue
        inner = f"{path}/{name}" if path else name
        is_folder = stat.S_ISDIR(status.st_mode)
        replaceable = stat.S_ISREG(there.st_mode) or stat.S_ISLNK(there.st_mode)
        if (is_folder and not stat.S_ISDIR(there.st_mode)) or (not is_folder and not replaceable):
            raise RunCodeError(
                "unsafe_path",
                f"{inner!r} here is in the way: a link, a file for a folder, or the reverse",
                resolution="remove it, or choose another `--out`; nothing was changed",
            )
        if is_folder:
            with _BothBelow(new, old, name) as (below_new, below_old):
                _check_clashes(below_new, below_old, inner)


def _merge(new: int, old: int) -> None:
    for name in os.listdir(new):
        try:
            # A folder moves as a whole where there is none; a file replaces a file or a link.
            os.rename(name, name, src_dir_fd=new, dst_dir_fd=old)
        except OSError:
            if not stat.S_ISDIR(os.lstat(name, dir_fd=new).st_mode):
                raise
            with _BothBelow(new, old, name) as (below_new, below_old):
                _merge(below_new, below_old)


class _BothBelow:
    """The folder of one name below each of two, opened without following a link."""

    def __init__(self, new: int, old: int, name: str) -> None:
        self._new, self._old, self._name = new, old, name

    def __enter__(self) -> tuple[int, int]:
        self._below_new = os.open(self._name, FOLDER_FLAGS | _NO_FOLLOW, dir_fd=self._new)
        try:
            self._below_old = os.open(self._name, FOLDER_FLAGS | _NO_FOLLOW, dir_fd=self._old)
        except OSError:
            os.close(self._below_new)
            raise
        return self._below_new, self._below_old

    def __exit__(self, *_details: object) -> None:
        os.close(self._below_new)
        os.close(self._below_old)
