"""What Alembic runs: our tables, on the connection that `store.migrate` hands over."""

from __future__ import annotations

from alembic import context

from runcode.controlplane.store.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite cannot alter most columns in place: Alembic then copies the table.
    render_as_batch=True,
)
context.run_migrations()
