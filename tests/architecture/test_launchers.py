"""The two launchers say the same: one was never run, so what they share is compared as text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runcode.core.errors import ERRORS

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / "plugin" / "bin"
POSIX = (BIN / "runcode").read_text(encoding="utf-8")
WINDOWS = (BIN / "runcode.ps1").read_text(encoding="utf-8")
# Windows has no `curl`, and no programs of PATH to look for; its archives have no tar's listing.
_CODE = re.compile(r"(?:fail|Stop-Launcher) '?([a-z_]+)'? ['\"]")


@pytest.mark.parametrize("name", ["DOWNLOAD_ROOT", "MAX_ARCHIVE_BYTES", "MAX_UNPACKED_BYTES", "MAX_CHECKSUMS_BYTES"])
def test_constants_are_the_same(name: str) -> None:
    posix = re.search(rf"^{name}=(\S+)$", POSIX, re.MULTILINE)
    windows = re.search(rf"^\${name} = '?([^\s']+)'?$", WINDOWS, re.MULTILINE)
    assert posix is not None
    assert windows is not None
    assert posix[1] == windows[1]


@pytest.mark.parametrize("knob", ["RUNCODE_BIN", "RUNCODE_CACHE", "RUNCODE_PIN_VERSION", "RUNCODE_DOWNLOAD_BASE"])
def test_both_know_every_knob(knob: str) -> None:
    assert f"${{{knob}" in POSIX
    assert f"$env:{knob}" in WINDOWS


def test_codes_are_of_the_table_and_the_same() -> None:
    posix, windows = set(_CODE.findall(POSIX)), set(_CODE.findall(WINDOWS))
    assert windows <= set(ERRORS)
    assert posix <= set(ERRORS)
    assert posix == windows


def test_statuses_are_the_same() -> None:
    assert re.findall(r"status=(\d+) ;;", POSIX) == ["2", "255", "127"]
    assert re.findall(r"\$status = (\d+)", WINDOWS) == ["127", "2", "255"]
    assert "exec | run | shell | proxy) status=255" in POSIX
    assert "@('exec', 'run', 'shell', 'proxy') -ccontains" in WINDOWS


def test_names_in_the_cache_are_the_same() -> None:
    assert "runcode-$version-$os-$arch" in POSIX
    assert "runcode-$version-windows-$arch" in WINDOWS
    for name in (".archive-sha256", ".staging.", "runcode.app", "checksums.txt", "RUNCODE_VERSION"):
        assert name in POSIX, name
        assert name in WINDOWS, name
    for asset in ("runcode_${os}_$arch.tar.gz", "runcode_windows_$arch.zip"):
        assert asset in POSIX + WINDOWS


def test_nothing_of_a_download_runs_before_its_digest_was_compared() -> None:
    """In the order of the text: fetch, compare, unpack, publish, start."""
    steps = ("$archive = Save-File $asset", "if ($actual -cne $digest)", "ZipFile]::OpenRead", "Move($program, $entry)")
    order = [WINDOWS.index(step) for step in steps]
    assert order == sorted(order)
    assert "Invoke-Expression" not in WINDOWS
    assert "Invoke-WebRequest" not in WINDOWS


def test_a_parenthesis_or_brace_is_never_left_open() -> None:
    """The little that can be told of a script without its interpreter: strings and comments out, brackets in pairs."""
    text = re.sub(r"(?m)^\s*#.*$", "", WINDOWS)
    text = re.sub(r"'[^'\n]*'", "''", text)
    text = re.sub(r'"(?:`.|""|[^"`\n])*"', '""', text)
    stack: list[str] = []
    pairs = {")": "(", "]": "[", "}": "{"}
    for sign in text:
        if sign in "([{":
            stack.append(sign)
        elif sign in pairs:
            assert stack
            assert stack.pop() == pairs[sign]
    assert stack == []


def test_the_command_file_hands_everything_on() -> None:
    lines = (BIN / "runcode.cmd").read_bytes().decode("ascii").split("\r\n")
    assert any(line.startswith("powershell.exe ") and '-File "%~dp0runcode.ps1" %*' in line for line in lines)
    assert lines[-2] == "exit /b %ERRORLEVEL%"
    # cmd reads such a file wrongly when its lines end otherwise.
    assert all("\n" not in line for line in lines)


def test_a_plugin_that_pins_anything_pins_every_system() -> None:
    lines = [line for line in (BIN / "checksums.txt").read_text().splitlines() if not line.startswith("#")]
    names = {re.fullmatch(r"[0-9a-f]{64}  (runcode_[a-z0-9_.]+)", line)[1] for line in lines}  # type: ignore[index]
    every = {f"runcode_{os}_{arch}.tar.gz" for os in ("linux", "darwin") for arch in ("amd64", "arm64")}
    every |= {f"runcode_windows_{arch}.zip" for arch in ("amd64", "arm64")}
    assert names in (set(), every)
