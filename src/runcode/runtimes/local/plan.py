"""What the server tells a keeper, and what a keeper tells about itself: two small private files.

Owns: `BoxPlan` (plan.json, written by the server before it spawns a keeper) and
`KeeperState` (run/keeper.json, written by the keeper). Both stand in folders that
no box can reach. Paths are relative to the workspace's folder, so that a data
folder may move while boxes run. Standard library only.

Guarantee: a server understands the files of older and newer keepers (and a keeper
those of older and newer servers), since a box outlives the server's upgrade, and a
package may be replaced while the server runs. So a field is never renamed or
retyped; a new one has a default; what is not known is passed over. `format` is
raised only when that is not enough, and a higher one is not guessed at.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TypeVar

PLAN_FILE = "plan.json"
LOCK_FILE = "keeper.lock"
LOG_FILE = "keeper.log"
RUN_FOLDER = "run"
SOCKET_FILE = "run/ssh.sock"
STATE_FILE = "run/keeper.json"
FAILURE_FILE = "run/failure"
STAGE_FOLDER = "run/stage"
HOME_FOLDER = "storage/home"
FORMAT = 1
_Record = TypeVar("_Record")


@dataclass(frozen=True)
class BoxPlan:
    """One start of one box. `host_uid` is None for an ordinary user's box, which runs as that user.

    `network_helper`: the program that carries the box's packets; None leaves it without a network.
    `cgroups`: controller → the box's own folder, made by the keeper, named here so that whoever cleans
    up after it knows them. A limit of 0 is none.
    """

    title: str
    host_uid: int | None
    etc_folder: str
    box_folder: str
    bwrap: str
    command: tuple[str, ...]
    disable_userns: bool
    start_timeout_s: float = 15.0
    network_helper: str | None = None
    cgroups: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: int = 0
    processes: int = 0
    cpus: float = 0.0
    format: int = FORMAT


@dataclass(frozen=True)
class KeeperState:
    """A keeper's own words. Believed only while the process `pid` holds the lock.

    `first_pid` and `first_ticks`: the box's pid 1 as the host sees it. The kernel gives
    the number of a namespace that ended to the next one, so `pid_namespace` means this
    box only while that process lives.
    """

    pid: int
    started_ticks: int
    serving: bool
    pid_namespace: int | None = None
    first_pid: int | None = None
    first_ticks: int | None = None
    format: int = FORMAT


def write_private_json(path: str, record: BoxPlan | KeeperState) -> None:
    """Atomic and 0600; the folder is ours."""
    new = f"{path}.{os.getpid()}.new"
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(record), file)
        os.replace(new, path)
    except OSError:
        try:
            os.unlink(new)
        except OSError:
            pass
        raise


def load_plan(path: str) -> BoxPlan:
    """Raises OSError or ValueError when there is no plan, half of one, or one of a later format."""
    with open(path, encoding="utf-8") as file:
        raw = json.load(file)
    plan = _read(BoxPlan, raw)
    if not isinstance(raw["command"], list):
        raise ValueError("the plan has an unknown shape")
    return replace(plan, command=tuple(raw["command"]))


def find_keeper_state(path: str) -> KeeperState | None:
    try:
        with open(path, encoding="utf-8") as file:
            return _read(KeeperState, json.load(file))
    except (OSError, ValueError):
        return None


def _read(kind: type[_Record], raw: object) -> _Record:
    """A record from a file of any version. Raises ValueError."""
    if not isinstance(raw, dict) or type(raw.get("format", 1)) is not int or raw.get("format", 1) > FORMAT:
        raise ValueError("it has an unknown shape")
    known = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    try:
        return kind(**{name: value for name, value in raw.items() if name in known})
    except TypeError as error:
        raise ValueError("it has an unknown shape") from error


def write_failure(reason: str) -> None:
    """In the workspace's folder: why the box that was asked for did not come up."""
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(FAILURE_FILE, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(reason[:2000])
    except OSError:
        pass


def read_started_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when it is gone. (proc(5): stat, field 22)"""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            raw = file.read()
    except OSError:
        return None
    # The name in parentheses may itself hold blanks and parentheses.
    return int(raw.rpartition(b")")[2].split()[19])
