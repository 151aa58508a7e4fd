"""Real boxes for tests, and how the host sees their processes. The fixtures are in `runtime_fixtures`."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

from runcode.runtimes.base import Checkpoint, ObservedState, UnixEndpoint, WorkspaceSpec
from runcode.runtimes.local.runtime import LocalRuntime
from support.runtime_ssh import SshClient, WorkspaceCa

_ids = itertools.count(1)


def new_workspace_id() -> int:
    return next(_ids)


def find_host_processes(root: Path) -> dict[int, str]:
    """pid → command line of every living process that a box or keeper of this root has, seen from the host."""
    try:
        base = int((root / "uid-block").read_text())
    except FileNotFoundError:
        base = None
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            command = Path(f"/proc/{name}/cmdline").read_bytes()
            status = Path(f"/proc/{name}/status").read_text()
        except OSError:
            continue
        lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        if lines["State"].split()[0] == "Z":
            continue
        uids = {int(uid) for uid in lines["Uid"].split()}
        ours = base is not None and any(base <= uid < base + 65536 for uid in uids)
        if ours or os.fsencode(root) in command:
            found[int(name)] = f"{lines['Name'].strip()} uid={lines['Uid'].split()} {command!r}"
    return found


def wait_until(condition: object, timeout_s: float = 10.0) -> bool:
    """Polls a callable; False when the time is over."""
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


async def start_box(runtime: LocalRuntime, spec: WorkspaceSpec) -> list[Checkpoint]:
    return [checkpoint async for checkpoint in runtime.start(spec)]


class Boxes:
    """Workspaces of one test on the shared root; `open` gives a real ssh client for a running one."""

    def __init__(self, runtime: LocalRuntime, root: Path, folder: Path) -> None:
        self.runtime = runtime
        self.root = root
        self.folder = folder
        self.ca = WorkspaceCa()
        self.specs: dict[int, WorkspaceSpec] = {}

    def new_spec(self, title: str = "royal-tree") -> WorkspaceSpec:
        spec = self.ca.make_spec(new_workspace_id(), title)
        self.specs[spec.workspace_id] = spec
        return spec

    async def open(self, spec: WorkspaceSpec | None = None) -> SshClient:
        spec = spec if spec is not None else self.new_spec()
        await self.runtime.create(spec)
        await start_box(self.runtime, spec)
        return await self.client(spec)

    async def client(self, spec: WorkspaceSpec) -> SshClient:
        seen = await self.runtime.inspect(spec.workspace_id)
        assert seen.state is ObservedState.RUNNING, seen
        assert isinstance(seen.endpoint, UnixEndpoint)
        number = len(list(self.folder.glob("client-*")))
        return SshClient(self.folder / f"client-{number}", self.ca, spec, seen.endpoint)

    def path(self, spec: WorkspaceSpec) -> Path:
        return self.root / "workspaces" / str(spec.workspace_id)

    def host_uid(self, spec: WorkspaceSpec) -> int:
        if os.geteuid() != 0:
            return os.geteuid()
        return int((self.root / "uid-block").read_text()) + spec.workspace_id
