"""One module a schema step. A released one is never edited."""
