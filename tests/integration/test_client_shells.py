"""`exec` on boxes whose login shell is dash, bash, zsh or fish: the words, the status and the signals are the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.client_standin import ControlPlane, Person, service, signed_in

SHELLS = ["dash", "bash", "zsh", "fish"]
WORDS = [
    "",
    " ",
    "a b",
    "  two  spaces  ",
    "'",
    "''",
    '"',
    "\\",
    "\\\\",
    "\\'",
    "'\\''",
    "$HOME",
    "${x}",
    "$(id)",
    "`id`",
    "*",
    "?",
    "[a]",
    "{a,b}",
    "~",
    "=ls",
    "!",
    "!!",
    "^x",
    "#",
    "%s",
    "a;b|c&d>e<f",
    "()",
    "a\nb",
    "\n",
    "trailing\n",
    "\t",
    "\r",
    "\x1b[31m",
    "\x7f",
    "-n",
    "--",
    "-",
    "é✓漢",
    "\U0001f600",
    "\u202eabc",
    "@",
    "a=b",
    "x" * 5000,
]


class Box:
    def __init__(self, shell: str, plane: ControlPlane, person: Person) -> None:
        self.shell, self.plane, self.person = shell, plane, person


@pytest.fixture(scope="module", params=SHELLS)
def box(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    shell = shutil.which(request.param)
    assert shell is not None, f"the login shells of boxes are tested with real ones: apt-get install {request.param}"
    folder = tmp_path_factory.mktemp(request.param)
    # What sshd does with a command, `SHELL -c COMMAND`, with a shell of our choice instead of the tester's.
    options = f'MaxSessions 1000\nForceCommand SHELL={shell} exec {shell} -c "$SSH_ORIGINAL_COMMAND"'
    with service(folder / "service", sshd_options=options) as plane, signed_in(folder / "person", plane) as person:
        person.runcode("connect", "42", "--wait")
        yield Box(request.param, plane, person)


def test_the_shell_is_the_one_that_is_tested(box: Box) -> None:
    name = {"fish": "echo $FISH_VERSION", "zsh": "echo $ZSH_VERSION", "bash": "echo $BASH_VERSION", "dash": "echo x$0"}
    shown = box.person.runcode("exec", "--", name[box.shell]).stdout.decode().strip()
    assert shown.endswith("dash") if box.shell == "dash" else shown[:1].isdigit()


def test_words_arrive_as_they_are(box: Box) -> None:
    done = box.person.runcode("exec", "--", "printf", "[%s]", *WORDS)
    assert done.stdout.decode() == "".join(f"[{word}]" for word in WORDS)
    assert done.stderr == b""


def test_each_word_alone_after_a_program(box: Box) -> None:
    """Alone a word stands at both ends of the line, where shells have their special cases."""
    for word in ("", "'", "\\", "-n", "--", "\n", "*", "!", "=ls", "~"):
        assert box.person.runcode("exec", "--", "printf", "<%s>", word).stdout.decode() == f"<{word}>"


def test_bytes_that_are_no_text_arrive(box: Box) -> None:
    odd = bytes(range(1, 256))
    assert box.person.runcode("exec", "--", "printf", "%s", odd).stdout == odd


def test_the_number_of_words_is_kept(box: Box) -> None:
    counts = box.person.runcode("exec", "--", "sh", "-c", "echo $#", "sh", "", "", "a b", "").stdout
    assert counts == b"4\n"


def test_one_word_is_a_line_of_that_shell(box: Box) -> None:
    assert box.person.runcode("exec", "--", "echo a | tr a b; echo 'c  d'; exit 4", expect=4).stdout == b"b\nc  d\n"


@pytest.mark.parametrize("status", [0, 1, 2, 126, 127, 128, 130, 143, 254, 255])
def test_a_status_passes_whole(box: Box, status: int) -> None:
    assert box.person.runcode("exec", "--", "sh", "-c", f"exit {status}", expect=status).stderr == b""


@pytest.mark.parametrize(("name", "number"), [("INT", 2), ("KILL", 9), ("SEGV", 11), ("PIPE", 13), ("TERM", 15)])
def test_a_death_by_signal_is_128_plus_n(box: Box, name: str, number: int) -> None:
    assert box.person.runcode("exec", "--", "sh", "-c", f"kill -{name} $$", expect=128 + number).stderr == b""


def test_the_folder_is_the_projects(box: Box) -> None:
    assert box.person.runcode("exec", "--", "pwd").stdout == f"{box.plane.workdir}\n".encode()
    assert box.plane.sshd is not None
    assert box.person.runcode("exec", "--home", "--", "pwd").stdout == f"{box.plane.sshd.home}\n".encode()


def test_streams_are_whole_and_apart(box: Box) -> None:
    content = os.urandom(300_000)
    done = box.person.runcode("exec", "--", "sh", "-c", "cat; echo oops >&2", stdin=content)
    assert (done.stdout, done.stderr) == (content, b"oops\n")


def test_a_timeout_ends_what_runs(box: Box) -> None:
    mark = box.plane.workdir / "pid"
    mark.unlink(missing_ok=True)
    box.person.runcode("exec", "--timeout", "2", "--", "sh", "-c", "echo $$ > pid; exec sleep 300", expect=124)
    assert_ends(int(mark.read_text()))


def test_an_interrupt_ends_what_runs(box: Box) -> None:
    mark = box.plane.workdir / "pid2"
    mark.unlink(missing_ok=True)
    process = box.person.start(*("exec", "--", "sh", "-c", "echo $$ > pid2; exec sleep 300"), stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 40
    while not (mark.exists() and mark.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.terminate()
    assert process.wait(timeout=60) == 143
    assert_ends(int(mark.read_text()))


def assert_ends(pid: int) -> None:
    deadline = time.monotonic() + 40
    while Path(f"/proc/{pid}").exists():
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        assert time.monotonic() < deadline, f"the remote process {pid} goes on"
        time.sleep(0.02)
