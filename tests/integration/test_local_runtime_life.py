"""Keepers: who ends when, what is left, and what the next server sees. Real kills, real boxes."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runcode.core.errors import RunCodeError
from runcode.runtimes.base import ObservedState, UnixEndpoint
from runcode.runtimes.local import keepers
from runcode.runtimes.local.layout import Layout
from runcode.runtimes.local.runtime import LocalRuntime
from support.runtime_boxes import Boxes, find_host_processes, start_box, wait_until
from support.runtime_ssh import SshClient, WorkspaceCa

pytest_plugins = ["support.runtime_fixtures"]

# A server that starts a box, says so, and waits to be killed.
_SERVER = """
import asyncio, pickle, sys
from pathlib import Path
from runcode.runtimes.base import WorkspaceSpec
from runcode.runtimes.local.runtime import LocalRuntime
root, spec, stop_after = pickle.load(sys.stdin.buffer)
async def main():
    runtime = LocalRuntime(Path(root))
    seen = 0
    async for checkpoint in runtime.start(WorkspaceSpec(**spec)):
        seen += 1
        print(checkpoint.step, flush=True)
        if seen == stop_after:
            await asyncio.sleep(3600)
    await asyncio.sleep(3600)
asyncio.run(main())
"""


def run_server(boxes: Boxes, spec: object, until: str, stop_after: int = 0) -> subprocess.Popen[bytes]:
    """Another process with its own LocalRuntime on the same root; returns once it printed `until`."""
    import pickle

    server = subprocess.Popen([sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(pickle.dumps((str(boxes.root), vars(spec), stop_after)))
    server.stdin.close()
    for line in server.stdout:
        if line.decode().strip() == until:
            return server
    raise AssertionError("the server ended early")


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


async def test_stop_ends_every_process_also_those_that_do_not_want_to(boxes: Boxes) -> None:
    spec = boxes.new_spec()
    ssh = await boxes.open(spec)
    ssh.text(
        "nohup sleep 7001 >/dev/null 2>&1 & "
        "setsid -f sleep 7002 >/dev/null 2>&1 </dev/null; "
        "setsid -f sh -c 'trap \"\" TERM HUP INT; while :; do sleep 0.1; done' >/dev/null 2>&1 </dev/null; "
        "setsid -f python3 -c 'import os, time\nfor _ in range(20): os.fork()==0 and (time.sleep(7003), os._exit(0))'"
        " >/dev/null 2>&1 </dev/null; true"
    )
    if os.geteuid() == 0:
        assert wait_until(lambda: len(find_host_processes(boxes.root)) > 25)
    started = time.monotonic()
    await boxes.runtime.stop(spec.workspace_id)
    print(f"stop with stubborn processes: {(time.monotonic() - started) * 1000:.0f} ms")
    assert find_host_processes(boxes.root) == {}
    assert (await boxes.runtime.inspect(spec.workspace_id)).state is ObservedState.STOPPED


async def test_start_and_stop_timings(boxes: Boxes) -> None:
    spec = boxes.new_spec()
    await boxes.runtime.create(spec)
    starts, stops = [], []
    for _ in range(5):
        began = time.monotonic()
        steps = [checkpoint.step for checkpoint in await start_box(boxes.runtime, spec)]
        up = time.monotonic()
        await boxes.runtime.stop(spec.workspace_id)
        starts.append(round((up - began) * 1000))
        stops.append(round((time.monotonic() - up) * 1000))
        assert steps == ["prepared", "keeper", "answering"]
    print(f"start ms {starts}, stop ms {stops}")


async def test_boxes_survive_a_killed_server_and_the_next_one_adopts_them(boxes: Boxes) -> None:
    spec = boxes.new_spec()
    server = run_server(boxes, spec, "answering")
    ssh = await boxes.client(spec)
    ssh.text("setsid -f sleep 7010 >/dev/null 2>&1 </dev/null")
    kill(server)
    next_server = LocalRuntime(boxes.root)
    seen = await next_server.inspect(spec.workspace_id)
    assert seen.state is ObservedState.RUNNING
    assert ssh.text("pgrep -fc '^sleep 7010'") == "1"
    # A start by the next one keeps the box that runs.
    await start_box(next_server, spec)
    assert ssh.text("pgrep -fc '^sleep 7010'") == "1"
    await next_server.stop(spec.workspace_id)
    assert find_host_processes(boxes.root) == {}


@pytest.mark.parametrize("step", [1, 2])
async def test_a_server_killed_in_the_middle_of_a_start(boxes: Boxes, step: int) -> None:
    spec = boxes.new_spec()
    server = run_server(boxes, spec, ["prepared", "keeper"][step - 1], stop_after=step)
    kill(server)
    await start_box(LocalRuntime(boxes.root), spec)
    assert (await boxes.client(spec)).text("echo ok") == "ok"


async def test_a_killed_keeper_takes_its_box_along(boxes: Boxes) -> None:
    spec = boxes.new_spec()
    ssh = await boxes.open(spec)
    ssh.text("setsid -f sleep 7020 >/dev/null 2>&1 </dev/null")
    pid = keepers.find_keeper(Layout(boxes.root).workspace(spec.workspace_id))
    assert pid
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: find_host_processes(boxes.root) == {})
    assert (await boxes.runtime.inspect(spec.workspace_id)).state is ObservedState.STOPPED
    assert ssh.run("true").returncode == 255
    await start_box(boxes.runtime, spec)
    assert (await boxes.client(spec)).text("echo ok") == "ok"


async def test_a_keeper_killed_at_any_moment_of_a_start_leaves_nothing(boxes: Boxes) -> None:
    """bwrap's --die-with-parent alone loses this race now and then; the lifeline does not."""
    spec = boxes.new_spec()
    await boxes.runtime.create(spec)
    folder = Layout(boxes.root).workspace(spec.workspace_id)
    for round_number in range(12):
        starting = asyncio.create_task(start_box(boxes.runtime, spec))
        while not starting.done():
            pid = await asyncio.to_thread(keepers.find_keeper, folder)
            if pid:
                await asyncio.sleep(round_number * 0.003)
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                break
            await asyncio.sleep(0)
        # It came up just before it was killed, or did not; anything else fails here.
        outcome = (await asyncio.gather(starting, return_exceptions=True))[0]
        assert isinstance(outcome, list) or getattr(outcome, "code", None) == "not_ready", outcome
        assert wait_until(lambda: find_host_processes(boxes.root) == {}), find_host_processes(boxes.root)
        assert (await boxes.runtime.inspect(spec.workspace_id)).state is ObservedState.STOPPED


