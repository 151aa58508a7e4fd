"""`exec` over the master's own protocol, with the real ssh and sshd: lost, stopped, refused, signalled, crowded."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.client_standin import RUNCODE, TITLE, ControlPlane, Person, service, signed_in
from support.cutting_proxy import CuttingProxy

QUIET = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def person(tmp_path: Path, plane: ControlPlane) -> Iterator[Person]:
    with signed_in(tmp_path / "person", plane) as someone:
        someone.runcode("connect", "42", "--wait")
        yield someone


def wait_until(condition: object, what: str, seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"{what} never came"
        time.sleep(0.01)


def master_pid(person: Person) -> int:
    shown = subprocess.run(
        ["ssh", "-F", str(person.session_folder() / "config"), "-O", "check", f"runcode-{TITLE}"],
        capture_output=True,
        check=True,
        timeout=30,
    )
    return int(shown.stderr.partition(b"pid=")[2].partition(b")")[0])


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_warm_call_starts_no_ssh(person: Person) -> None:
    path = person.environment["PATH"]
    # A PATH without ssh: whatever needs one fails.
    person.environment["PATH"] = "/nonexistent"
    try:
        assert person.runcode("exec", "--", "echo", "warm").stdout == b"warm\n"
    finally:
        person.environment["PATH"] = path


def test_a_stopped_master_is_replaced_and_nothing_hangs(person: Person, plane: ControlPlane) -> None:
    """As after a laptop's sleep: connect succeeds, and nobody answers."""
    pid = master_pid(person)
    os.kill(pid, signal.SIGSTOP)
    try:
        assert person.runcode("exec", "--", "echo ran >> once; echo fresh").stdout == b"fresh\n"
        assert (plane.workdir / "once").read_text() == "ran\n"
        assert master_pid(person) != pid
    finally:
        os.kill(pid, signal.SIGKILL)
        (plane.workdir / "once").unlink(missing_ok=True)
    assert person.runcode("exec", "--", "echo still").stdout == b"still\n"


def test_a_master_that_stops_in_the_middle_does_not_hold_an_interrupt(person: Person, plane: ControlPlane) -> None:
    process = person.start("exec", "--", "touch began; sleep 300", **QUIET)
    wait_until((plane.workdir / "began").exists, "the command")
    (plane.workdir / "began").unlink()
    pid = master_pid(person)
    os.kill(pid, signal.SIGSTOP)
    try:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    finally:
        # The master first: it holds the other end of the pipes.
        os.kill(pid, signal.SIGKILL)
        process.kill()
        process.communicate()


def test_a_master_that_dies_in_the_middle_is_a_lost_connection(person: Person, plane: ControlPlane) -> None:
    process = person.start("exec", "--", "echo ran >> lost; sleep 300", **QUIET)
    wait_until((plane.workdir / "lost").exists, "the command")
    os.kill(master_pid(person), signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 255
    assert stderr.startswith(b"runcode: connection_lost: ")
    assert person.runcode("exec", "--", "cat lost; rm lost").stdout == b"ran\n"


def test_a_group_that_is_killed_whole_has_no_status_and_says_so(person: Person) -> None:
    """The wrapper dies with it, so nobody can report: that is not the network, and never a status of ours."""
    done = person.runcode("exec", "--", "kill -KILL 0", expect=255)
    assert done.stderr.startswith(b"runcode: no_exit_status: ")
    assert person.runcode("exec", "--", "echo next").stdout == b"next\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_any_moment_leaves_nothing_behind(
    person: Person, plane: ControlPlane, number: signal.Signals
) -> None:
    """Also one that comes before the box has started the command."""
    for pause_ms in (0, 5, 10, 15, 20, 25, 30, 40, 60):
        mark = f"mark-{number}-{pause_ms}"
        process = person.start("exec", "--", "sh", "-c", f"echo $$ > {mark}; exec sleep 300", **QUIET)
        time.sleep(pause_ms / 1000)
        process.send_signal(number)
        stderr = process.communicate(timeout=60)[1]
        # Before Python can listen, the signal's default ends it (-N), or the interpreter's own start is interrupted.
        assert process.returncode in (128 + number, -number, 1), (pause_ms, process.returncode, stderr)
        path = plane.workdir / mark
        time.sleep(0.05)
        if path.exists() and path.read_text():
            pid = int(path.read_text())
            wait_until(lambda pid=pid: not is_alive(pid), f"the end of {pid} after {pause_ms} ms")  # type: ignore[misc]


def test_a_second_ctrl_c_is_harder(person: Person, plane: ControlPlane) -> None:
    process = person.start("exec", "--", "trap '' INT TERM; touch deaf; while :; do sleep 0.2; done", **QUIET)
    wait_until((plane.workdir / "deaf").exists, "the command")
    (plane.workdir / "deaf").unlink()
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.4)
    assert process.wait(timeout=60) == 130
    process.communicate()


