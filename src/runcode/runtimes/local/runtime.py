"""The local runtime: the port's methods over storage, box files and keepers.

Owns: the order of the steps, and that each leaves the workspace in a state which
every method can go on from. Facts are never kept in memory: the lock of the keeper
and the folders are asked each time, so a server that was killed, or another one on
the same folder, sees the same.

Never: a decision about users; a look into a home that a box has written.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import functools
import os
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from runcode.core.errors import RunCodeError
from runcode.runtimes.base import Capabilities, Checkpoint, Observation, ObservedState, UnixEndpoint, WorkspaceSpec
from runcode.runtimes.local import (
    box_files,
    destinations,
    etc_tree,
    identity,
    jobs,
    keepers,
    limits,
    machine,
    plan,
    storage,
)
from runcode.runtimes.local.layout import Layout, WorkspaceFolder, make_private_folder
from runcode.runtimes.unix_sockets import open_unix_socket

P = ParamSpec("P")
T = TypeVar("T")

_THREADS = 16
_LOCK_POLL_S = 0.01
_ANSWER_S = 20.0
_OBSTACLE_KEPT_S = 10.0
_ATTEMPTS = 3


class LocalRuntime:
    """See `runtimes.base` for the contract. `root` is this runtime's own folder; made 0700 when missing."""

    name = "local"

    def __init__(self, root: Path, limits_per_box: limits.BoxLimits | None = None) -> None:
        """`limits_per_box`: instead of what `limits` derives from the machine."""
        self._layout = Layout(root.absolute())
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="local-runtime")
        self._machine: machine.Machine | None = None
        self._obstacle: tuple[float, str] | None = None
        self._stops: Counter[int] = Counter()
        self._limits = limits_per_box
        self._want_network = True
        # The last look for a job in each box; what is lost with it costs one look.
        self._uses: dict[int, jobs.BoxUse] = {}

    @property
    def capabilities(self) -> Capabilities:
        """What boxes that start from now on have. Before the first probe: what is plain without one."""
        found = self._machine
        network = found.network_helper is not None if found else self._want_network and machine.may_have_network()
        home = found.cgroups if found else limits.find_cgroup_home()
        return Capabilities(sudo=False, outbound_network=network, limits={"memory", "pids"} <= set(home.folders))

    def allow_outbound_network(self, allowed: bool) -> None:
        """The operator's switch, before the first start. A box that runs keeps the network it was started with."""
        self._want_network = allowed
        self._machine = None

    @property
    def root(self) -> Path:
        return self._layout.root

    def find_shortcomings(self) -> list[str]:
        """What boxes lack here, each with its reason and the fix. Blocks like `find_obstacle`."""
        found = self.require_machine()
        network = [found.network_obstacle] if found.network_obstacle is not None else []
        return network + [f"boxes have no {name} limit: {why}" for name, why in found.cgroups.missing.items()]

    def find_obstacle(self) -> str | None:
        """Blocks for some 50 ms the first time: it starts a tiny box. What works is not asked again."""
        try:
            self.require_machine()
        except RunCodeError as error:
            return error.message
        return None

    async def create(self, spec: WorkspaceSpec) -> None:
        box_files.check_spec(spec)
        folder = self._layout.workspace(spec.workspace_id)
        async with self._locked(spec.workspace_id):
            await self._blocking(self._create_storage, folder, spec.workspace_id)

    async def start(self, spec: WorkspaceSpec) -> AsyncIterator[Checkpoint]:
        """Checkpoints: `prepared`, `keeper`, `answering`. Storage that `create` did not finish is made.

        A box that already runs is left alone, whatever the spec says by now. The
        workspace is not locked while a checkpoint is out, so `stop` need not wait for
        whoever consumes them; a start that was overtaken by it fails with `conflict`.
        """
        box_files.check_spec(spec)
        folder = self._layout.workspace(spec.workspace_id)
        stops = self._stops[spec.workspace_id]
        found = await self._blocking(self.require_machine)
        for attempt in range(_ATTEMPTS):
            async with self._locked(spec.workspace_id):
                await self._blocking(self._prepare, found, folder, spec)
            yield Checkpoint("prepared")
            async with self._locked(spec.workspace_id):
                self._check_not_stopped(spec.workspace_id, stops)
                ours = await self._blocking(self._ensure_keeper, found, folder, spec)
            pid = await self._blocking(keepers.find_keeper, folder)
            yield Checkpoint("keeper", {"pid": pid, "started_ticks": plan.read_started_ticks(pid) if pid else None})
            try:
                await self._wait_until_answering(folder)
                break
            except RunCodeError:
                self._check_not_stopped(spec.workspace_id, stops)
                if not ours and attempt + 1 < _ATTEMPTS:
                    continue  # a box that was just ending when we found it
                async with self._locked(spec.workspace_id):
                    await self._blocking(self._end, folder, spec.workspace_id)
                raise
        yield Checkpoint("answering")

    async def stop(self, workspace_id: int) -> None:
        folder = self._layout.workspace(workspace_id)
        self._stops[workspace_id] += 1
        async with self._locked(workspace_id):
            await self._blocking(self._end, folder, workspace_id)

    async def destroy(self, workspace_id: int) -> None:
        folder = self._layout.workspace(workspace_id)
        self._stops[workspace_id] += 1
        async with self._locked(workspace_id):
            await self._blocking(self._end, folder, workspace_id)
            await self._blocking(self._remove, folder, workspace_id)

    async def inspect(self, workspace_id: int) -> Observation:
        return await self._blocking(self._observe, self._layout.workspace(workspace_id))

    async def find_job(self, workspace_id: int) -> str | None:
        """See `runtimes.base.ActivityProbe`, and `jobs` for what counts as one."""
        return await self._blocking(self._find_job, self._layout.workspace(workspace_id), workspace_id)

    async def close(self) -> None:
        self._threads.shutdown(wait=False)

    # Steps. Each runs in a thread, under the workspace's lock where it changes something.

    def require_machine(self) -> machine.Machine:
        """What boxes of this machine have, as the probe found it. Raises `unavailable`. Blocks like `find_obstacle`."""
        if self._machine is not None:
            return self._machine
        now = time.monotonic()
        if self._obstacle is None or now - self._obstacle[0] > _OBSTACLE_KEPT_S:
            try:
                found = machine.find_machine()
                with self._translated():
                    self._layout.prepare()
                    host_uid = identity.host_uid_for(self._layout, 0)
                    found = machine.probe_all(found, self._layout, host_uid, want_network=self._want_network)
                    limits.delegate(found.cgroups)
                    limits.sweep_cgroups(found.cgroups)
                self._machine = found
                return found
            except machine.Obstacle as error:
                self._obstacle = (now, str(error))
        raise RunCodeError("unavailable", self._obstacle[1], resolution="do what the message names, then retry")

    def _create_storage(self, folder: WorkspaceFolder, workspace_id: int) -> None:
        storage.create_home(folder, identity.host_uid_for(self._layout, workspace_id))

    def _prepare(self, found: machine.Machine, folder: WorkspaceFolder, spec: WorkspaceSpec) -> None:
        """Everything that a keeper needs, unless one is there."""
        if keepers.find_keeper(folder) is not None:
            return
        host_uid = identity.host_uid_for(self._layout, spec.workspace_id)
        self._end(folder, spec.workspace_id)
        storage.create_home(folder, host_uid)
        try:
            resolver = destinations.RESOLVER if found.network_helper is not None else None
            etc = etc_tree.build_etc(self._layout.etc, resolver=resolver)
            most = self._limits or limits.read_default_limits(found.cgroups)
            per_box = limits.limit_to(most, spec.limits)
            box = folder.path / f"box-{secrets.token_hex(6)}"
            box_files.write_box_files(box, spec, host_uid)
            make_private_folder(folder.run)
            box_plan = plan.BoxPlan(
                title=spec.title,
                host_uid=host_uid,
                etc_folder=os.path.relpath(etc, folder.path),
                box_folder=box.name,
                bwrap=found.bwrap,
                command=tuple(box_files.render_init_command(found.python, found.sshd)),
                disable_userns=found.disable_userns,
                network_helper=found.network_helper,
                cgroups=limits.plan_folders(found.cgroups, limits.name_cgroup(spec.workspace_id)),
                memory_bytes=per_box.memory_bytes,
                processes=per_box.processes,
                cpus=per_box.cpus,
            )
            plan.write_private_json(str(folder.plan_file), box_plan)
            self._remove_stale_etc(etc.name)
        except BaseException:
            self._remove_box_files(folder)
            raise

    def _ensure_keeper(self, found: machine.Machine, folder: WorkspaceFolder, spec: WorkspaceSpec) -> bool:
        """True when the keeper is of our own making."""
        if keepers.find_keeper(folder) is not None:
            return False
        if not folder.plan_file.exists():
            # A stop by another process came between.
            self._prepare(found, folder, spec)
        try:
            keepers.spawn_keeper(folder)
        except RunCodeError:
            self._end(folder, spec.workspace_id)
            raise
        return True

    async def _wait_until_answering(self, folder: WorkspaceFolder) -> None:
        """sshd's banner came through the socket. Raises `not_ready` with the reason."""
        deadline = time.monotonic() + _ANSWER_S
        while True:
            if await self._blocking(keepers.find_serving_state, folder) is not None and await read_banner(
                str(folder.socket), deadline - time.monotonic()
            ):
                return
            if await self._blocking(keepers.find_keeper, folder) is None:
                reason = await self._blocking(keepers.find_failure, folder)
                raise RunCodeError("not_ready", f"the workspace did not start: {reason or 'its box ended'}")
            if time.monotonic() > deadline:
                raise RunCodeError("not_ready", "the workspace started, but its sshd does not answer")
            await asyncio.sleep(0.005)

    def _check_not_stopped(self, workspace_id: int, stops: int) -> None:
        if self._stops[workspace_id] != stops:
            raise RunCodeError("conflict", "the workspace was stopped while it started", resolution="start it again")

    def _end(self, folder: WorkspaceFolder, workspace_id: int) -> None:
        if not folder.path.is_dir():
            return
        keepers.end_keeper(folder, identity.host_uid_for(self._layout, workspace_id))
        with contextlib.suppress(OSError, ValueError):
            # A keeper that was killed could not; the plan is the record of what it had made.
            limits.remove_cgroups(plan.load_plan(str(folder.plan_file)).cgroups)
        self._remove_box_files(folder)

    def _remove_box_files(self, folder: WorkspaceFolder) -> None:
        # The host key does not outlive the box on disk.
        for path in (*folder.find_box_folders(), folder.run):
            storage.remove_tree(path)
        folder.plan_file.unlink(missing_ok=True)

    def _remove(self, folder: WorkspaceFolder, workspace_id: int) -> None:
        # Out of sight in one step: whatever happens now, the workspace is absent.
        if folder.path.is_dir():
            os.rename(folder.path, self._layout.trash / f"{workspace_id}-{secrets.token_hex(6)}")
        for path in self._layout.trash.glob(f"{workspace_id}-*"):
            storage.remove_tree(path)

    def _remove_stale_etc(self, newest: str) -> None:
        in_use = {newest}
        for path in self._layout.workspaces.glob(f"*/{plan.PLAN_FILE}"):
            with contextlib.suppress(OSError, ValueError):
                in_use.add(Path(plan.load_plan(str(path)).etc_folder).name)
        etc_tree.remove_stale_trees(self._layout.etc, in_use)

    def _find_job(self, folder: WorkspaceFolder, workspace_id: int) -> str | None:
        state = keepers.find_serving_state(folder)
        if state is None:
            self._uses.pop(workspace_id, None)
            return None
        pids = keepers.find_box_processes(identity.host_uid_for(self._layout, workspace_id), state)
        before, now = self._uses.get(workspace_id), jobs.measure_box(pids, state.first_pid)
        self._uses[workspace_id] = now
        return jobs.find_job(before, now)

    def _observe(self, folder: WorkspaceFolder) -> Observation:
        if not folder.home.is_dir():
            return Observation(ObservedState.ABSENT)
        if keepers.find_serving_state(folder) is not None:
            return Observation(ObservedState.RUNNING, UnixEndpoint(str(folder.socket)))
        reason = "its box is starting or ending" if keepers.find_keeper(folder) is not None else None
        return Observation(ObservedState.STOPPED, reason=reason)

    # Threads, locks, errors.

    async def _blocking(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """In a thread. A cancelled caller waits for the step to end: its lock must not go before."""
        loop = asyncio.get_running_loop()
        step = loop.run_in_executor(self._threads, functools.partial(function, *args, **kwargs))
        with self._translated():
            try:
                return await asyncio.shield(step)
            except asyncio.CancelledError:
                await asyncio.wait({step})
                raise

    @contextlib.asynccontextmanager
    async def _locked(self, workspace_id: int) -> AsyncIterator[None]:
        """One operation at a time on a workspace, also between processes. The kernel frees it with the holder."""
        with self._translated():
            self._layout.prepare()
            path = self._layout.locks / str(workspace_id)
            descriptor = await acquire(path)
        try:
            yield
        finally:
            if not self._layout.workspace(workspace_id).path.exists():
                path.unlink(missing_ok=True)
            os.close(descriptor)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise RunCodeError(
                    "io_error",
                    f"the disk that holds {self._layout.root} is full",
                    resolution="free some space there, then retry",
                ) from error
            where = f" ({os.fsdecode(error.filename)})" if isinstance(error.filename, (str, bytes)) else ""
            raise RunCodeError("io_error", f"the local runtime failed: {error.strerror or error}{where}") from error


async def acquire(path: Path) -> int:
    """A descriptor that holds the lock on a file which is still the one at `path`."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                    return descriptor
        except BlockingIOError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        await asyncio.sleep(_LOCK_POLL_S)


async def read_banner(socket_path: str, timeout_s: float) -> bool:
    """Does an ssh server greet us there? A box may say anything, so only the first bytes are read."""
    loop = asyncio.get_running_loop()
    try:
        connection = await open_unix_socket(socket_path, max(0.0, timeout_s))
    except RunCodeError:
        return False
    with connection:
        try:
            raw = await asyncio.wait_for(loop.sock_recv(connection, 64), max(0.0, timeout_s))
        except (OSError, TimeoutError):
            return False
    return raw.startswith(b"SSH-2.0-")
