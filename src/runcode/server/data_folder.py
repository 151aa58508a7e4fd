"""The server's data folder: its layout, its lock, and a first start that is whole or leaves nothing.

Owns: which file stands where. Called by `up` (which holds the lock) and by the
operator's other verbs (which do not: the database is safe to share).

Threat: another user of this machine who may write in the folder, or owns it,
swaps keys or the database under a server that runs as root.
Guarantee: a folder that is somebody else's, or whose keys and database others can
read or write, is refused, with the command that mends it.

Guarantee: a first start is prepared in a staging folder inside and moved into
place piece by piece, the marker last. Without the marker, the next start sees a
first start again and clears what was left; with it, everything is there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from runcode.controlplane.store.location import Location, PostgresUrl, parse_database_url
from runcode.core.errors import RunCodeError

FORMAT = 1
KEY_NAMES = ("client_ca", "workspace_ca", "gateway_host_ed25519")
# What `ca rotate` makes beside them.
_ROTATED_KEY = re.compile(r"client_ca-[0-9a-f]{16}", re.ASCII)
# The audit's, both halves, from the first `up` on: what one server signed, the installation's others have to believe.
AUDIT_KEY_NAMES = ("audit_ed25519", "audit_ed25519.pub")
_KEY_BYTES_MAX = 16 * 1024
_PLACE = re.compile(r"[0-9a-f]{16}", re.ASCII)
# A first start writes under 1 MB; SQLite's WAL and the boxes' folders need room right after.
FIRST_START_MIN_FREE_BYTES = 16 * 1024 * 1024
_STAGING_PREFIX = ".first-start-"


class DataFolder:
    """Paths inside one data folder. Nothing is touched until a method says so."""

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.abspath(path))
        self.marker = self.path / "server.json"
        self.lock_file = self.path / "server.lock"
        self.database = self.path / "runcode.db"
        # Stands here instead of the file above when the database is a Postgres server's. May hold a password.
        self.database_url = self.path / "database.url"
        self.keys = self.path / "keys"
        self.runtimes = self.path / "runtimes"
        self._place: str | None = None

    @property
    def gateway_host_key(self) -> Path:
        return self.keys / "gateway_host_ed25519"

    @property
    def checkpoints(self) -> Path:
        return self.path / "audit" / "checkpoints.jsonl"

    @property
    def web_base(self) -> Path:
        return self.path / "web_base"

    @property
    def audit_key(self) -> Path:
        return self.keys / "audit_ed25519"

    @property
    def initialised(self) -> bool:
        return self.marker.is_file()

    def load_location(self) -> Location:
        """Where this folder's database is: what its first start was told. Raises `io_error` or `usage`."""
        with translated_os_errors(self.database_url):
            try:
                return parse_database_url(self.database_url.read_text())
            except FileNotFoundError:
                return self.database

    def remember_database(self, url: PostgresUrl) -> None:
        """From now on every verb on this folder finds that database. Atomic; 0600."""
        with translated_os_errors(self.database_url):
            write_private_file(self.database_url, url.conninfo + "\n")

    def remember_web_base(self, base: str) -> None:
        """Where browsers reach the server that serves from here, for links that a verb prints later."""
        if base == self.find_web_base():
            return
        with translated_os_errors(self.web_base):
            write_private_file(self.web_base, base + "\n")

    def find_web_base(self) -> str | None:
        """What the last server said; None before the first. For the operator to read, not to be trusted as safe."""
        try:
            return self.web_base.read_text(encoding="utf-8").strip() or None
        except (OSError, UnicodeDecodeError):
            return None

    def load_place(self) -> str:
        """This folder's own name on a database that several servers share: 16 hex digits, drawn once."""
        marker = json.loads(self.marker.read_text())
        place = marker.get("place")
        if not isinstance(place, str) or _PLACE.fullmatch(place) is None:
            place = self._write_marker(None)
        return place

    def keep_place(self, place: str) -> None:
        """For a folder that is being made: it takes the place of one that is gone."""
        if _PLACE.fullmatch(place) is not None:
            self._place = place

    def _write_marker(self, place: str | None) -> str:
        place = place or secrets.token_hex(8)
        with translated_os_errors(self.marker):
            write_private_file(self.marker, json.dumps({"format": FORMAT, "place": place}) + "\n")
        return place

    def take_keys(self, source: Path) -> None:
        """Copy an installation's keys from another data folder's `keys`. Raises `io_error` when one is missing.

        Without the audit's key, where no server has served yet.
        """
        for name in list_installation_keys(source):
            try:
                with (source / name).open("rb") as file:
                    text = file.read(_KEY_BYTES_MAX).decode("ascii")
            except (OSError, UnicodeDecodeError) as error:
                raise RunCodeError(
                    "io_error",
                    f"{source / name} cannot be read",
                    resolution="name the `keys` folder of the server that made this database's installation",
                ) from error
            with translated_os_errors(self.keys):
                write_private_file(self.keys / name, text)

    def require_initialised(self) -> None:
        """For verbs that need a server's data. Raises `not_found`, or `io_error` for a newer format."""
        if not self.initialised:
            raise RunCodeError(
                "not_found",
                f"{self.path} is not a RunCode data folder",
                resolution=f"start the server once: `runcode-server up --data-dir {self.path}`",
            )
        self._check_private()
        self._check_format()

    def _check_format(self) -> None:
        try:
            found = json.loads(self.marker.read_text())["format"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunCodeError(
                "io_error", f"{self.marker} is damaged", resolution="restore the data folder from a backup"
            ) from error
        if found != FORMAT:
            raise RunCodeError(
                "io_error",
                f"{self.path} was written by another version of RunCode (format {found}, this one knows {FORMAT})",
                resolution="run the version that wrote it, or a newer one",
            )
        database = self.database_url if self.database_url.exists() else self.database
        for needed in (*(self.keys / name for name in KEY_NAMES), database):
            # A new one in its place would lock every box and client out, in silence.
            if not needed.is_file():
                raise RunCodeError(
                    "io_error", f"{needed} is missing", resolution="restore the data folder from a backup"
                )

    def _check_owner(self) -> None:
        """Raises `unsafe_path` for somebody else's folder, also for root: its owner could swap it."""
        with translated_os_errors(self.path):
            if not self.path.is_dir():
                return
            owner = self.path.stat().st_uid
        if owner != os.geteuid():
            raise RunCodeError(
                "unsafe_path",
                f"{self.path} belongs to another user (uid {owner})",
                resolution="run this as that user, or name a folder of your own with --data-dir",
            )

    def _check_private(self) -> None:
        """Raises `unsafe_path` when other users may write the folder, or read what is secret in it."""
        self._check_owner()
        for path, forbidden in (
            (self.path, 0o022),
            (self.marker, 0o022),
            (self.keys, 0o077),
            (self.gateway_host_key, 0o077),
            (self.database, 0o077),
            (self.database_url, 0o077),
        ):
            try:
                status = path.lstat() if path != self.path else path.stat()
            except FileNotFoundError:
                continue
            if stat.S_ISLNK(status.st_mode) or status.st_uid != os.geteuid():
                raise RunCodeError(
                    "unsafe_path",
                    f"{path} is a link or belongs to another user (uid {status.st_uid})",
                    resolution="find out who put it there, then restore the data folder from a backup",
                )
            if stat.S_IMODE(status.st_mode) & forbidden:
                fix = f"chmod go-{'w' if forbidden == 0o022 else 'rwx'} {path}"
                raise RunCodeError(
                    "unsafe_path",
                    f"other users may {'write' if forbidden == 0o022 else 'read or write'} {path}",
                    resolution=f"find out who touched it, then `{fix}`",
                )

    # ---------------------------------------------------------------- the lock
    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one server. Raises `busy` when another one does, `io_error` when it cannot be used.

        A folder that this call made is removed again when the body fails before
        anything else stands in it.
        """
        self._check_owner()
        made = not self.path.exists()
        with translated_os_errors(self.path):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
                made = False
                raise RunCodeError(
                    "busy",
                    f"{self.path} is in use by the server with process id {holder or 'unknown'}",
                    resolution="stop that server first, or choose another --data-dir",
                ) from error
            with translated_os_errors(self.path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        except BaseException:
            if made and not self.initialised:
                self.lock_file.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    self.path.rmdir()
            raise
        finally:
            os.close(descriptor)

    def find_server_pid(self) -> int | None:
        """The process id of the server that holds the folder now, or None."""
        try:
            descriptor = os.open(self.lock_file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            return int(text) if text.isdigit() else None
        finally:
            os.close(descriptor)
        return None

    # ---------------------------------------------------------------- the first start
    @contextlib.contextmanager
    def first_start(self, *, min_free_bytes: int | None = None) -> Iterator[DataFolder]:
        """Yields a staging DataFolder to fill; on success its pieces become this one's, the marker last.

        Call with the lock held. On any failure the staging folder is removed and
        nothing of it stands in the data folder.
        """
        with translated_os_errors(self.path):
            self._clear_leftovers()
            needed = FIRST_START_MIN_FREE_BYTES if min_free_bytes is None else min_free_bytes
            free = os.statvfs(self.path)
            if free.f_bavail * free.f_frsize < needed:
                raise RunCodeError(
                    "io_error",
                    f"the disk that holds {self.path} is full",
                    resolution=f"free at least {needed // 2**20} MB there, then start again",
                )
            # A folder that the person made, perhaps open to a group by their umask. It is empty, and ours.
            self.path.chmod(0o700)
            staging = DataFolder(self.path / f"{_STAGING_PREFIX}{secrets.token_hex(4)}")
            try:
                staging.path.mkdir(mode=0o700)
                staging.keys.mkdir(mode=0o700)
                staging.runtimes.mkdir(mode=0o700)
                yield staging
                staging._write_marker(staging._place)
                pieces = sorted(staging.path.iterdir(), key=lambda piece: piece == staging.marker)
                for piece in pieces:
                    os.rename(piece, self.path / piece.name)
                fsync_folder(self.path)
            except BaseException as error:
                if not self.initialised:
                    self._clear_leftovers()
                if isinstance(error, RunCodeError):
                    # A path that is gone by now would only puzzle whoever reads it.
                    message = error.message.replace(str(staging.path), str(self.path))
                    raise RunCodeError(error.code, message, resolution=error.resolution) from error
                raise
            staging.path.rmdir()

    def _clear_leftovers(self) -> None:
        """Make way for a first start. Raises rather than touch anything that one of ours did not leave.

        A first start keeps its staging folder until the marker stands, so only
        beside one of those may a database or keys be half a first start.
        """
        entries = {entry.name for entry in self.path.iterdir()} - {"server.lock", "lost+found"}
        interrupted = any(name.startswith(_STAGING_PREFIX) for name in entries)
        ours = {name for name in entries if name.startswith(_STAGING_PREFIX)}
        if interrupted:
            ours |= entries & {"runcode.db", "runcode.db-wal", "runcode.db-shm", "database.url"}
            ours |= entries & {"keys", "runtimes", "audit", "event-spool", "web_base"}
        if "runcode.db" in entries - ours:
            raise RunCodeError(
                "io_error",
                f"{self.path} holds a database, but {self.marker.name} is missing",
                resolution="restore the whole folder from a backup, or name another one with --data-dir",
            )
        if entries - ours:
            raise RunCodeError(
                "io_error",
                f"{self.path} holds other files ({min(entries - ours)}), so it cannot become a data folder",
                resolution="name an empty or a new folder with --data-dir",
            )
        # The staging folders last: while one stands, another try may clear the rest.
        for name in sorted(ours, key=lambda name: name.startswith(_STAGING_PREFIX)):
            entry = self.path / name
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def is_key_name(name: str) -> bool:
    """Is it one of those that an installation may have?"""
    return name in (*KEY_NAMES, *AUDIT_KEY_NAMES) or _ROTATED_KEY.fullmatch(name) is not None


def list_installation_keys(keys: Path) -> list[str]:
    """What servers of one installation share: those that it always has, and what else is there of the others."""
    found = list(KEY_NAMES)
    with contextlib.suppress(OSError):
        found += sorted(path.name for path in keys.iterdir() if _ROTATED_KEY.fullmatch(path.name))
    # Half of the audit's key is none.
    if all((keys / name).is_file() for name in AUDIT_KEY_NAMES):
        found += AUDIT_KEY_NAMES
    return found


@contextlib.contextmanager
def translated_os_errors(path: Path) -> Iterator[None]:
    """OSError → RunCodeError with the fix a person can apply; RunCodeError passes."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message, fix = f"the disk that holds {path} is full", "free space there, then start again"
        elif error.errno == errno.EROFS:
            message, fix = f"{path} is on a read-only file system", "name a writable folder with --data-dir"
        elif error.errno in (errno.EACCES, errno.EPERM):
            message, fix = f"{path} is not writable for this user", "name a folder of your own with --data-dir"
        elif error.errno in (errno.ENOTDIR, errno.EEXIST):
            message, fix = f"{path} is not a folder", "name a folder with --data-dir"
        else:
            message, fix = f"{path} cannot be used: {error.strerror}", "check the folder, then start again"
        raise RunCodeError("io_error", message, resolution=fix) from error


def write_private_file(path: Path, text: str) -> None:
    """Write a 0600 file atomically: under its name stands the old content or the whole new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def fsync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
