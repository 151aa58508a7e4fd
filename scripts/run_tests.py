"""The whole suite, and what a test that failed only among the others is worth.

Called by `make test` with pytest's own arguments. The suite runs real servers, browsers
and agents side by side on few processors, and one of its 9,000 tests that is too sure of
its time would hide what all others say. So a few failures, of tests with real parts only,
are looked at again: each must pass three times by itself. It is then named UNSTEADY at
the end, which is a fault to be mended, told apart from one that stands.

Guarantee: no more than `SECOND_LOOKS_MAX` failures are looked at again, none of a unit or
architecture test, none of a run that broke off; a test that fails by itself fails the run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SECOND_LOOKS_MAX = 4
_LOOKS = 3
# Nothing in these waits for a process, a socket or a clock.
_NEVER = ("tests/unit/", "tests/architecture/")
_TESTS_FAILED = 1


def run(arguments: list[str], failures_file: Path) -> int:
    pytest = [sys.executable, "-m", "pytest"]
    status = subprocess.run([*pytest, f"--failures-file={failures_file}", *arguments]).returncode
    if status != _TESTS_FAILED:
        return status
    failed: list[str] = json.loads(failures_file.read_text())
    if not may_look_again(failed):
        return status
    print(f"\nFailed among the others; each now {_LOOKS} times by itself:", *failed, sep="\n  ", flush=True)
    for test in failed:
        for _ in range(_LOOKS):
            again = subprocess.run([*pytest, "-n", "0", *_keep_options(arguments), test]).returncode
            if again != 0:
                print(f"FAILED {test} (also by itself)", flush=True)
                return status
    for test in failed:
        print(f"UNSTEADY {test} (failed among the others, passed {_LOOKS} times by itself: to be mended)", flush=True)
    return 0


def may_look_again(failed: list[str]) -> bool:
    return 0 < len(failed) <= SECOND_LOOKS_MAX and not any(test.startswith(_NEVER) for test in failed)


def _keep_options(arguments: list[str]) -> list[str]:
    """What also holds for a test by itself: which agents' stories run."""
    return [word for word in arguments if word.startswith("--agents=")]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(run(sys.argv[1:], Path(folder) / "failures.json"))
