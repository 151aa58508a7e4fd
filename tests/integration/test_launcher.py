"""The plugin's launcher: its own shell test, and that its cached path cannot fork because it need not."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "plugin" / "bin" / "runcode"
SHELL_TEST = ROOT / "tests" / "test_launcher.sh"
SHELLS = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)]


@pytest.mark.parametrize("shell", ["dash", "busybox ash", "bash --posix"])
def test_the_launchers_own_test_passes(tmp_path: Path, shell: str) -> None:
    """Some 170 cases: what is fetched, refused, left behind."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    ran = subprocess.run(["sh", str(SHELL_TEST), shell], env=environment, capture_output=True, text=True, check=False)
    lines = ran.stdout.splitlines()
    told = [line for line in lines if not line.startswith("ok - ")]
    assert ran.returncode == 0, "\n".join(told) + ran.stderr
    assert lines[-1] == "ALL PASS"
    assert len(lines) > 150
    for line in told[:-1]:
        # Listed by name, as pytest's own are.
        print(line)


def refuse_new_processes() -> None:
    """From here on the kernel answers fork, vfork, clone and clone3 with EPERM, also to what is exec'ed."""
    audit, numbers = {
        "x86_64": (0xC000003E, (56, 57, 58, 435)),
        "aarch64": (0xC00000B7, (220, 435)),
    }[platform.machine()]
    load, jump_equal, answer = 0x20, 0x15, 0x06
    program = [(load, 0, 0, 4), (jump_equal, 1, 0, audit), (answer, 0, 0, 0x7FFF0000), (load, 0, 0, 0)]
    for left, number in enumerate(reversed(numbers)):
        program.insert(4, (jump_equal, left + 1, 0, number))
    program += [(answer, 0, 0, 0x7FFF0000), (answer, 0, 0, 0x00050000 | 1)]
    code = b"".join(struct.pack("=HBBI", *step) for step in program)
    kept = ctypes.create_string_buffer(code)
    filter_program = struct.pack("@HP", len(program), ctypes.addressof(kept))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, seccomp, mode_filter = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(seccomp, mode_filter, filter_program, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


def run_without_forks(command: list[str], home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={"HOME": str(home), "PATH": ""},
        preexec_fn=refuse_new_processes,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("shell", SHELLS)
def test_the_cached_path_makes_no_process(tmp_path: Path, shell: str) -> None:
    path = str(shutil.which(shell))
    words = [path, "ash"] if shell == "busybox" else [path]
    forking = run_without_forks([*words, "-c", 'x=$(echo forked); echo "$x"'], tmp_path)
    assert "forked" not in forking.stdout, "the filter does not bite"
    version = (ROOT / "plugin/bin/RUNCODE_VERSION").read_text().strip()
    arch = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    cached = tmp_path / ".cache/runcode/bin" / f"runcode-{version}-{sys.platform}-{arch}"
    cached.parent.mkdir(parents=True)
    shutil.copy(Path("/bin/echo").resolve(), cached)
    started = run_without_forks([*words, str(LAUNCHER), "exec", "--", "a b"], tmp_path)
    assert (started.returncode, started.stdout, started.stderr) == (0, "exec -- a b\n", "")
