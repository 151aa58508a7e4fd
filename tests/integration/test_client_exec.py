"""`exec`, `run` and `shell` of the real CLI through the real ssh to a real sshd."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.client_standin import ControlPlane, Person, service, signed_in

RANDOM_5_MB = os.urandom(5_000_000)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory, plane: ControlPlane) -> Iterator[Person]:
    with signed_in(tmp_path_factory.mktemp("person"), plane) as someone:
        someone.runcode("connect", "42", "--wait")
        yield someone


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def assert_ends(pid: int) -> None:
    deadline = time.monotonic() + 10
    while is_alive(pid):
        assert time.monotonic() < deadline, f"the remote process {pid} goes on"
        time.sleep(0.02)


@pytest.mark.parametrize("status", [0, 1, 77, 124, 255])
def test_exit_statuses_pass_whole(person: Person, status: int) -> None:
    done = person.runcode("exec", "--", f"exit {status}", expect=status)
    assert done.stderr == b""


@pytest.mark.parametrize(("name", "number"), [("KILL", 9), ("TERM", 15), ("SEGV", 11)])
def test_a_death_by_signal_is_128_plus_n_and_silent(person: Person, name: str, number: int) -> None:
    assert person.runcode("exec", "--", f"kill -{name} $$", expect=128 + number).stderr == b""
    assert person.runcode("exec", "--", "sh", "-c", f"kill -{name} $$", expect=128 + number).stderr == b""


WORDS = [
    "a b",
    "",
    "'",
    '"',
    "\\",
    "$HOME",
    "`id`",
    "*",
    "a\nb",
    "-n",
    "--",
    "é✓",
    "\\n",
    "!",
    "#",
    "~",
    "a;b|c&d",
    "%s",
]


def test_several_words_arrive_as_exactly_those(person: Person) -> None:
    done = person.runcode("exec", "--", "printf", "[%s]", *WORDS)
    assert done.stdout.decode() == "".join(f"[{word}]" for word in WORDS)


def test_a_word_that_is_not_utf8_arrives(person: Person) -> None:
    assert person.runcode("exec", "--", "printf", "%s", b"\xff\xfe\x80").stdout == b"\xff\xfe\x80"


def test_several_words_run_the_program_and_never_a_builtin(person: Person) -> None:
    assert person.runcode("exec", "--", "echo", "a\\nb").stdout == b"a\\nb\n"
    person.runcode("exec", "--", "exit", "3", expect=127)
    person.runcode("exec", "--", "no-such-program", "x", expect=127)


def test_one_word_is_a_command_line(person: Person) -> None:
    assert person.runcode("exec", "--", "echo a | tr a b && echo 'c  d'").stdout == b"b\nc  d\n"


def test_it_runs_in_the_project_folder_or_at_home(person: Person, plane: ControlPlane) -> None:
    assert person.runcode("exec", "--", "pwd").stdout == f"{plane.workdir}\n".encode()
    assert plane.sshd is not None
    assert person.runcode("exec", "--home", "--", "pwd").stdout == f"{plane.sshd.home}\n".encode()


def test_a_missing_project_folder_is_an_error_and_never_home(person: Person, plane: ControlPlane) -> None:
    moved = plane.workdir.with_name("moved")
    plane.workdir.rename(moved)
    try:
        done = person.runcode("exec", "--", "touch ran-anyway", expect=255)
        assert done.stderr.startswith(b"runcode: not_found: ")
        assert plane.sshd is not None
        assert not (plane.sshd.home / "ran-anyway").exists()
    finally:
        moved.rename(plane.workdir)


def test_streams_are_binary_clean_and_apart(person: Person) -> None:
    done = person.runcode("exec", "--", "cat; echo oops >&2", stdin=RANDOM_5_MB)
    assert done.stdout == RANDOM_5_MB
    assert done.stderr == b"oops\n"


def test_a_reader_that_sleeps_first_gets_everything(person: Person, plane: ControlPlane) -> None:
    (plane.workdir / "big").write_bytes(RANDOM_5_MB)
    process = person.start("exec", "--", "cat", "big", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    time.sleep(1)
    assert process.communicate()[0] == RANDOM_5_MB
    assert process.returncode == 0


def test_rc_files_run_once_as_with_plain_ssh(person: Person, plane: ControlPlane) -> None:
    """bash below sshd reads ~/.bashrc; the shell that runs the line must not read it again."""
    assert plane.sshd is not None
    (plane.sshd.home / ".bashrc").write_text("echo noise; export FROM_RC=1\n")
    try:
        assert person.runcode("exec", "--", "echo $FROM_RC").stdout in (b"noise\n1\n", b"\n")
    finally:
        (plane.sshd.home / ".bashrc").unlink()


def test_closed_descriptors_are_harmless(person: Person) -> None:
    line = '"$0" exec -- "cat; echo out; echo err >&2; exit 5" <&- >&- 2>&-'
    done = subprocess.run(
        ["sh", "-c", line, str(Path(sys.executable).with_name("runcode"))],
        env=person.environment,
        cwd=person.project,
        check=False,
        timeout=30,
    )
    assert done.returncode == 5


def test_the_wrapper_hides_from_a_search_by_command_line(person: Person) -> None:
    """`pgrep -f` is how agents look for their servers; it must not find the question itself."""
    done = person.runcode("exec", "--", "sh", "-c", "tr '\\0' ' ' </proc/$PPID/cmdline", "zq-marker")
    assert b"runcode" in done.stdout
    assert b"zq-marker" not in done.stdout


def test_the_environment_carries_nothing_of_ours(person: Person) -> None:
    shown = person.runcode("exec", "--", "env", environment={"RUNCODE_TOKEN": "tok-secret-env"}).stdout
    assert b"RUNCODE" not in shown
    assert b"tok-secret" not in shown


def test_fifty_at_once_each_get_their_own_answer(person: Person) -> None:
    running = [
        person.start("exec", "--", f"cat; exit {n}", stdin=subprocess.PIPE, stdout=subprocess.PIPE) for n in range(50)
    ]
    for number, process in enumerate(running):
        assert process.communicate(b"%d" % number)[0] == b"%d" % number
        assert process.returncode == number


def test_a_timeout_ends_the_remote_group(person: Person, plane: ControlPlane) -> None:
    done = person.runcode(
        "exec", "--timeout", "0.5", "--", "sleep 300 & echo $! > bg; echo $$ > fg; sleep 300", expect=124
    )
    assert done.stderr.startswith(b"runcode: timed_out: ")
    for name in ("bg", "fg"):
        assert_ends(int((plane.workdir / name).read_text()))


def test_a_timeout_ends_what_ignores_term(person: Person, plane: ControlPlane) -> None:
    command = "trap '' TERM INT HUP; echo $$ > stubborn; while :; do sleep 1; done"
    person.runcode("exec", "--timeout", "0.5", "--", command, expect=124)
    assert_ends(int((plane.workdir / "stubborn").read_text()))


def test_a_command_within_its_timeout_keeps_its_status(person: Person) -> None:
    person.runcode("exec", "--timeout", "30", "--", "exit 9", expect=9)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_remote_group(person: Person, plane: ControlPlane, number: signal.Signals) -> None:
    (plane.workdir / "pid").unlink(missing_ok=True)
    process = person.start("exec", "--", "echo $$ > pid; exec sleep 300", stdin=subprocess.DEVNULL)
    wait_for(plane.workdir / "pid")
    time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=30) == 128 + number
    assert_ends(int((plane.workdir / "pid").read_text()))


def test_ctrl_c_for_the_whole_group_ends_the_remote_one(person: Person, plane: ControlPlane) -> None:
    """A terminal sends it to ssh as well, which goes at once."""
    (plane.workdir / "pid").unlink(missing_ok=True)
    process = person.start(
        "exec", "--", "echo $$ > pid; exec sleep 300", stdin=subprocess.DEVNULL, start_new_session=True
    )
    wait_for(plane.workdir / "pid")
    time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert_ends(int((plane.workdir / "pid").read_text()))


def test_a_command_may_answer_a_signal_itself(person: Person, plane: ControlPlane) -> None:
    (plane.workdir / "pid").unlink(missing_ok=True)
    process = person.start(
        *("exec", "--", "trap 'echo tidied; exit 3' TERM; echo $$ > pid; while :; do sleep 0.1; done"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    wait_for(plane.workdir / "pid")
    time.sleep(0.05)
    process.terminate()
    assert process.communicate(timeout=30)[0] == b"tidied\n"
    assert process.returncode == 3


def test_an_aborted_call_leaves_the_next_one_whole(person: Person, plane: ControlPlane) -> None:
    (plane.workdir / "pid").unlink(missing_ok=True)
    process = person.start(
        "exec", "--", "echo $$ > pid; yes", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    )
    wait_for(plane.workdir / "pid")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    assert person.runcode("exec", "--", "echo whole").stdout == b"whole\n"


def test_run_reaches_a_named_workspace_without_attaching(person: Person, tmp_path: Path) -> None:
    assert person.runcode("run", "42", "--", "echo", "there", cwd=tmp_path).stdout == b"there\n"
    person.runcode("run", "42", "--home", "--", "exit 6", expect=6, cwd=tmp_path)


def test_a_tty_is_one(person: Person) -> None:
    done = person.runcode("exec", "--tty", "--", "test -t 1 && echo tty; exit 4", expect=4)
    assert done.stdout.strip() == b"tty"


def test_shell_runs_in_the_project_folder(person: Person, plane: ControlPlane) -> None:
    done = person.runcode("shell", "42", stdin=b"echo at-$((40+2)); pwd; exit 8\n", expect=8)
    assert b"at-42" in done.stdout
    assert str(plane.workdir).encode() in done.stdout


def test_shell_without_a_terminal_ends_with_its_stdin(person: Person) -> None:
    """An agent that starts it by mistake must not hang; a script on stdin runs."""
    assert person.runcode("shell", "42").stdout == b""
    done = person.runcode("shell", "42", stdin=b"echo at-$((40+2)); (exit 7)\n", expect=7)
    assert done.stdout == b"at-42\n"
