"""Trees that a box's user left behind, and what the host does with them: nothing outside is touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runcode.core.errors import RunCodeError
from runcode.runtimes.base import ObservedState
from runcode.runtimes.local.runtime import LocalRuntime
from support.runtime_boxes import Boxes, start_box

pytest_plugins = ["support.runtime_fixtures"]

_HOSTILE = """
import os, sys
outside = sys.argv[1]
home = "/home/ubuntu"
os.chdir(home)
os.symlink(outside, "link")
os.symlink("/", "root")
os.symlink("loop", "loop")
os.makedirs("inner")
for name in ("link", "root"):
    os.symlink("../" + name, "inner/" + name)
    os.symlink(outside + "/" + name, f"inner/outside-{name}")
os.mkfifo("fifo")
for name in ("-rf", "new\\nline", "\\x1b[2J", "..."):
    os.makedirs(f"odd/{name}")
open(b"odd/\\xff\\xfe", "w").close()
# Deeper than a path may be long, and than Python may recurse.
here = os.open(".", os.O_RDONLY)
for _ in range(3000):
    os.mkdir("d" * 200, dir_fd=here)
    below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
    os.close(here)
    here = below
os.makedirs("many")
for n in range(2000):
    open(f"many/{n}", "w").close()
os.makedirs("closed/inside")
open("closed/inside/file", "w").close()
os.chmod("closed/inside/file", 0)
os.chmod("closed/inside", 0)
os.chmod("closed", 0)
os.makedirs("readonly/inside")
os.chmod("readonly/inside", 0o500)
os.chmod("readonly", 0o500)
# The names that a removal might use for itself.
os.makedirs(".removing-0/.removing-1")
os.symlink(outside, ".removing-2")
"""


async def test_destroy_copes_with_a_hostile_tree_and_follows_nothing(boxes: Boxes, tmp_path: Path) -> None:
    spec = boxes.new_spec()
    ssh = await boxes.open(spec)
    outside = tmp_path / "outside"
    (outside / "root").mkdir(parents=True)
    (outside / "precious").write_text("keep me")
    ssh.run("cat > /tmp/hostile.py", stdin=_HOSTILE.encode())
    ssh.text(f"python3 /tmp/hostile.py {outside}")
    descriptors = len(os.listdir("/proc/self/fd"))
    await boxes.runtime.destroy(spec.workspace_id)
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 2
    assert (outside / "precious").read_text() == "keep me"
    assert (outside / "root").is_dir()
    assert Path("/usr/bin").is_dir()
    assert not boxes.path(spec).exists()


async def test_destroy_goes_on_after_a_crash_in_the_middle(boxes: Boxes) -> None:
    spec = boxes.new_spec()
    await boxes.open(spec)
    await boxes.runtime.stop(spec.workspace_id)
    # What a crash right after the first step of destroy leaves.
    (boxes.path(spec)).rename(boxes.root / "trash" / f"{spec.workspace_id}-0123456789ab")
    assert (await boxes.runtime.inspect(spec.workspace_id)).state is ObservedState.ABSENT
    await LocalRuntime(boxes.root).destroy(spec.workspace_id)
    assert list((boxes.root / "trash").iterdir()) == []


async def test_create_goes_on_after_a_crash_in_the_middle(boxes: Boxes) -> None:
    spec = boxes.new_spec()
    half = boxes.path(spec) / "storage.new" / "home"
    half.mkdir(parents=True)
    (half / "half").write_text("of a file")
    assert (await boxes.runtime.inspect(spec.workspace_id)).state is ObservedState.ABSENT
    ssh = await boxes.open(spec)
    assert ssh.text("ls -A") == ".bashrc\n.profile\nworkspace"


async def test_links_in_the_home_lead_no_start_or_create_outside(boxes: Boxes, tmp_path: Path) -> None:
    spec = boxes.new_spec()
    ssh = await boxes.open(spec)
    target = tmp_path / "target"
    ssh.text(f"rm -r workspace .bashrc .profile; for n in workspace .bashrc .profile .ssh; do ln -s {target} $n; done")
    await boxes.runtime.stop(spec.workspace_id)
    await boxes.runtime.create(spec)
    await start_box(boxes.runtime, spec)
    assert not target.exists()
    again = await boxes.client(spec)
    assert again.text("readlink workspace") == str(target)


async def test_a_home_that_its_user_closed_still_starts(boxes: Boxes) -> None:
    spec = boxes.new_spec()
    (await boxes.open(spec)).text("chmod 700 . workspace; echo 'exit 3' > .bashrc; echo 'exit 4' > .profile")
    await boxes.runtime.stop(spec.workspace_id)
    await start_box(boxes.runtime, spec)
    assert (await boxes.runtime.inspect(spec.workspace_id)).state is ObservedState.RUNNING


@pytest.mark.root_only
async def test_storage_belongs_to_the_boxs_own_uid(boxes: Boxes) -> None:
    spec = boxes.new_spec()
    (await boxes.open(spec)).text("touch workspace/file")
    home = boxes.path(spec) / "storage" / "home"
    for path in (home, home / "workspace", home / "workspace" / "file", home / ".bashrc"):
        facts = path.lstat()
        assert (facts.st_uid, facts.st_gid) == (boxes.host_uid(spec), boxes.host_uid(spec))
    assert home.parent.stat().st_uid == 0


@pytest.mark.parametrize("workspace_id", [0, -1, "../x", "1", None, 1.0, True])
async def test_what_is_not_an_id_never_becomes_a_path(boxes: Boxes, workspace_id: object) -> None:
    for method in (boxes.runtime.stop, boxes.runtime.destroy, boxes.runtime.inspect):
        with pytest.raises(RunCodeError) as caught:
            await method(workspace_id)  # type: ignore[arg-type]
        assert caught.value.code == "bad_request"


async def test_a_root_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "real")
    with pytest.raises(RunCodeError) as caught:
        await LocalRuntime(tmp_path / "root").stop(1)
    assert caught.value.code == "unsafe_path"
    assert list((tmp_path / "real").iterdir()) == []
