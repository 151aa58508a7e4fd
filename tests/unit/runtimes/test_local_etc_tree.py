"""The allowlist of /etc: secrets of the host stay out, whatever stands beside them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runcode.runtimes.local import etc_tree


@pytest.fixture
def host_etc(tmp_path: Path) -> Path:
    etc = tmp_path / "host"
    for folder in ("ssl/certs", "ssl/private", "alternatives", "ssh", "ld.so.conf.d", "fonts/conf.d"):
        (etc / folder).mkdir(parents=True)
    for name in ("shadow", "gshadow", "passwd", "pip.conf", "ssl/private/key.pem", "ssh/ssh_host_ed25519_key"):
        (etc / name).write_text("SECRET")
    (etc / "services").write_text("ssh 22/tcp\n")
    (etc / "ssl/certs/ca-certificates.crt").write_text("certificates")
    (etc / "ssl/certs/private.pem").write_text("SECRET")
    (etc / "ssl/certs/private.pem").chmod(0o600)
    (etc / "ssl/certs/one.pem").symlink_to("/usr/share/one.crt")
    (etc / "ssl/certs/trap.pem").symlink_to("../../shadow")
    (etc / "alternatives/vi").symlink_to("/usr/bin/vim")
    (etc / "alternatives/vi.1.gz").symlink_to("/usr/share/man/vi.1.gz")
    (etc / "fonts/conf.d/local.conf").write_text("font")
    os.mkfifo(etc / "fonts/pipe")
    return etc


def test_nothing_secret_is_in_the_tree(host_etc: Path, tmp_path: Path) -> None:
    tree = etc_tree.build_etc(tmp_path, host_etc)
    for path in tree.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert "SECRET" not in path.read_text()
    names = {str(path.relative_to(tree)) for path in tree.rglob("*")}
    assert not names & {"shadow", "gshadow", "pip.conf", "ssl/private", "ssh", "ssl/certs/private.pem", "fonts/pipe"}


def test_links_stay_links_and_files_get_plain_modes(host_etc: Path, tmp_path: Path) -> None:
    tree = etc_tree.build_etc(tmp_path, host_etc)
    assert os.readlink(tree / "ssl/certs/one.pem") == "/usr/share/one.crt"
    # A link that leads to the host's shadow is only a dangling one here.
    assert not (tree / "ssl/certs/trap.pem").exists()
    assert (tree / "alternatives/vi").is_symlink()
    assert not (tree / "alternatives/vi.1.gz").is_symlink()
    for path in tree.rglob("*"):
        if not path.is_symlink():
            assert path.stat().st_mode & 0o7777 == (0o755 if path.is_dir() else 0o644)


def test_accounts_are_ours_and_there_is_no_group_tty(host_etc: Path, tmp_path: Path) -> None:
    tree = etc_tree.build_etc(tmp_path, host_etc)
    accounts = [line.split(":") for line in (tree / "passwd").read_text().splitlines()]
    assert [fields[0] for fields in accounts] == ["root", "ubuntu", "sshd", "nobody"]
    assert accounts[1][2:4] == ["1000", "1000"]
    assert accounts[0][6] == "/usr/sbin/nologin"
    assert "tty" not in (tree / "group").read_text()


def test_the_tree_is_made_once_for_one_state_of_the_host(host_etc: Path, tmp_path: Path) -> None:
    first = etc_tree.build_etc(tmp_path, host_etc)
    assert etc_tree.build_etc(tmp_path, host_etc) == first
    (host_etc / "services").write_text("ssh 22/tcp\nnew 23/tcp\n")
    second = etc_tree.build_etc(tmp_path, host_etc)
    assert second != first
    assert "new" in (second / "services").read_text()


def test_stale_trees_go_and_those_in_use_stay(host_etc: Path, tmp_path: Path) -> None:
    folder = tmp_path / "trees"
    for name in ("used", "newest", "stale"):
        (folder / name).mkdir(parents=True)
    etc_tree.remove_stale_trees(folder, {"used", "newest"})
    assert {path.name for path in folder.iterdir()} == {"used", "newest"}


def test_a_tree_that_cannot_be_finished_leaves_nothing(
    host_etc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    folder = tmp_path / "trees"
    folder.mkdir()
    monkeypatch.setattr(etc_tree, "copy_entry", full)
    with pytest.raises(OSError, match="No space"):
        etc_tree.build_etc(folder, host_etc)
    assert list(folder.iterdir()) == []
