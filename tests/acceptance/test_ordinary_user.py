"""The whole story without root: a user made for this one run, on a copy of the code that this user can reach.

The account exists only inside a mount namespace of the run (its /etc/passwd and
/etc/group are copies with one line more, its /tmp is a folder of ours), so the
machine's own accounts are never touched and nothing is left in /tmp. The code and
the venv are copied, since a checkout may stand below a folder that is 0700.

An ordinary user's own run of the suite is this test itself, hence root_only.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.root_only

REPO = Path(__file__).resolve().parents[2]
# The story with pty and sftp, the runtime's contract on real boxes, a real browser, and some that only root can run.
CHOSEN = (
    "tests/acceptance/test_story.py",
    "tests/contract/test_runtime_contract.py",
    "tests/integration/test_console_stories.py::test_the_first_admin_signs_in_and_out",
    "tests/acceptance/test_bad_input.py::test_a_second_server_on_the_same_folder",
    "tests/acceptance/test_bad_input.py::test_a_full_disk_at_the_first_start_leaves_nothing",
    "tests/acceptance/test_bad_input.py::test_a_disk_that_fills_up_during_the_first_start_leaves_nothing",
)
MUST_PASS = (
    "test_a_terminal_with_its_size",
    "test_an_interactive_shell",
    "test_sftp_through_the_same_config",
    "test_files_arrive_whole_in_both_directions",
    "test_storage_survives_a_stop_and_no_process_does",
    "test_sigterm_ends_everything_cleanly",
    "test_stop_during_start_wins[local]",
    "test_the_first_admin_signs_in_and_out",
)
# Big, and no test of these needs them.
_LEFT_OUT = ("mypy*", "*__mypyc*", "pip", "pip-*", "setuptools*", "pkg_resources", "grimp*", "importlinter*", "ruff*")
_HANG_S = 1200
_ENTER = """
set -eu
mount --bind "$1" /etc/passwd
mount --bind "$2" /etc/group
mount --bind "$3" /tmp
cd /tmp/repo
uid=$4
shift 4
exec setpriv --reuid "$uid" --regid "$uid" --clear-groups --inh-caps=-all -- "$@"
"""


@dataclass(frozen=True)
class OrdinaryUser:
    """`stage` is this user's /tmp: the copy in `repo`, the HOME in `home`."""

    uid: int
    folder: Path
    stage: Path

    def command(self, *words: str) -> list[str]:
        enter = [str(self.folder / "passwd"), str(self.folder / "group"), str(self.stage), str(self.uid)]
        return ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", _ENTER, "enter", *enter, *words]

    def run(self, *words: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        environment = {
            "HOME": "/tmp/home",
            "PATH": "/tmp/repo/.venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        with subprocess.Popen(
            self.command(*words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=timeout_s)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        return subprocess.CompletedProcess(words, process.returncode, output, "")

    def find_processes(self) -> dict[int, str]:
        """Living processes that run as this user, as the host sees them."""
        found = {}
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    status = Path(f"/proc/{name}/status").read_text()
                    if re.search(rf"^Uid:.*\b{self.uid}\b", status, re.M) and "State:\tZ" not in status:
                        found[int(name)] = Path(f"/proc/{name}/cmdline").read_text().replace("\0", " ")
        return found


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrdinaryUser]:
    """The user and the copy of the code, made once; nobody writes into that copy."""
    folder = tmp_path_factory.mktemp("ordinary")
    # Below the uids of boxes and far above every account's, subordinate ids and systemd's dynamic users included.
    user = OrdinaryUser(1_800_000_000 + secrets.randbelow(50_000_000), folder, folder / "stage")
    entry = f"runcode-test:x:{user.uid}:{user.uid}::/tmp/home:/bin/sh\n"
    (folder / "passwd").write_text(Path("/etc/passwd").read_text() + entry)
    (folder / "group").write_text(Path("/etc/group").read_text() + f"runcode-test:x:{user.uid}:\n")
    for name in ("passwd", "group"):
        (folder / name).chmod(0o644)
    try:
        _copy_code(user)
        yield user
    finally:
        shutil.rmtree(user.stage, ignore_errors=True)


@pytest.fixture
def user(prepared: OrdinaryUser) -> Iterator[OrdinaryUser]:
    """With an empty home; afterwards nothing of this test runs, and its /tmp is as it was."""
    home = prepared.stage / "home"
    home.mkdir(mode=0o700)
    os.chown(home, prepared.uid, prepared.uid)
    try:
        yield prepared
    finally:
        for pid in prepared.find_processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _wait_for_the_end(prepared)
        for left in prepared.stage.iterdir():
            if left.name == "repo":
                continue
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()


def _wait_for_the_end(user: OrdinaryUser) -> None:
    deadline = time.monotonic() + 30
    while user.find_processes() and time.monotonic() < deadline:
        time.sleep(0.1)


def _copy_code(user: OrdinaryUser) -> None:
    """Sources, tests and the venv's packages, owned by the user; nothing of the checkout is referred to.

    With their byte code, which goes by the sources' times: without, each of some hundred starts of a
    program would compile the service's libraries anew, for seconds of both processors.
    """
    repo = user.stage / "repo"
    ignored = shutil.ignore_patterns(*_LEFT_OUT)
    for name in ("src", "tests", "packaging", "scripts"):
        shutil.copytree(REPO / name, repo / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, repo / name)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = repo / ".venv" / "lib" / version / "site-packages"
    shutil.copytree(sysconfig.get_path("purelib"), packages, symlinks=True, ignore=ignored)
    (packages / "_editable_impl_runcode.pth").write_text("/tmp/repo/src")
    for folder, folders, files in os.walk(user.stage):
        for name in ["", *folders, *files]:
            os.lchown(os.path.join(folder, name), user.uid, user.uid)
    user.stage.chmod(0o700)
    base = os.path.realpath(sys.executable)
    made = user.run(base, "-m", "venv", "--without-pip", "/tmp/repo/.venv")
    if made.returncode != 0:
        # Such as an interpreter below root's own home. Listed in the run's summary as NOT RUN, with this reason.
        pytest.skip(f"another user cannot run this suite's interpreter {base}: {made.stdout.strip()[-200:]}")
    programs = repo / ".venv" / "bin"
    shutil.copy(REPO / "packaging" / "bin" / "runcode", programs / "runcode")
    (programs / "runcode-server").write_text(
        "#!/tmp/repo/.venv/bin/python\nimport sys\nfrom runcode.server.main import main\nsys.exit(main())\n"
    )
    for name in ("runcode", "runcode-server"):
        (programs / name).chmod(0o755)
        os.chown(programs / name, user.uid, user.uid)


def _find_root_only_tests() -> set[str]:
    """What root's own collection says needs root, among the chosen files."""
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "root_only", "-p", "no:cacheprovider"]
    done = subprocess.run([*collect, *CHOSEN], cwd=REPO, capture_output=True, text=True, check=False, timeout=120)
    return {line.strip() for line in done.stdout.splitlines() if "::" in line}


