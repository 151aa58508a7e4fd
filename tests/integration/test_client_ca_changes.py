"""Client CAs change while servers run: rotated with an overlap, retired at once, or kept by a token (PKCS#11)."""

from __future__ import annotations

import asyncio
import binascii
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import ssh

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.services.client_authorities import name_key_file
from runcode.controlplane.services.client_certificates import AgentAuthority, DiskAuthority
from runcode.core.errors import RunCodeError
from runcode.core.hostkeys import parse_public_key
from runcode.gateway.client_certificates import read_certificate
from runcode.server.directory import InProcessDirectory
from support.controlplane_fakes import make_client_key, mark_running, open_plane, set_endpoint
from support.service import Laptop, Service

OWNER = "ann@example.org"
MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
PIN = "1234"


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    async with open_plane(tmp_path / "data") as opened:
        set_endpoint(opened)
        await opened.users.create_user(OWNER)
        await opened.workspaces.create_workspace("box", OWNER, runtime="fake")
        await mark_running(opened, "box")
        yield opened


async def certify(plane: ControlPlane) -> str | None:
    token = await plane.tokens.create_token(OWNER, "laptop")
    caller = await plane.tokens.authenticate(token.plaintext)
    box = await plane.workspaces.load_workspace("box")
    key = make_client_key()
    grant = await plane.sessions.register_session(caller, box.id, raw_public_key=key)
    return await plane.client_certificates.certify(grant, user_id=caller.user_id, raw_public_key=key)


def signer_of(line: str | None) -> str:
    """The public line of whoever signed, with the signature checked by the gateway's own reader."""
    assert line is not None
    certificate = ssh.load_ssh_public_identity(line.encode())
    assert isinstance(certificate, ssh.SSHCertificate)
    certificate.verify_cert_signature()
    return read_certificate(binascii.a2b_base64(line.split()[1])).authority


def use_disk(plane: ControlPlane) -> str:
    first = plane.certificates.client_ca
    plane.client_certificates.use(DiskAuthority(first), follow_rotation=True)
    return first.public_line


async def test_after_a_rotation_the_new_one_signs_and_the_old_one_counts(plane: ControlPlane, tmp_path: Path) -> None:
    first = use_disk(plane)
    assert signer_of(await certify(plane)) == first
    made = await plane.client_authorities.rotate()
    assert signer_of(await certify(plane)) == made.public_key != first
    assert await plane.client_certificates.load_authorities() == {first, made.public_key}
    listed = await plane.client_authorities.list_authorities()
    assert [(one.public_key, one.state) for one in listed] == [(made.public_key, "current"), (first, "accepted")]
    file = tmp_path / "data" / "keys" / name_key_file(made.public_key)
    assert file.stat().st_mode & 0o777 == 0o600


async def test_a_server_without_the_new_key_signs_with_the_one_it_has(plane: ControlPlane, tmp_path: Path) -> None:
    """Another server of the installation, before its operator has copied the key."""
    first = use_disk(plane)
    made = await plane.client_authorities.rotate()
    (tmp_path / "data" / "keys" / name_key_file(made.public_key)).unlink()
    async with open_plane(tmp_path / "data") as other:
        set_endpoint(other)
        use_disk(other)
        assert signer_of(await certify(other)) == first
        await plane.client_authorities.retire(parse_public_key(first).fingerprint)
        # Never with one that counts no more.
        assert await certify(other) is None
        assert await other.client_certificates.load_authorities() == {made.public_key}


async def test_a_retired_one_counts_no_more_and_every_gateway_looks_again(plane: ControlPlane) -> None:
    first = use_disk(plane)
    await plane.client_authorities.rotate()
    directory = InProcessDirectory(plane)
    assert first in (await directory.load_admission_facts("box", "SHA256:none")).client_authorities
    async with asyncio.timeout(30):
        feed = directory.watch_changes()
        await anext(feed)  # the beginning: everything
        await plane.client_authorities.retire(parse_public_key(first).fingerprint)
        async for batch in feed:
            if batch.everything:
                break
    assert first not in (await directory.load_admission_facts("box", "SHA256:none")).client_authorities
    again = await plane.client_authorities.retire(parse_public_key(first).fingerprint)
    assert again.state == "retired", "idempotent"


async def test_the_newest_one_is_not_retired_and_an_unknown_one_is_said(plane: ControlPlane) -> None:
    first = use_disk(plane)
    for fingerprint, code in ((parse_public_key(first).fingerprint, "conflict"), ("SHA256:nobody", "not_found")):
        with pytest.raises(RunCodeError) as caught:
            await plane.client_authorities.retire(fingerprint)
        assert caught.value.code == code
    assert await plane.client_certificates.load_authorities() == {first}


async def test_where_certificates_are_off_none_counts(plane: ControlPlane) -> None:
    await plane.client_authorities.rotate()
    assert await plane.client_certificates.load_authorities() == frozenset()