def test_a_reader_that_goes_away_ends_the_command(person: Person) -> None:
    """`exec -- yes | head -1`: SIGPIPE reaches the remote program, as with ssh itself."""
    line = f"{RUNCODE} exec -- yes | head -n 1; echo over"
    done = subprocess.run(
        ["bash", "-c", line],
        env=person.environment,
        cwd=person.project,
        capture_output=True,
        timeout=60,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.stdout == b"y\nover\n"
    assert done.stderr == b""
    assert person.runcode("exec", "--", "echo next").stdout == b"next\n"


def test_a_child_that_keeps_stdout_open_is_waited_for_as_ssh_does(person: Person) -> None:
    done = person.runcode("exec", "--", "(sleep 0.5; echo late) & echo early")
    assert done.stdout == b"early\nlate\n"
    began = time.monotonic()
    assert person.runcode("exec", "--", "(sleep 30; echo late) >/dev/null 2>&1 </dev/null & echo x").stdout == b"x\n"
    assert time.monotonic() - began < 25


def test_descriptors_are_given_back_as_they_were(person: Person) -> None:
    """The master sets O_NONBLOCK on what it is passed; a shell that shares it must not be left with that."""
    read_end, write_end = os.pipe()
    os.write(write_end, b"some input")
    try:
        process = person.start("exec", "--", "head -c 4", stdin=read_end, stdout=subprocess.PIPE)
        assert process.communicate(timeout=60)[0] == b"some"
        assert not fcntl.fcntl(read_end, fcntl.F_GETFL) & os.O_NONBLOCK
    finally:
        os.close(read_end)
        os.close(write_end)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_descriptor_is_harmless(person: Person, closed: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'"$0" exec -- "cat; echo out; echo err >&2; exit 5" {closed}', RUNCODE],
        env=person.environment,
        cwd=person.project,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 5


def test_a_long_command_line_arrives_and_a_longer_one_is_refused_by_name(person: Person) -> None:
    long = "x" * 100_000
    assert person.runcode("exec", "--", "printf", "%s", long).stdout == long.encode()
    done = person.runcode("exec", "--", "printf", "%s", "y" * 131_000, expect=255)
    assert done.stderr.startswith(b"runcode: usage: the command line is too long")


def test_an_argument_of_many_quotes_is_measured_as_it_is_sent(person: Person) -> None:
    quotes = "'" * 5_000
    assert person.runcode("exec", "--", "printf", "%s", quotes).stdout == quotes.encode()


def test_a_crowd_beyond_the_sessions_limit_runs_each_once(tmp_path: Path) -> None:
    with service(tmp_path / "small", sshd_options="MaxSessions 2") as plane, signed_in(tmp_path / "p", plane) as person:
        person.runcode("connect", "42", "--wait")
        running = [person.start("exec", "--", f"echo x >> ran-{n}; sleep 0.2; exit {n}", **QUIET) for n in range(12)]
        for number, process in enumerate(running):
            _, stderr = process.communicate(timeout=120)
            assert (process.returncode, stderr) == (number, b"")
            assert (plane.workdir / f"ran-{number}").read_text() == "x\n"
        assert plane.sshd is not None
        assert plane.sshd.count_logins() == 1


def test_a_timeout_reaches_a_command_on_a_full_connection(tmp_path: Path) -> None:
    """The second session that would carry the signal is refused: it gets a connection of its own."""
    with service(tmp_path / "one", sshd_options="MaxSessions 1") as plane, signed_in(tmp_path / "p", plane) as person:
        person.runcode("connect", "42", "--wait")
        done = person.runcode("exec", "--timeout", "1", "--", "echo $$ > pid; exec sleep 300", expect=124)
        assert done.stderr.startswith(b"runcode: timed_out: ")
        pid = int((plane.workdir / "pid").read_text())
        wait_until(lambda: not is_alive(pid), "the end of the remote command")
        assert person.runcode("exec", "--", "echo next").stdout == b"next\n"


def test_a_hundred_in_parallel_over_one_master(person: Person, plane: ControlPlane) -> None:
    assert plane.sshd is not None
    logins = plane.sshd.count_logins()
    running = [person.start("exec", "--", f"echo {n}; exit {n}", **QUIET) for n in range(100)]
    for number, process in enumerate(running):
        assert process.communicate(timeout=120)[0] == b"%d\n" % number
        assert process.returncode == number
    assert plane.sshd.count_logins() == logins


CUTS = [
    *[("up", count) for count in (1, 100, 200, 300, 400, 600, 900, 1200, 1500)],
    *[("down", count) for count in (1, 40, 80, 120, 200, 400, 1000, 3000)],
]


@pytest.mark.parametrize(("direction", "count"), CUTS)
def test_a_connection_that_ends_at_any_byte_runs_the_command_once_at_most(
    tmp_path: Path, plane: ControlPlane, direction: str, count: int
) -> None:
    """Never twice, never a wrong status, never a hang; and the next call is whole."""
    assert plane.sshd is not None
    proxy = CuttingProxy(plane.sshd.port)
    plane.bundle_changes = {
        "port": proxy.port,
        "known_hosts": f"[127.0.0.1]:{proxy.port} {plane.sshd.host_key}\n",
    }
    log = plane.workdir / f"cut-{direction}-{count}"
    try:
        with signed_in(tmp_path / "person", plane) as person:
            person.runcode("connect", "42", "--wait")
            proxy.cut_after(direction, count)
            # Input and output of some size, so that every count lies before, in or after the exchange.
            done = person.runcode(
                *("exec", "--", f"echo ran >> {log.name}; cat; exit 7"), stdin=b"i" * 4000, expect=None
            )
            runs = log.read_text().count("ran") if log.exists() else 0
            assert proxy.cuts == 1, "nothing was cut"
            if done.returncode == 7:
                # Cut before the start, and then run whole over a new connection; or cut after its status.
                assert (runs, done.stdout) == (1, b"i" * 4000)
            else:
                assert done.returncode == 255
                assert done.stderr.startswith(b"runcode: connection_lost: "), done.stderr
                assert runs <= 1
            assert person.runcode("exec", "--", "cat; exit 3", stdin=b"whole", expect=3).stdout == b"whole"
    finally:
        plane.bundle_changes = {}
        proxy.close()
        log.unlink(missing_ok=True)
