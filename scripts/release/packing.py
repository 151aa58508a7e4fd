"""Files that come out byte for byte the same, whoever packs them, where and when.

Owns: the tar, zip and zipapp forms, and checksums.txt. Order is by name; owners,
times and modes are fixed; no extra field of the packing machine gets in.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import time
import zipfile
from pathlib import Path

from release.sources import ReleaseError

# Level 9 takes three times as long for a hundredth less.
_LEVEL = 6


def _mode(path: Path) -> int:
    return 0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644


def list_tree(folder: Path) -> list[Path]:
    """Everything below, by name. Raises ReleaseError for what a release never holds: a link, a device."""
    found = sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix())
    for path in found:
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise ReleaseError(f"{path.relative_to(folder)} is neither a file nor a folder")
    return found


def pack_tar_gz(folder: Path, target: Path, epoch: int) -> None:
    with (
        target.open("wb") as raw,
        gzip.GzipFile("", "wb", _LEVEL, raw, mtime=epoch) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in list_tree(folder):
            entry = tarfile.TarInfo(path.relative_to(folder).as_posix())
            entry.mtime, entry.mode = epoch, _mode(path)
            if path.is_dir():
                entry.type = tarfile.DIRTYPE
                tar.addfile(entry)
            else:
                entry.size = path.stat().st_size
                with path.open("rb") as content:
                    tar.addfile(entry, content)


def pack_zip(folder: Path, target: Path | io.BytesIO, epoch: int) -> None:
    # UTC, so that the packing machine's time zone is not in it.
    stamp = time.gmtime(epoch)[:6]
    with zipfile.ZipFile(target, "w") as packed:
        for path in list_tree(folder):
            if path.is_dir():
                continue
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), stamp)
            entry.create_system, entry.external_attr = 3, (0o100000 | _mode(path)) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            packed.writestr(entry, path.read_bytes(), compresslevel=_LEVEL)


def pack_zipapp(folder: Path, target: Path, epoch: int) -> None:
    """A zip that `python3` runs. Not named on any hot path: unzipping costs more than starting."""
    buffer = io.BytesIO()
    pack_zip(folder, buffer, epoch)
    target.write_bytes(b"#!/usr/bin/env python3\n" + buffer.getvalue())
    target.chmod(0o755)


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path) -> None:
    """checksums.txt beside the files, in sha256sum's form."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != "checksums.txt")
    lines = [f"{digest_of(path)}  {path.name}\n" for path in files]
    (folder / "checksums.txt").write_text("".join(lines), encoding="ascii", newline="\n")
