"""Rounds of kill -9 on control planes that share a database, and what must be true of it after each one.

A Campaign is one database (SQLite with one server process, or Postgres with two),
a runtime whose boxes are files, and processes that mint, revoke, start and stop as
fast as they can and write down what was answered. `play(n)` kills one of them, or the
database server itself, at a moment chosen by the seed and n, starts again what an init
system would, waits until everything is reconciled, and reads the books against the
database. Used by `make store-chaos` (many rounds) and by the contract test (a few).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from runcode.controlplane import changes
from runcode.controlplane.audit_checkpoints import CheckpointPolicy
from runcode.controlplane.changes import ChangeFeed
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.reconciler import Reconciler, Timing
from runcode.controlplane.records import Caller
from runcode.controlplane.services import audit
from runcode.controlplane.services.audit_statements import load_verifier
from runcode.controlplane.services.audit_verification import verify
from runcode.controlplane.services.events import NewEvent
from runcode.controlplane.states import RUNNING
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.location import Location, PostgresUrl, parse_database_url
from runcode.controlplane.store.models import ChangeRow, EventRow, HostKeyRow, SessionRow, WorkspaceRow
from runcode.core.errors import RunCodeError
from runcode.runtimes.base import (
    Capabilities,
    Checkpoint,
    Observation,
    ObservedState,
    UnixEndpoint,
    WorkspaceSpec,
)
from support.controlplane_fakes import make_client_key, open_plane, set_endpoint
from support.postgres import Cluster

_OWNER = "ann@example.org"
_TITLES = tuple(f"box-{number}" for number in range(5))
_TIMING = Timing(survey_s=0.1, inspect_s=5.0, step_s=10.0)
# Generous: these only end a hang.
_SETTLE_S = 60.0
# Forked from a process that has imported all this: a start costs milliseconds.
_context = multiprocessing.get_context("forkserver")


class FileRuntime:
    """Boxes that are files in a folder, seen by every process; what is done twice is written down."""

    name = "file"
    capabilities = Capabilities(sudo=True, outbound_network=False, limits=False, bound_to_machine=False)

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find_obstacle(self) -> str | None:
        return None

    async def create(self, spec: WorkspaceSpec) -> None:
        (self._folder / f"made-{spec.workspace_id}").touch()

    async def start(self, spec: WorkspaceSpec) -> AsyncIterator[Checkpoint]:
        for step in ("storage", "process"):
            await asyncio.sleep(random.uniform(0, 0.02))
            yield Checkpoint(step=step, record={"pid": os.getpid()})
        try:
            os.close(os.open(self._box(spec.workspace_id), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            self._fault(f"workspace {spec.workspace_id} was started while it ran")

    async def stop(self, workspace_id: int) -> None:
        await asyncio.sleep(random.uniform(0, 0.01))
        self._box(workspace_id).unlink(missing_ok=True)

    async def destroy(self, workspace_id: int) -> None:
        (self._folder / f"made-{workspace_id}").unlink(missing_ok=True)

    async def inspect(self, workspace_id: int) -> Observation:
        if self._box(workspace_id).exists():
            return Observation(ObservedState.RUNNING, UnixEndpoint(f"/run/{workspace_id}.sock"))
        made = (self._folder / f"made-{workspace_id}").exists()
        return Observation(ObservedState.STOPPED if made else ObservedState.ABSENT)

    async def close(self) -> None:
        return None

    def _box(self, workspace_id: int) -> Path:
        return self._folder / f"box-{workspace_id}"

    def _fault(self, text: str) -> None:
        _note(self._folder / "faults", text)


async def _verify_audit(store: Store, folder: Path) -> list[str]:
    """What `audit verify` says of the chain, by the checkpoints of each server that ran."""
    verifier = load_verifier(folder / "keys" / "audit_ed25519.pub")
    faults = []
    for path in sorted(folder.glob("checkpoints-*")):
        found = await verify(store, verifier, path)
        faults += [f"audit, {path.name}: {finding.code}: {finding.message}" for finding in found.findings]
        if found.checkpoints == 0:
            faults.append(f"audit, {path.name}: no checkpoint was believed")
    return faults or ([] if list(folder.glob("checkpoints-*")) else ["audit: no server wrote a checkpoint"])


# More that must be true of a database at rest, each (store, the campaign's folder) → faults.
VERIFIERS: list[Callable[[Store, Path], Awaitable[list[str]]]] = [_verify_audit]


def _note(path: Path, value: object) -> None:
    """One line, whole, also when the next instant kills us."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, json.dumps(value).encode() + b"\n")
    finally:
        os.close(descriptor)


