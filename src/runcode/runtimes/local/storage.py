"""A workspace's home on the host: made whole, or not at all; removed without following anything.

Threat: the tree was written by the box's user, who may be hostile. A symlink in it
could lead a removal to the host's files, a tree deeper than PATH_MAX or the stack
could break it, folders without permissions could keep it from ending.

Guarantee: `create_home` leaves existing storage alone and never writes into a home
that a box has seen. `remove_tree` touches nothing outside the folder it is given,
with two descriptors open and no recursion, whatever the tree looks like.
"""

from __future__ import annotations

import itertools
import os
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from runcode.runtimes.local.layout import WorkspaceFolder, make_private_folder, write_new_file

_ABANDONED_S = 3600.0

_PROFILE = """\
# ~/.profile: read by login shells.
if [ -n "$BASH_VERSION" ] && [ -f "$HOME/.bashrc" ]; then
    . "$HOME/.bashrc"
fi
"""
_BASHRC = """\
# ~/.bashrc: read by interactive bash.
case $- in *i*) ;; *) return ;; esac
HISTCONTROL=ignoreboth
HISTSIZE=10000
shopt -s histappend checkwinsize
alias ls='ls --color=auto' ll='ls -l' grep='grep --color=auto'
"""


def create_home(folder: WorkspaceFolder, host_uid: int | None) -> None:
    """Storage exists afterwards. A half-made one of a crash before is thrown away and made again."""
    if folder.home.is_dir() and not folder.home.is_symlink():
        return
    make_private_folder(folder.path)
    new = folder.path / "storage.new"
    if new.exists():
        remove_tree(new)
    home = new / "home"
    workspace = home / "workspace"
    new.mkdir(mode=0o700)
    for path in (home, workspace):
        path.mkdir()
        path.chmod(0o755)
    write_new_file(home / ".profile", _PROFILE, 0o644)
    write_new_file(home / ".bashrc", _BASHRC, 0o644)
    if host_uid is not None:
        for path in (home / ".profile", home / ".bashrc", workspace, home):
            os.chown(path, host_uid, host_uid, follow_symlinks=False)
    os.rename(new, folder.storage)


def remove_tree(path: Path) -> None:
    """Remove a folder and all below it. No process may be using it. Missing is fine; a link itself is removed.

    Folders found on the way are first moved up beside each other, so that depth
    costs neither stack, nor descriptors, nor a path longer than the kernel takes.
    """
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            path.unlink()
            return
    except FileNotFoundError:
        return
    top = _open_folder(str(path), None)
    numbers = itertools.count()
    try:
        pending = [""]
        while pending:
            name = pending.pop()
            folder = top if not name else _open_folder(name, top)
            try:
                pending += _empty_folder(folder, top, numbers)
            finally:
                if folder != top:
                    os.close(folder)
            if name:
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(path)


def remove_abandoned(folders: Iterable[Path]) -> None:
    """What a crash left half-made: folders that nobody has touched for an hour."""
    for path in folders:
        try:
            if time.time() - path.lstat().st_mtime > _ABANDONED_S:
                remove_tree(path)
        except FileNotFoundError:
            continue


def _empty_folder(folder: int, top: int, numbers: Iterator[int]) -> list[str]:
    """Unlink what is not a folder, move folders into `top`; their names there."""
    moved = []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    for name in names:
        if not stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
            os.unlink(name, dir_fd=folder)
            continue
        # Moving a folder writes to it (its `..`), so it needs its permissions first.
        os.close(_open_folder(name, folder))
        new = _free_name(top, numbers)
        os.rename(name, new, src_dir_fd=folder, dst_dir_fd=top)
        moved.append(new)
    return moved


def _free_name(top: int, numbers: Iterator[int]) -> str:
    for number in numbers:
        name = f".removing-{number}"
        try:
            os.lstat(name, dir_fd=top)
        except FileNotFoundError:
            return name
    raise AssertionError("numbers never end")


def _open_folder(name: str, parent: int | None) -> int:
    """Opens a folder, never a link, and makes it ours to read and write."""
    reference = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        # fchmod does not take an O_PATH descriptor, and without read permission there is no other;
        # the name under /proc leads to this very folder, whatever happens to its path.
        if os.stat(reference).st_mode & 0o700 != 0o700:
            os.chmod(f"/proc/self/fd/{reference}", 0o700)
        return os.open(f"/proc/self/fd/{reference}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(reference)