async def test_an_operators_own_counts_where_it_is_named_until_it_is_retired(plane: ControlPlane) -> None:
    own, first = make_client_key().rsplit(" ", 1)[0], plane.certificates.client_ca
    await plane.client_authorities.note_own(own)
    await plane.client_authorities.note_own(own)
    use_disk(plane)
    assert await plane.client_certificates.load_authorities() == {first.public_line}
    plane.client_certificates.use(DiskAuthority(first), trusted=(own,), follow_rotation=True)
    assert await plane.client_certificates.load_authorities() == {first.public_line, own}
    assert signer_of(await certify(plane)) == first.public_line
    await plane.client_authorities.retire(parse_public_key(own).fingerprint)
    assert await plane.client_certificates.load_authorities() == {first.public_line}


# ------------------------------------------------------------------ a token


@pytest.fixture
def token_agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The socket of a real ssh-agent that has an ECDSA key from a SoftHSM token (PKCS#11)."""
    needed = (str(MODULE), "softhsm2-util", "pkcs11-tool")
    missing = [program for program in needed if shutil.which(program, mode=os.F_OK) is None]
    assert not missing, f"{missing}: apt-get install --no-install-recommends softhsm2 opensc"
    folder = Path(tempfile.mkdtemp(prefix="rct"))
    (folder / "tokens").mkdir()
    (folder / "softhsm.conf").write_text(f"directories.tokendir = {folder}/tokens\nlog.level = ERROR\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(folder / "softhsm.conf"))
    ask = folder / "ask"
    ask.write_text(f"#!/bin/sh\necho {PIN}\n")
    ask.chmod(0o700)
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(folder / "a")], stdout=subprocess.DEVNULL)
    environ = {
        **os.environ,
        "SSH_AUTH_SOCK": str(folder / "a"),
        "SSH_ASKPASS": str(ask),
        "SSH_ASKPASS_REQUIRE": "force",
    }
    try:
        pins = ["--so-pin", "0000", "--pin", PIN]
        run(["softhsm2-util", "--init-token", "--free", "--label", "ca", *pins], environ)
        key = ["--keypairgen", "--key-type", "EC:prime256v1", "--id", "01", "--label", "client-ca"]
        run(["pkcs11-tool", "--module", str(MODULE), "--login", "--pin", PIN, *key], environ)
        while not (folder / "a").exists():
            assert agent.poll() is None
        run(["ssh-add", "-q", "-s", str(MODULE)], environ)
        yield folder / "a"
    finally:
        agent.terminate()
        agent.wait()
        shutil.rmtree(folder, ignore_errors=True)


def run(words: list[str], environ: dict[str, str]) -> str:
    done = subprocess.run(words, env=environ, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


async def test_a_key_on_a_token_signs_through_a_real_agent(plane: ControlPlane, token_agent: Path) -> None:
    authority = await AgentAuthority.find(token_agent)
    assert authority.public_line.startswith("ecdsa-sha2-nistp256 ")
    plane.client_certificates.use(authority)
    for _ in range(8):  # signatures differ in length: mpints
        assert signer_of(await certify(plane)) == authority.public_line


async def test_a_signature_that_does_not_hold_never_leaves(
    plane: ControlPlane, token_agent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = await AgentAuthority.find(token_agent)
    plane.client_certificates.use(authority)
    sign = AgentAuthority.sign

    async def sign_something_else(self: AgentAuthority, message: bytes) -> bytes:
        return await sign(self, message + b"!")

    monkeypatch.setattr(AgentAuthority, "sign", sign_something_else)
    assert await certify(plane) is None


def test_the_real_server_rotates_retires_and_cuts_while_it_runs(tmp_path: Path, token_agent: Path) -> None:
    """First the token signs, then the disk; retiring the token's key cuts the real ssh that came in by it."""
    service = Service(tmp_path / "s", options=("--client-ca", f"agent:{token_agent}", "--box-network", "off"))
    try:
        service.start()
        service.operator("workspace", "create", "box")
        service.operator("workspace", "start", "box")
        laptop = Laptop(tmp_path / "laptop")
        laptop.login(service)
        bundle = laptop.json("connect", "box", "--wait")
        config = Path(str(bundle["config"]))
        (certificate,) = config.parent.glob("*-cert.pub")
        token_key = signer_of(certificate.read_text())
        assert token_key.startswith("ecdsa-")
        words = ["ssh", "-F", str(config), "-S", "none", str(bundle["alias"]), "echo up; sleep 300"]
        held = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            assert held.stdout is not None
            assert held.stdout.readline() == b"up\n"
            made = service.operator_json("ca", "rotate")
            assert held.poll() is None, "a rotation takes nothing away"
            fingerprint = parse_public_key(token_key).fingerprint
            assert service.operator_json("ca", "retire", fingerprint)["state"] == "retired"
            _, stderr = held.communicate(timeout=60)
            assert b"access to this workspace has ended" in stderr
        finally:
            held.kill()
            held.wait()
        states = {one["fingerprint"]: one["state"] for one in service.operator_json("ca", "list")}
        assert states[fingerprint] == "retired"
        assert states[made["fingerprint"]] == "current"
        assert "Traceback" not in service.log.read_text()
    finally:
        if service.process is not None:
            service.stop()
