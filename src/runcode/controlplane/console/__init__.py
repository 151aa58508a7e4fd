"""Server-rendered pages. Grows with issue 6."""
