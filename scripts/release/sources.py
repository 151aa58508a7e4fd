"""What a release is built from: the tracked files, in a folder of their own, and the time that counts as now.

Guarantee: neither the folder's place, nor its umask, nor anything that is not
tracked (caches, editors' files) gets into what is built from the copy.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

# What the packages hold. A commit that only writes the plugin's pins changes none of it: the digests that it
# pins are then still those that a build of that commit has.
_DECIDING = ("src", "packaging", "tests", "docs", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md")
_FILES = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md")
_FOLDERS = ("src", "packaging", "tests", "docs")
# zip knows no earlier year.
_EARLIEST = 315619200


class ReleaseError(Exception):
    """A release that cannot be built as asked: one line for the person who asked."""


def read_epoch(root: Path) -> int:
    """Seconds since 1970: SOURCE_DATE_EPOCH, else the last commit that changed what is packed."""
    said = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not said:
        command = ["git", "-C", str(root), "log", "-1", "--format=%ct", "--", *_DECIDING]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    if not re.fullmatch(r"[0-9]{1,12}", said, re.ASCII):
        raise ReleaseError("there is no git history to take the time from: set SOURCE_DATE_EPOCH")
    return max(int(said), _EARLIEST)


def read_version(root: Path) -> str:
    text = (root / "src" / "runcode" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([0-9A-Za-z.+-]+)"$', text, re.MULTILINE)
    if found is None:
        raise ReleaseError("src/runcode/__init__.py names no version")
    return found[1]


def _list_tracked(root: Path) -> list[str] | None:
    """The tracked files, or None where this is no checkout (an unpacked sdist, a copy)."""
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "ls-files", "-z", "--", *_FILES, *_FOLDERS]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")[:-1]


def _list_all(root: Path) -> list[str]:
    found = [name for name in _FILES if (root / name).is_file()]
    for folder in _FOLDERS:
        for path in (root / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found.append(path.relative_to(root).as_posix())
    return found


def copy_sources(root: Path, target: Path) -> None:
    """`target` is made. Modes become 0755 or 0644, as git would have it."""
    for name in _list_tracked(root) or _list_all(root):
        source, copy = root / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
        copy.chmod(0o755 if os.access(source, os.X_OK) else 0o644)
