"""The CPython that a release archive carries: taken over, cut down, and tried where it will not be at home.

Owns: which files of an interpreter go along. A tree that was built to be moved (as
python-build-standalone's are) is taken as it is; an interpreter of this machine is
copied from where it lies, which makes an archive for machines like this one.

Guarantee: what is returned was started from its new place, with an empty
environment, and found its library there and nowhere else.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from release.sources import ReleaseError

# Never imported by a client, and half of the bytes.
_LEFT_OUT = {
    "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "distutils", "pydoc_data",
    "site-packages", "dist-packages", "__pycache__", "__phello__",
}  # fmt: skip
_LEFT_OUT_FILES = {"turtle.py", "sitecustomize.py", "usercustomize.py", "EXTERNALLY-MANAGED"}
_ASK = (
    "import json, sys, sysconfig; print(json.dumps({'version': sys.version_info[:2], 'stdlib':"
    " sysconfig.get_path('stdlib'), 'program': sys.executable, 'prefix': sys.prefix}))"
)
_ASK_WHERE = (
    "import sys, json, ssl, ctypes, sqlite3, zlib, hashlib;"
    "print(json.dumps([sys.prefix, sys.exec_prefix, *sys.path, json.__file__]))"
)


@dataclass(frozen=True)
class Interpreter:
    """A program, its standard library, and the version as `3.11`."""

    program: Path
    library: Path
    version: str


def _ask(program: Path, code: str) -> list[str] | dict[str, object]:
    done = subprocess.run([str(program), "-I", "-S", "-c", code], capture_output=True, text=True, env={}, check=False)
    if done.returncode != 0:
        raise ReleaseError(f"{program} does not start: {done.stderr.strip()[-300:]}")
    answer: list[str] | dict[str, object] = json.loads(done.stdout)
    return answer


def find_interpreter(folder: Path | None) -> Interpreter:
    """Below `folder` (a tree that can be moved), else the one that this program's venv was made from."""
    if folder is None:
        program = Path(os.path.realpath(sys.executable))
    else:
        named = [folder / "python.exe", folder / "bin" / "python3"]
        program = next((path for path in named if path.is_file()), named[-1])
        if not program.is_file():
            raise ReleaseError(f"there is neither python.exe nor bin/python3 in {folder}")
    said = _ask(program, _ASK)
    assert isinstance(said, dict)
    major, minor = said["version"]  # type: ignore[misc]
    if (major, minor) != sys.version_info[:2]:
        raise ReleaseError(
            f"{program} is Python {major}.{minor}, and this is {sys.version_info[0]}.{sys.version_info[1]}: compiled"
            " packages are taken from here, so make the venv from it (PYTHON=… make setup)"
        )
    return Interpreter(Path(os.path.realpath(program)), Path(str(said["stdlib"])), f"{major}.{minor}")


def _copy_library(source: Path, target: Path) -> None:
    def left_out(folder: str, names: list[str]) -> set[str]:
        gone = {name for name in names if name in _LEFT_OUT or name.startswith("config-")}
        if Path(folder) == source:
            gone |= _LEFT_OUT_FILES & set(names)
        # What Debian and others keep elsewhere and only link to, such as LICENSE files in /usr/share.
        gone |= {
            name for name in names if os.path.islink(f"{folder}/{name}") and not os.path.exists(f"{folder}/{name}")
        }
        return gone | {name for name in names if name.endswith((".pyc", ".a"))}

    shutil.copytree(source, target, symlinks=False, ignore=left_out)


def copy_interpreter(found: Interpreter, target: Path) -> Path:
    """Into `target`; returns the program there. Raises ReleaseError when it cannot stand on its own."""
    if found.program.suffix == ".exe":
        target.mkdir(parents=True)
        for file in found.program.parent.iterdir():
            if file.suffix in (".exe", ".dll") or file.name.startswith("LICENSE"):
                shutil.copy2(file, target / file.name)
        shutil.copytree(found.program.parent / "DLLs", target / "DLLs")
        _copy_library(found.library, target / "Lib")
        (target / "python._pth").write_text("Lib\nDLLs\n", encoding="ascii")
        program = target / "python.exe"
    else:
        program = target / "python3"
        target.mkdir(parents=True)
        shutil.copyfile(found.program, program)
        program.chmod(0o755)
        # Without it CPython looks for its library, zipped, in every folder above (for a cache below /tmp: in
        # /tmp/lib), where another user may have put one. It also saves 0.5 ms of each start.
        library = f"lib/python{found.version}"
        (target / "python3._pth").write_text(f"{library}\n{library}/lib-dynload\n", encoding="ascii")
        _copy_library(found.library, target / "lib" / f"python{found.version}")
        for shared in found.program.parent.parent.glob("lib/libpython*"):
            # Only of a tree that is made to be moved, whose program looks into `../lib` from where it is; the place
            # of a system's is written in its own program.
            if found.library.parent == shared.parent and not shared.name.endswith(".a"):
                (target.parent / "lib").mkdir(exist_ok=True)
                shutil.copyfile(shared, target.parent / "lib" / shared.name)
    where = _ask(program, _ASK_WHERE)
    strangers = [path for path in where if not Path(path).is_relative_to(target)]
    if strangers:
        raise ReleaseError(f"{found.program} cannot be moved: from {target} it still looks into {strangers[0]}")
    mapped = Path("/proc/self/maps")
    if mapped.exists():
        maps = _ask(program, "import json; print(json.dumps(open('/proc/self/maps').read().split()))")
        if any("libpython" in word and not word.startswith(str(target.parent)) for word in maps):
            raise ReleaseError(
                f"{found.program} needs a libpython outside of it: name one that can be moved (--python)"
            )
    return program


def compile_tree(program: Path, top: Path, folders: list[Path]) -> None:
    """`.pyc` that are never compared with their source: no date and no path of this machine is in them."""
    command = [str(program), "-S", "-s", "-m", "compileall", "-q", "-f", "-j", "1", "--invalidation-mode"]
    command += ["unchecked-hash", "-s", str(top), "-p", "/", *map(str, folders)]
    # Sets are written in the order of their hashes.
    done = subprocess.run(command, env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ReleaseError(f"byte-compiling failed: {done.stdout.strip()[-500:]}")
