"""A box that takes all it can get hurts itself only. Real boxes in real cgroups, with limits small enough to reach."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runcode.runtimes.base import ObservedState
from runcode.runtimes.local import keepers, limits, plan
from runcode.runtimes.local.runtime import LocalRuntime
from support.runtime_boxes import Boxes, find_host_processes, start_box, wait_until

pytestmark = pytest.mark.root_only

SMALL = limits.BoxLimits(memory_bytes=192 << 20, processes=80, cpus=0.5)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> LocalRuntime:
    runtime = LocalRuntime(tmp_path_factory.mktemp("limited") / "root", SMALL)
    assert runtime.find_obstacle() is None
    missing = limits.find_cgroup_home().missing
    if missing:  # a container, say; the summary then lists each test as NOT RUN
        pytest.skip("needs writable memory, pids and cpu cgroups: " + "; ".join(map(": ".join, missing.items())))
    assert runtime.capabilities.limits
    return runtime


@pytest.fixture
async def boxes(runtime: LocalRuntime, tmp_path: Path) -> AsyncIterator[Boxes]:
    boxes = Boxes(runtime, runtime.root, tmp_path)
    yield boxes
    made = [find_cgroups(boxes, workspace_id) for workspace_id in boxes.specs]
    for workspace_id in boxes.specs:
        await runtime.destroy(workspace_id)
    assert find_host_processes(runtime.root) == {}
    assert [path for folders in made for path in folders.values() if os.path.exists(path)] == []


def find_cgroups(boxes: Boxes, workspace_id: int) -> dict[str, str]:
    try:
        return dict(plan.load_plan(str(boxes.root / "workspaces" / str(workspace_id) / plan.PLAN_FILE)).cgroups)
    except OSError:
        return {}


async def test_every_process_of_a_box_is_in_its_cgroups_and_the_keeper_is_not(boxes: Boxes) -> None:
    spec = boxes.new_spec()
    ssh = await boxes.open(spec)
    ssh.text("setsid -f sleep 7300 >/dev/null 2>&1 </dev/null")
    folders = find_cgroups(boxes, spec.workspace_id)
    assert set(folders) == set(limits.CONTROLLERS)
    keeper = keepers.find_keeper(boxes.runtime._layout.workspace(spec.workspace_id))
    seen = set(find_host_processes(boxes.root))
    members = {name: set(Path(folder, "cgroup.procs").read_text().split()) for name, folder in folders.items()}
    # The shell's own sshd may still be ending: what was there before and after the groups were read was there then.
    inside = (seen & set(find_host_processes(boxes.root))) - {keeper}
    assert len(inside) >= 3
    for pids in members.values():
        assert inside <= {int(pid) for pid in pids}
        assert str(keeper) not in pids


async def test_a_box_that_takes_too_much_memory_loses_that_process_and_nobody_else_does(boxes: Boxes) -> None:
    neighbour = await boxes.open(boxes.new_spec("neighbour"))
    spec = boxes.new_spec()
    ssh = await boxes.open(spec)
    greedy = "python3 -c \"b = []\nwhile len(b) < 600: b.append(b'x' * (1 << 20))\nprint('GOT IT ALL')\""
    ran = ssh.run(greedy, timeout_s=60)
    assert b"GOT IT ALL" not in ran.stdout
    assert ran.returncode != 0
    # tmpfs is memory as well, and a file in it is no process that could be ended.
    filled = ssh.run("head -c 600M /dev/zero > /tmp/big; echo $?; rm -f /tmp/big", timeout_s=60)
    assert filled.stdout.strip() != b"0"
    assert neighbour.text("echo unharmed") == "unharmed"
    state = (await boxes.runtime.inspect(spec.workspace_id)).state
    if state is not ObservedState.RUNNING:
        await start_box(boxes.runtime, spec)
    assert (await boxes.client(spec)).text("echo again") == "again"


async def test_a_fork_bomb_stays_in_its_box_and_ends_with_it(boxes: Boxes) -> None:
    neighbour = await boxes.open(boxes.new_spec("neighbour"))
    spec = boxes.new_spec()
    ssh = await boxes.open(spec)
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
    ssh.run("cat > /tmp/bomb.py; setsid -f python3 /tmp/bomb.py >/dev/null 2>&1 </dev/null", stdin=bomb.encode())
    pids = Path(find_cgroups(boxes, spec.workspace_id)["pids"])
    assert wait_until(lambda: int(Path(pids, "pids.current").read_text()) >= SMALL.processes - 1, 60)
    assert int(Path(pids, "pids.current").read_text()) <= SMALL.processes
    assert neighbour.text("for n in 1 2 3; do (true) & done; wait; echo unharmed") == "unharmed"
    await boxes.runtime.stop(spec.workspace_id)
    assert not pids.exists()


async def test_a_box_gets_no_more_processor_than_its_share(boxes: Boxes) -> None:
    spec = boxes.new_spec()
    # So little that even a crowded machine could give more.
    tight = LocalRuntime(boxes.root, limits.BoxLimits(SMALL.memory_bytes, SMALL.processes, cpus=0.1))
    await tight.create(spec)
    await start_box(tight, spec)
    cpu = Path(find_cgroups(boxes, spec.workspace_id)["cpu"])
    (await boxes.client(spec)).text("setsid -f timeout 60 sh -c 'while :; do :; done' >/dev/null 2>&1 </dev/null")

    def is_throttled() -> bool:
        counts = dict(line.split() for line in Path(cpu, "cpu.stat").read_text().splitlines())
        return int(counts["nr_throttled"]) > 10

    assert wait_until(is_throttled, 60)
    await tight.close()


@pytest.mark.parametrize("how", ["stop", "keeper killed", "bwrap killed"])
async def test_no_cgroup_is_left_whatever_ends_the_box(boxes: Boxes, how: str) -> None:
    spec = boxes.new_spec()
    await boxes.open(spec)
    before = find_cgroups(boxes, spec.workspace_id)
    assert all(os.path.isdir(path) for path in before.values())
    folder = boxes.runtime._layout.workspace(spec.workspace_id)
    state = keepers.find_serving_state(folder)
    assert state is not None
    if how == "keeper killed":
        os.kill(state.pid, signal.SIGKILL)
        assert wait_until(lambda: keepers.find_keeper(folder) is None, 30)
        # Nobody is there to clean up, until the next start does.
        await start_box(boxes.runtime, spec)
        assert find_cgroups(boxes, spec.workspace_id) != before
    elif how == "bwrap killed":
        assert state.first_pid is not None
        os.kill(state.first_pid, signal.SIGKILL)
        assert wait_until(lambda: keepers.find_keeper(folder) is None, 30)
    else:
        await boxes.runtime.stop(spec.workspace_id)
    assert [path for path in before.values() if os.path.exists(path)] == []


async def test_a_box_cannot_change_its_limits(boxes: Boxes) -> None:
    ssh = await boxes.open()
    assert ssh.text("find / -xdev -name 'memory.limit_in_bytes' -o -name 'cgroup.procs' 2>/dev/null | wc -l") == "0"
    assert ssh.run("mkdir /tmp/cg && mount -t cgroup -o memory none /tmp/cg").returncode != 0
    assert ssh.run("mount -t cgroup2 none /tmp/cg").returncode != 0