async def test_a_keeper_ends_with_its_box(boxes: Boxes) -> None:
    spec = boxes.new_spec()
    ssh = await boxes.open(spec)
    # The person can end the box's init, which is theirs; the state then says so.
    ssh.run("kill -9 -1")
    assert wait_until(lambda: find_host_processes(boxes.root) == {})
    assert (await boxes.runtime.inspect(spec.workspace_id)).state is ObservedState.STOPPED
    await start_box(boxes.runtime, spec)
    assert (await boxes.client(spec)).text("echo ok") == "ok"


async def test_stop_ends_a_box_whose_init_stands_still(boxes: Boxes) -> None:
    spec = boxes.new_spec()
    ssh = await boxes.open(spec)
    ssh.run("kill -STOP 2")
    await boxes.runtime.stop(spec.workspace_id)
    assert find_host_processes(boxes.root) == {}


async def test_three_starts_at_once_make_one_keeper(boxes: Boxes) -> None:
    spec = boxes.new_spec()
    await boxes.runtime.create(spec)
    others = [boxes.runtime, LocalRuntime(boxes.root), LocalRuntime(boxes.root)]
    await asyncio.gather(*(start_box(runtime, spec) for runtime in others))

    def count_keepers() -> int:
        commands = find_host_processes(boxes.root).values()
        marker = rf"workspaces/{spec.workspace_id}\x00'"
        return len([text for text in commands if "runcode.runtimes.local.keeper" in text and marker in text])

    # A keeper's child bears its name until it has become bwrap or the network's helper.
    assert wait_until(lambda: count_keepers() == 1)
    assert (await boxes.client(spec)).text("echo ok") == "ok"


