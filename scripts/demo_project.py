"""The real open-source project that the demo works on: click's sdist, tests included, and its wheelhouse.

Owns: which project, pinned by content in `demo-requirements.txt`, and where its
downloads are kept between runs. Used by `demo.py` and by the acceptance tests,
which also run the same suite outside of any workspace.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
REQUIREMENTS = Path(__file__).with_name("demo-requirements.txt")
DOWNLOADS = REPOSITORY / ".cache" / "demo"

FOLDER = "click-8.1.8"
SDIST = f"{FOLDER}.tar.gz"
# The line that the demo breaks: every value that click prints or parses passes it.
EDITED_FILE = "src/click/utils.py"
GOOD_LINE = "    return str(value)\n"
BROKEN_LINE = "    return repr(value)\n"


@dataclass(frozen=True)
class Project:
    """Paths of the sdist and of a tar of the wheelhouse, both verified."""

    sdist: Path
    wheelhouse: Path


def load_project() -> Project:
    """Download what is missing (pip checks the hashes), verify everything, pack the wheelhouse."""
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    pins = _read_pins()
    if not _is_complete(DOWNLOADS, pins):
        with tempfile.TemporaryDirectory(dir=DOWNLOADS.parent) as staging:
            _download(Path(staging))
            for file in Path(staging).iterdir():
                shutil.move(file, DOWNLOADS / file.name)
    if not _is_complete(DOWNLOADS, pins):
        raise SystemExit(f"demo: {DOWNLOADS} does not hold the pinned files; remove it and run again")
    wheelhouse = DOWNLOADS / "wheelhouse.tar"
    if not wheelhouse.exists():
        with tempfile.TemporaryDirectory(dir=DOWNLOADS.parent) as staging:
            packed = Path(staging) / "wheelhouse.tar"
            with tarfile.open(packed, "w") as archive:
                for wheel in sorted(DOWNLOADS.glob("*.whl")):
                    archive.add(wheel, arcname=f"wheelhouse/{wheel.name}")
            packed.rename(wheelhouse)
    return Project(sdist=DOWNLOADS / SDIST, wheelhouse=wheelhouse)


def prepare_commands() -> list[list[str]]:
    """What a person types in the folder that holds sdist and wheelhouse to get a test environment."""
    return [
        ["tar", "-xzf", SDIST],
        ["tar", "-xf", "wheelhouse.tar"],
        ["/usr/bin/python3", "-m", "venv", "venv"],
        ["venv/bin/pip", "install", "-q", "--disable-pip-version-check", "--no-index", "--find-links", "wheelhouse"]
        + ["pytest", "flit_core"],
        ["venv/bin/pip", "install", "-q", "--disable-pip-version-check", "--no-index", "--no-build-isolation"]
        + ["--editable", FOLDER],
    ]


# The project's own whole suite, as a shell command line; leaves a JUnit report.
SUITE = f"cd {FOLDER} && ../venv/bin/python -m pytest -q -p no:cacheprovider --junit-xml=../report.xml"


@dataclass(frozen=True)
class Counts:
    """Totals of a JUnit report."""

    tests: int
    failures: int
    errors: int


def read_report(report: Path) -> Counts:
    head = re.search(r"<testsuite [^>]*>", report.read_text())
    if head is None:
        raise SystemExit(f"demo: {report} is not a JUnit report")
    numbers = {name: int(value) for name, value in re.findall(r'(tests|failures|errors)="(\d+)"', head[0])}
    return Counts(tests=numbers["tests"], failures=numbers["failures"], errors=numbers["errors"])


def _read_pins() -> dict[str, str]:
    """sha256 → requirement."""
    return {
        digest: requirement
        for requirement, digest in re.findall(
            r"^(\S+==\S+) --hash=sha256:([0-9a-f]{64})$", REQUIREMENTS.read_text(), re.M
        )
    }


def _is_complete(folder: Path, pins: dict[str, str]) -> bool:
    archives = [*folder.glob("*.whl"), *folder.glob("*.tar.gz")]
    return {hashlib.sha256(file.read_bytes()).hexdigest() for file in archives} == set(pins)


def _download(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", "click", "--require-hashes", "--dest", str(folder), "--requirement", str(REQUIREMENTS)]
    print("demo: downloading the pinned project and its wheelhouse …", file=sys.stderr)
    if subprocess.run(command, check=False).returncode != 0:
        raise SystemExit("demo: pip could not download the pinned files; is a package index within reach?")
