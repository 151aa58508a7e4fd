"""What this machine has for a box, and what it lacks, with the fix.

Owns: where bwrap, sshd and an interpreter are, and the probe that really starts a
tiny box. Called by the runtime before its first start, and for `find_obstacle`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from runcode.core.terminal import printable
from runcode.runtimes.local import box_network, keeper, limits, plan
from runcode.runtimes.local.layout import Layout, make_private_folder, write_new_file
from runcode.runtimes.local.storage import remove_abandoned, remove_tree

KEEPER_MODULE = "runcode.runtimes.local.keeper"
KEEPER_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
_SEARCH_PATH = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"
_PROBE_TIMEOUT_S = 20.0
# ioctl numbers of the tap device differ elsewhere.
_NETWORK_MACHINES = ("x86_64", "aarch64", "riscv64", "s390x")
_OPEN_A_PTY = "import os; os.openpty()"
# SIOCGIFFLAGS, IFF_RUNNING: the helper has attached itself.
_WAIT_FOR_CARRIER = """
import fcntl, socket, struct, sys, time
asking, deadline = socket.socket(), time.monotonic() + 8
while not struct.unpack_from("16xH", fcntl.ioctl(asking, 0x8913, struct.pack("16s24x", b"tap0")))[0] & 0x40:
    if time.monotonic() > deadline:
        sys.exit("slirp4netns does not carry packets")
    time.sleep(0.005)
