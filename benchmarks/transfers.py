"""The rows on files: `put` and `get` against scp, `put -r` and `get -r` against tar, over the same master."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

RESIDENT_TARGET_MB = 40.0
_LARGE_SIZE = 256 << 20

# (name, target, ours, reference), each timing one run in milliseconds.
Pair = tuple[str, float, Callable[[], float], Callable[[], float]]


def make_material(folder: Path) -> None:
    """`large` of 256 MB that nobody can compress, and `tree` with 1,000 files of 0.1 to 4 KB in 20 folders."""
    with (folder / "large").open("wb") as file:
        for _ in range(_LARGE_SIZE >> 20):
            file.write(os.urandom(1 << 20))
    for number in range(1000):
        inner = folder / "tree" / f"d{number % 20}"
        inner.mkdir(parents=True, exist_ok=True)
        (inner / f"f{number}.py").write_bytes(os.urandom(100 + number % 50 * 80))


def pairs(run: Callable[..., float], runcode: str, config: str, alias: str) -> list[Pair]:
    """What to time, in this order: the later ones need what the earlier ones leave on the box."""
    ssh = f"ssh -F {config} {alias}"

    def shell(line: str) -> float:
        return run("sh", "-c", line)

    def anew(local: str, there: str, *command: str) -> float:
        """One copy to a name that is not there yet: scp would write over an old file's pages, and leave it broken."""
        shell(f"rm -f {local}; {ssh} rm -f workspace/{there}")
        return run(*command)

    def put_tree() -> float:
        shell(f"{ssh} rm -rf workspace/ours")
        return run(runcode, "put", "-r", "tree", "ours")

    def tar_up() -> float:
        shell(f"{ssh} rm -rf workspace/theirs")
        return shell(f"tar c tree | {ssh} 'mkdir workspace/theirs && tar x -C workspace/theirs'")

    def get_tree() -> float:
        shell("rm -rf ours")
        return run(runcode, "get", "-r", "ours", "--out", "ours")

    def tar_down() -> float:
        shell("rm -rf theirs && mkdir theirs")
        return shell(f"{ssh} tar c -C workspace/theirs . | tar x -C theirs")

    scp = ("scp", "-q", "-F", config)
    return [
        (
            "put 256 MB / scp",
            1.1,
            lambda: anew("no", "large", runcode, "put", "large", "large"),
            lambda: anew("no", "theirs-large", *scp, "large", f"{alias}:workspace/theirs-large"),
        ),
        (
            "get 256 MB / scp",
            1.1,
            lambda: anew("back", "no", runcode, "get", "large", "--out", "back"),
            lambda: anew("theirs-back", "no", *scp, f"{alias}:workspace/large", "theirs-back"),
        ),
        ("put -r 1,000 files / tar c | ssh tar x", 1.2, put_tree, tar_up),
        ("get -r 1,000 files / ssh tar c | tar x", 1.2, get_tree, tar_down),
    ]


def measure_resident_mb(command: list[str], environment: dict[str, str], folder: Path) -> float:
    """The peak of one run, which must succeed.

    Asked of a small process in between: Linux counts what a program's parent held when it was started.
    """
    script = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-IS", "-c", script, *command], env=environment, cwd=folder, capture_output=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"bench: {command} failed: {done.stderr.decode()}")
    return int(done.stdout) / 1024
