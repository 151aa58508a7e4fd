"""The MCP server `runcode mcp`, and putting it into agents' and editors' settings.

`command` starts it; `server` speaks the protocol (the only place of the client half
that imports anything outside the standard library); every call runs in a process of
its own (`worker`), on the client's own code.
"""
