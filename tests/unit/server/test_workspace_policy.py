"""What the operator says about workspaces: the file of sizes and the options, accepted whole or refused."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from runcode.core.errors import RunCodeError
from runcode.runtimes.base import DEFAULT_SIZES, SizeLimits
from runcode.runtimes.local.limits import BoxLimits, limit_to
from runcode.server.workspace_options import parse_count, parse_duration
from runcode.server.workspace_policy import load_sizes


def test_without_a_file_there_are_sizes_all_the_same(tmp_path: Path) -> None:
    assert load_sizes(tmp_path / "sizes.toml") == DEFAULT_SIZES


def test_the_file_names_them_and_standard_stays(tmp_path: Path) -> None:
    path = tmp_path / "sizes.toml"
    path.write_text("[large]\nmemory_mib = 8192\nprocesses = 4096\ncpus = 4\n[half]\ncpus = 0.5\n")
    sizes = load_sizes(path)
    assert sizes["large"] == SizeLimits(memory_bytes=8 * 2**30, processes=4096, cpus=4.0)
    assert sizes["half"] == SizeLimits(cpus=0.5)
    assert sizes["standard"] == SizeLimits()


@pytest.mark.parametrize(
    "text",
    [
        "[large",
        "large = 7",
        "[Large]\ncpus = 1",
        "[a]\nmemory = 5",
        "[a]\nmemory_mib = '8'",
        "[a]\nmemory_mib = 8",
        "[a]\nmemory_mib = 99.5",
        "[a]\nprocesses = true",
        "[a]\ncpus = 0",
        "[a]\ncpus = nan",
        "[a]\ncpus = inf",
        '["a b"]\ncpus = 1',
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "sizes.toml"
    path.write_text(text)
    with pytest.raises(RunCodeError) as caught:
        load_sizes(path)
    assert caught.value.code == "usage"
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("12h", 43200), ("2d", 172800), ("never", 0)]
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "5s", "0m", "-1m", "1.5h", "31d", "1w", "٣m", "99999999d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "-1", "1e3", "1000001", "٣", "9" * 5000])
def test_what_is_no_count(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_count(text)


def test_a_size_never_gives_more_than_the_machine_lets_one_box_have() -> None:
    most = BoxLimits(memory_bytes=1000, processes=100, cpus=1.0)
    assert limit_to(most, SizeLimits()) == most
    assert limit_to(most, SizeLimits(memory_bytes=2000, processes=50, cpus=0.5)) == BoxLimits(1000, 50, 0.5)
