"""What coding agents touch: hooks, MCP server, status line, installers. Grows with issue 5."""
