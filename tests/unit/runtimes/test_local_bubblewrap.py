"""What the box is given, read from the command line that is rendered for it."""

from __future__ import annotations

from runcode.runtimes.local.bubblewrap import BoxSources, HostFacts, render_bwrap_arguments

SOURCES = BoxSources(
    home="/s/home", etc="/s/etc", hosts="/s/hosts", hostname_file="/s/hostname", box_folder="/s/box", own_devices=True
)
FACTS = HostFacts(
    usr_links=("bin", "lib"), proc_folders=("sys", "fs"), proc_files=("kcore",), usr_sudo=True, disable_userns=True
)


def render(sources: BoxSources = SOURCES, facts: HostFacts = FACTS) -> list[str]:
    return render_bwrap_arguments("/usr/bin/bwrap", sources, facts, "royal-tree", ["/usr/bin/init", "--x"])


def mounted_sources(argv: list[str]) -> set[str]:
    kinds = {"--bind", "--ro-bind", "--dev-bind"}
    return {argv[at + 1] for at, word in enumerate(argv) if word in kinds}


def test_only_what_is_named_is_bound() -> None:
    assert mounted_sources(render()) == {
        "/usr", "/s/etc", "/s/hosts", "/s/hostname", "/s/home", "/s/box", "/s/box/bin/sudo",
        "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/pts",
    }  # fmt: skip


def test_the_home_is_the_only_thing_bound_writable() -> None:
    argv = render()
    assert [argv[at + 1 : at + 3] for at, word in enumerate(argv) if word == "--bind"] == [["/s/home", "/home/ubuntu"]]


def test_every_namespace_is_new_and_the_parent_is_followed() -> None:
    argv = render()
    for word in ("user", "pid", "ipc", "uts", "net"):
        assert f"--unshare-{word}" in argv
    for word in ("--die-with-parent", "--new-session", "--clearenv", "--disable-userns", "--unshare-cgroup-try"):
        assert word in argv
    assert argv[argv.index("--cap-drop") + 1] == "ALL"


def test_covers_come_after_what_they_cover_and_the_root_is_closed_last() -> None:
    argv = render()
    proc = argv.index("--proc")
    covers = [at for at, word in enumerate(argv) if word in ("/proc/sys", "/proc/fs", "/proc/kcore")]
    assert len(covers) == 5
    assert min(covers) > proc
    closed = max(at for at, word in enumerate(argv) if word == "--remount-ro")
    assert argv[closed + 1] == "/"
    assert not {"--bind", "--ro-bind", "--tmpfs", "--dir", "--symlink"} & set(argv[closed:])
    assert argv[argv.index("--") + 1 :] == ["/usr/bin/init", "--x"]


def test_every_tmpfs_has_a_size() -> None:
    argv = render()
    for at, word in enumerate(argv):
        if word == "--tmpfs":
            assert argv[at - 2] == "--size", argv[at + 1]


def test_an_old_bwrap_and_an_ordinary_user() -> None:
    sources = BoxSources(**{**vars(SOURCES), "own_devices": False})
    argv = render(sources, HostFacts(**{**vars(FACTS), "disable_userns": False, "usr_sudo": False}))
    assert "--disable-userns" not in argv
    assert "/usr/bin/sudo" not in argv
    assert argv[argv.index("--dev") + 1] == "/dev"
    assert argv[argv.index("/dev/shm") + 1 : argv.index("/dev/shm") + 3] == ["--remount-ro", "/dev"]
    assert "--dev-bind" not in argv
