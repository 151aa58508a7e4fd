"""The keeper's small files and log, the box's files, and removal, without starting anything."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from runcode.core.errors import RunCodeError
from runcode.runtimes.local import box_files, keeper_log, plan, storage
from runcode.runtimes.local.layout import Layout, WorkspaceFolder, make_private_folder
from support.runtime_ssh import WorkspaceCa

PLAN = plan.BoxPlan(
    title="t",
    host_uid=1_900_000_001,
    etc_folder="../etc/x",
    box_folder="box-1",
    bwrap="/usr/bin/bwrap",
    command=("/usr/bin/python3", "x"),
    disable_userns=True,
)


def test_a_plan_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = str(tmp_path / "plan.json")
    plan.write_private_json(path, PLAN)
    assert plan.load_plan(path) == PLAN
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"command": []}', '{"title": "x", "command": 3}'])
def test_half_a_plan_is_no_plan(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises((ValueError, TypeError)):
        plan.load_plan(str(tmp_path / "plan.json"))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"pid": 1}', '{"pid": 1, "unknown": 2}'])
def test_half_a_state_is_no_state(tmp_path: Path, text: str) -> None:
    (tmp_path / "keeper.json").write_text(text)
    assert plan.find_keeper_state(str(tmp_path / "keeper.json")) is None


def test_the_start_of_a_process_is_told_and_differs_from_another(tmp_path: Path) -> None:
    mine, first = plan.read_started_ticks(os.getpid()), plan.read_started_ticks(1)
    assert mine is not None
    assert first is not None
    assert mine > first
    assert plan.read_started_ticks(2**22 + 1) is None


def test_the_log_makes_what_a_box_says_printable(tmp_path: Path) -> None:
    log = keeper_log.KeeperLog(str(tmp_path / "log"))
    log.feed(b"\x1b[2J\x07bad\xe2\x80\xaetext\r\nsecond ")
    log.feed(b"half\n\n")
    log.feed(b"no end")
    log.finish()
    lines = [line.split(" ", 1)[1] for line in (tmp_path / "log").read_text().splitlines()]
    assert lines == ["box: ?[2J?bad???text", "box: second half", "box: no end"]
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_the_log_is_bounded_in_lines_and_in_all(tmp_path: Path) -> None:
    log = keeper_log.KeeperLog(str(tmp_path / "log"))
    for _ in range(3000):
        log.feed(b"x" * 997)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1"]
    for path in tmp_path.iterdir():
        assert path.stat().st_size <= keeper_log.LIMIT
        assert max(map(len, path.read_text().splitlines())) < 450


def test_the_log_does_not_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        keeper_log.KeeperLog(str(tmp_path / "log"))
    assert not (tmp_path / "elsewhere").exists()


SPEC = WorkspaceCa().make_spec(7)


def test_the_boxs_files_hold_the_spec_and_nothing_else_trusts(tmp_path: Path) -> None:
    box_files.write_box_files(tmp_path / "box", SPEC, None)
    opt = tmp_path / "box" / "opt"
    assert (opt / "principals").read_text() == "workspace-7\n"
    assert (opt / "workspace_ca").read_text() == SPEC.workspace_ca + "\n"
    assert (opt / "host_key").read_text().strip() == SPEC.host_key.strip()
    assert (opt / "host_key").stat().st_mode & 0o777 == 0o400
    config = dict(line.split(" ", 1) for line in (opt / "sshd_config").read_text().splitlines())
    assert config["AuthorizedKeysFile"] == "none"
    assert config["TrustedUserCAKeys"] == "/opt/runcode/workspace_ca"
    assert config["AuthorizedPrincipalsFile"] == "/opt/runcode/principals"
    assert config["PasswordAuthentication"] == config["KbdInteractiveAuthentication"] == config["UsePAM"] == "no"
    assert config["AcceptEnv"] == "LANG LC_*"
    assert config["AllowUsers"] == "ubuntu"
    assert all("-cert-v01@" in name for name in config["PubkeyAcceptedAlgorithms"].split(","))
    assert config["Ciphers"].startswith("aes128-gcm@openssh.com,")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("title", "-x"),
        ("title", "a b"),
        ("title", "a\nb"),
        ("principal", ""),
        ("principal", "a\nb"),
        ("principal", "a b"),
        ("principal", "*"),
        ("principal", 'from="x" y'),
        ("principal", "# x"),
        # The key is new in each process: named here, since every worker of a run must collect the same names.
        pytest.param("workspace_ca", "cert-authority " + SPEC.workspace_ca, id="workspace_ca-with an option"),
        pytest.param("workspace_ca", SPEC.workspace_ca + "\n" + SPEC.workspace_ca, id="workspace_ca-two lines"),
        ("workspace_ca", "ssh-dss AAAA"),
        ("host_key", ""),
        ("host_key", "ssh-ed25519 AAAA"),
    ],
)
def test_a_spec_that_could_mean_more_is_refused_before_anything_is_written(
    tmp_path: Path, field: str, value: str
) -> None:
    with pytest.raises(RunCodeError):
        box_files.write_box_files(tmp_path / "box", replace(SPEC, **{field: value}), None)
    assert not (tmp_path / "box").exists()


def test_the_host_key_does_not_show_in_a_repr() -> None:
    assert "PRIVATE KEY" not in repr(SPEC)


def test_removal_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("keep")
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    for at in (tree, tree / "a", tree / "a" / "b"):
        (at / "link").symlink_to(tmp_path / "outside")
    (tree / "a" / "closed").mkdir(mode=0)
    storage.remove_tree(tree)
    assert not tree.exists()
    (tmp_path / "alias").symlink_to(tmp_path / "outside")
    storage.remove_tree(tmp_path / "alias")
    storage.remove_tree(tmp_path / "missing")
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    assert (tmp_path / "outside" / "file").read_text() == "keep"


def test_existing_storage_is_left_as_it_is(tmp_path: Path) -> None:
    folder = WorkspaceFolder(tmp_path / "7")
    storage.create_home(folder, None)
    (folder.home / "mine").write_text("work")
    (folder.home / ".bashrc").unlink()
    storage.create_home(folder, None)
    assert sorted(path.name for path in folder.home.iterdir()) == [".profile", "mine", "workspace"]


def test_private_folders_become_0700_and_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    make_private_folder(tmp_path / "open")
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(tmp_path / "open")
    with pytest.raises(RunCodeError):
        make_private_folder(tmp_path / "link")


@pytest.mark.parametrize("workspace_id", [0, -3, "7", "../7", None, True])
def test_only_an_id_becomes_a_folder(tmp_path: Path, workspace_id: object) -> None:
    with pytest.raises(RunCodeError):
        Layout(tmp_path).workspace(workspace_id)  # type: ignore[arg-type]
