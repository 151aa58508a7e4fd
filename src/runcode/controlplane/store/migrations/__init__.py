"""Alembic migrations. Inside the package, so that an installed wheel can run them."""
