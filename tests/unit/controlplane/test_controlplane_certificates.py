"""The two CAs and what they sign; admission's facts when each thing behind them goes away."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import ssh

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.services.certificates import CertificateAuthority, load_authorities, make_host_key
from runcode.controlplane.services.principals import principal_for
from runcode.core.errors import RunCodeError, UnsafeInput
from runcode.core.hostkeys import parse_public_key
from support.controlplane_fakes import ManualClock, make_client_key, mark_running, open_plane, set_endpoint

OWNER, GUEST = "ann@example.org", "bob@example.org"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def plane(tmp_path: Path, clock: ManualClock) -> AsyncIterator[ControlPlane]:
    async with open_plane(tmp_path, clock) as opened:
        set_endpoint(opened)
        await opened.users.create_user(OWNER)
        await opened.users.create_user(GUEST)
        await opened.workspaces.create_workspace("box", OWNER, runtime="fake")
        await opened.workspaces.share("box", GUEST)
        await mark_running(opened, "box")
        yield opened


async def mint(plane: ControlPlane, key: str, email: str = GUEST) -> tuple[int, int, int]:
    """(session, workspace, token)"""
    token = await plane.tokens.create_token(email, "laptop")
    caller = await plane.tokens.authenticate(token.plaintext)
    box = await plane.workspaces.load_workspace("box")
    grant = await plane.sessions.register_session(caller, box.id, raw_public_key=key)
    return grant.session.id, box.id, token.record.id


async def test_the_certificate_says_no_more_than_it_must(
    plane: ControlPlane, clock: ManualClock, tmp_path: Path
) -> None:
    session_id, workspace_id, _ = await mint(plane, make_client_key())
    ephemeral = make_host_key().public
    line = await plane.certificates.sign_workspace_certificate(
        session_id=session_id, workspace_id=workspace_id, public_key=ephemeral + " comment"
    )
    certificate = ssh.load_ssh_public_identity(line.encode())
    assert isinstance(certificate, ssh.SSHCertificate)
    certificate.verify_cert_signature()
    assert certificate.type is ssh.SSHCertificateType.USER
    assert certificate.valid_principals == [principal_for(workspace_id).encode()] == [b"workspace-%d" % workspace_id]
    assert certificate.critical_options == {}
    assert set(certificate.extensions) == {
        b"permit-X11-forwarding", b"permit-agent-forwarding", b"permit-port-forwarding", b"permit-pty",
    }  # fmt: skip
    assert (certificate.valid_after, certificate.valid_before) == (
        clock.now().timestamp() - 60, clock.now().timestamp() + 300,
    )  # fmt: skip
    assert certificate.key_id == f"runcode session {session_id} workspace {workspace_id}".encode()
    # OpenSSH itself reads it so.
    (tmp_path / "c-cert.pub").write_text(line + "\n")
    shown = subprocess.run(["ssh-keygen", "-Lf", str(tmp_path / "c-cert.pub")], capture_output=True, text=True)
    ca = parse_public_key(plane.certificates.workspace_ca_line)
    assert shown.returncode == 0
    assert ca.fingerprint in shown.stdout
    assert "user certificate" in shown.stdout


@pytest.mark.parametrize("bad", ["", "ssh-ed25519 AAAA", "ssh-dss AAAA", "x\ny"])
async def test_only_a_well_formed_key_is_signed(plane: ControlPlane, bad: str) -> None:
    session_id, workspace_id, _ = await mint(plane, make_client_key())
    with pytest.raises(UnsafeInput):
        await plane.certificates.sign_workspace_certificate(
            session_id=session_id, workspace_id=workspace_id, public_key=bad
        )


Take = Callable[[ControlPlane, int, int], Awaitable[object]]
WITHDRAWALS: dict[str, Take] = {
    "session": lambda plane, session_id, _token_id: plane.sessions.revoke_session(session_id),
    "token": lambda plane, _session_id, token_id: plane.tokens.revoke_token(token_id),
    "user": lambda plane, _session_id, _token_id: plane.users.disable_user(GUEST),
    "share": lambda plane, _session_id, _token_id: plane.workspaces.unshare("box", GUEST),
    "delete": lambda plane, _session_id, _token_id: plane.workspaces.delete_workspace("box"),
}


@pytest.mark.parametrize("how", WITHDRAWALS)
async def test_whatever_takes_access_away_shows_at_once_and_ends_signing(plane: ControlPlane, how: str) -> None:
    key = make_client_key()
    fingerprint = parse_public_key(key).fingerprint
    session_id, workspace_id, token_id = await mint(plane, key)
    before = await plane.admission.load_admission_facts("box", fingerprint)
    assert before.session is not None
    assert before.workspace is not None
    assert (before.session.withdrawn, before.workspace.running) == (False, True)
    await WITHDRAWALS[how](plane, session_id, token_id)
    after = await plane.admission.load_admission_facts("box", fingerprint)
    assert after.session is not None
    assert after.session.withdrawn
    assert await plane.sessions.list_sessions() == []
    with pytest.raises(RunCodeError) as caught:
        await plane.certificates.sign_workspace_certificate(
            session_id=session_id, workspace_id=workspace_id, public_key=make_host_key().public
        )
    assert caught.value.code == "forbidden"
    # Giving it back does not bring the old session to life.
    await plane.users.enable_user(GUEST)
    if how != "delete":
        await plane.workspaces.share("box", GUEST)
        again = await plane.admission.load_admission_facts("box", fingerprint)
        assert again.session is not None
        assert again.session.withdrawn


async def test_stop_ends_signing_but_not_the_session(plane: ControlPlane) -> None:
    key = make_client_key()
    session_id, workspace_id, _ = await mint(plane, key)
    await plane.workspaces.request_stop("box")
    facts = await plane.admission.load_admission_facts("box", parse_public_key(key).fingerprint)
    assert facts.session is not None
    assert facts.workspace is not None
    assert (facts.session.withdrawn, facts.workspace.running) == (False, False)
    with pytest.raises(RunCodeError):
        await plane.certificates.sign_workspace_certificate(
            session_id=session_id, workspace_id=workspace_id, public_key=make_host_key().public
        )


async def test_an_expired_session_is_not_signed_for_and_is_not_withdrawn(
    plane: ControlPlane, clock: ManualClock
) -> None:
    key = make_client_key()
    session_id, workspace_id, _ = await mint(plane, key)
    clock.advance(seconds=1800)
    facts = await plane.admission.load_admission_facts("box", parse_public_key(key).fingerprint)
    assert facts.session is not None
    assert not facts.session.withdrawn
    assert facts.session.expires_at == clock.now()
    with pytest.raises(RunCodeError):
        await plane.certificates.sign_workspace_certificate(
            session_id=session_id, workspace_id=workspace_id, public_key=make_host_key().public
        )


async def test_a_session_is_signed_for_its_own_workspace_only(plane: ControlPlane) -> None:
    """Also when the other one runs, and belongs to the same person."""
    session_id, _, _ = await mint(plane, make_client_key(), OWNER)
    other = await plane.workspaces.create_workspace("other", OWNER, runtime="fake")
    await mark_running(plane, "other")
    with pytest.raises(RunCodeError) as caught:
        await plane.certificates.sign_workspace_certificate(
            session_id=session_id, workspace_id=other.id, public_key=make_host_key().public
        )
    assert caught.value.code == "forbidden"


async def test_admission_asks_the_same_queries_whatever_exists(plane: ControlPlane) -> None:
    from sqlalchemy import event

    key = make_client_key()
    await mint(plane, key)
    await plane.tokens.close()
    asked: list[str] = []
    engine = plane.store._database.reader.sync_engine
    event.listen(engine, "before_cursor_execute", lambda _c, _u, statement, *_: asked.append(statement))
    seen = []
    for title in ("box", "none"):
        for fingerprint in (parse_public_key(key).fingerprint, "SHA256:none"):
            asked.clear()
            await plane.admission.load_admission_facts(title, fingerprint)
            seen.append(list(asked))
    assert len(seen[0]) == 3
    assert all(statements == seen[0] for statements in seen)


def test_two_authorities_kept_and_private(tmp_path: Path) -> None:
    client_ca, workspace_ca = load_authorities(tmp_path / "keys")
    assert client_ca.public_line != workspace_ca.public_line
    again = load_authorities(tmp_path / "keys")
    assert [ca.public_line for ca in again] == [client_ca.public_line, workspace_ca.public_line]
    assert {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "keys").iterdir()} == {
        "client_ca": 0o600, "workspace_ca": 0o600,
    }  # fmt: skip


async def test_processes_that_start_at_once_agree_on_one_key(tmp_path: Path) -> None:
    made = await asyncio.gather(
        *(asyncio.to_thread(CertificateAuthority.load_or_make, tmp_path / "ca") for _ in range(8))
    )
    assert len({ca.public_line for ca in made}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["ca"]


def test_a_key_that_others_can_read_or_planted_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ca"
    CertificateAuthority.load_or_make(path)
    path.chmod(0o640)
    with pytest.raises(RunCodeError) as caught:
        CertificateAuthority.load_or_make(path)
    assert caught.value.code == "unsafe_path"
    path.chmod(0o600)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(RunCodeError) as caught:
        CertificateAuthority.load_or_make(tmp_path / "link")
    assert caught.value.code == "unsafe_path"
    path.write_text("rubbish")
    with pytest.raises(RunCodeError) as caught:
        CertificateAuthority.load_or_make(path)
    assert caught.value.code == "io_error"
    assert path.read_text() == "rubbish"
