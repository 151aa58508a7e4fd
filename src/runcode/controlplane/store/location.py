"""Where the control plane's database is: a file of SQLite's, or a Postgres server's, by URL.

Owns: reading an operator's database URL, and how it is shown: without a password.
Called by the composition root, and by `engine`.

Threat: a password in a process list, a log or an error.
Guarantee: the URL itself stands in no `repr` and in no message; `shown` is built
from the server's name, port and database only.

Source: libpq's connection URIs (postgresql.org/docs/current/libpq-connect.html).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from runcode.core.errors import RunCodeError

SCHEMES = ("postgresql://", "postgres://")
_EXAMPLE = "write it as postgresql://USER@HOST:5432/DATABASE"


@dataclass(frozen=True)
class PostgresUrl:
    """Made by `parse_database_url`. `conninfo` is for libpq alone, and may hold a password."""

    conninfo: str = field(repr=False)
    shown: str
    has_password: bool = False


# A path is SQLite's file.
Location = Path | PostgresUrl


def parse_database_url(raw_url: str) -> PostgresUrl:
    """A URL that libpq takes, multi-host and `?sslmode=…` included. Raises `usage`, never quoting it."""
    text = raw_url.strip()
    if not text.startswith(SCHEMES):
        raise RunCodeError("usage", "the database URL is not one of Postgres", resolution=_EXAMPLE)
    parts = _parse(text)
    hosts = str(parts.get("host") or parts.get("hostaddr") or "localhost").split(",")
    ports = str(parts.get("port") or "5432").split(",")
    places = [
        host if host.startswith("/") else f"{host}:{(ports[number] if number < len(ports) else ports[-1]) or '5432'}"
        for number, host in enumerate(hosts)
    ]
    if not parts.get("dbname"):
        raise RunCodeError("usage", "the database URL names no database", resolution=_EXAMPLE)
    return PostgresUrl(
        conninfo=text,
        shown=f"{','.join(places)}/{parts['dbname']}",
        has_password=bool(parts.get("password") or parts.get("sslpassword")),
    )


def _parse(text: str) -> dict[str, object]:
    try:
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict
    except ImportError as error:
        raise RunCodeError(
            "missing_program",
            "the driver for Postgres is not installed here (psycopg)",
            resolution="install it: `pip install 'runcode[server,postgres]'`",
        ) from error
    try:
        return dict(conninfo_to_dict(text))
    except ProgrammingError as error:
        # libpq's own text quotes the URL.
        raise RunCodeError("usage", "the database URL cannot be read", resolution=_EXAMPLE) from error
