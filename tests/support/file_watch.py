"""Did anything below a folder change meanwhile? Compared whole, content and mode, before and after.

What was made and removed again in between leaves no trace here: that a program did
so shows in `Run.executions`, since starting it is what the kernel tells.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Changes:
    """Filled when the watch ends: paths relative to the folder, `+` made, `-` removed, `~` changed."""

    seen: list[str] = field(default_factory=list)


def take_snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = os.path.join(parent, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISREG(mode):
                content = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            else:
                content = os.readlink(path) if stat.S_ISLNK(mode) else ""
            found[os.path.relpath(path, folder)] = (mode, content)
    return found


@contextlib.contextmanager
def watch_files(folder: Path) -> Iterator[Changes]:
    changes = Changes()
    before = take_snapshot(folder)
    yield changes
    after = take_snapshot(folder)
    changes.seen = [f"+{path}" for path in sorted(after.keys() - before.keys())]
    changes.seen += [f"-{path}" for path in sorted(before.keys() - after.keys())]
    changes.seen += [f"~{path}" for path in sorted(after.keys() & before.keys()) if after[path] != before[path]]