def test_the_user_is_an_ordinary_one(user: OrdinaryUser) -> None:
    """The control: no root, no capability, no way to the checkout's data; and the machine's accounts are as before."""
    probe = "id -u; id -un; grep CapEff /proc/self/status; cat /etc/shadow 2>&1 | head -c 60; pwd; ls /tmp"
    lines = user.run("sh", "-c", probe).stdout.splitlines()
    assert lines[:2] == [str(user.uid), "runcode-test"]
    assert lines[2].split() == ["CapEff:", "0000000000000000"]
    assert "Permission denied" in lines[3]
    assert lines[4:] == ["/tmp/repo", "home", "repo"]
    assert "runcode-test" not in Path("/etc/passwd").read_text()


_START_AND_STOP = """
runcode-server up --data-dir "$1" --http 127.0.0.1:0 --ssh 127.0.0.1:0 --ready-file /tmp/home/ready 2>/dev/null &
while [ ! -e /tmp/home/ready ]; do kill -0 $! || exit 1; sleep 0.1; done
kill $!
wait $!
"""
_UP = ("runcode-server", "up", "--http", "127.0.0.1:0", "--ssh", "127.0.0.1:0", "--data-dir")


def test_a_data_folder_that_the_user_may_not_use(user: OrdinaryUser) -> None:
    """Root may write anywhere, so only here can it be seen: one line, a code, and what to do."""
    data = user.stage / "home" / "data"
    made = user.run("sh", "-c", _START_AND_STOP, "sh", "/tmp/home/data")
    assert made.returncode == 0, made.stdout
    database = (data / "runcode.db").read_bytes()
    closed = user.stage / "home" / "closed"
    closed.mkdir(mode=0o500)
    os.chown(closed, user.uid, user.uid)
    data.chmod(0o500)
    for path, code, mentions in (
        ("/tmp/home/data", "io_error", "write"),
        ("/tmp/home/closed", "io_error", "not writable for this user"),
        ("/tmp/home/closed/new", "io_error", "not writable for this user"),
        ("/var/lib", "unsafe_path", "belongs to another user (uid 0)"),
        ("/root/data", "io_error", "not writable for this user"),
    ):
        done = user.run(*_UP, path)
        assert done.returncode == 1, (path, done.stdout)
        (line,) = done.stdout.strip().splitlines()
        assert line.startswith(f"runcode-server: {code}: "), line
        assert mentions in line
    verb = user.run("runcode-server", "workspace", "create", "box", "--data-dir", "/tmp/home/data")
    assert verb.stdout.startswith("runcode-server: io_error: "), verb.stdout
    assert (data / "runcode.db").read_bytes() == database
    data.chmod(0o700)
    (user.stage / "home" / "ready").unlink()
    assert user.run("sh", "-c", _START_AND_STOP, "sh", "/tmp/home/data").returncode == 0


def test_the_story_holds_for_an_ordinary_user(user: OrdinaryUser) -> None:
    words = ["/tmp/repo/.venv/bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=/tmp/report.xml"]
    done = user.run(*words, *CHOSEN, timeout_s=_HANG_S)
    print(done.stdout[-6000:])
    assert done.returncode == 0, "see the run's own output above"
    report = ElementTree.parse(user.stage / "report.xml").getroot().findall(".//testcase")
    passed = {f"{case.get('classname')}::{case.get('name')}" for case in report if len(case) == 0}
    # Passed, all of them: none failed, none was skipped in silence.
    assert len(passed) == len(report)
    names = {name.partition("::")[2] for name in passed}
    assert set(MUST_PASS) <= names
    for path in {chosen.partition("::")[0] for chosen in CHOSEN}:
        assert any(name.startswith(path.removesuffix(".py").replace("/", ".")) for name in passed), path

    # What only root can test is named, one by one.
    told = {line.split()[2] for line in done.stdout.splitlines() if line.startswith("NOT RUN ")}
    expected = _find_root_only_tests()
    assert expected, "the chosen files hold root-only tests"
    assert told == expected
    assert not any(name.rpartition("::")[2] in names for name in expected)

    _wait_for_the_end(user)
    assert user.find_processes() == {}, "no keeper, box or ssh master outlives the story"
