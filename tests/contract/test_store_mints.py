"""A round of mints, on each product: who gets which session, and a chain that holds."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sqlalchemy import select

from runcode.controlplane.records import SessionGrant
from runcode.controlplane.services.audit_statements import load_verifier
from runcode.controlplane.services.audit_verification import verify
from runcode.controlplane.store.location import Location
from runcode.controlplane.store.models import EventRow, SessionRow
from support.controlplane_fakes import ManualClock, make_client_key, mark_running, open_plane, set_endpoint

ANN = "ann@example.org"


async def test_each_of_a_round_has_the_session_of_its_own_key_and_the_chain_holds(
    location: Location, tmp_path: Path
) -> None:
    async with open_plane(tmp_path, ManualClock(), database=location) as plane:
        await plane.users.create_user(ANN)
        set_endpoint(plane)
        box = await plane.workspaces.create_workspace("box", ANN, runtime="fake")
        await mark_running(plane, "box")
        token = await plane.tokens.create_token(ANN, "laptop")
        caller = await plane.tokens.authenticate(token.plaintext)
        # More than one statement takes.
        keys = [make_client_key() for _ in range(45)]
        minted: dict[int, str] = {}
        for wished in (keys[:1], keys, keys[40:]):
            grants = await asyncio.gather(
                *(plane.sessions.register_session(caller, box.id, raw_public_key=key) for key in wished)
            )
            for key, grant in zip(wished, grants, strict=True):
                assert isinstance(grant, SessionGrant)
                assert minted.setdefault(grant.session.id, key) == key
        async with plane.store.read() as session:
            rows = (await session.scalars(select(SessionRow))).all()
            noted = select(EventRow.session_id).where(EventRow.kind == "session_minted").order_by(EventRow.id)
            order = (await session.scalars(noted)).all()
        assert {row.id: row.public_key for row in rows} == {
            number: " ".join(key.split()[:2]) for number, key in minted.items()
        }
        assert len(order) == 1 + 45 + 5
        assert sorted(set(order)) == sorted(minted)
        await plane.checkpoints.checkpoint()
        report = await verify(
            plane.store,
            load_verifier(tmp_path / "keys" / "audit_ed25519.pub"),
            tmp_path / "audit" / "checkpoints.jsonl",
        )
        assert report.findings == []
