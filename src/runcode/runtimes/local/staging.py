"""As root: a private root that holds exactly what the box needs, then a lesser uid for good.

Threat: bubblewrap starts as the box's host uid. Under the real root that uid would
have to reach a data folder below a 0700 path, and a fault in bubblewrap would show
it the whole machine.

Guarantee: after `enter_stage` this process sees /usr, a fresh /proc, six device
nodes, a devpts of its own and the folders of one workspace; after `drop_to` it has
the box's uid and gid, no capability, no supplementary group, and cannot get any back.

Called by the keeper's child only, between fork and exec. Standard library only:
the mount calls go through libc, since Python has none.

bubblewrap's own `--dev` is not used here: it makes an intermediate user namespace
that maps 0, and the box's uid_map would then show a 0 that is not there (0.8.0).
Mounting devpts needs the real root, hence here and not there.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource

MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
CLONE_NEWNS = 0x00020000
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
KEYCTL_JOIN_SESSION_KEYRING = 1
# keyctl(2) has no wrapper in libc.
_KEYCTL_NUMBERS = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280}

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
USR_LINKS = ("bin", "lib", "lib64", "lib32", "libx32", "sbin")

# One box must not take the last pty or the last process of the machine.
_PTYS_MAX = 512
_PROCESSES_MAX = 8192

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    def encoded(text: str | None) -> bytes | None:
        return None if text is None else os.fsencode(text)

    result = _libc.mount(encoded(source), encoded(target), encoded(kind), ctypes.c_ulong(flags), encoded(options))
    _check(result, f"mount {target}")


def become_subreaper() -> None:
    """Orphans below this process become its children, so that it can wait for the last one."""
    _check(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl subreaper")


def leave_session_keyring() -> None:
    """A new, empty session keyring.

    Threat: keyrings are no part of any namespace. Without this the box would possess
    the one of whoever started the server, and could read the secrets in it.
    """
    number = _KEYCTL_NUMBERS.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, f"keyctl is not known for {os.uname().machine}")
    joined = _libc.syscall(ctypes.c_long(number), ctypes.c_long(KEYCTL_JOIN_SESSION_KEYRING), None, None, None, None)
    # A kernel without keyrings, or a container that forbids them (to us and so to the box), has none to leave.
    if joined < 0 and ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM):
        _check(-1, "keyctl join session keyring")


def enter_stage(stage: str, folders: dict[str, str], files: dict[str, str]) -> None:
    """Make `stage` (an empty folder) the root of a new mount namespace, holding only what is named.

    `folders` and `files` map paths inside to paths of the host; they are bound in the
    order given. Raises OSError; the process is then in an undefined place and must exit.
    """
    _check(_libc.unshare(CLONE_NEWNS), "unshare mounts")
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", stage, "tmpfs", MS_NOSUID, "mode=0755,size=1m")
    for name in ("usr", "proc", "tmp", "dev", "dev/pts", "old"):
        os.mkdir(f"{stage}/{name}", 0o755)
    _mount("/usr", f"{stage}/usr", None, MS_BIND | MS_REC)
    for name in USR_LINKS:
        if os.path.isdir(f"/usr/{name}"):
            os.symlink(f"usr/{name}", f"{stage}/{name}")
    # Fresh, since one inherited from a container may be covered in places, and the kernel
    # refuses a new /proc to a user namespace that sees no complete one.
    _mount("proc", f"{stage}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for name in DEVICES:
        _bind_file(f"/dev/{name}", f"{stage}/dev/{name}")
    _mount(
        "devpts",
        f"{stage}/dev/pts",
        "devpts",
        MS_NOSUID | MS_NOEXEC,
        f"newinstance,ptmxmode=0666,mode=0620,max={_PTYS_MAX}",
    )
    for inside, outside in folders.items():
        os.makedirs(f"{stage}{inside}", 0o755, exist_ok=True)
        _mount(outside, f"{stage}{inside}", None, MS_BIND)
    for inside, outside in files.items():
        _bind_file(outside, f"{stage}{inside}")
    os.chdir(stage)
    # Not chroot: the kernel refuses a user namespace to a process in a chroot.
    _check(_libc.pivot_root(b".", b"old"), "pivot_root")
    os.chdir("/")
    _check(_libc.umount2(b"/old", MNT_DETACH), "umount old root")
    os.rmdir("/old")


def _bind_file(outside: str, target: str) -> None:
    if not os.path.lexists(target):
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    _mount(outside, target, None, MS_BIND)


def drop_to(uid: int, gid: int) -> None:
    """Give up root for good. Raises when anything of it is left."""
    resource.setrlimit(resource.RLIMIT_NPROC, (_PROCESSES_MAX, _PROCESSES_MAX))
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl no_new_privs")
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid) or os.getgroups() or uid == 0:
        raise PermissionError("root was not given up")
