"""The SQLite file itself: made whole or not at all, and looked at before anything opens it.

Owns: creation of the database file, and the checks of an existing one that need
no database engine. Called by `Store.open`, in a thread.

Guarantee: a file that is not ours (empty, foreign, no database) is refused
without one byte of it changed: its header is read as plain bytes, since opening
it through SQLite could already roll back a journal or switch its mode. A new
database appears under its name complete, also with two processes at once and on
a disk that fills half-way.

Source: sqlite.org/fileformat2.html §1.3 (the database header).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from runcode.controlplane.store import failures

# "RCod" in the header's application id: this file is RunCode's.
APPLICATION_ID = 0x52436F64
_MAGIC = b"SQLite format 3\x00"
_HEADER_BYTES = 100


def check_header(path: Path) -> None:
    """Raises `io_error` unless the file starts as a RunCode database does."""
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except OSError as error:
        raise failures.explain_os_error(error, path) from error
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise failures.corrupt(path)
    if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        raise failures.foreign(path)


def create(path: Path, fill: Callable[[Path], None]) -> None:
    """Make the database at `path` unless one is there; `fill` makes the schema in the file it is given.

    Built under another name in the same folder and linked into place: a crash, a
    full disk or a second process never leaves a half-made database.
    """
    draft = path.with_name(f".{path.name}.new-{secrets.token_hex(6)}")
    try:
        os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        fill(draft)
        _finish(draft)
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        _sync_folder(path.parent)
    except (sqlite3.Error, DBAPIError) as error:
        raise failures.explain_database_error(error, path) from error
    except OSError as error:
        raise failures.explain_os_error(error, path) from error
    finally:
        for leftover in (draft, *(draft.with_name(draft.name + end) for end in ("-wal", "-shm", "-journal"))):
            with contextlib.suppress(OSError):
                leftover.unlink()


def keep_copy(path: Path, revision: str) -> Path:
    """The database as it is now, beside itself, before its schema changes: `runcode.db.schema-0001`.

    Complete under its name or not there. Nothing reads it but an operator who
    wants to go back. Raises `io_error`; the database itself is not touched.
    """
    copy = path.with_name(f"{path.name}.schema-{revision}")
    draft = path.with_name(f".{copy.name}.new-{secrets.token_hex(6)}")
    try:
        os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        with contextlib.closing(sqlite3.connect(path)) as source, contextlib.closing(sqlite3.connect(draft)) as target:
            source.backup(target)
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(draft, copy)
        _sync_folder(path.parent)
    except sqlite3.Error as error:
        raise failures.explain_database_error(error, path) from error
    except OSError as error:
        raise failures.explain_os_error(error, path) from error
    finally:
        for leftover in (draft, *(draft.with_name(draft.name + end) for end in ("-wal", "-shm", "-journal"))):
            with contextlib.suppress(OSError):
                leftover.unlink()
    return copy


def _finish(draft: Path) -> None:
    connection = sqlite3.connect(draft, isolation_level=None)
    try:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        # Persistent in the file: later opens need not switch, and a foreign file is never switched.
        connection.execute("PRAGMA journal_mode = WAL")
    finally:
        connection.close()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
