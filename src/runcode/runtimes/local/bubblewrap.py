"""The command line of the box: everything it sees, by allowlist.

Owns: the arguments of bwrap, as a pure function. Called by the keeper, and by
`machine` for its probe. What is not named here is not in the box.

Source: bwrap(1) 0.8.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runcode.runtimes.local.staging import DEVICES

HOME = "/home/ubuntu"
BOX_FOLDER = "/opt/runcode"
BOX_UID = 1000

MIB = 1024 * 1024
_TMPFS_SIZES = {"/tmp": 1024 * MIB, "/var/tmp": 512 * MIB, "/run": 64 * MIB}  # noqa: S108 (inside the box)
_SHM_SIZE = 512 * MIB
# Descriptors that the keeper hands to the box's init, by number.
LISTEN_FD, LIFELINE_FD, STATUS_FD = 3, 4, 5

# What programs of a workspace read in /proc, beside the processes themselves. All else is covered:
# sys first of all, since a process with the host's uid 0 could write there.
PROC_ALLOWED = frozenset(
    (
        "self", "thread-self", "mounts", "net", "cpuinfo", "meminfo", "loadavg", "uptime", "version", "stat",
        "vmstat", "filesystems", "cgroups", "swaps", "tty", "devices", "diskstats", "partitions", "sysvipc",
    )
)  # fmt: skip


@dataclass(frozen=True)
class BoxSources:
    """Where the parts of the box are, as the process that runs bwrap sees them.

    `own_devices`: /dev/pts and the nodes come from our stage (as root); otherwise
    bwrap makes them.
    """

    home: str
    etc: str
    hosts: str
    hostname_file: str
    box_folder: str
    own_devices: bool


@dataclass(frozen=True)
class HostFacts:
    """What the command line depends on beside the workspace itself. `own_network`: `box_network` has made one."""

    usr_links: Sequence[str]
    proc_folders: Sequence[str]
    proc_files: Sequence[str]
    usr_sudo: bool
    disable_userns: bool
    own_network: bool = False


def render_bwrap_arguments(
    bwrap: str, sources: BoxSources, facts: HostFacts, title: str, command: Sequence[str]
) -> list[str]:
    """argv of the box. The order matters: later mounts cover earlier ones, and `/` is closed last."""
    argv = [bwrap, "--unshare-user", "--uid", str(BOX_UID), "--gid", str(BOX_UID)]
    argv += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    # A network that the keeper's child has entered already is kept: the box has no right over that one.
    argv += [] if facts.own_network else ["--unshare-net"]
    argv += ["--hostname", title, "--new-session", "--die-with-parent", "--cap-drop", "ALL"]
    if facts.disable_userns:
        argv += ["--disable-userns"]
    argv += ["--clearenv", "--setenv", "PATH", "/usr/sbin:/usr/bin:/sbin:/bin", "--setenv", "LANG", "C.UTF-8"]
    argv += ["--setenv", "HOME", HOME]
    for path in ("/home", "/opt", "/var", "/run"):
        argv += ["--perms", "0755", "--dir", path]
    argv += ["--ro-bind", "/usr", "/usr"]
    for name in facts.usr_links:
        argv += ["--symlink", f"usr/{name}", f"/{name}"]
    argv += ["--ro-bind", sources.etc, "/etc"]
    argv += ["--ro-bind", sources.hosts, "/etc/hosts", "--ro-bind", sources.hostname_file, "/etc/hostname"]
    argv += _render_dev(sources)
    argv += _render_proc(facts)
    for path, size in _TMPFS_SIZES.items():
        mode = "0755" if path == "/run" else "1777"
        argv += ["--perms", mode, "--size", str(size), "--tmpfs", path]
    argv += ["--dir", f"/run/user/{BOX_UID}", "--symlink", "../run", "/var/run"]
    argv += ["--bind", sources.home, HOME, "--ro-bind", sources.box_folder, BOX_FOLDER]
    if facts.usr_sudo:
        argv += ["--ro-bind", f"{sources.box_folder}/bin/sudo", "/usr/bin/sudo"]
    argv += ["--remount-ro", "/", "--chdir", HOME, "--", *command]
    return argv


def _render_dev(sources: BoxSources) -> list[str]:
    if sources.own_devices:
        argv = ["--perms", "0755", "--size", str(MIB), "--tmpfs", "/dev"]
        for name in DEVICES:
            argv += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
        argv += ["--dev-bind", "/dev/pts", "/dev/pts", "--symlink", "pts/ptmx", "/dev/ptmx"]
        argv += ["--symlink", "/proc/self/fd", "/dev/fd"]
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            argv += ["--symlink", f"/proc/self/fd/{number}", f"/dev/{name}"]
    else:
        argv = ["--dev", "/dev"]
    argv += ["--perms", "1777", "--size", str(_SHM_SIZE), "--tmpfs", "/dev/shm"]  # noqa: S108 (inside the box)
    return [*argv, "--remount-ro", "/dev"]


def _render_proc(facts: HostFacts) -> list[str]:
    argv = ["--proc", "/proc"]
    for name in facts.proc_folders:
        argv += ["--perms", "0555", "--size", "4096", "--tmpfs", f"/proc/{name}"]
        argv += ["--remount-ro", f"/proc/{name}"]
    for name in facts.proc_files:
        argv += ["--ro-bind", "/dev/null", f"/proc/{name}"]
    return argv
