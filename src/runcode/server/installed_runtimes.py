"""Which runtimes are installed, found by entry point, each with a folder of its own.

Owns: the entry-point group `runcode.runtimes` (name → class that takes its
folder). A runtime that cannot be loaded is left out with a warning: one broken
plug-in must not keep the others' workspaces down.
"""

from __future__ import annotations

import importlib.metadata
import logging
from pathlib import Path

from runcode.core.errors import RunCodeError
from runcode.runtimes.base import Runtime

GROUP = "runcode.runtimes"
_log = logging.getLogger(__name__)


def runtime_names() -> list[str]:
    return sorted({entry.name for entry in importlib.metadata.entry_points(group=GROUP)})


def require_runtime_name(name: str) -> str:
    """Raises `bad_request` for a runtime that is not installed here."""
    if name not in runtime_names():
        raise RunCodeError(
            "bad_request",
            f"there is no runtime {name!r} here",
            resolution=f"use one of: {', '.join(runtime_names())}",
        )
    return name


def load_runtimes(folder: Path) -> dict[str, Runtime]:
    """Every installed runtime by name; `folder` holds one folder for each."""
    loaded: dict[str, Runtime] = {}
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            loaded[entry.name] = entry.load()(folder / entry.name)
        except Exception:
            _log.exception("the runtime %s cannot be loaded; its workspaces stay down", entry.name)
    return loaded
