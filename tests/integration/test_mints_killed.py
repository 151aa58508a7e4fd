"""kill -9 in the middle of many mints: what was answered is in the database, whole, and nothing is half there."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

from support.controlplane_fakes import make_client_key

TESTS = Path(__file__).resolve().parent.parent
_CALLERS = 12
_ANSWERED_MIN = 60


def _mint_until_it_dies(facts: dict[str, object], answered: list[tuple[int, str]]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", int(str(facts["port"])), timeout=20)
    headers = {"Authorization": f"Token {facts['token']}"}
    try:
        while True:
            key = make_client_key()
            body = json.dumps({"public_key": key})
            connection.request("POST", f"/api/rc/workspace/{facts['workspace']}/ssh-session", body, headers)
            response = connection.getresponse()
            raw = response.read()
            if response.status == 200:
                answered.append((json.loads(raw)["bundle"]["session_id"], " ".join(key.split()[:2])))
    except (OSError, http.client.HTTPException):
        return
    finally:
        connection.close()


async def test_no_mint_that_was_answered_is_lost_when_the_server_is_killed(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "support.mint_server", str(tmp_path)],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    try:
        assert process.stdout is not None
        facts = json.loads(await asyncio.to_thread(process.stdout.readline))
        answered: list[tuple[int, str]] = []
        callers = [
            threading.Thread(target=_mint_until_it_dies, args=(facts, answered), daemon=True) for _ in range(_CALLERS)
        ]
        for caller in callers:
            caller.start()
        while len(answered) < _ANSWERED_MIN and process.poll() is None:
            await asyncio.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        for caller in callers:
            await asyncio.to_thread(caller.join, 30)
            assert not caller.is_alive()
    finally:
        process.kill()
        process.wait()
    assert len(answered) >= _ANSWERED_MIN
    database = sqlite3.connect(tmp_path / "runcode.db")
    try:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        stored = dict(database.execute("SELECT id, public_key FROM sessions").fetchall())
        noted = database.execute("SELECT session_id FROM events WHERE kind = 'session_minted'").fetchall()
    finally:
        database.close()
    assert {session_id: stored.get(session_id) for session_id, _ in answered} == dict(answered)
    # A session and its record come and go together; those of the last round may have no answer.
    assert sorted(session_id for (session_id,) in noted) == sorted(stored)
    assert len(stored) - len(answered) <= _CALLERS
