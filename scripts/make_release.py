"""`make release`: wheel, sdist, `.pyz` and the archive for this system into dist/, with checksums.txt.

The same sources, interpreter and packages give the same bytes, in whatever folder
and at whatever time (tests/integration/test_release.py builds twice and compares).
`--pin` writes the digests of finished archives into the plugin; `--check-pins`
compares. docs/releasing.md tells the order of things.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from release.application import build_application
from release.packing import pack_tar_gz, pack_zip, pack_zipapp, write_checksums
from release.sources import ReleaseError, copy_sources, read_epoch, read_version

ROOT = Path(__file__).resolve().parent.parent
_SYSTEMS = {"linux": "linux", "darwin": "darwin", "win32": "windows"}
_MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
_ASSET = re.compile(r"runcode_(?:linux|darwin)_(?:amd64|arm64)\.tar\.gz|runcode_windows_(?:amd64|arm64)\.zip", re.ASCII)
_PYZ_MAIN = """\
import os
import sys

# What must call this program again later needs its path.
sys._xoptions.setdefault("self", os.path.abspath(sys.argv[0]))
from runcode.cli.entry import start

sys.exit(start(sys.argv))
"""


def name_asset() -> str:
    system, machine = _SYSTEMS.get(sys.platform), _MACHINES.get(platform.machine().lower())
    if system is None or machine is None:
        raise ReleaseError(f"there is no archive for {sys.platform} on {platform.machine()}")
    return f"runcode_{system}_{machine}." + ("zip" if system == "windows" else "tar.gz")


def build_packages(sources: Path, dist: Path, epoch: int) -> None:
    """Wheel and sdist, by the build backend itself; nothing is downloaded for it."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-t", "wheel", "-d", str(dist)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}
    done = subprocess.run(command, cwd=sources, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ReleaseError(f"hatchling failed: {(done.stderr or done.stdout).strip()[-800:]}")


def build_pyz(sources: Path, folder: Path, target: Path, epoch: int) -> None:
    for name in ("__init__.py", "agents", "cli", "client", "core"):
        room, copy = sources / "src" / "runcode" / name, folder / "runcode" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if room.is_dir():
            shutil.copytree(room, copy)
        else:
            shutil.copyfile(room, copy)
    (folder / "__main__.py").write_text(_PYZ_MAIN, encoding="utf-8")
    pack_zipapp(folder, target, epoch)


def build(options: argparse.Namespace) -> None:
    epoch, version, dist = read_epoch(ROOT), read_version(ROOT), options.out
    asset = name_asset()
    shutil.rmtree(dist, ignore_errors=True)
    dist.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="rc-release-") as name:
        work = Path(name)
        copy_sources(ROOT, work / "sources")
        if not options.archive_only:
            build_packages(work / "sources", dist, epoch)
            build_pyz(work / "sources", work / "pyz", dist / f"runcode-{version}.pyz", epoch)
        tree = work / "archive"
        tree.mkdir()
        said = build_application(
            work / "sources",
            tree,
            python=options.python,
            with_python=not options.without_python,
            windows_program=options.windows_program,
        )
        (pack_zip if asset.endswith(".zip") else pack_tar_gz)(tree, dist / asset, epoch)
    write_checksums(dist)
    print(f"release: {asset} is {said}")
    for path in sorted(dist.iterdir()):
        print(f"release: {path.stat().st_size:>10}  {path.name}")


# ---------------------------------------------------------------- pins


def _is_development(archive: Path) -> bool:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as packed:
            return "runcode.app/DEVELOPMENT" in packed.namelist()
    with tarfile.open(archive) as packed_tar:
        return "runcode.app/DEVELOPMENT" in packed_tar.getnames()


def read_pins(dist: Path) -> str:
    """The lines of checksums.txt that launchers need. Raises ReleaseError for what must not be published."""
    lines = (dist / "checksums.txt").read_text(encoding="ascii").splitlines()
    wanted = [line for line in lines if _ASSET.fullmatch(line.partition("  ")[2])]
    if not wanted:
        raise ReleaseError(f"{dist} has no archive")
    for line in wanted:
        archive = dist / line.partition("  ")[2]
        if archive.exists() and _is_development(archive):
            raise ReleaseError(f"{archive.name} is a development archive: it is not to be published")
    return "".join(f"{line}\n" for line in wanted)


def pin(options: argparse.Namespace) -> None:
    folder, pins = options.plugin / "bin", read_pins(options.out)
    tag = f"v{read_version(ROOT)}"
    if options.check_pins:
        text = (folder / "checksums.txt").read_text(encoding="ascii")
        pinned = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
        if pinned != pins or (folder / "RUNCODE_VERSION").read_text(encoding="ascii") != f"{tag}\n":
            raise ReleaseError(
                "the plugin pins something else than what was built: `make release-pins`, commit, build again"
            )
        print(f"release: the plugin pins {tag} as built")
        return
    head = "# SHA-256 of the archives of the release that RUNCODE_VERSION names, in sha256sum's form; they bind.\n"
    (folder / "checksums.txt").write_text(head + pins, encoding="ascii", newline="\n")
    (folder / "RUNCODE_VERSION").write_text(f"{tag}\n", encoding="ascii", newline="\n")
    print(f"release: the plugin now pins {pins.count(chr(10))} archives of {tag}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="emptied first")
    parser.add_argument(
        "--python", type=Path, metavar="FOLDER", help="a CPython that can be moved; default: a copy of this one"
    )
    parser.add_argument(
        "--without-python", action="store_true", help="a development archive that uses this machine's Python"
    )
    parser.add_argument("--windows-program", type=Path, metavar="FILE", help="the built packaging/windows/runcode.c")
    parser.add_argument("--archive-only", action="store_true", help="neither wheel, sdist nor .pyz")
    parser.add_argument("--plugin", type=Path, default=ROOT / "plugin", help="whose pins")
    parser.add_argument("--pin", action="store_true", help="write the digests of what is in --out into the plugin")
    parser.add_argument("--check-pins", action="store_true", help="compare them")
    options = parser.parse_args()
    try:
        pin(options) if options.pin or options.check_pins else build(options)
    except ReleaseError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