"""

# Which setting forbids user namespaces: file, the value that forbids, what to type.
_NAMESPACE_SETTINGS = (
    ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
    ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)


@dataclass(frozen=True)
class Machine:
    """Programs as absolute paths under /usr, since that is what a box sees.

    `network_obstacle`: why boxes have no outbound network here, and the fix; None when they have.
    """

    bwrap: str
    sshd: str
    python: str
    disable_userns: bool
    network_helper: str | None = None
    network_obstacle: str | None = None
    cgroups: limits.CgroupHome = field(default_factory=lambda: limits.CgroupHome(0, {}, {}))


class Obstacle(Exception):
    """One line: why this machine cannot run a box, and the fix."""


def find_machine() -> Machine:
    """Raises Obstacle for what is missing. Does not start anything but `bwrap --help`."""
    if sys.platform != "linux":
        system = "macOS" if sys.platform == "darwin" else sys.platform
        raise Obstacle(f"the local runtime is unavailable on {system}: run the server on Linux, or in a Linux VM")
    bwrap = find_program("bwrap", "bubblewrap")
    sshd = find_program("sshd", "openssh-server")
    python = find_interpreter()
    if python is None:
        raise Obstacle("the local runtime needs a Python 3 under /usr: apt install python3")
    shown = subprocess.run([bwrap, "--help"], capture_output=True, text=True, check=False, env=KEEPER_ENVIRONMENT)
    return Machine(
        bwrap=bwrap,
        sshd=sshd,
        python=python,
        disable_userns="--disable-userns" in shown.stdout + shown.stderr,
        cgroups=limits.find_cgroup_home(),
    )


def find_network_helper() -> str:
    """slirp4netns. Raises Obstacle."""
    found = shutil.which("slirp4netns", path=_SEARCH_PATH)
    if found is None:
        raise Obstacle("boxes have no outbound network without slirp4netns: apt install slirp4netns")
    if os.uname().machine not in _NETWORK_MACHINES:
        raise Obstacle(f"boxes have no outbound network on {os.uname().machine}")
    if not os.path.exists(box_network.TUN_DEVICE):
        raise Obstacle(
            f"boxes have no outbound network without {box_network.TUN_DEVICE}: modprobe tun, "
            "or give the container that device"
        )
    # Boxes and their helpers are nobody special. udev gives the device this mode; the kernel alone does not.
    if os.stat(box_network.TUN_DEVICE).st_mode & 0o006 != 0o006:
        raise Obstacle(
            f"boxes have no outbound network, since only root may open {box_network.TUN_DEVICE}: "
            f"chmod 666 {box_network.TUN_DEVICE}, as udev does"
        )
    return found


def may_have_network() -> bool:
    try:
        find_network_helper()
    except Obstacle:
        return False
    return True


def probe_all(machine: Machine, layout: Layout, host_uid: int | None, *, want_network: bool) -> Machine:
    """The machine as the probes found it: with a network where one can be made. Raises Obstacle when no box can."""
    if want_network:
        try:
            with_network = replace(machine, network_helper=find_network_helper(), network_obstacle=None)
            probe(with_network, layout, host_uid)
            return with_network
        except Obstacle as error:
            reason = str(error)
    else:
        reason = "boxes have no outbound network because the server was told so (--box-network off)"
    # A box without a network decides whether any can run.
    probe(machine, layout, host_uid)
    return replace(machine, network_helper=None, network_obstacle=reason)


def find_program(name: str, package: str) -> str:
    found = shutil.which(name, path=_SEARCH_PATH)
    if found is None:
        raise Obstacle(f"the local runtime needs {name}: apt install {package}")
    if not os.path.realpath(found).startswith("/usr/"):
        raise Obstacle(f"the local runtime needs {name} under /usr, which is all a box sees: apt install {package}")
    return found


def find_interpreter() -> str | None:
    """For the box's init: the running interpreter when a box can see it, else the system's."""
    running = os.path.realpath(sys.executable)
    for candidate in (running, os.path.realpath("/usr/bin/python3")):
        if candidate.startswith("/usr/") and os.access(candidate, os.X_OK):
            return candidate
    return None


def probe(machine: Machine, layout: Layout, host_uid: int | None) -> None:
    """Start a box that opens a pty and ends. Raises Obstacle when this machine does not let it."""
    remove_abandoned(layout.root.glob("probe-*"))
    folder = layout.root / f"probe-{secrets.token_hex(6)}"
    try:
        make_private_folder(folder)
        home, box = folder / plan.HOME_FOLDER, folder / "box-probe"
        etc = folder / "etc"
        for path in (home, box / "opt" / "bin", etc, folder / plan.RUN_FOLDER):
            path.mkdir(parents=True)
        for path in (box / "hosts", box / "hostname", etc / "hosts", etc / "hostname", box / "opt" / "bin" / "sudo"):
            write_new_file(path, "", 0o644)
        code = _OPEN_A_PTY if machine.network_helper is None else _OPEN_A_PTY + _WAIT_FOR_CARRIER
        box_plan = plan.BoxPlan(
            title="probe",
            host_uid=host_uid,
            etc_folder="etc",
            box_folder=box.name,
            bwrap=machine.bwrap,
            command=(machine.python, "-I", "-S", "-c", code),
            disable_userns=machine.disable_userns,
            network_helper=machine.network_helper,
        )
        # What the keeper makes unreadable by its umask must be open to the box's uid here too.
        for path in (etc, home, box, box / "opt", box / "opt" / "bin"):
            path.chmod(0o755)
        plan.write_private_json(str(folder / plan.PLAN_FILE), box_plan)
        command = [sys.executable, "-I", "-m", KEEPER_MODULE, keeper.PROBE, str(folder)]
        try:
            ran = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                env=KEEPER_ENVIRONMENT,
                timeout=_PROBE_TIMEOUT_S,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as error:
            raise Obstacle("the local runtime's probe did not end: look at what bwrap hangs on") from error
        if ran.returncode != 0:
            raise Obstacle(explain(ran.stderr))
    finally:
        remove_tree(folder)


def explain(stderr: str, sysctl: Path = Path("/proc/sys")) -> str:
    """The one line for a probe that failed."""
    for name, forbidding, fix in _NAMESPACE_SETTINGS:
        try:
            value = (sysctl / name).read_text().strip()
        except OSError:
            continue
        if value == forbidding:
            setting = name.replace("/", ".")
            return f"the local runtime needs user namespaces, and {setting}={value} forbids them: {fix}"
    said = printable(stderr.strip().splitlines()[-1] if stderr.strip() else "nothing was said", limit=200)
    if os.geteuid() == 0 and ("unshare mounts" in said or "mount " in said):
        return (
            f"the local runtime needs CAP_SYS_ADMIN when it runs as root ({said}): "
            "run the server outside the container, or as an ordinary user"
        )
    return f"bubblewrap cannot make a box on this machine ({said}): see `bwrap --unshare-user --ro-bind / / true`"
