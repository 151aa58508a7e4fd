"""What a workspace is: one POSIX sh script that looks, and how its answer is read.

The answer stands between two markers with a nonce, since rc files may print what
they like, as NUL-ended `key=value` records.

Threat: the box writes every value. They become bounded text, numbers and booleans
of a fixed shape; who prints them does so through `core.terminal`. A git remote's
URL may hold a password: it is taken out here, before anybody logs it.
"""

from __future__ import annotations

import re

from runcode.core.errors import RunCodeError
from runcode.core.remote_command import render_script
from runcode.core.values import Value

ANSWER_MAX = 1024 * 1024
_VALUE_MAX = 4096
MARKERS = (
    "AGENTS.md",
    "CLAUDE.md",
    "Cargo.toml",
    "CMakeLists.txt",
    "Dockerfile",
    "Gemfile",
    "Makefile",
    "README.md",
    "build.gradle",
    "composer.json",
    "deno.json",
    "docker-compose.yml",
    "go.mod",
    "justfile",
    "mix.exs",
    "package.json",
    "pnpm-lock.yaml",
    "pom.xml",
    "pyproject.toml",
    "requirements.txt",
    "setup.py",
    "tox.ini",
    "uv.lock",
    "yarn.lock",
)
TOOLS = (
    "bash",
    "bun",
    "cargo",
    "cmake",
    "curl",
    "deno",
    "docker",
    "gcc",
    "git",
    "go",
    "java",
    "make",
    "node",
    "npm",
    "perl",
    "pip",
    "pnpm",
    "podman",
    "python3",
    "rg",
    "ruby",
    "rsync",
    "sudo",
    "tar",
    "tmux",
    "uv",
    "yarn",
    "zsh",
)
_CREDENTIALS = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/]*@")

_SCRIPT = """n=$1 workdir=$2 markers=$3 tools=$4
cd -- "$workdir" 2>/dev/null || { printf '\\n%s error no_folder\\n' "$n"; exit 1; }
say() { printf '%s=%s\\0' "$1" "$2"; }
exec 2>/dev/null </dev/null
printf '\\n%s context\\n' "$n"
say cwd "$(pwd -P && echo x)"
say os "$(uname -s)"
say arch "$(uname -m)"
say kernel "$(uname -r)"
say distro "$(sed -n 's/^PRETTY_NAME=//p' /etc/os-release | head -n 1)"
say disk "$(df -Pk . | sed -n '$p')"
export GIT_OPTIONAL_LOCKS=0
if command -v git >/dev/null && [ "$(git rev-parse --is-inside-work-tree)" = true ]; then
    say git.branch "$(git symbolic-ref -q --short HEAD)"
    say git.head "$(git rev-parse -q --verify HEAD)"
    say git.remote "$(git config --get remote.origin.url)"
    say git.dirty "$(git -c core.fsmonitor=false status --porcelain | head -c 1)"
fi
for name in $markers; do [ -e "$name" ] && say marker "$name"; done
for name in $tools; do at=$(command -v "$name") && say "tool.$name" "$at"; done
printf '\\n%s end\\n' "$n"
"""


class Git(Value):
    """The repository around the project folder. `branch` is None on a detached head, `head` before a commit."""

    branch: str | None
    head: str | None
    remote: str | None
    dirty: bool


class BoxContext(Value):
    """All text is untrusted. `tools` is what is on PATH, with its path; sizes are bytes, or None."""

    cwd: str
    os: str
    arch: str
    kernel: str
    distro: str | None
    disk_total: int | None
    disk_free: int | None
    git: Git | None
    markers: tuple[str, ...]
    tools: tuple[tuple[str, str], ...]


def render_context(nonce: str, *, workdir: str) -> str:
    """The remote command that looks around in `workdir`."""
    return render_script(_SCRIPT, nonce, workdir, " ".join(MARKERS), " ".join(TOOLS))


def parse_context(answer: bytes, nonce: str) -> BoxContext:
    """Raises `not_found` when the project folder is missing, `io_error` for an answer that is not whole."""
    if f"\n{nonce} error no_folder\n".encode() in answer:
        raise RunCodeError(
            "not_found",
            "the project folder is not on the workspace",
            resolution="make it: `runcode exec --home -- mkdir`",
        )
    _, begun, rest = answer.partition(f"\n{nonce} context\n".encode())
    text, ended, _ = rest.rpartition(f"\n{nonce} end\n".encode())
    if not begun or not ended:
        raise RunCodeError("io_error", "the workspace's answer is not whole", resolution="retry")
    found: dict[str, list[str]] = {}
    for record in text.split(b"\0"):
        key, _, value = record.partition(b"=")
        found.setdefault(key.decode("ascii", "replace"), []).append(value[:_VALUE_MAX].decode("utf-8", "replace"))

    def one(key: str) -> str | None:
        return found.get(key, [""])[0] or None

    total, free = _parse_disk(one("disk") or "")
    in_repository = "git.dirty" in found
    remote = one("git.remote")
    return BoxContext(
        cwd=(one("cwd") or "").removesuffix("x").removesuffix("\n"),
        os=one("os") or "",
        arch=one("arch") or "",
        kernel=one("kernel") or "",
        distro=(one("distro") or "").strip("\"'") or None,
        disk_total=total,
        disk_free=free,
        git=Git(
            branch=one("git.branch"),
            head=one("git.head"),
            remote=None if remote is None else _CREDENTIALS.sub(r"\1", remote),
            dirty=one("git.dirty") is not None,
        )
        if in_repository
        else None,
        markers=tuple(name for name in MARKERS if name in found.get("marker", [])),
        tools=tuple((name, path) for name in TOOLS if (path := one(f"tool.{name}")) is not None),
    )


def _parse_disk(line: str) -> tuple[int | None, int | None]:
    """The last line of `df -Pk`: device, blocks of 1,024 bytes, used, available, share, mount point."""
    match = re.search(r"\s([0-9]{1,18})\s+[0-9]{1,18}\s+(-?[0-9]{1,18})\s+[0-9]{1,3}%\s", line, re.ASCII)
    if match is None:
        return None, None
    return int(match[1]) * 1024, max(0, int(match[2])) * 1024
