"""SQLAlchemy models, sessions and Alembic migrations: SQLite or Postgres."""
