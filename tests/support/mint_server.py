"""A server that only mints, in a process of its own that a test may kill: `python -m support.mint_server FOLDER`.

Prints its port and a token that may use workspace 1. The folder holds its database.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from support.controlplane_fakes import mark_running, open_plane, serve, set_endpoint

OWNER = "ann@example.org"


async def main(folder: Path) -> None:
    async with open_plane(folder) as plane:
        await plane.users.create_user(OWNER)
        box = await plane.workspaces.create_workspace("box", OWNER, runtime="fake")
        await mark_running(plane, "box")
        set_endpoint(plane)
        token = await plane.tokens.create_token(OWNER, "laptop")
        async with serve(plane) as server:
            print(json.dumps({"port": server.port, "token": token.plaintext, "workspace": box.id}), flush=True)
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
