"""What the plugin's launcher adds, once its runcode is in the cache.

Owns: a private copy of the plugin and a private cache. For the launcher alone the
cached runcode is `true`, a program that does nothing; for `exec` it is a release
archive that is made here, unpacked by the launcher itself.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Issue 5, must hold 7.
CACHED_TARGET = 1.8
EXEC_TARGET = 1.9
CACHED_ROW = "launcher, cached `true` / sh -c :"
EXEC_ROW = "launcher: exec -- true / ssh true"
_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}


def _make_plugin(folder: Path) -> str:
    shutil.copytree(ROOT / "plugin" / "bin", folder / "bin")
    return str(folder / "bin" / "runcode")


def _add_true(folder: Path, environment: dict[str, str]) -> list[str]:
    launcher = _make_plugin(folder / "plugin")
    version = (folder / "plugin/bin/RUNCODE_VERSION").read_text(encoding="ascii").strip()
    cached = folder / "cache" / "bin" / f"runcode-{version}-{sys.platform}-{_ARCH[platform.machine()]}"
    cached.parent.mkdir(parents=True, mode=0o700)
    shutil.copy(os.path.realpath("/bin/true"), cached)
    environment["RUNCODE_CACHE"] = str(folder / "cache")
    return [launcher]


def _add_release(folder: Path, environment: dict[str, str]) -> list[str]:
    command = [
        sys.executable,
        str(ROOT / "scripts" / "make_release.py"),
        "--archive-only",
        "--out",
        str(folder / "dist"),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    launcher = _make_plugin(folder / "plugin")
    # What is measured is this tree; a released plugin pins its own release.
    (folder / "plugin/bin/checksums.txt").write_text("", encoding="ascii")
    environment["RUNCODE_CACHE"] = str(folder / "cache")
    environment["RUNCODE_DOWNLOAD_BASE"] = f"file://{folder}/dist"
    subprocess.run([launcher, "--version"], env=environment, check=True, stdout=subprocess.DEVNULL)
    # In the environment of the measured runs nothing could be fetched.
    environment["RUNCODE_DOWNLOAD_BASE"] = "nowhere"
    return [launcher]


def add_rows(
    folder: Path,
    environment: dict[str, str],
    project: Path,
    timed: Callable[..., float],
    add: Callable[..., None],
    runs: int,
    only: str,
    bare_ssh: Callable[[], float],
) -> None:
    """`timed` as bench.py's; the session is the laptop's own, through its HOME."""
    if only in CACHED_ROW:
        own = dict(environment)
        cached = _add_true(folder / "true", own)
        sh = ["/bin/sh", "-c", ":"]
        add(
            CACHED_ROW,
            CACHED_TARGET,
            # A millisecond is measured in a moment, and needs many.
            10 * runs,
            lambda: timed(cached, environment=own, folder=project),
            lambda: timed(sh, environment=own, folder=project),
        )
    if only in EXEC_ROW:
        own = dict(environment)
        launcher = _add_release(folder / "release", own)
        # Sessions are the laptop's: only the launcher's cache is another.
        del own["RUNCODE_DOWNLOAD_BASE"]
        exec_true = [*launcher, "exec", "--", "true"]
        add(EXEC_ROW, EXEC_TARGET, runs, lambda: timed(exec_true, environment=own, folder=project), bare_ssh)
