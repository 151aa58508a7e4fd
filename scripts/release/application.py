"""The application in a release archive: `runcode`, and beside it `runcode.app` with all that it needs.

Owns: the layout (docs/releasing.md). Third-party packages are copied from the
environment that runs this, which `make setup` filled from constraints.txt: what
was tested is what is packed, and nothing is downloaded here.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import sys
import tomllib
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement

from release.interpreter import compile_tree, copy_interpreter, find_interpreter
from release.sources import ReleaseError

# The rooms of the client half: the service is not for a laptop.
_ROOMS = ("__init__.py", "py.typed", "agents", "cli", "client", "core")
# Records of an installer: they name this machine.
_INSTALLERS_OWN = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}


def find_packages(project: Path, extra: str) -> list[importlib.metadata.Distribution]:
    """The distributions that an extra needs, all of them; none when pyproject.toml has no such extra."""
    extras = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    waiting = [(Requirement(text), "") for text in extras.get(extra, [])]
    found: dict[str, importlib.metadata.Distribution] = {}
    while waiting:
        wanted, of_extra = waiting.pop()
        marked = {**default_environment(), "extra": of_extra}
        if wanted.marker is not None and not wanted.marker.evaluate(marked):
            continue
        try:
            distribution = importlib.metadata.distribution(wanted.name)
        except importlib.metadata.PackageNotFoundError as error:
            raise ReleaseError(f"{wanted.name} is not installed here: run `make setup`") from error
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        inner = [Requirement(text) for text in distribution.requires or []]
        new = name not in found
        found[name] = distribution
        waiting += [(requirement, one) for one in wanted.extras for requirement in inner if requirement.marker]
        if new:
            waiting += [(requirement, "") for requirement in inner]
    return [found[name] for name in sorted(found)]


def _copy_package(distribution: importlib.metadata.Distribution, target: Path) -> None:
    for file in distribution.files or []:
        # `..`: a script or a page in another folder of the environment.
        if ".." in file.parts or file.name.endswith(".pyc"):
            continue
        if file.name in _INSTALLERS_OWN and file.parent.name.endswith(".dist-info"):
            continue
        if {"tests", "test"} & set(file.parts[:-1]):
            continue
        copy = target / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(distribution.locate_file(file)), copy)


def build_application(
    sources: Path, target: Path, *, python: Path | None, with_python: bool, windows_program: Path | None = None
) -> str:
    """Fill `target` with what the archive holds. Says in one line what it is."""
    app = target / "runcode.app"
    library = app / "lib"
    for name in _ROOMS:
        room = sources / "src" / "runcode" / name
        copy = library / "runcode" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if room.is_dir():
            shutil.copytree(room, copy)
        else:
            shutil.copyfile(room, copy)
    shutil.copyfile(sources / "LICENSE", app / "LICENSE")
    found = find_interpreter(python)
    is_windows = found.program.suffix == ".exe"
    if is_windows:
        if windows_program is None:
            raise ReleaseError("a Windows archive needs its runcode.exe: --windows-program (packaging/windows)")
        shutil.copyfile(windows_program, target / "runcode.exe")
    else:
        shutil.copyfile(sources / "packaging" / "archive" / "runcode", target / "runcode")
        (target / "runcode").chmod(0o755)
    if not with_python:
        _name_interpreter(target / "runcode", found.program)
        (app / "DEVELOPMENT").write_text(f"needs {found.program}\n", encoding="utf-8")
        compile_tree(found.program, target, [library])
        return f"a development archive: it needs {found.program}, leaves `mcp` out, and is not to be published"
    packages = find_packages(sources, "mcp")
    for package in packages:
        _copy_package(package, library)
    program = copy_interpreter(found, app / "python")
    stdlib = app / "python" / ("Lib" if is_windows else f"lib/python{found.version}")
    compile_tree(program, target, [stdlib, library])
    carried = ", ".join(f"{package.metadata['Name']} {package.version}" for package in packages) or "no package"
    whose = "of this machine, for machines like it" if python is None else "that can be moved"
    return f"an archive with CPython {found.version} {whose} ({sys.platform}) and {carried}"


def _name_interpreter(entry: Path, program: Path) -> None:
    """A development archive resolves its interpreter once, here: nothing looks for `python3` by name later."""
    line = "python=$self.app/python/python3\n"
    text = entry.read_text(encoding="utf-8")
    if text.count(line) != 1 or re.search(r"[^A-Za-z0-9/._+-]", str(program)):
        raise ReleaseError(f"{program} cannot be named in a development archive")
    entry.write_text(text.replace(line, f"python={program}\n"), encoding="utf-8")
