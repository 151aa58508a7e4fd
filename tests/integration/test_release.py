"""`make release`: the same bytes in any folder, and archives that work through the launcher and on their own."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from release.packing import pack_tar_gz
from release.sources import ReleaseError, read_version

from support.service import BARE_PATH, SERVER, Laptop, Service, running_service

ROOT = Path(__file__).resolve().parents[2]
ASSET = f"runcode_{sys.platform}_{ {'x86_64': 'amd64', 'aarch64': 'arm64'}[platform.machine()] }.tar.gz"
VERSION = read_version(ROOT)
TITLE = "release-box"


def copy_project(target: Path, mode: int) -> None:
    """As a clone would be, in another folder, under another umask, with things that do not belong into a release."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("src", "packaging", "docs", "scripts", "plugin"):
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    (target / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", target / "tests")
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "constraints.txt"):
        shutil.copy(ROOT / name, target / name)
    for path in target.rglob("*"):
        path.chmod((path.stat().st_mode | 0o700 if path.is_dir() else path.stat().st_mode) & ~mode)
        os.utime(path, (1_600_000_000 + mode, 1_600_000_000 + mode))


def make_release(project: Path, out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(project / "scripts" / "make_release.py"), "--out", str(out), *words],
        env={"PATH": BARE_PATH, "HOME": str(project), "SOURCE_DATE_EPOCH": "1700000000", "TMPDIR": str(project.parent)},
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole release, with CPython, from a copy of this tree."""
    project = tmp_path_factory.mktemp("first") / "project"
    copy_project(project, 0)
    out = project.parent / "dist"
    made = make_release(project, out)
    assert made.returncode == 0, made.stderr
    return out


def start_of(home: Path, dist: Path) -> list[str]:
    """What a person's shell would have: an empty HOME and a bare PATH."""
    launcher = ROOT / "plugin" / "bin" / "runcode"
    settings = [f"HOME={home}", "PATH=/usr/bin:/bin", f"RUNCODE_DOWNLOAD_BASE=file://{dist}"]
    # A development plugin pins nothing; a released one pins other bytes than those of this test.
    return ["env", "-i", *settings, "RUNCODE_PIN_VERSION=v0.test", str(launcher)]


def test_twice_in_different_folders_is_the_same_byte_for_byte(dist: Path, tmp_path: Path) -> None:
    project = tmp_path / "another folder, with a longer name" / "project"
    copy_project(project, 0o077)
    (project / "src/runcode/__pycache__").mkdir()
    (project / "src/runcode/__pycache__/left.pyc").write_bytes(b"left")
    made = make_release(project, tmp_path / "dist")
    assert made.returncode == 0, made.stderr
    first, second = (
        {path.name: path.read_bytes() for path in folder.iterdir()} for folder in (dist, tmp_path / "dist")
    )
    assert set(first) == {
        f"runcode-{VERSION}-py3-none-any.whl",
        f"runcode-{VERSION}.tar.gz",
        f"runcode-{VERSION}.pyz",
        ASSET,
        "checksums.txt",
    }
    assert [name for name in first if first[name] != second.get(name)] == []


def test_checksums_are_what_sha256sum_reads(dist: Path) -> None:
    done = subprocess.run(["sha256sum", "--strict", "-c", "checksums.txt"], cwd=dist, capture_output=True, check=False)
    assert done.returncode == 0
    assert done.stdout.count(b": OK\n") == 4


def test_the_archive_holds_files_and_folders_of_nobody(dist: Path) -> None:
    with tarfile.open(dist / ASSET) as packed:
        entries = packed.getmembers()
    assert [entry.name for entry in entries] == sorted(entry.name for entry in entries)
    for entry in entries:
        assert entry.isreg() or entry.isdir(), entry.name
        assert entry.name.split("/")[0] in ("runcode", "runcode.app"), entry.name
        assert (entry.uid, entry.gid, entry.uname, entry.gname, entry.mtime) == (0, 0, "", "", 1700000000)
        assert entry.mode in (0o755, 0o644)
    names = {entry.name for entry in entries}
    assert "runcode.app/python/python3" in names
    assert not any("/server/" in name or "/gateway/" in name for name in names if "/lib/runcode/" in name)
    assert not any(name.endswith(("/RECORD", "direct_url.json")) for name in names)


def test_no_path_of_the_building_machine_is_in_it(dist: Path) -> None:
    with tarfile.open(dist / ASSET) as packed:
        for entry in packed:
            file = packed.extractfile(entry)
            if file is not None and "/lib/runcode/" in entry.name:
                assert os.fsencode(dist.parent) not in file.read(), entry.name


