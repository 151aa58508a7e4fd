"""What clients may do on their connections: for each workspace, and for each token."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workspaces", sa.Column("policy", sa.JSON()))
    op.add_column("api_tokens", sa.Column("policy", sa.JSON()))
