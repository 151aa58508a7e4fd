"""Finding and making cgroups in trees made by hand: both versions, nested, delegated or not."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from runcode.runtimes.local import limits

BOX = limits.BoxLimits(memory_bytes=1 << 30, processes=100, cpus=1.5)


class FakeTree:
    """Files as the kernel shows them. A folder made in it gets no files, as on a disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = limits.CgroupFiles(self_cgroup=str(root / "self"), mountinfo=str(root / "mountinfo"))

    def version_1(self, path: str, mount_root: str = "/", shown: str | None = None) -> dict[str, Path]:
        names = ("memory", "pids", "cpu,cpuacct")
        lines = [f"{n}:{name}:{path}" for n, name in enumerate(names)]
        (self.root / "self").write_text("\n".join([*lines, "0::/"]) + "\n")
        mounts = [
            f"3{n} 25 0:2{n} {mount_root} {self.root}/{name} rw,relatime shared:{n} - cgroup cgroup rw,{name}"
            for n, name in enumerate(names)
        ]
        (self.root / "mountinfo").write_text("\n".join(mounts) + "\n")
        folders = {}
        for name in names:
            folder = self.root / name / (shown if shown is not None else path).lstrip("/")
            folder.mkdir(parents=True)
            folders[name.split(",")[0]] = folder
        return folders

    def version_2(self, path: str, offered: str = "cpuset cpu io memory pids", enabled: str = "") -> Path:
        (self.root / "self").write_text(f"0::{path}\n")
        (self.root / "mountinfo").write_text(f"31 23 0:28 / {self.root}/cg rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n")
        folder = self.root / "cg" / path.lstrip("/")
        folder.mkdir(parents=True)
        for name, text in (
            ("cgroup.controllers", offered),
            ("cgroup.subtree_control", enabled),
            ("cgroup.procs", f"{os.getpid()}\n"),
            ("cgroup.type", "domain"),
        ):
            (folder / name).write_text(text)
        return folder


@pytest.fixture
def tree(tmp_path: Path) -> FakeTree:
    return FakeTree(tmp_path)


def test_version_1_below_the_servers_own_path(tree: FakeTree) -> None:
    folders = tree.version_1("/system.slice/runcode.service")
    home = limits.find_cgroup_home(tree.files)
    assert (home.version, dict(home.missing)) == (1, {})
    assert home.folders == {name: str(path) for name, path in folders.items()}
    assert limits.plan_folders(home, "box") == {name: f"{path}/box" for name, path in folders.items()}


def test_version_1_in_a_container_whose_mount_shows_its_own_part_only(tree: FakeTree) -> None:
    folders = tree.version_1("/docker/abc/inner", mount_root="/docker/abc", shown="/inner")
    assert limits.find_cgroup_home(tree.files).folders == {name: str(path) for name, path in folders.items()}


def test_a_path_that_the_mount_does_not_show_is_no_home(tree: FakeTree) -> None:
    tree.version_1("/docker/abcdef", mount_root="/docker/abc")
    home = limits.find_cgroup_home(tree.files)
    assert not home.folders
    assert home.missing["memory"] == "its hierarchy is not visible here"
    tree_escape = limits.find_folder(("/sys/fs/cgroup/memory", "/"), "/a/../../etc")
    assert tree_escape is None


def test_no_cgroups_at_all(tree: FakeTree) -> None:
    home = limits.find_cgroup_home(tree.files)
    assert (home.version, dict(home.folders)) == (0, {})
    assert set(home.missing) == set(limits.CONTROLLERS)


def test_version_2_moves_the_server_aside_before_it_hands_controllers_on(tree: FakeTree) -> None:
    folder = tree.version_2("/user.slice/runcode.service")
    home = limits.find_cgroup_home(tree.files)
    assert (home.version, set(home.folders.values())) == (2, {str(folder)})
    # The kernel makes these files with the folder.
    (folder / limits.SUPERVISOR).mkdir()
    (folder / limits.SUPERVISOR / "cgroup.procs").write_text("")
    limits.delegate(home)
    assert (folder / limits.SUPERVISOR / "cgroup.procs").read_text() == str(os.getpid())
    assert set((folder / "cgroup.subtree_control").read_text().split()) == {"+cpu", "+memory", "+pids"}


def test_version_2_after_a_restart_inside_the_leaf(tree: FakeTree) -> None:
    folder = tree.version_2("/a.service", enabled="cpu memory pids")
    (tree.root / "self").write_text(f"0::/a.service/{limits.SUPERVISOR}\n")
    leaf = folder / limits.SUPERVISOR
    leaf.mkdir()
    (leaf / "cgroup.controllers").write_text("cpu memory pids")
    home = limits.find_cgroup_home(tree.files)
    assert set(home.folders.values()) == {str(folder)}
    before = (folder / "cgroup.subtree_control").read_text()
    limits.delegate(home)
    assert (folder / "cgroup.subtree_control").read_text() == before


def test_version_2_with_other_processes_cannot_be_divided_and_says_so(tree: FakeTree) -> None:
    folder = tree.version_2("/session.scope")
    (folder / "cgroup.procs").write_text(f"{os.getpid()}\n1\n")
    home = limits.find_cgroup_home(tree.files)
    assert not home.folders
    assert "other processes" in home.missing["memory"]


