"""`runcode-server doctor`: what this machine can give to a server and its boxes.

Owns: the checks and their wording. Each looks or tries for real and leaves nothing behind: boxes are
tried in a folder of their own, the data folder is only looked at. Every warning and failure names what to type.
Called by `server.main`.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from runcode import __version__
from runcode.core.errors import RunCodeError
from runcode.core.values import Value
from runcode.gateway.asyncssh_trial import find_framing_obstacle
from runcode.runtimes.local import limits, machine
from runcode.runtimes.local.runtime import LocalRuntime
from runcode.server.data_folder import FIRST_START_MIN_FREE_BYTES, DataFolder

Status = Literal["ok", "warn", "fail"]
_GIB = 1024**3
_ROOMY_BYTES = 2 * _GIB
_DEFAULT_PORTS = (("--http", 8080), ("--ssh", 8022))
_DAY_S = 86_400


class Check(Value):
    """`detail` is one line for a person; for `warn` and `fail` it ends with what to do."""

    name: str
    status: Status
    detail: str


def run_checks(data_dir: Path | None) -> list[Check]:
    """All of them, in the order in which a person would mend things."""
    checks = [check_python(), check_user(), check_clock(), *check_ports()]
    checks += [check_program("bwrap", "bubblewrap"), check_program("sshd", "openssh-server")]
    checks.append(check_framing())
    checks += check_boxes()
    if data_dir is not None:
        checks += check_data_folder(data_dir)
    return checks


def render_json(checks: list[Check]) -> dict[str, object]:
    listed = [{"name": check.name, "status": check.status, "detail": check.detail} for check in checks]
    return {"ok": all(check.status != "fail" for check in checks), "checks": listed}


def render_text(checks: list[Check]) -> str:
    width = max(len(check.name) for check in checks)
    return "\n".join(f"{check.status:4}  {check.name:{width}}  {check.detail}" for check in checks)


# ---------------------------------------------------------------- the machine


def check_python() -> Check:
    found = ".".join(str(number) for number in sys.version_info[:3])
    inside = machine.find_interpreter()
    if inside is None:
        return Check(name="python", status="fail", detail=f"{found}; boxes need one under /usr: apt install python3")
    return Check(name="python", status="ok", detail=f"runcode {__version__} on Python {found}, boxes use {inside}")


def check_user() -> Check:
    if os.geteuid() == 0:
        return Check(name="user", status="ok", detail="root: each box gets a host user of its own")
    return Check(
        name="user",
        status="warn",
        detail=f"uid {os.geteuid()}: all boxes run as this user; start the server as root for a host user each",
    )


def check_clock(now: float | None = None) -> Check:
    now = time.time() if now is None else now
    shown = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    installed = os.stat(__file__).st_mtime
    if now < installed - _DAY_S:
        return Check(
            name="clock",
            status="fail",
            detail=f"{shown} is before this program was installed: timedatectl set-ntp true",
        )
    return Check(name="clock", status="ok", detail=shown)


def check_ports() -> Iterator[Check]:
    for option, port in _DEFAULT_PORTS:
        with socket.socket() as trying:
            trying.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trying.bind(("127.0.0.1", port))
            except OSError as error:
                yield Check(
                    name=f"port {port}",
                    status="warn",
                    detail=f"{error.strerror}: a server may run already; else choose another with {option} HOST:PORT",
                )
                continue
        yield Check(name=f"port {port}", status="ok", detail=f"free (the default of {option})")


def check_program(name: str, package: str) -> Check:
    try:
        return Check(name=name, status="ok", detail=machine.find_program(name, package))
    except machine.Obstacle as obstacle:
        return Check(name=name, status="fail", detail=str(obstacle))


def check_framing() -> Check:
    obstacle = find_framing_obstacle()
    if obstacle is None:
        return Check(name="ssh framing", status="ok", detail="packets of data are resealed in place")
    return Check(
        name="ssh framing",
        status="warn",
        detail=f"the gateway relays at thrice the cost: {obstacle}. Install runcode[server] as it is released",
    )


def check_boxes() -> Iterator[Check]:
    """Starts tiny boxes, with and without a network, in a folder that is removed again."""
    folder = Path(tempfile.mkdtemp(prefix="runcode-doctor-"))
    try:
        runtime = LocalRuntime(folder / "local")
        try:
            found = runtime.require_machine()
        except RunCodeError as error:
            yield Check(name="boxes", status="fail", detail=error.message)
        else:
            nested = "" if found.disable_userns else "; this bwrap cannot forbid nested user namespaces: apt upgrade"
            yield Check(name="boxes", status="ok" if not nested else "warn", detail=f"a box starts and ends{nested}")
            if found.network_obstacle is None:
                yield Check(name="box network", status="ok", detail=f"IPv4 by {found.network_helper}, no IPv6")
            else:
                yield Check(name="box network", status="warn", detail=found.network_obstacle)
        yield from check_limits(limits.find_cgroup_home())
    finally:
        shutil.rmtree(folder)


def check_limits(home: limits.CgroupHome) -> Iterator[Check]:
    per_box = limits.read_default_limits(home)
    shown = {
        "memory": f"{per_box.memory_bytes // limits.MIB} MiB a box",
        "pids": f"{per_box.processes} processes a box",
        "cpu": f"{per_box.cpus:g} processors a box, which weighs as much as one process",
    }
    for name in limits.CONTROLLERS:
        if name in home.folders:
            detail = f"cgroup v{home.version}, {home.folders[name]}: {shown[name]}"
            yield Check(name=f"limit {name}", status="ok", detail=detail)
        else:
            instead = "; RLIMIT_NPROC bounds processes" if name == "pids" else ""
            yield Check(
                name=f"limit {name}",
                status="warn",
                detail=f"none{instead}: {home.missing[name]}. Run the server as root, or as a systemd service "
                "with Delegate=yes",
            )


# ---------------------------------------------------------------- the data folder


def check_data_folder(path: Path) -> Iterator[Check]:
    folder = DataFolder(path)
    yield _try("data folder", lambda: _look_at(folder))
    at = next(parent for parent in (folder.path, *folder.path.parents) if parent.exists())
    free = shutil.disk_usage(at).free
    detail = f"{free / _GIB:.1f} GiB free at {at}"
    if free < FIRST_START_MIN_FREE_BYTES:
        yield Check(name="free space", status="fail", detail=f"{detail}: free some, or name another --data-dir")
    elif free < _ROOMY_BYTES:
        yield Check(name="free space", status="warn", detail=f"{detail}, little for workspaces: free some soon")
    else:
        yield Check(name="free space", status="ok", detail=detail)


def _look_at(folder: DataFolder) -> str:
    if folder.initialised:
        folder.require_initialised()
        return f"{folder.path}, made by a server and whole"
    existing = next(parent for parent in (folder.path, *folder.path.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise RunCodeError(
            "io_error", f"{existing} cannot be written", resolution="name a folder of your own with --data-dir"
        )
    return f"{folder.path}, to be made at the first `runcode-server up`"


def _try(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name=name, status="ok", detail=look())
    except RunCodeError as error:
        return Check(name=name, status="fail", detail=f"{error.message}: {error.resolution}")
