"""HTTP in and out only: no rule lives here."""
