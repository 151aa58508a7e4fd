"""What one box may take of the machine: by cgroup where that can be written, else what rlimits give.

Owns: finding which cgroup hierarchies this process may make children in (version 1, version 2,
nested in whatever container or service), the limits of a box, and making, joining and
removing its cgroups. Finding is a function of files only: `CgroupFiles` names them, so that a
tree that is not /sys/fs/cgroup serves as well.

Threat: one box takes all memory, all process numbers or all processor time, and the
server or the other boxes starve.

Guarantee: a box's cgroup is below the server's own, so that no limit set from outside is escaped;
its processes are in it before they run anything of the box; it is removed once the box has ended,
whatever ended it, because the plan names it before it is made.

Called by `machine` (finding), the runtime (removing, sweeping) and the keeper (making, joining). Standard library only.

Source: cgroups(7), Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a keeper needs nothing of it
    from runcode.runtimes.base import SizeLimits

MIB = 1024 * 1024
CONTROLLERS = ("memory", "pids", "cpu")
# Where this server's own processes go when version 2 forbids to have them beside the boxes.
SUPERVISOR = "runcode-server"
_PERIOD_US = 100_000
# The kernel's defaults. A whole box weighs as much as one busy process outside: with less, a crowded host starves it.
_WEIGHT_V1, _WEIGHT_V2 = 1024, 100
_REMOVE_S = 5.0
_BOX_CGROUP = re.compile(r"runcode-[0-9]+-[0-9a-f]{12}", re.ASCII)


@dataclass(frozen=True)
class BoxLimits:
    """Of one box as a whole. `cpus` may be a fraction."""

    memory_bytes: int
    processes: int
    cpus: float


@dataclass(frozen=True)
class CgroupFiles:
    """Where the kernel tells; tests name other files."""

    self_cgroup: str = "/proc/self/cgroup"
    mountinfo: str = "/proc/self/mountinfo"


@dataclass(frozen=True)
class CgroupHome:
    """Where boxes' cgroups can be made. `folders`: controller → the folder that will be their parent.

    `version` is 1, 2 or 0 (none). `missing` says why for each controller that cannot be used.
    """

    version: int
    folders: Mapping[str, str]
    missing: Mapping[str, str]


def choose_limits(memory_total: int, processors: int, pid_max: int) -> BoxLimits:
    """One box leaves a quarter of the memory, a tenth of the processors and most process numbers to the rest."""
    return BoxLimits(
        memory_bytes=max(256 * MIB, memory_total * 3 // 4),
        processes=max(256, min(4096, pid_max // 8)),
        cpus=max(0.5, processors * 0.9),
    )


def limit_to(most: BoxLimits, size: SizeLimits) -> BoxLimits:
    """What a box of this size gets: never more than a box of this machine may have anyway."""
    return BoxLimits(
        memory_bytes=most.memory_bytes if size.memory_bytes is None else min(most.memory_bytes, size.memory_bytes),
        processes=most.processes if size.processes is None else min(most.processes, size.processes),
        cpus=most.cpus if size.cpus is None else min(most.cpus, size.cpus),
    )


def read_default_limits(home: CgroupHome) -> BoxLimits:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.limit_in_bytes", "memory.max"):
        raw = _read(f"{home.folders.get('memory', '/nowhere')}/{name}")
        if raw.isdigit():
            total = min(total, int(raw))
    pid_max = _read("/proc/sys/kernel/pid_max")
    return choose_limits(total, len(os.sched_getaffinity(0)), int(pid_max) if pid_max.isdigit() else 32768)


# ---------------------------------------------------------------- finding


def parse_self_cgroup(text: str) -> dict[str, str]:
    """Controller → path of this process, "" for version 2. (cgroups(7), /proc/pid/cgroup)"""
    found = {}
    for line in text.splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3 and fields[2].startswith("/"):
            for name in fields[1].split(","):
                found[name] = fields[2]
    return found


def parse_mounts(text: str) -> dict[str, tuple[str, str]]:
    """Controller → (mount point, the hierarchy's folder that is mounted there), "" for version 2."""
    found: dict[str, tuple[str, str]] = {}
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        left, right = before.split(), after.split()
        if len(left) < 6 or len(right) < 3:
            continue
        place = (_unescape(left[4]), _unescape(left[3]))
        if right[0] == "cgroup2":
            found.setdefault("", place)
        elif right[0] == "cgroup":
            for name in right[2].split(","):
                found.setdefault(name, place)
    return found


def _unescape(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def find_folder(mount: tuple[str, str], path: str) -> str | None:
    """Where a process with this path stands below the mount; None when the mount does not show it."""
    point, root = mount
    if root != "/":
        if path != root and not path.startswith(f"{root}/"):
            return None
        path = path[len(root) :]
    if ".." in path.split("/"):
        return None
    return os.path.normpath(f"{point}/{path}")


def find_cgroup_home(files: CgroupFiles | None = None) -> CgroupHome:
    """Looks, and changes nothing."""
    files = files or CgroupFiles()
    paths, mounts = parse_self_cgroup(_read(files.self_cgroup)), parse_mounts(_read(files.mountinfo))
    folders: dict[str, str] = {}
    missing: dict[str, str] = {}
    unified = find_folder(mounts[""], paths[""]) if "" in mounts and "" in paths else None
    offered = _read(f"{unified}/cgroup.controllers").split() if unified is not None else []
    versions = set()
    for name in CONTROLLERS:
        if name in mounts and name in paths:
            folder, version = find_folder(mounts[name], paths[name]), 1
        elif name in offered and unified is not None:
            folder, version = unified, 2
        else:
            missing[name] = "the kernel or the container offers no such controller"
            continue
        if version == 2 and folder is not None and os.path.basename(folder) == SUPERVISOR:
            folder = os.path.dirname(folder)
        if folder is None:
            missing[name] = "its hierarchy is not visible here"
        elif not os.access(folder, os.W_OK):
            missing[name] = f"{folder} cannot be written"
        elif version == 2 and (obstacle := find_delegation_obstacle(folder, name)) is not None:
            missing[name] = obstacle
        else:
            folders[name] = folder
            versions.add(version)
    return CgroupHome(max(versions, default=0), folders, missing)


def find_delegation_obstacle(folder: str, controller: str) -> str | None:
    """Version 2: why children cannot have the controller; None when they can, perhaps after `delegate`."""
    if controller in _read(f"{folder}/cgroup.subtree_control").split():
        return None
    if not os.access(f"{folder}/cgroup.subtree_control", os.W_OK):
        return f"{folder} is not delegated to this user"
    others = _pids(folder) - {os.getpid()}
    if others and os.path.exists(f"{folder}/cgroup.type"):
        return f"{folder} holds other processes than this server, so it cannot be divided"
    return None


def delegate(home: CgroupHome) -> None:
    """Version 2: hand the controllers on to children, which needs a folder without processes. Raises OSError."""
    if home.version != 2:
        return
    for folder in sorted(set(home.folders.values())):
        wanted = {name for name, at in home.folders.items() if at == folder}
        if wanted <= set(_read(f"{folder}/cgroup.subtree_control").split()):
            continue
        if os.getpid() in _pids(folder) and os.path.exists(f"{folder}/cgroup.type"):
            os.makedirs(f"{folder}/{SUPERVISOR}", exist_ok=True)
            _write(f"{folder}/{SUPERVISOR}/cgroup.procs", str(os.getpid()))
        _write(f"{folder}/cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(wanted)))


# ---------------------------------------------------------------- one box


def name_cgroup(workspace_id: int) -> str:
    """A new name for each start, so that a box which ends slowly is not joined by the next one."""
    return f"runcode-{workspace_id}-{os.urandom(6).hex()}"


def plan_folders(home: CgroupHome, name: str) -> dict[str, str]:
    """Controller → the box's own folder, for its plan."""
    return {controller: f"{folder}/{name}" for controller, folder in home.folders.items()}


def make_cgroups(folders: Mapping[str, str], limits: BoxLimits) -> None:
    """Make the box's cgroups with their limits. Raises OSError; `remove_cgroups` cleans up."""
    for controller, folder in folders.items():
        os.makedirs(folder, exist_ok=True)
        for name, value, required in render_limits(controller, limits, _is_version_2(folder)):
            try:
                _write(f"{folder}/{name}", value)
            except OSError:
                if required:
                    raise


def render_limits(controller: str, limits: BoxLimits, version_2: bool) -> list[tuple[str, str, bool]]:
    """(file, value, whether a box may not start without it)."""
    quota = max(1000, int(limits.cpus * _PERIOD_US))
    if controller == "memory":
        memory = str(limits.memory_bytes)
        if version_2:
            return [("memory.max", memory, True), ("memory.swap.max", "0", False), ("memory.oom.group", "0", False)]
        # Memory and swap together: absent where the kernel does not count swap.
        return [("memory.limit_in_bytes", memory, True), ("memory.memsw.limit_in_bytes", memory, False)]
    if controller == "pids":
        return [("pids.max", str(limits.processes), True)]
    if version_2:
        return [("cpu.weight", str(_WEIGHT_V2), True), ("cpu.max", f"{quota} {_PERIOD_US}", False)]
    return [
        ("cpu.shares", str(_WEIGHT_V1), True),
        ("cpu.cfs_period_us", str(_PERIOD_US), False),
        ("cpu.cfs_quota_us", str(quota), False),
    ]


def join_cgroups(folders: Mapping[str, str]) -> None:
    """This process (of one thread), and whatever it becomes. Raises OSError."""
    for folder in sorted(set(folders.values())):
        # 0 is the writer itself. A thread that moves itself needs no lock of the kernel's (Linux 5.5 and later);
        # a process waits up to 20 ms for one, and all starts of the machine queue there. Version 2 has no such file.
        tasks = f"{folder}/tasks"
        _write(tasks if os.path.exists(tasks) else f"{folder}/cgroup.procs", "0")


def remove_cgroups(folders: Mapping[str, str], timeout_s: float = _REMOVE_S) -> list[str]:
    """Remove what is there, once its last process is gone; the folders that stayed."""
    left = sorted(set(folders.values()))
    deadline = time.monotonic() + timeout_s
    while True:
        left = [folder for folder in left if not _remove(folder)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.005)


def sweep_cgroups(home: CgroupHome, older_than_s: float = 60.0) -> list[str]:
    """Remove boxes' cgroups that nothing is in, whosever they were; the folders that went.

    What a data folder leaves when it is deleted after a kill has no plan that names it.
    Younger ones may be about to be joined; one with a process in it cannot be removed.
    """
    gone = []
    before = time.time() - older_than_s
    for parent in sorted(set(home.folders.values())):
        try:
            found = [entry for entry in os.scandir(parent) if _BOX_CGROUP.fullmatch(entry.name)]
            stale = [entry.path for entry in found if entry.stat(follow_symlinks=False).st_mtime < before]
        except OSError:
            continue  # another server sweeps as well
        for path in stale:
            if not _pids(path) and _remove(path):
                gone.append(path)
    return gone


def bound_processes(limit: int) -> None:
    """Without cgroups: RLIMIT_NPROC. Inside a user namespace Linux 5.14 and later count that namespace's alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    new = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_NPROC, (new if soft == resource.RLIM_INFINITY else min(new, soft), new))


def _remove(folder: str) -> bool:
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError as error:
        return error.errno not in (errno.EBUSY, errno.ENOTEMPTY)
    return True


def _is_version_2(folder: str) -> bool:
    return os.path.exists(f"{os.path.dirname(folder)}/cgroup.controllers")


def _pids(folder: str) -> set[int]:
    return {int(word) for word in _read(f"{folder}/cgroup.procs").split() if word.isdigit()}


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
