"""Bring a database to this version's schema, from wherever the package is installed.

Owns: the way to Alembic. Alembic itself is imported only when something is to be
migrated, since it costs 0.1 s that the operator's verbs need not pay.

Guarantee: all steps run in the caller's one transaction, so a failed migration
leaves the database as it was.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection

SCHEMA_HEAD = "0010"
# Every revision that this version can start from; a test keeps both in step with `migrations/versions`.
KNOWN_REVISIONS = frozenset({"0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009", "0010"})
MIGRATIONS_FOLDER = Path(__file__).with_name("migrations")


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run the missing migrations on `connection`, whose transaction the caller ends."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    # configparser reads `%` as interpolation.
    config.set_main_option("script_location", str(MIGRATIONS_FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
