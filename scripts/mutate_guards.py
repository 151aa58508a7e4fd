"""`make mutate-guards`: take each named guard out of a copy of the code, and see a test fail.

Owns: the copies and the verdicts. The guards stand in tests/adversarial/guards.toml:
a name, a file, the text that guards, the text that would stand there without it,
and the tests that must notice. A guard whose removal no test notices is a promise
without proof, and fails the run; so does one whose text is no longer in the file.

Never: touch the working tree. Each worker has its own copy, with a venv that
leads to the copy's sources.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GUARDS_FILE = ROOT / "tests" / "adversarial" / "guards.toml"
_COPIED = ("src", "tests", "scripts", "packaging", "benchmarks", "docs", "plugin", ".claude-plugin", ".agents")
_COPIED_FILES = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "Makefile", "constraints.txt")
_TIMEOUT_S = 600
# pytest's exit status: a test failed. 2 and above mean that nothing was judged.
_TESTS_FAILED = 1


@dataclass(frozen=True)
class Guard:
    """`old` stands exactly once in `file`; with `new` in its place one of `tests` must fail."""

    name: str
    promise: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    guard: Guard
    noticed: bool
    words: str
    seconds: float


def load_guards(path: Path = GUARDS_FILE) -> list[Guard]:
    """Raises ValueError for a guard that is incomplete, doubled, or no longer in the code."""
    raw = tomllib.loads(path.read_text(encoding="utf-8"))
    guards = [Guard(**{**record, "tests": tuple(record["tests"])}) for record in raw["guard"]]
    names = [guard.name for guard in guards]
    for guard in guards:
        source = (ROOT / guard.file).read_text(encoding="utf-8")
        if names.count(guard.name) != 1:
            raise ValueError(f"two guards are named {guard.name}")
        if source.count(guard.old) != 1:
            raise ValueError(f"{guard.name}: its text stands {source.count(guard.old)} times in {guard.file}")
        if guard.old == guard.new:
            raise ValueError(f"{guard.name}: nothing is taken out")
        for test in guard.tests:
            if not (ROOT / test.partition("::")[0]).exists():
                raise ValueError(f"{guard.name}: there is no {test}")
    return guards


def make_copy(target: Path) -> None:
    """The project without its history, and a venv that imports from it."""
    for name in _COPIED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=ignored)
    for name in _COPIED_FILES:
        if (ROOT / name).exists():
            shutil.copy2(ROOT / name, target / name)
    # The agent clients and the homes that tests give them are too large, or stand where they must.
    (target / ".cache").mkdir()
    for name in ("agent-clients", "agent-homes"):
        (ROOT / ".cache" / name).mkdir(parents=True, exist_ok=True)
        (target / ".cache" / name).symlink_to(ROOT / ".cache" / name)
    original = ROOT / ".venv"
    packages = next((original / "lib").glob("python3*/site-packages"))
    venv = target / ".venv"
    copied = venv / packages.relative_to(original)
    copied.mkdir(parents=True)
    for entry in packages.iterdir():
        if entry.name != "_editable_impl_runcode.pth":
            (copied / entry.name).symlink_to(entry)
    (copied / "_editable_impl_runcode.pth").write_text(f"{target / 'src'}\n")
    shutil.copy2(original / "pyvenv.cfg", venv / "pyvenv.cfg")
    (venv / "bin").mkdir()
    for entry in (original / "bin").iterdir():
        here = venv / "bin" / entry.name
        if entry.is_symlink():
            here.symlink_to(os.readlink(entry))
        elif entry.is_file():
            raw = entry.read_bytes()
            here.write_bytes(raw.replace(os.fsencode(original), os.fsencode(venv)) if raw[:2] == b"#!" else raw)
            here.chmod(0o755)
    (venv / ".setup-done").write_text(f"{target}\n")


def judge(guard: Guard, copy: Path) -> Verdict:
    started = time.monotonic()
    source = copy / guard.file
    whole = source.read_text(encoding="utf-8")
    source.write_text(whole.replace(guard.old, guard.new), encoding="utf-8")
    command = [str(copy / ".venv/bin/python"), "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *guard.tests]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        ran = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        status, output = ran.returncode, ran.stdout
    except subprocess.TimeoutExpired:
        status, output = -1, "the tests did not end"
    finally:
        source.write_text(whole, encoding="utf-8")
    failed = [line for line in output.splitlines() if line.startswith("FAILED ")]
    # A sibling that merely cannot be imported proves nothing.
    noticed = status == _TESTS_FAILED and bool(failed)
    words = failed[0].removeprefix("FAILED ").split(" - ")[0] if failed else output.strip().splitlines()[-1][:100]
    return Verdict(guard, noticed, words, time.monotonic() - started)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--guard", action="append", help="only this one (repeatable)")
    parser.add_argument("--list", action="store_true", help="name the guards and their promises")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    try:
        guards = load_guards()
    except ValueError as error:
        print(f"mutate-guards: {error}", file=sys.stderr)
        return 1
    if options.list:
        for guard in guards:
            print(f"{guard.name:40} {guard.promise}")
        return 0
    if options.guard:
        unknown = set(options.guard) - {guard.name for guard in guards}
        if unknown:
            print(f"mutate-guards: no guard is named {', '.join(sorted(unknown))}", file=sys.stderr)
            return 2
        guards = [guard for guard in guards if guard.name in options.guard]
    with tempfile.TemporaryDirectory(prefix="rc-guards-") as folder:
        copies: queue.Queue[Path] = queue.Queue()
        for number in range(min(options.jobs, len(guards))):
            copy = Path(folder) / str(number)
            copy.mkdir()
            make_copy(copy)
            copies.put(copy)
        # Reachable for a lesser user too: some tests leave root.
        Path(folder).chmod(0o755)

        def take_turn(guard: Guard) -> Verdict:
            copy = copies.get()
            try:
                return judge(guard, copy)
            finally:
                copies.put(copy)

        verdicts = []
        with concurrent.futures.ThreadPoolExecutor(copies.qsize()) as pool:
            for done in concurrent.futures.as_completed([pool.submit(take_turn, guard) for guard in guards]):
                verdict = done.result()
                verdicts.append(verdict)
                word = "noticed" if verdict.noticed else "NOT NOTICED"
                print(f"{word:12} {verdict.guard.name:40} {verdict.seconds:5.1f} s  {verdict.words}", flush=True)
    silent = [verdict.guard.name for verdict in verdicts if not verdict.noticed]
    print(f"mutate-guards: {len(verdicts) - len(silent)} of {len(verdicts)} removals were noticed")
    for name in silent:
        print(f"mutate-guards: no test notices that {name} is gone")
    return 1 if silent else 0


if __name__ == "__main__":
    sys.exit(main())