async def test_twelve_workspaces_start_and_stop_together(boxes: Boxes) -> None:
    specs = [boxes.new_spec(f"box-{n}") for n in range(12)]
    began = time.monotonic()
    await asyncio.gather(*(start_box(boxes.runtime, spec) for spec in specs))
    print(f"12 starts together: {time.monotonic() - began:.2f} s")
    for spec in specs[::4]:
        assert (await boxes.client(spec)).text("hostname") == spec.title
    await asyncio.gather(*(boxes.runtime.stop(spec.workspace_id) for spec in specs))
    assert find_host_processes(boxes.root) == {}


def holds(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


async def test_a_keeper_has_none_of_the_servers_descriptors_or_environment(boxes: Boxes, tmp_path: Path) -> None:
    secret = os.open(tmp_path / "secret", os.O_CREAT | os.O_RDWR)
    os.set_inheritable(secret, True)
    os.environ["RUNCODE_SECRET_TEST"] = "leak"
    try:
        spec = boxes.new_spec()
        await boxes.open(spec)
        pid = keepers.find_keeper(Layout(boxes.root).workspace(spec.workspace_id))
        targets = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
        assert targets[:1]
        # Its box's network, and two sockets that ask the kernel about routes: none of ours.
        ours = {os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if holds(int(name))}
        for target in targets:
            own_kinds = ("/dev/null", "pipe:", "user:[", "net:[", "socket:[", str(boxes.path(spec)))
            assert target.startswith(own_kinds), targets
            assert target == "/dev/null" or target not in ours, targets
        assert len([target for target in targets if target.startswith("socket:")]) <= 2, targets
        assert b"RUNCODE_SECRET_TEST" not in Path(f"/proc/{pid}/environ").read_bytes()
        status = Path(f"/proc/{pid}/status").read_text()
        assert os.getsid(pid) != os.getsid(0)
        assert f"PPid:\t{os.getpid()}\n" not in status
    finally:
        os.close(secret)
        del os.environ["RUNCODE_SECRET_TEST"]


async def test_a_data_folder_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    root = tmp_path / ("d" * 100) / ("e" * 100) / "root"
    runtime, ca = LocalRuntime(root), WorkspaceCa()
    spec = ca.make_spec(1)
    try:
        await start_box(runtime, spec)
        endpoint = (await runtime.inspect(1)).endpoint
        assert isinstance(endpoint, UnixEndpoint)
        assert len(endpoint.socket_path) > 200
        assert SshClient(tmp_path / "client", ca, spec, endpoint).text("echo ok") == "ok"
    finally:
        await runtime.destroy(1)
    assert find_host_processes(root) == {}


async def test_a_data_folder_that_moves_while_a_box_runs(tmp_path: Path) -> None:
    ca = WorkspaceCa()
    spec = ca.make_spec(1)
    await start_box(LocalRuntime(tmp_path / "before"), spec)
    (tmp_path / "before").rename(tmp_path / "after")
    runtime = LocalRuntime(tmp_path / "after")
    seen = await runtime.inspect(1)
    assert isinstance(seen.endpoint, UnixEndpoint)
    assert SshClient(tmp_path / "client", ca, spec, seen.endpoint).text("echo ok") == "ok"
    await runtime.destroy(1)
    assert find_host_processes(tmp_path / "after") == {}
    assert find_host_processes(tmp_path / "before") == {}


async def test_the_host_key_does_not_outlive_the_box_on_disk(boxes: Boxes) -> None:
    spec = boxes.new_spec()
    await boxes.open(spec)
    secret = spec.host_key.splitlines()[2].encode()

    def holders() -> list[Path]:
        return [path for path in boxes.root.rglob("*") if path.is_file() and secret in path.read_bytes()]

    assert [path.name for path in holders()] == ["host_key"]
    await boxes.runtime.stop(spec.workspace_id)
    assert holders() == []


async def test_a_start_that_cannot_work_says_why_and_leaves_nothing(boxes: Boxes) -> None:
    spec = boxes.new_spec()
    await boxes.runtime.create(spec)
    real = boxes.runtime._machine
    assert real is not None
    broken = LocalRuntime(boxes.root)
    broken._machine = type(real)(**{**vars(real), "python": "/usr/bin/no-such-python"})
    with pytest.raises(RunCodeError) as caught:
        await start_box(broken, spec)
    assert caught.value.code == "not_ready"
    assert "no-such-python" in caught.value.message
    assert find_host_processes(boxes.root) == {}
    left = sorted(path.name for path in boxes.path(spec).iterdir())
    assert left == ["keeper.lock", "keeper.log", "storage"]


@pytest.mark.root_only
async def test_a_full_disk_at_start_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], check=True)
    try:
        runtime, spec = LocalRuntime(small / "root"), WorkspaceCa().make_spec(1)
        await runtime.create(spec)
        with pytest.raises(RunCodeError) as caught:
            await start_box(runtime, spec)
        assert caught.value.code == "io_error"
        assert "full" in caught.value.message
        assert (await runtime.inspect(1)).state is ObservedState.STOPPED
        assert find_host_processes(small) == {}
        assert list((small / "root" / "workspaces" / "1").glob("box-*")) == []
        assert list((small / "root").rglob("*.new*")) == []
        await runtime.destroy(1)
    finally:
        subprocess.run(["umount", small], check=True)


