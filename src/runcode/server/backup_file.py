"""A backup: one private file with all that a server cannot be made again from, checked from end to end.

Owns: the file's format (a gzipped tar: `manifest.json`, `keys/…`, `tables/….jsonl`,
and `checksums.json` last), writing it whole or not at all, and reading it back.
Called by `backup_verbs`. What is in the tables is `controlplane.store.portable`'s.

Threat: a file that was cut short, bit-rotted or edited; one that names a path of its
own; one that other users read: it holds the CAs' private keys and the boxes' host keys.
Guarantee: it appears under its name complete, 0600, and replaces nothing. Reading
accepts known names only, takes nothing before every checksum fits, and writes into a
folder of its own.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import secrets
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from runcode.core.errors import RunCodeError
from runcode.server.data_folder import KEY_NAMES, fsync_folder, is_key_name, translated_os_errors

FORMAT = 1
_MANIFEST, _CHECKSUMS = "manifest.json", "checksums.json"
_TABLE = re.compile(r"tables/([a-z_]{1,60})\.jsonl", re.ASCII)
_SMALL_BYTES = 1024 * 1024


class BackupWriter:
    """Made by `writing`. `add` in any order; `manifest` first."""

    def __init__(self, archive: tarfile.TarFile, folder: Path) -> None:
        self._archive = archive
        self._folder = folder
        self._sums: dict[str, str] = {}

    def add(self, name: str, chunks: Iterable[bytes]) -> None:
        digest, size = hashlib.sha256(), 0
        # Its size stands before it in the archive: it is gathered first, in a file without a name.
        with tempfile.TemporaryFile(dir=self._folder) as spool:
            for chunk in chunks:
                digest.update(chunk)
                size += spool.write(chunk)
            spool.seek(0)
            self._put(name, size, spool)
        self._sums[name] = digest.hexdigest()

    def add_manifest(self, manifest: dict[str, Any]) -> None:
        self.add(_MANIFEST, [json.dumps({"format": FORMAT, **manifest}, indent=1).encode()])

    def finish(self) -> None:
        raw = json.dumps(self._sums, indent=1).encode()
        self._put(_CHECKSUMS, len(raw), io.BytesIO(raw))

    def _put(self, name: str, size: int, content: IO[bytes]) -> None:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = size, 0o600
        self._archive.addfile(entry, content)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BackupWriter]:
    """The file stands under its name only after the body is done. Raises `conflict` when there is one already."""
    if path.exists() or path.is_symlink():
        raise RunCodeError("conflict", f"{path} is there already", resolution="name another file, or move it away")
    draft = path.with_name(f".{path.name}.new-{secrets.token_hex(4)}")
    with translated_os_errors(path):
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                # Without a time of its own, the same content is the same file.
                packing = gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0)
                with packing as packed, tarfile.open(fileobj=packed, mode="w") as archive:
                    writer = BackupWriter(archive, path.parent)
                    yield writer
                    writer.finish()
                file.flush()
                os.fsync(file.fileno())
            # A link, unlike a rename, replaces nothing that came meanwhile.
            os.link(draft, path)
            fsync_folder(path.parent)
        except FileExistsError as error:
            raise RunCodeError("conflict", f"{path} is there already", resolution="name another file") from error
        finally:
            with contextlib.suppress(OSError):
                draft.unlink()


class Backup:
    """An opened backup whose checksums fit. `folder` holds its pieces, and goes with the context of `reading`."""

    def __init__(self, folder: Path, manifest: dict[str, Any], tables: list[str]) -> None:
        self.manifest = manifest
        self.tables = tables
        self._folder = folder

    @property
    def keys(self) -> Path:
        return self._folder / "keys"

    def read_table(self, name: str) -> Iterator[bytes]:
        with (self._folder / "tables" / f"{name}.jsonl").open("rb") as file:
            yield from file


@contextlib.contextmanager
def reading(path: Path, scratch: Path) -> Iterator[Backup]:
    """Unpack into a folder below `scratch` and check everything first. Raises `io_error`, before anything is used."""
    with translated_os_errors(path), tempfile.TemporaryDirectory(dir=scratch, prefix=".restore-") as name:
        folder = Path(name)
        for part in ("keys", "tables"):
            (folder / part).mkdir(mode=0o700)
        try:
            found = _unpack(path, folder)
        # The last two are JSON's: of what is none, and of what nests without end.
        except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, ValueError, RecursionError) as error:
            raise _damaged(path, "it is cut short, or was never whole") from error
        manifest = _load_small(path, folder / _MANIFEST, found)
        if manifest.get("format") != FORMAT or not isinstance(manifest.get("schema"), str):
            raise RunCodeError(
                "io_error",
                f"{path} was written by another version of RunCode",
                resolution="restore it with the version that made it, or a newer one",
            )
        yield Backup(folder, manifest, [match[1] for match in map(_TABLE.fullmatch, found) if match])


def _unpack(path: Path, folder: Path) -> dict[str, str]:
    """Name → SHA-256 of everything but the checksums; raises unless they are exactly those that the file tells."""
    found: dict[str, str] = {}
    told: dict[str, str] | None = None
    with tarfile.open(path, mode="r:gz") as archive:
        for entry in archive:
            content = archive.extractfile(entry) if entry.isreg() else None
            if content is None or told is not None or entry.name in found:
                raise _damaged(path, "it holds what no backup holds")
            if entry.name == _CHECKSUMS:
                told = json.loads(content.read(_SMALL_BYTES))
                continue
            if entry.name != _MANIFEST and _TABLE.fullmatch(entry.name) is None and not _is_key_member(entry.name):
                raise _damaged(path, "it holds what no backup holds")
            digest = hashlib.sha256()
            with (folder / entry.name).open("xb") as file:
                while chunk := content.read(1 << 20):
                    digest.update(chunk)
                    file.write(chunk)
            found[entry.name] = digest.hexdigest()
    if told is None:
        raise _damaged(path, "its end is missing")
    if told != found or not {_MANIFEST, *(f"keys/{name}" for name in KEY_NAMES)} <= set(found):
        raise _damaged(path, "a checksum does not fit")
    return found


def _is_key_member(name: str) -> bool:
    return name.startswith("keys/") and is_key_name(name.removeprefix("keys/"))


def _load_small(path: Path, file: Path, found: dict[str, str]) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes()[:_SMALL_BYTES])
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "its manifest cannot be read") from error
    if not isinstance(value, dict):
        raise _damaged(path, "its manifest cannot be read")
    return value


def _damaged(path: Path, what: str) -> RunCodeError:
    return RunCodeError(
        "io_error", f"{path} is not a whole backup: {what}", resolution="use another one; nothing was restored"
    )
