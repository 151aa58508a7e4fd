"""What a failing database means to a person.

Owns: the translation of sqlite3's and the operating system's errors into
RunCodeError, each with one line that says what to do. Called by `store` only;
no raw text of a driver goes further.
"""

from __future__ import annotations

import errno
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from runcode.core.errors import RunCodeError

# Low byte of SQLite's extended result codes (sqlite.org/rescode.html).
_BUSY, _LOCKED, _READONLY, _IOERR, _CORRUPT, _FULL, _CANTOPEN, _NOTADB = 5, 6, 8, 10, 11, 13, 14, 26
_RESTORE = "move it away to start afresh, or put a backup in its place; RunCode has left it as it was"


def explain_database_error(error: BaseException, path: Path) -> RunCodeError:
    """`io_error` or `busy` for a known cause; `internal` for a statement of ours that was wrong."""
    cause: BaseException | None = error
    if isinstance(error, DBAPIError):
        cause = error.orig
    if isinstance(cause, OSError):
        return explain_os_error(cause, path)
    code = getattr(cause, "sqlite_errorcode", None)
    primary = code & 0xFF if isinstance(code, int) else None
    if primary in (_BUSY, _LOCKED):
        return RunCodeError("busy", f"the database {path} is held by another process", resolution="retry in a moment")
    if primary == _FULL:
        return _full(path)
    if primary == _READONLY:
        return RunCodeError(
            "io_error",
            f"the database {path} cannot be written",
            resolution="give this user write access to it and to its folder, or mount the disk read-write",
        )
    if primary in (_CORRUPT, _NOTADB):
        return corrupt(path)
    if primary == _CANTOPEN:
        return RunCodeError(
            "io_error",
            f"the database {path} cannot be opened",
            resolution="check that its folder exists and that this user may write there",
        )
    if primary == _IOERR:
        return RunCodeError(
            "io_error",
            f"the disk failed to read or write the database {path}",
            resolution="check the disk for errors, limits and free space, then retry",
        )
    return RunCodeError("internal", "the database refused a statement")


def explain_os_error(error: OSError, path: Path) -> RunCodeError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return _full(path)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RunCodeError(
            "io_error",
            f"this user may not write {path}",
            resolution="give this user write access to its folder, or mount the disk read-write",
        )
    return RunCodeError(
        "io_error",
        f"{path} cannot be used: {errno.errorcode.get(error.errno or 0, 'unknown error')}",
        resolution="check the path and the disk, then retry",
    )


def corrupt(path: Path) -> RunCodeError:
    return RunCodeError("io_error", f"{path} is damaged, or not a database", resolution=_RESTORE)


def foreign(path: Path) -> RunCodeError:
    return RunCodeError(
        "io_error",
        f"{path} is a database of another program",
        resolution="name another data folder, or move that file away; RunCode has left it as it was",
    )


def older(path: Path) -> RunCodeError:
    return RunCodeError(
        "io_error",
        f"{path} was written by an older RunCode and is not upgraded yet",
        resolution="start (or restart) the server with this version once: it upgrades the database and keeps a copy",
    )


def newer(path: Path) -> RunCodeError:
    return RunCodeError(
        "io_error",
        f"{path} was written by a newer RunCode",
        resolution="run that newer version, or put a backup in its place; RunCode has left it as it was",
    )


def _full(path: Path) -> RunCodeError:
    return RunCodeError(
        "io_error",
        f"there is no space left for {path}",
        resolution="free some space on that disk (or raise the quota), then retry",
    )
