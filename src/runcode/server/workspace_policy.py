"""What this server holds workspaces to: the operator's options and the file of sizes, made one policy.

Owns: `DIR/sizes.toml`, which every verb reads as well as `up`:

    # `standard` is always there: as much as one box may have at all
    [small]
    memory_mib = 1024
    processes = 512
    cpus = 1

A size with fewer keys leaves the others to the runtime.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from runcode.controlplane.services.quotas import QuotaPolicy
from runcode.controlplane.services.workspaces import WorkspacePolicy
from runcode.core.errors import RunCodeError
from runcode.runtimes.base import DEFAULT_SIZES, STANDARD_SIZE, UNLIMITED, SizeLimits
from runcode.server.workspace_options import WorkspaceOptions

SIZES_FILE = "sizes.toml"
_SIZE_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}", re.ASCII)
_MIB = 1024 * 1024
# Below this an sshd and a shell do not fit.
_MEMORY_MIN_MIB, _PROCESSES_MIN, _CPUS_MIN = 64, 32, 0.05


def make_policy(folder: Path, options: WorkspaceOptions | None = None) -> WorkspacePolicy:
    """What the control plane is to hold workspaces to. Raises `usage` for a file of sizes that cannot be used."""
    options = options or WorkspaceOptions()
    return WorkspacePolicy(
        sizes=load_sizes(folder / SIZES_FILE),
        quotas=QuotaPolicy(workspaces_max=options.workspaces_per_user, running_max=options.running_per_user),
        idle_stop_after_s=options.idle_stop_after_s,
    )


def load_sizes(path: Path) -> Mapping[str, SizeLimits]:
    """The sizes of the file, or the default ones where there is none."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return DEFAULT_SIZES
    except (OSError, ValueError) as error:
        raise _unusable(path, "it cannot be read as TOML") from error
    sizes = {name: _parse_size(path, name, table) for name, table in raw.items()}
    return {**sizes, **({} if STANDARD_SIZE in sizes else {STANDARD_SIZE: UNLIMITED})}


def _parse_size(path: Path, name: str, table: object) -> SizeLimits:
    if _SIZE_NAME.fullmatch(name) is None or not isinstance(table, dict):
        raise _unusable(path, "each size is a table with a name of a-z 0-9 -")
    if not set(table) <= {"memory_mib", "processes", "cpus"}:
        raise _unusable(path, f"[{name}] may have memory_mib, processes and cpus only")
    memory = _at_least(path, name, table, "memory_mib", _MEMORY_MIN_MIB, whole=True)
    processes = _at_least(path, name, table, "processes", _PROCESSES_MIN, whole=True)
    cpus = _at_least(path, name, table, "cpus", _CPUS_MIN, whole=False)
    return SizeLimits(
        memory_bytes=None if memory is None else int(memory) * _MIB,
        processes=None if processes is None else int(processes),
        cpus=cpus,
    )


def _at_least(
    path: Path, name: str, table: Mapping[str, object], key: str, least: float, *, whole: bool
) -> float | None:
    value = table.get(key)
    if value is None:
        return None
    if type(value) not in ((int,) if whole else (int, float)) or not least <= float(str(value)) <= 2**40:
        kind = "whole number" if whole else "number"
        raise _unusable(path, f"{key} of [{name}] must be a {kind} of at least {least}")
    return float(str(value))


def _unusable(path: Path, why: str) -> RunCodeError:
    return RunCodeError("usage", f"{path} cannot be used: {why}", resolution="correct it, or remove it")
