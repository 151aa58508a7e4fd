"""What a failing Postgres means to a person.

Owns: the translation of psycopg's errors into RunCodeError, by SQLSTATE where the
server gave one. No raw text of a driver goes further: libpq's quotes users and
addresses, the server's quotes values. Called by `postgres_database` only.

Source: postgresql.org/docs/current/errcodes-appendix.html.
"""

from __future__ import annotations

from runcode.core.errors import RunCodeError

_WAIT = "wait until it is back; RunCode goes on by itself"
# What libpq says before a session exists comes without SQLSTATE. English, or not recognised: then the general line.
_CONNECTING = (
    ("password authentication failed", "it refused the user or the password", "correct the database URL"),
    ("no password supplied", "it wants a password", "put one into the database URL (see docs/operations.md)"),
    ("no pg_hba.conf entry", "it lets this user or machine not in", "add this machine to the server's pg_hba.conf"),
    ("does not exist", "it has no such database or user", "make both: `createuser`, `createdb --encoding UTF8`"),
    ("could not translate host name", "its name is unknown here", "correct the host in the database URL"),
    ("certificate", "its certificate is not trusted", "see sslmode and sslrootcert of the database URL"),
    ("starting up", "it is starting", _WAIT),
    ("shutting down", "it is shutting down", _WAIT),
    ("in recovery mode", "it recovers from a crash", _WAIT),
    ("session is read-only", "only a read-only standby answers", "name the primary in the database URL"),
    ("too many clients", "it has no connection left", "raise its max_connections, or end other clients"),
    ("remaining connection slots", "it has no connection left", "raise its max_connections, or end other clients"),
)


def explain(error: BaseException, shown: str) -> RunCodeError:
    """`error` is psycopg's own; `shown` names the database without a password."""
    state = getattr(error, "sqlstate", None)
    if not isinstance(state, str):
        return _explain_connection(error, shown)
    if state in ("40001", "40P01", "55P03"):
        return RunCodeError("busy", f"the database {shown} is held by another process", resolution="retry in a moment")
    if state == "57014":
        return RunCodeError(
            "timed_out",
            f"the database {shown} did not answer in time",
            resolution="retry; if it stays so, look at what holds it: `runcode-server database status`",
        )
    if state == "25006":
        return standby(shown)
    if state == "53100":
        return RunCodeError(
            "io_error", f"the disk of the database server {shown} is full", resolution="free some space there"
        )
    if state.startswith("53"):
        return down(shown, "it has no connection or memory left", "raise its limits, or end other clients")
    if state.startswith(("08", "57P")) or state in ("25P03", "25P04"):
        return down(shown, "the connection to it was ended", _WAIT)
    if state.startswith("28") or state == "3D000":
        return down(shown, "it refused the user, the password or the database", "correct the database URL")
    if state == "42501":
        return RunCodeError(
            "io_error",
            f"the database user may not do that in {shown}",
            resolution="make it the owner of that database: `ALTER DATABASE … OWNER TO …`",
        )
    if state.startswith(("XX", "58")):
        return RunCodeError(
            "io_error",
            f"the database server {shown} reports damage or a failing disk",
            resolution="look at that server's log first; restore a backup if it says so",
        )
    return RunCodeError("internal", "the database refused a statement")


def down(shown: str, why: str, resolution: str = _WAIT) -> RunCodeError:
    return RunCodeError("database_down", f"the database {shown} cannot be used: {why}", resolution=resolution)


def standby(shown: str) -> RunCodeError:
    return RunCodeError(
        "database_down",
        f"the database {shown} is a read-only standby",
        resolution="name the primary in the database URL (`?target_session_attrs=read-write` finds it among several)",
    )


def foreign(shown: str) -> RunCodeError:
    return RunCodeError(
        "io_error",
        f"the database {shown} holds tables of another program",
        resolution="name an empty database (`createdb --encoding UTF8 runcode`); RunCode has left it as it was",
    )


def unprepared(shown: str) -> RunCodeError:
    return RunCodeError(
        "io_error",
        f"the database {shown} is empty",
        resolution="start the server once, or restore a backup: `runcode-server restore`",
    )


def older(shown: str) -> RunCodeError:
    return RunCodeError(
        "io_error",
        f"the database {shown} was written by an older RunCode and is not upgraded yet",
        resolution="back it up with the old version, stop every server on it, then start one of this version",
    )


def newer(shown: str) -> RunCodeError:
    return RunCodeError(
        "io_error",
        f"the database {shown} was written by a newer RunCode",
        resolution="run that newer version, or restore a backup into another database; this one is as it was",
    )


def served(shown: str) -> RunCodeError:
    return RunCodeError(
        "busy",
        f"other servers run on the database {shown}, and its schema must change",
        resolution="stop all of them (`runcode-server database status` lists them), then start this one first",
    )


def damaged(shown: str, what: str) -> RunCodeError:
    return RunCodeError(
        "io_error",
        f"the database {shown} is not whole: {what}",
        resolution="restore a backup into an empty database; RunCode has left this one as it was",
    )


def _explain_connection(error: BaseException, shown: str) -> RunCodeError:
    said = str(error)
    for words, why, resolution in _CONNECTING:
        if words in said:
            return down(shown, why, resolution)
    return down(shown, "no connection to it", f"start it, or correct the database URL; else {_WAIT}")