def test_it_works_through_the_launcher_in_an_empty_home(dist: Path, tmp_path: Path) -> None:
    for _ in range(2):
        done = subprocess.run([*start_of(tmp_path, dist), "--version"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"runcode {VERSION}\n", "")
    # The interpreter is its own: nothing of this machine's Python is looked at.
    app = next((tmp_path / ".cache/runcode/bin").glob("*.app"))
    code = "import sys, json, ssl, sqlite3; print(json.__file__, *sys.path)"
    told = subprocess.run(
        [app / "python/python3", "-I", "-S", "-c", code], capture_output=True, text=True, env={}, check=True
    )
    for path in told.stdout.split():
        assert path.startswith(str(app)), path


def test_no_folder_above_lends_it_a_library(dist: Path, tmp_path: Path) -> None:
    """CPython looks for `lib/python311.zip` in all of them: below /tmp, whoever is first there would run code as us."""
    evil = tmp_path / "lib" / f"python{sys.version_info[0]}{sys.version_info[1]}.zip"
    evil.parent.mkdir()
    with zipfile.ZipFile(evil, "w") as packed:
        packed.writestr("encodings/__init__.py", "import posix\nposix.write(1, b'planted')\nposix._exit(0)\n")
    for level in (".cache", ".cache/runcode", ".cache/runcode/bin"):
        (tmp_path / level).mkdir(mode=0o700)
        shutil.copytree(evil.parent, tmp_path / level / "lib")
    done = subprocess.run([*start_of(tmp_path, dist), "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"runcode {VERSION}\n")


def test_it_is_damaged_and_says_so(dist: Path, tmp_path: Path) -> None:
    start = start_of(tmp_path, dist)
    subprocess.run([*start, "--version"], check=True, capture_output=True)
    app = next((tmp_path / ".cache/runcode/bin").glob("*.app"))
    (app / "python/python3").unlink()
    for words, status in ((["list"], 127), (["exec", "--", "true"], 255), (["hook", "pre-tool-use"], 2)):
        done = subprocess.run([*start, *words], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (status, ""), words
        assert done.stderr.startswith("runcode: missing_program: "), words
        assert done.stderr.count("\n") == 1, words


@pytest.mark.parametrize("kept", [12, 13, 200, 700])
def test_an_entry_that_is_cut_off_is_never_a_silent_success(dist: Path, tmp_path: Path, kept: int) -> None:
    """A hook that exits 0 without a word would let everything pass."""
    entry = tmp_path / "runcode"
    with tarfile.open(dist / ASSET) as packed:
        file = packed.extractfile("runcode")
        assert file is not None
        text = file.read()
    assert kept < len(text) - 2
    entry.write_bytes(text[:kept])
    for shell in ("dash", "bash"):
        done = subprocess.run([shell, str(entry), "hook", "pre-tool-use"], capture_output=True, check=False)
        assert done.returncode != 0, (shell, kept)


# ---------------------------------------------------------------- against a real server


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    assert Path(SERVER).exists()
    with running_service(tmp_path_factory.mktemp("service")) as running:
        running.operator("workspace", "create", TITLE)
        yield running


def test_exec_against_a_real_workspace_through_it(dist: Path, tmp_path: Path, service: Service) -> None:
    laptop = Laptop(tmp_path / "laptop")
    laptop.login(service)
    start = start_of(laptop.home, dist)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*start, *words], cwd=laptop.project, capture_output=True, text=True, check=False)

    connected = run("connect", TITLE, "--start", "--wait")
    assert connected.returncode == 0, connected.stderr
    assert run("exec", "--", "true").returncode == 0
    assert run("exec", "--", "exit 42").returncode == 42
    told = run("exec", "--", "printf", "%s|", "a b", "c'd")
    assert (told.stdout, told.stderr) == ("a b|c'd|", "")
    run("disconnect")


def test_the_pyz_is_a_client_too(dist: Path, tmp_path: Path) -> None:
    pyz = dist / f"runcode-{VERSION}.pyz"
    done = subprocess.run(
        [sys.executable, "-I", str(pyz), "--version"],
        capture_output=True,
        text=True,
        env={"HOME": str(tmp_path)},
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"runcode {VERSION}\n"), done.stderr
    with zipfile.ZipFile(pyz) as packed:
        assert "__main__.py" in packed.namelist()


# ---------------------------------------------------------------- development archives, pins


def test_a_development_archive_works_says_what_it_is_and_is_never_pinned(tmp_path: Path) -> None:
    project = tmp_path / "project"
    copy_project(project, 0)
    out = tmp_path / "dist"
    made = make_release(project, out, "--without-python", "--archive-only")
    assert made.returncode == 0, made.stderr
    assert "development archive" in made.stdout
    assert "leaves `mcp` out" in made.stdout
    done = subprocess.run([*start_of(tmp_path, out), "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"runcode {VERSION}\n"), done.stderr
    before = (project / "plugin/bin/checksums.txt").read_text()
    refused = make_release(project, out, "--pin")
    assert refused.returncode == 1
    assert "not to be published" in refused.stderr
    assert (project / "plugin/bin/checksums.txt").read_text() == before


def test_pins_are_written_compared_and_bind(dist: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    copy_project(project, 0)
    assert make_release(project, dist, "--check-pins").returncode == 1
    assert make_release(project, dist, "--pin").returncode == 0
    assert make_release(project, dist, "--check-pins").returncode == 0
    assert (project / "plugin/bin/RUNCODE_VERSION").read_text() == f"v{VERSION}\n"
    start = [f"HOME={tmp_path}", "PATH=/usr/bin:/bin", f"RUNCODE_DOWNLOAD_BASE=file://{dist}"]
    launcher = str(project / "plugin/bin/runcode")
    done = subprocess.run(["env", "-i", *start, launcher, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"runcode {VERSION}\n"), done.stderr
    # The plugin's own pins are older or newer than that archive: it is not run, whatever its own checksums.txt says.
    pins = project / "plugin/bin/checksums.txt"
    pins.write_text(pins.read_text().replace(pins.read_text().splitlines()[1][:8], "0" * 8))
    shutil.rmtree(tmp_path / ".cache")
    done = subprocess.run(["env", "-i", *start, launcher, "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 127
    assert done.stderr.startswith("runcode: unverified_download: ")


def test_a_link_is_never_packed(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "passwd").symlink_to("/etc/passwd")
    with pytest.raises(ReleaseError, match="neither a file nor a folder"):
        pack_tar_gz(tmp_path / "tree", tmp_path / "out", 1700000000)