def _read_notes(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# ------------------------------------------------------------------ what runs in processes of its own


def _locate(named: str) -> Location:
    return parse_database_url(named) if named.startswith("postgresql:") else Path(named)


async def _patiently(open_it: Callable[[], Awaitable[Any]]) -> Any:
    """As an init system does: again, until the database is back."""
    while True:
        try:
            return await open_it()
        except RunCodeError as error:
            if error.code not in ("busy", "database_down"):
                raise
            await asyncio.sleep(0.05)


async def _serve(folder: Path, named: str, place: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        # As often as it can, so that kills meet it: half-written lines, a head that was signed and then grew.
        checkpoints = CheckpointPolicy(
            folder / f"checkpoints-{place}", every_records=10, every_s=0.2, look_every_s=0.02
        )
        plane: ControlPlane = await _patiently(
            lambda: stack.enter_async_context(open_plane(folder, database=_locate(named), checkpoints=checkpoints))
        )
        reconciler = Reconciler(
            plane.store,
            ChangeFeed(plane.store, poll_s=0.05),
            {"file": FileRuntime(folder / "boxes")},
            workspace_ca=plane.certificates.workspace_ca_line,
            clock=plane.clock,
            timing=_TIMING,
            place=place,
        )
        await _patiently(reconciler.start)
        plane.checkpoints.start()
        _note(folder / "up", place)
        async for batch in plane.changes.watch():
            if not batch.empty:
                told = {"cursor": batch.cursor, "sessions": sorted(batch.session_ids), "everything": batch.everything}
                _note(folder / f"feed-{place}", told)


async def _load(folder: Path, named: str, number: int, seed: str) -> None:
    rng = random.Random(f"{seed}:{number}")
    books = folder / f"books-{number}"
    mine: list[int] = []
    async with open_plane(folder, database=_locate(named)) as plane:
        set_endpoint(plane)
        caller = await plane.tokens.authenticate((folder / "token").read_text())
        ids = [workspace.id for workspace in await plane.workspaces.list_all() if workspace.title in _TITLES]
        while True:
            try:
                await _act(plane, caller, rng, ids, mine, books)
            except RunCodeError as error:
                _note(books, ["refused", error.code])
                await asyncio.sleep(0.01)


async def _act(
    plane: ControlPlane, caller: Caller, rng: random.Random, ids: list[int], mine: list[int], books: Path
) -> None:
    draw = rng.random()
    if draw < 0.4:
        key = make_client_key()
        grant = await plane.sessions.register_session(caller, rng.choice(ids), raw_public_key=key, raw_client="load")
        _note(books, ["mint", grant.session.id, grant.session.fingerprint])
        mine.append(grant.session.id)
    elif draw < 0.6 and mine:
        session_id = mine.pop(rng.randrange(len(mine)))
        await plane.sessions.revoke_session(session_id)
        _note(books, ["revoke", session_id])
    elif draw < 0.75:
        await plane.workspaces.request_start(rng.choice(ids))
    elif draw < 0.85:
        await plane.workspaces.request_stop(rng.choice(ids))
    elif draw < 0.92:
        title = f"brief-{os.getpid()}-{rng.randrange(10**9)}"
        made = await plane.workspaces.create_workspace(title, _OWNER, runtime="file")
        _note(books, ["create", made.id])
        await plane.workspaces.request_start(made.id)
        await plane.workspaces.delete_workspace(made.id)
        _note(books, ["delete", made.id])
    else:
        subject = f"{rng.getrandbits(128):032x}"
        event = NewEvent(kind="command", phase="start", subject_id=subject, at=plane.clock.now(), detail={"text": "x"})
        await plane.events.record("embedded", [event])
        _note(books, ["event", subject])


def _run_server(folder: str, named: str, place: str) -> None:
    asyncio.run(_serve(Path(folder), named, place))


def _run_load(folder: str, named: str, number: int, seed: str) -> None:
    asyncio.run(_load(Path(folder), named, number, seed))


def _warm_up() -> None:
    """CPython 3.11's fork server preloads by the path of a fresh interpreter only, and says nothing if that fails."""
    kept = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    try:
        _context.set_forkserver_preload([__name__])
        forkserver.ensure_running()
    finally:
        if kept is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = kept


# ------------------------------------------------------------------ the rounds


@dataclass
class Outcome:
    number: int
    victim: str
    settled_s: float = 0.0
    faults: list[str] = field(default_factory=list)


class Campaign:
    """Made by `open`; ends with `close`."""

    def __init__(self, seed: int, *, postgres: bool) -> None:
        self.seed = seed
        self.folder = Path(tempfile.mkdtemp(prefix="rs-", dir="/tmp"))
        self.cluster = Cluster() if postgres else None
        self.places = ("a" * 16, "b" * 16) if postgres else ("a" * 16,)
        self.named = str(self.folder / "runcode.db")
        self.location: Location = self.folder / "runcode.db"
        self.servers: dict[str, ForkServerProcess] = {}
        self.counts: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()

    async def open(self) -> Campaign:
        _warm_up()
        (self.folder / "boxes").mkdir()
        if self.cluster is not None:
            url: PostgresUrl = self.cluster.make().make_database()
            self.named, self.location = url.conninfo, url
        async with open_plane(self.folder, database=self.location) as plane:
            await plane.users.create_user(_OWNER)
            token = await plane.tokens.create_token(_OWNER, "load")
            (self.folder / "token").write_text(token.plaintext)
            for title in _TITLES:
                await plane.workspaces.create_workspace(title, _OWNER, runtime="file")
                await plane.workspaces.request_start(title)
        for place in self.places:
            self._start_server(place)
        await self._settle()
        return self

    def close(self) -> None:
        for process in self.servers.values():
            process.kill()
            process.join()
        if self.cluster is not None:
            self.cluster.remove()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start_server(self, place: str) -> None:
        process = _context.Process(target=_run_server, args=(str(self.folder), self.named, place), daemon=True)
        process.start()
        self.servers[place] = process

    @property
    def victims(self) -> tuple[str, ...]:
        return ("server", "load", "everything") + (
            ("database", "server", "database and servers") if self.cluster else ()
        )

    async def play(self, number: int, victim: str | None = None) -> Outcome:
        rng = random.Random(f"{self.seed}:{number}")
        outcome = Outcome(number, victim or rng.choice(self.victims))
        loads = [
            _context.Process(
                target=_run_load, args=(str(self.folder), self.named, n, f"{self.seed}:{number}"), daemon=True
            )
            for n in range(3)
        ]
        for process in loads:
            process.start()
        await self._until_loaded()
        await asyncio.sleep(rng.uniform(0.0, 0.6))
        await self._strike(outcome.victim, loads, rng)
        await asyncio.sleep(rng.uniform(0.0, 0.2))
        for process in loads:
            # Also a kill -9: what they had answered is in their books.
            process.kill()
            process.join()
        began = time.monotonic()
        for place, process in self.servers.items():
            if not process.is_alive():
                self._start_server(place)
        outcome.faults += await self._settle()
        outcome.settled_s = time.monotonic() - began
        outcome.faults += await self._judge()
        return outcome

    async def _until_loaded(self) -> None:
        """The books of every load have grown: the kill meets work, not imports."""
        before = {n: len(_read_notes(self.folder / f"books-{n}")) for n in range(3)}
        deadline = time.monotonic() + 2 * _SETTLE_S
        while any(len(_read_notes(self.folder / f"books-{n}")) == before[n] for n in before):
            assert time.monotonic() < deadline, "the load did not begin"
            await asyncio.sleep(0.02)

    async def _strike(self, victim: str, loads: list[ForkServerProcess], rng: random.Random) -> None:
        doomed: list[ForkServerProcess] = []
        if victim in ("everything", "database and servers"):
            doomed += self.servers.values()
        elif victim == "server":
            doomed.append(self.servers[rng.choice(self.places)])
        if victim in ("everything", "load"):
            doomed += loads
        for process in doomed:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
        if victim.startswith("database"):
            assert self.cluster is not None
            await asyncio.to_thread(self.cluster.kill)
            await asyncio.sleep(rng.uniform(0.0, 0.3))
            await asyncio.to_thread(self.cluster.start)
        for process in doomed:
            process.join()

    async def _settle(self) -> list[str]:
        """Until what is wanted, what is told and what is true are one, and nobody works on anything."""
        deadline = time.monotonic() + _SETTLE_S
        store = await _patiently(lambda: Store.open(self.location))
        try:
            while True:
                with contextlib.suppress(RunCodeError):
                    unsettled = await self._find_unsettled(store)
                    if not unsettled:
                        return []
                if time.monotonic() > deadline:
                    return [f"not reconciled within {_SETTLE_S:.0f} s: {unsettled[:3]}"]
                await asyncio.sleep(0.05)
        finally:
            await store.close()

    async def _find_unsettled(self, store: Store) -> list[str]:
        async with store.read() as session:
            rows = list(await session.scalars(select(WorkspaceRow)))
        found = []
        for row in rows:
            true = (self.folder / "boxes" / f"box-{row.id}").exists()
            wanted = row.deleted_at is None and row.desired_state == RUNNING
            told = row.deleted_at is None and row.observed_state == RUNNING
            at_rest = row.activity is None and row.lease_owner is None
            if row.desired_state == "deleted" and row.deleted_at is None:
                at_rest = False
            if not (true == wanted == told and at_rest):
                found.append(f"{row.title}: wanted {wanted}, told {told}, true {true}, {row.activity}, {row.reason}")
        return found

    async def _judge(self) -> list[str]:
        """The books against the database: nothing that was answered is lost, nothing is there twice."""
        faults = [str(line) for line in _read_notes(self.folder / "boxes" / "faults")]
        (self.folder / "boxes" / "faults").unlink(missing_ok=True)
        books = [entry for n in range(3) for entry in _read_notes(self.folder / f"books-{n}")]
        self.counts = Counter(entry[0] for entry in books)
        self.refusals = Counter(entry[1] for entry in books if entry[0] == "refused")
        store = await Store.open(self.location, verify=True)
        try:
            async with store.read() as session:
                sessions = {row.id: row for row in await session.scalars(select(SessionRow))}
                feed = list(await session.scalars(select(ChangeRow).order_by(ChangeRow.id)))
                workspaces = {row.id: row for row in await session.scalars(select(WorkspaceRow))}
                keys = set(await session.scalars(select(HostKeyRow.workspace_id)))
                subjects = set(await session.scalars(select(EventRow.subject_id).where(EventRow.kind == "command")))
                minted = await session.scalar(
                    select(func.count(EventRow.id)).where(EventRow.kind == audit.SESSION_MINTED)
                )
            revocations = {row.id: row.session_id for row in feed if row.kind == changes.SESSION_REVOKED}
            revoked = Counter(row.session_id for row in feed if row.kind == changes.SESSION_REVOKED)
            for entry in books:
                faults += self._check_entry(entry, sessions, revoked, workspaces, subjects)
            held = Counter(row.fingerprint for row in sessions.values() if row.released_at is None)
            faults += [f"{count} sessions hold one key" for count in held.values() if count > 1]
            faults += [f"{count} changes tell of one revocation" for count in revoked.values() if count > 1]
            if minted != len(sessions):
                faults.append(f"{len(sessions)} sessions, {minted} records of a mint")
            live = {number for number, row in workspaces.items() if row.deleted_at is None}
            if keys != live:
                faults.append(f"host keys without a workspace, or the reverse: {keys ^ live}")
            for place in self.places:
                faults += await self._check_feed(place, revocations)
            for verify_more in VERIFIERS:
                faults += await verify_more(store, self.folder)
        finally:
            await store.close()
        return faults

    def _check_entry(
        self,
        entry: list[Any],
        sessions: dict[int, SessionRow],
        revoked: Counter[int | None],
        workspaces: dict[int, WorkspaceRow],
        subjects: set[str],
    ) -> list[str]:
        kind, rest = entry[0], entry[1:]
        if kind == "mint" and (rest[0] not in sessions or sessions[rest[0]].fingerprint != rest[1]):
            return [f"session {rest[0]} was answered and is not there"]
        if kind == "revoke" and (sessions[rest[0]].revoked_at is None or revoked[rest[0]] != 1):
            return [f"session {rest[0]} was revoked and is not"]
        if kind == "create" and rest[0] not in workspaces:
            return [f"workspace {rest[0]} was made and is not there"]
        if kind == "delete" and workspaces[rest[0]].deleted_at is None:
            return [f"workspace {rest[0]} was deleted and is there"]
        if kind == "event" and rest[0] not in subjects:
            return [f"event {rest[0]} was kept and is not there"]
        return []

    async def _check_feed(self, place: str, revocations: dict[int, int | None]) -> list[str]:
        """Each follower was told of every revocation between two of its cursors, and is at the end."""
        newest = max(revocations, default=0)
        deadline = time.monotonic() + 10
        while (told := _read_notes(self.folder / f"feed-{place}")) and told[-1]["cursor"] < newest:
            if time.monotonic() > deadline:
                return [f"the follower of {place[0]} stands still at {told[-1]['cursor']} of {newest}"]
            await asyncio.sleep(0.05)
        faults = []
        for before, batch in itertools.pairwise(told):
            if not batch["everything"]:
                passed = {s for row, s in revocations.items() if before["cursor"] < row <= batch["cursor"]}
                missed = passed - set(batch["sessions"])
                if missed:
                    faults.append(
                        f"the follower of {place[0]} passed over the revocations of {sorted(missed, key=str)}"
                    )
        return faults