def test_version_2_offers_part_of_the_controllers(tree: FakeTree) -> None:
    tree.version_2("/a", offered="pids")
    home = limits.find_cgroup_home(tree.files)
    assert set(home.folders) == {"pids"}
    assert set(home.missing) == {"memory", "cpu"}


def test_hybrid_takes_each_controller_where_it_is(tree: FakeTree) -> None:
    folders = tree.version_1("/x")
    (tree.root / "mountinfo").write_text(
        (tree.root / "mountinfo").read_text() + f"99 1 0:9 / {tree.root}/unified rw - cgroup2 cgroup2 rw\n"
    )
    (tree.root / "unified").mkdir()
    (tree.root / "unified" / "cgroup.controllers").write_text("")
    assert limits.find_cgroup_home(tree.files).folders == {name: str(path) for name, path in folders.items()}


def test_what_is_written_in_each_version() -> None:
    assert limits.render_limits("memory", BOX, version_2=False)[0] == ("memory.limit_in_bytes", "1073741824", True)
    assert limits.render_limits("memory", BOX, version_2=True)[:2] == [
        ("memory.max", "1073741824", True),
        ("memory.swap.max", "0", False),
    ]
    assert limits.render_limits("pids", BOX, version_2=True) == [("pids.max", "100", True)]
    assert ("cpu.max", "150000 100000", False) in limits.render_limits("cpu", BOX, version_2=True)
    assert ("cpu.cfs_quota_us", "150000", False) in limits.render_limits("cpu", BOX, version_2=False)


def test_limits_follow_the_machine_and_leave_a_rest() -> None:
    big = limits.choose_limits(64 << 30, 16, 4_194_304)
    assert (big.memory_bytes, big.processes, big.cpus) == (48 << 30, 4096, 14.4)
    small = limits.choose_limits(512 << 20, 1, 4096)
    assert small.memory_bytes == 384 << 20
    assert small.processes == 512
    assert small.cpus == 0.9


def test_a_limit_on_the_server_itself_counts_as_the_machines_size(tree: FakeTree) -> None:
    folder = tree.version_1("/x")["memory"]
    (folder / "memory.limit_in_bytes").write_text(str(1 << 30))
    assert limits.read_default_limits(limits.find_cgroup_home(tree.files)).memory_bytes == (1 << 30) * 3 // 4


def test_removal_waits_takes_what_is_there_and_names_what_stays(tmp_path: Path) -> None:
    gone, there, busy = tmp_path / "gone", tmp_path / "there", tmp_path / "busy"
    there.mkdir()
    (busy / "child").mkdir(parents=True)
    folders = {"pids": str(gone), "cpu": str(there), "memory": str(busy)}
    assert limits.remove_cgroups(folders, 0.05) == [str(busy)]
    assert not there.exists()


def test_a_sweep_takes_what_boxes_left_long_ago_and_nothing_else(tmp_path: Path) -> None:
    names = {name: limits.name_cgroup(7) for name in ("old", "young", "used")}
    for name in (*names.values(), "runcode-server", "runcode-7-of-somebody", "system.slice"):
        (tmp_path / name).mkdir()
    (tmp_path / names["used"] / "cgroup.procs").write_text("12\n")
    for name in os.listdir(tmp_path):
        if name != names["young"]:
            os.utime(tmp_path / name, (0, 0))
    home = limits.CgroupHome(1, {"memory": str(tmp_path), "pids": str(tmp_path), "cpu": str(tmp_path / "gone")}, {})
    assert limits.sweep_cgroups(home) == [str(tmp_path / names["old"])]
    assert {names["young"], names["used"], "system.slice"} < set(os.listdir(tmp_path))


@pytest.mark.root_only
def test_a_sweep_of_the_kernels_own_tree() -> None:
    home = limits.find_cgroup_home()
    if not home.folders:
        pytest.skip("needs writable cgroups: " + "; ".join(map(": ".join, home.missing.items())))
    made = [f"{folder}/{limits.name_cgroup(7)}" for folder in sorted(set(home.folders.values()))]
    for folder in made:
        os.mkdir(folder)
    assert not set(limits.sweep_cgroups(home)) & set(made)
    assert set(made) <= set(limits.sweep_cgroups(home, older_than_s=-1.0))
    assert not any(os.path.exists(folder) for folder in made)


def test_mount_points_with_blanks() -> None:
    line = r"31 23 0:28 / /sys/a\040b rw - cgroup cgroup rw,memory"
    assert limits.parse_mounts(line) == {"rw": ("/sys/a b", "/"), "memory": ("/sys/a b", "/")}


def test_bound_processes_only_ever_lowers() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    code = (
        "import resource; from runcode.runtimes.local import limits\n"
        "limits.bound_processes(1000); limits.bound_processes(2000)\n"
        "print(resource.getrlimit(resource.RLIMIT_NPROC))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    wanted = 1000 if hard == resource.RLIM_INFINITY else min(1000, hard)
    assert said == str((wanted if soft == resource.RLIM_INFINITY else min(wanted, soft), wanted))