async def test_a_second_process_outside_sees_the_lock_holder(boxes: Boxes) -> None:
    spec = boxes.new_spec()
    await boxes.open(spec)
    folder = Layout(boxes.root).workspace(spec.workspace_id)
    state = keepers.find_serving_state(folder)
    assert state is not None
    assert state.pid == keepers.find_keeper(folder)
    assert state.pid_namespace not in (None, os.stat("/proc/self/ns/pid").st_ino)
    # A state file that another keeper left is not believed.
    raw = folder.state_file.read_text()
    folder.state_file.write_text(raw.replace(f'"pid": {state.pid}', '"pid": 1'))
    assert (await boxes.runtime.inspect(spec.workspace_id)).state is ObservedState.STOPPED
    folder.state_file.write_text(raw)
    assert (await boxes.runtime.inspect(spec.workspace_id)).state is ObservedState.RUNNING


async def test_a_namespace_number_that_went_to_another_box_is_not_believed(boxes: Boxes) -> None:
    """An ordinary user's boxes share a uid: the number that a dead box left may be its neighbour's by now."""
    spec = boxes.new_spec()
    await boxes.open(spec)
    state = keepers.find_serving_state(Layout(boxes.root).workspace(spec.workspace_id))
    assert state is not None
    assert state.first_pid is not None
    assert state.first_ticks is not None
    assert state.first_pid in keepers.find_box_processes(None, state)
    of_a_dead_box = dataclasses.replace(state, first_ticks=state.first_ticks - 1)
    assert keepers.find_box_processes(None, of_a_dead_box) == []
    assert keepers.find_box_processes(None, dataclasses.replace(state, first_pid=2**22 + 1)) == []
    keepers.end_leftovers(None, of_a_dead_box)
    assert (await boxes.runtime.inspect(spec.workspace_id)).state is ObservedState.RUNNING
    keepers.end_leftovers(None, state)
    assert wait_until(lambda: keepers.find_box_processes(None, state) == []), "the control: its own number ends it"
