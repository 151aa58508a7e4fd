"""`--resume`: transfers broken by the end of their connection, continued over another; the real ssh and sshd."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.client_standin import ControlPlane, Person, service, signed_in

MEGABYTE = 1024 * 1024
SIZE = 1500 * MEGABYTE


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory, plane: ControlPlane) -> Iterator[Person]:
    with signed_in(tmp_path_factory.mktemp("person"), plane) as someone:
        someone.runcode("connect", "42", "--wait")
        yield someone


@pytest.fixture(params=["get", "put"])
def sides(
    request: pytest.FixtureRequest, person: Person, plane: ControlPlane
) -> Iterator[tuple[list[str], Path, Path]]:
    """(the command, the source's path, the folder where it arrives as `target`)."""
    source, arrival = (plane.workdir, person.project) if request.param == "get" else (person.project, plane.workdir)
    # Sparse, with something at the start, and an end that tells.
    with (source / "large").open("wb") as file:
        file.write(os.urandom(3 * MEGABYTE))
        file.truncate(SIZE)
        file.seek(SIZE - 10)
        file.write(b"0123456789")
    (arrival / "target").write_bytes(b"old")
    words = ["get", "large", "--out", "target"] if request.param == "get" else ["put", "large", "target"]
    yield [*words, "--resume"], source / "large", arrival
    for folder in (person.project, plane.workdir):
        for name in os.listdir(folder):
            (folder / name).unlink()


def partials(folder: Path) -> list[Path]:
    return [folder / name for name in os.listdir(folder) if name.startswith(".runcode-")]


def break_it(person: Person, words: list[str], arrival: Path, how: str) -> int:
    """Start the transfer and break it when a part has arrived; returns how much stays there."""
    process = person.start(*words, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while sum(path.stat().st_size for path in partials(arrival)) < 20 * MEGABYTE:
        assert time.monotonic() < deadline
        assert process.poll() is None, "it was over before it could be broken"
        time.sleep(0.002)
    if how == "client":
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGTERM
    else:
        person.runcode("disconnect", "--keep")
        _, stderr = process.communicate(timeout=60)
        assert process.returncode != 0
        assert b"--resume" in stderr
        person.runcode("connect", "42")
    assert (arrival / "target").read_bytes() == b"old"
    deadline = time.monotonic() + 60
    while [path for path in partials(arrival) if path.name.endswith(".part")] and "put" in words:
        assert time.monotonic() < deadline, "the box did not put the part aside"
        time.sleep(0.01)
    [partial] = partials(arrival)
    return partial.stat().st_size


def same(one: Path, other: Path) -> bool:
    return subprocess.run(["cmp", "-s", str(one), str(other)], check=False).returncode == 0


@pytest.mark.parametrize("how", ["client", "connection"])
def test_a_broken_transfer_goes_on_where_it_broke(
    person: Person, sides: tuple[list[str], Path, Path], how: str
) -> None:
    words, source, arrival = sides
    kept = break_it(person, words, arrival, how)
    receipt = person.json(*words)
    assert receipt["continued_at"] == kept // MEGABYTE * MEGABYTE > 0
    assert receipt["bytes"] == SIZE
    assert same(arrival / "target", source)
    assert partials(arrival) == []


def test_what_has_changed_since_begins_anew(person: Person, sides: tuple[list[str], Path, Path]) -> None:
    words, source, arrival = sides
    break_it(person, words, arrival, "client")
    with source.open("r+b") as file:
        file.write(b"changed")
        file.truncate(5 * MEGABYTE)
    assert person.json(*words)["continued_at"] == 0
    assert same(arrival / "target", source)
    assert partials(arrival) == []


def test_a_damaged_part_is_not_gone_on_with(person: Person, sides: tuple[list[str], Path, Path]) -> None:
    words, source, arrival = sides
    break_it(person, words, arrival, "client")
    [partial] = partials(arrival)
    with partial.open("r+b") as file:
        file.write(b"damage")
    with source.open("r+b") as file:
        file.truncate(30 * MEGABYTE)
    assert person.json(*words)["continued_at"] == 0
    assert same(arrival / "target", source)


def test_two_at_once_do_not_mix(person: Person, sides: tuple[list[str], Path, Path]) -> None:
    words, source, arrival = sides
    with source.open("r+b") as file:
        file.truncate(60 * MEGABYTE)
    first = person.start(*words, stderr=subprocess.PIPE)
    second = person.start(*words, stderr=subprocess.PIPE)
    statuses = []
    for process in (first, second):
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 0 or stderr.startswith((b"runcode: busy: ", b"runcode: io_error: ")), stderr
        statuses.append(process.returncode)
    assert 0 in statuses
    assert same(arrival / "target", source)


def test_without_resume_nothing_stays_and_with_folders_it_is_refused(person: Person) -> None:
    for words in (["put", "-r", ".", "x"], ["get", "-r", "x"], ["get", "x"]):
        assert person.runcode(*words, "--resume", expect=2).stderr.startswith(b"runcode: usage: ")
