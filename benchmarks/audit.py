"""What the audit costs when there is much of it: appends, and pages of the timeline, at 1,000 and at 1,000,000 records.

Both databases are made here, in a temporary folder, straight in SQL (a minute for the large one), with one workspace
that has most of the records. `python benchmarks/audit.py`, or `make bench-audit`.
"""

from __future__ import annotations

import asyncio
import datetime
import itertools
import json
import secrets
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from runcode.controlplane.audit_format import COLUMNS, hash_record  # noqa: E402
from runcode.controlplane.plane import ControlPlane  # noqa: E402
from runcode.controlplane.services.audit_statements import load_or_make_signer  # noqa: E402
from runcode.controlplane.services.audit_verification import verify  # noqa: E402
from runcode.controlplane.services.events import NewEvent  # noqa: E402
from runcode.controlplane.services.timeline import TimelineFilter  # noqa: E402
from support.controlplane_fakes import START, open_plane  # noqa: E402

OWNER = "ann@example.org"
RUNS = 40
BATCH = 50


def _make_rows(count: int, first: int, last: str) -> Iterator[dict[str, Any]]:
    """Starts and ends of commands, 20 a session; one in ten in another workspace."""
    detail = {"form": "exec", "text": "runcode exec -- pytest -q tests/unit", "ours": 1, "text_bytes": 900}
    ended = {"form": "exec", "outcome": "finished", "exit_status": 0, "bytes_up": 3, "bytes_down": 4000}
    for number in range(first, first + count):
        pair, is_end = divmod(number, 2)
        moment = START + datetime.timedelta(seconds=number)
        row: dict[str, Any] = {
            "id": number,
            "gateway": "embedded",
            "subject_id": f"{pair:032x}",
            "phase": "end" if is_end else "start",
            "kind": "command",
            "at": moment,
            "recorded_at": moment,
            "started_at": moment if is_end else None,
            "connection_id": f"{pair // 20:032x}",
            "workspace_id": 2 if pair % 10 == 0 else 1,
            "session_id": pair // 20,
            "user_id": 1,
            "detail": ended if is_end else detail,
        }
        last = row["hash"] = hash_record(last, row)
        yield row


def _fill(database: Path, count: int) -> None:
    connection = sqlite3.connect(database)
    head, last = connection.execute("SELECT count, hash FROM audit_chain").fetchone()
    names = (*COLUMNS, "hash")
    statement = f"INSERT INTO events ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
    rows = _make_rows(count, head + 1, last)
    with connection:
        while chunk := list(itertools.islice(rows, 5000)):
            connection.executemany(statement, [[_as_stored(row[name]) for name in names] for row in chunk])
            last = chunk[-1]["hash"]
        connection.execute("UPDATE audit_chain SET count = ?, hash = ?", (head + count, last))
    connection.close()


def _as_stored(value: Any) -> Any:
    if isinstance(value, datetime.datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S.%f")
    return json.dumps(value) if isinstance(value, dict) else value


async def _median_ms(act: Callable[[], Awaitable[object]]) -> float:
    await act()
    taken = []
    for _ in range(RUNS):
        began = time.perf_counter()
        await act()
        taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken)


async def _measure(folder: Path, count: int) -> dict[str, float]:
    async with open_plane(folder) as plane:
        await plane.users.create_user(OWNER)
        for title in ("royal-1", "other-1"):
            await plane.workspaces.create_workspace(title, OWNER, runtime="fake")
        token = (await plane.tokens.create_token(OWNER, "bench")).plaintext
    _fill(folder / "runcode.db", count)
    async with open_plane(folder) as plane:
        return await _measure_plane(plane, token, count)


async def _measure_plane(plane: ControlPlane, token: str, count: int) -> dict[str, float]:
    caller = await plane.tokens.authenticate(token)

    async def append() -> None:
        events = [
            NewEvent("command", "start", secrets.token_hex(16), START, {"form": "exec", "text": "true"}, workspace_id=1)
            for _ in range(BATCH)
        ]
        await plane.events.record("bench", events)

    def page(**wanted: Any) -> Callable[[], Awaitable[object]]:
        return lambda: plane.timeline.list_workspace(caller, 1, TimelineFilter(**wanted))

    found = {
        "page": await _median_ms(page()),
        "page, from the middle": await _median_ms(page(before=count // 2)),
        "page of a kind": await _median_ms(page(kind="command")),
        "page of a kind that is rare": await _median_ms(page(kind="forward")),
        "page of a session": await _median_ms(page(session_id=count // 80)),
        "page of one's own": await _median_ms(lambda: plane.timeline.list_own(caller, TimelineFilter())),
        f"append of {BATCH}": await _median_ms(append),
    }
    began = time.perf_counter()
    report = await verify(plane.store, load_or_make_signer(plane.settings.audit_key), None)
    assert report.ok, report.findings[:3]
    found["verify, per 1,000"] = (time.perf_counter() - began) * 1000 / (report.records / 1000)
    return found


def main() -> None:
    large = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory(prefix="rc-bench-audit-") as name:
        folders = {1000: Path(name) / "small", large: Path(name) / "large"}
        measured = {}
        for count, folder in folders.items():
            folder.mkdir()
            began = time.perf_counter()
            measured[count] = asyncio.run(_measure(folder, count))
            print(f"{count} records: {time.perf_counter() - began:.0f} s in all", file=sys.stderr, flush=True)
        size = (folders[large] / "runcode.db").stat().st_size
    print(f"| median of {RUNS}, ms | at 1,000 | at {large:,} | ratio |\n|---|---:|---:|---:|")
    for what, small_ms in measured[1000].items():
        large_ms = measured[large][what]
        print(f"| {what} | {small_ms:.1f} | {large_ms:.1f} | {large_ms / small_ms:.2f} |")
    print(f"\n{size / large:.0f} bytes a record on disk, indexes included")


if __name__ == "__main__":
    main()
