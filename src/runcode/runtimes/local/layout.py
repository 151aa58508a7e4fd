"""Where the local runtime keeps things, and how it writes them.

    ROOT/                       0700, ours
      uid-block                 as root: the first host uid of this root's boxes
      etc/<fingerprint>/        the boxes' shared /etc, one folder per state of the host
      locks/<id>                held while an operation on that workspace runs
      trash/                    what destroy has put out of sight, until it is gone
      workspaces/<id>/          0700
        plan.json keeper.lock keeper.log
        box-<nonce>/            made anew at each start: opt/ (read-only in the box), hosts, hostname
        run/                    ssh.sock, keeper.json
        storage/home/           the box's /home/ubuntu: the only folder that a box can write

Guarantee: everything but `storage/home` is written by the host alone, under folders
that no box can reach; nothing here looks inside `storage/home`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from runcode.core.errors import RunCodeError
from runcode.runtimes.local import plan


@dataclass(frozen=True)
class WorkspaceFolder:
    """The paths of one workspace."""

    path: Path

    @property
    def plan_file(self) -> Path:
        return self.path / plan.PLAN_FILE

    @property
    def lock_file(self) -> Path:
        return self.path / plan.LOCK_FILE

    @property
    def log_file(self) -> Path:
        return self.path / plan.LOG_FILE

    @property
    def run(self) -> Path:
        return self.path / plan.RUN_FOLDER

    @property
    def socket(self) -> Path:
        return self.path / plan.SOCKET_FILE

    @property
    def state_file(self) -> Path:
        return self.path / plan.STATE_FILE

    @property
    def storage(self) -> Path:
        return self.path / "storage"

    @property
    def home(self) -> Path:
        return self.path / plan.HOME_FOLDER

    def find_box_folders(self) -> list[Path]:
        return sorted(self.path.glob("box-*"))


@dataclass(frozen=True)
class Layout:
    root: Path

    @property
    def trash(self) -> Path:
        return self.root / "trash"

    @property
    def locks(self) -> Path:
        return self.root / "locks"

    @property
    def etc(self) -> Path:
        return self.root / "etc"

    @property
    def uid_block(self) -> Path:
        return self.root / "uid-block"

    @property
    def workspaces(self) -> Path:
        return self.root / "workspaces"

    def workspace(self, workspace_id: int) -> WorkspaceFolder:
        """Raises `bad_request` for what is not an id: it becomes a folder's name."""
        if type(workspace_id) is not int or workspace_id <= 0:
            raise RunCodeError("bad_request", f"{workspace_id!r} is not a workspace id")
        return WorkspaceFolder(self.workspaces / str(workspace_id))

    def prepare(self) -> None:
        """Make the folders that are missing. Raises `unsafe_path` when the root is not ours alone."""
        make_private_folder(self.root)
        for folder in (self.trash, self.locks, self.etc, self.workspaces):
            make_private_folder(folder)


def make_private_folder(path: Path) -> None:
    """0700 and ours afterwards. Raises `unsafe_path` for a link or somebody else's folder."""
    try:
        path.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        pass
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if path.is_symlink() or os.fstat(descriptor).st_uid != os.geteuid():
            raise RunCodeError("unsafe_path", f"{path} is a link or belongs to somebody else")
        if os.fstat(descriptor).st_mode & 0o777 != 0o700:
            os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)


def write_new_file(path: Path, content: str | bytes, mode: int, gid: int = -1) -> None:
    """A file that must not exist yet, with exactly this mode whatever the umask is."""
    raw = content.encode() if isinstance(content, str) else content
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(raw)
        if gid >= 0:
            os.fchown(descriptor, -1, gid)
        os.fchmod(descriptor, mode)
