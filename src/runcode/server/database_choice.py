"""Which database a server uses: named once, to `up` or `restore`, and remembered in the data folder.

Owns: the three ways to name a Postgres server, and their precedence. Called by
`main`'s options; what is remembered is `DataFolder`'s.

Threat: other users of the machine read a process list (`ps`), and children inherit
an environment.
Guarantee: a password on the command line is refused; the variable is taken out of
the environment before anything else is started.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

from runcode.controlplane.store.location import PostgresUrl, parse_database_url
from runcode.core.errors import RunCodeError

VARIABLE = "RUNCODE_DATABASE_URL"
_URL_MAX = 16 * 1024


def find_named_database(
    url: str | None, file: str | None, environment: MutableMapping[str, str] = os.environ
) -> PostgresUrl | None:
    """`--database` or `--database-file`, else the variable; None: nothing is named. Raises `usage`, `io_error`."""
    inherited = environment.pop(VARIABLE, None)
    if url is not None and file is not None:
        raise RunCodeError("usage", "--database and --database-file name two databases", resolution="name one of them")
    if url is not None:
        named = parse_database_url(url)
        if named.has_password:
            raise RunCodeError(
                "usage",
                "every user of this machine can read a password on the command line",
                resolution=f"put the URL into a 0600 file and name it with --database-file, or set {VARIABLE}",
            )
        return named
    if file is not None:
        return parse_database_url(_read_url(Path(file)))
    return parse_database_url(inherited) if inherited else None


def _read_url(path: Path) -> str:
    try:
        with path.open("rb") as opened:
            raw = opened.read(_URL_MAX + 1)
        text = raw.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise RunCodeError(
            "io_error", f"{path} cannot be read as a database URL", resolution="write the URL into it, as its one line"
        ) from error
    if len(raw) > _URL_MAX or len(text.split()) != 1:
        raise RunCodeError(
            "usage", f"{path} does not hold one URL", resolution="write the URL into it, as its one line"
        )
    return text
