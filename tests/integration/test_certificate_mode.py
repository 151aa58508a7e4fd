"""What certificate mode signs, by the key on disk and by a real ssh agent, and what it makes of a false one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import ssh

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.services.client_certificates import (
    AgentAuthority,
    ClientCaPlace,
    ClientCertificates,
    DiskAuthority,
    load_client_authority,
    parse_client_ca,
)
from runcode.core.bundle import parse_bundle
from runcode.core.certificate_names import CertifiedSession, parse_key_id, render_key_id
from runcode.core.errors import RunCodeError, UnsafeInput
from runcode.core.hostkeys import parse_public_key
from support.controlplane_fakes import ManualClock, make_client_key, mark_running, open_plane, serve, set_endpoint
from support.service import Laptop, Service

OWNER = "ann@example.org"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def plane(tmp_path: Path, clock: ManualClock) -> AsyncIterator[ControlPlane]:
    async with open_plane(tmp_path, clock) as opened:
        set_endpoint(opened)
        await opened.users.create_user(OWNER)
        await opened.workspaces.create_workspace("box", OWNER, runtime="fake")
        await mark_running(opened, "box")
        yield opened


@pytest.fixture
def agent() -> Iterator[Path]:
    """A real ssh-agent's socket, in a folder short enough for one."""
    folder = Path(tempfile.mkdtemp(prefix="rca"))
    socket_path = folder / "a"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket_path)], stdout=subprocess.DEVNULL)
    try:
        while not socket_path.exists():
            assert process.poll() is None
        yield socket_path
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def add_key(agent: Path, folder: Path, name: str, kind: str = "ed25519") -> str:
    """The public line of a new key that the agent holds."""
    path = folder / name
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(path)], check=True)
    environ = {**os.environ, "SSH_AUTH_SOCK": str(agent)}
    subprocess.run(["ssh-add", "-q", str(path)], check=True, env=environ)
    return " ".join(path.with_name(name + ".pub").read_text().split()[:2])


async def certify(plane: ControlPlane, key: str, makers: ClientCertificates | None = None) -> tuple[int, str | None]:
    """(the session's id, its certificate)"""
    token = await plane.tokens.create_token(OWNER, "laptop")
    caller = await plane.tokens.authenticate(token.plaintext)
    box = await plane.workspaces.load_workspace("box")
    grant = await plane.sessions.register_session(caller, box.id, raw_public_key=key)
    made = await (makers or plane.client_certificates).certify(grant, user_id=caller.user_id, raw_public_key=key)
    return grant.session.id, made


def read(line: str | None) -> ssh.SSHCertificate:
    assert line is not None
    certificate = ssh.load_ssh_public_identity(line.encode())
    assert isinstance(certificate, ssh.SSHCertificate)
    certificate.verify_cert_signature()
    return certificate


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
async def test_it_says_whose_session_it_is_and_lasts_no_longer(
    plane: ControlPlane, clock: ManualClock, tmp_path: Path, kind: str
) -> None:
    plane.client_certificates.use(DiskAuthority(plane.certificates.client_ca))
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(tmp_path / "k")], check=True)
    key = (tmp_path / "k.pub").read_text().strip()
    session_id, line = await certify(plane, key)
    certificate = read(line)
    box = await plane.workspaces.load_workspace("box")
    assert certificate.type is ssh.SSHCertificateType.USER
    assert certificate.valid_principals == [f"workspace-{box.id}".encode()]
    assert certificate.critical_options == {}
    assert certificate.key_id == f"runcode session {session_id} user 1 workspace {box.id}".encode()
    assert certificate.valid_after == int(clock.now().timestamp()) - 60
    session = (await plane.sessions.list_sessions())[0]
    assert certificate.valid_before == int(session.expires_at.timestamp())
    # OpenSSH reads it so, too.
    (tmp_path / "c-cert.pub").write_text(f"{line}\n")
    shown = subprocess.run(["ssh-keygen", "-Lf", str(tmp_path / "c-cert.pub")], capture_output=True, text=True)
    assert shown.returncode == 0
    ca = parse_public_key(plane.certificates.client_ca.public_line)
    assert ca.fingerprint in shown.stdout
    assert plane.client_certificates.authorities == {ca.line}


async def test_off_there_is_none_and_nothing_is_trusted(plane: ControlPlane) -> None:
    assert (await certify(plane, make_client_key()))[1] is None
    assert plane.client_certificates.authorities == frozenset()


@pytest.mark.parametrize("announced", [True, False, None, "true", 1])
async def test_only_who_announces_gets_one_over_the_wire(plane: ControlPlane, announced: object) -> None:
    plane.client_certificates.use(DiskAuthority(plane.certificates.client_ca))
    token = await plane.tokens.create_token(OWNER, "laptop")
    box = await plane.workspaces.load_workspace("box")
    key = make_client_key()
    async with serve(plane) as http:
        answer = await http.call(
            "POST",
            f"/api/rc/workspace/{box.id}/ssh-session",
            token=token.plaintext,
            body={"public_key": key, "certificates": announced},
        )
    assert answer.status == 200
    raw = answer.json["bundle"]
    assert ("certificate" in raw) == (announced is True)
    assert parse_bundle(raw).certificate == raw.get("certificate")
    # Registered in either case: released clients, and programs that know keys only, go on.
    facts = await plane.admission.load_admission_facts("box", parse_public_key(key).fingerprint)
    assert facts.session is not None


async def test_a_real_agent_signs(plane: ControlPlane, agent: Path, tmp_path: Path) -> None:
    line = add_key(agent, tmp_path, "ca")
    add_key(agent, tmp_path, "ecdsa", "ecdsa")  # no Ed25519 key, so no choice
    authority = await AgentAuthority.find(agent)
    assert authority.public_line == line
    makers = ClientCertificates(plane.clock)
    makers.use(authority, trusted=(plane.certificates.client_ca.public_line,))
    certificate = read((await certify(plane, make_client_key(), makers))[1])
    signer = certificate.signature_key().public_bytes_raw()  # type: ignore[union-attr]
    assert parse_public_key(line).blob.endswith(signer)
    assert makers.authorities == {line, plane.certificates.client_ca.public_line}


async def test_of_several_keys_the_operator_names_one(agent: Path, tmp_path: Path) -> None:
    with pytest.raises(RunCodeError, match="holds 0"):
        await AgentAuthority.find(agent)
    one, two = add_key(agent, tmp_path, "one"), add_key(agent, tmp_path, "two")
    with pytest.raises(RunCodeError, match="holds 2"):
        await AgentAuthority.find(agent)
    for line in (one, two):
        found = await AgentAuthority.find(agent, parse_public_key(line).fingerprint)
        assert found.public_line == line


async def test_an_agent_that_forgot_the_key_costs_the_certificate_only(
    plane: ControlPlane, agent: Path, tmp_path: Path
) -> None:
    add_key(agent, tmp_path, "ca")
    makers = ClientCertificates(plane.clock)
    makers.use(await AgentAuthority.find(agent))
    subprocess.run(["ssh-add", "-q", "-D"], check=True, env={**os.environ, "SSH_AUTH_SOCK": str(agent)})
    session_id, line = await certify(plane, make_client_key(), makers)
    assert session_id > 0
    assert line is None


FALSE_ANSWERS = {
    "nothing": b"",
    "a hang-up in the middle": b"\x00\x00\x00\x63\x0e",
    "a refusal": b"\x00\x00\x00\x01\x05",
    "no length": b"\x00\x00\x00\x00",
    "four gigabytes": b"\xff\xff\xff\xff\x0e",
    "cut short": b"\x00\x00\x00\x05\x0e\x00\x00\x00\x63",
    "another's signature": b"\0\0\0\x58\x0e\0\0\0\x53\0\0\0\x0bssh-ed25519\0\0\0\x40" + b"x" * 64,
    "another algorithm": b"\x00\x00\x00\x0f\x0e\x00\x00\x00\x0a\x00\x00\x00\x02xx\x00\x00\x00\x00",
}  # fmt: skip


@pytest.mark.parametrize("what", FALSE_ANSWERS)
async def test_what_a_false_agent_answers_is_no_certificate(plane: ControlPlane, what: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(FALSE_ANSWERS[what])
        writer.close()

    with tempfile.TemporaryDirectory(prefix="rca") as folder:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(await asyncio.start_unix_server(answer, f"{folder}/a"))
            makers = ClientCertificates(plane.clock)
            makers.use(AgentAuthority(Path(folder) / "a", make_client_key()))
            assert (await certify(plane, make_client_key(), makers))[1] is None


async def test_an_agent_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunCodeError) as raised:
        await AgentAuthority.find(tmp_path / "none")
    assert raised.value.code == "unavailable"


def test_where_the_client_ca_is() -> None:
    assert parse_client_ca("disk") == ClientCaPlace("disk")
    assert parse_client_ca("file:/run/a#b") == ClientCaPlace("file", Path("/run/a#b"))
    assert parse_client_ca("agent:/run/a") == ClientCaPlace("agent", Path("/run/a"))
    assert parse_client_ca("agent:/run/a#SHA256:x") == ClientCaPlace("agent", Path("/run/a"), "SHA256:x")
    for bad in ("", "agent", "agent:", "file:", "agent:#SHA256:x", "pkcs11:/x", "Disk", "file:/x\0"):
        with pytest.raises(UnsafeInput):
            parse_client_ca(bad)


async def test_a_file_of_its_own_is_made_once_and_refused_when_others_can_read_it(
    plane: ControlPlane, tmp_path: Path
) -> None:
    place = ClientCaPlace("file", tmp_path / "next")
    made = await load_client_authority(place, plane.certificates.client_ca)
    assert made.public_line != plane.certificates.client_ca.public_line
    assert (await load_client_authority(place, plane.certificates.client_ca)).public_line == made.public_line
    assert (tmp_path / "next").stat().st_mode & 0o777 == 0o600
    (tmp_path / "next").chmod(0o640)
    with pytest.raises(RunCodeError) as raised:
        await load_client_authority(place, plane.certificates.client_ca)
    assert raised.value.code == "unsafe_path"


def test_a_key_id_is_read_as_it_was_written_and_in_no_other_way() -> None:
    certified = CertifiedSession(7, 1, 42)
    assert parse_key_id(render_key_id(certified)) == certified
    good = render_key_id(certified)
    for bad in ("", good + " ", good + "\n", good.replace("7", "07"), good.replace("7", "٧"), good.upper()):
        with pytest.raises(UnsafeInput):
            parse_key_id(bad)


def test_the_real_client_comes_in_by_its_certificate_and_a_retired_authority_ends_that(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, agent: Path
) -> None:
    """`up --client-ca disk`; then an agent's key, the first one trusted still; then the agent's alone."""
    add_key(agent, tmp_path, "ca")
    service = Service(tmp_path_factory.mktemp("certmode"), options=("--client-ca", "disk", "--keep-workspaces"))
    laptop = Laptop(tmp_path_factory.mktemp("laptop"))
    try:
        service.start()
        laptop.login(service)
        service.operator("workspace", "create", "box")
        laptop.runcode("connect", "box", "--start", "--wait")
        assert laptop.runcode("exec", "--", "echo in").stdout == b"in\n"
        folder = next((laptop.home / ".cache" / "runcode").glob("ws-*/"))
        by_disk = next(folder.glob("*-cert.pub"))
        assert accepted_key(folder, by_disk).startswith("ED25519-CERT")
        (tmp_path / "trusted").write_text("# before the rotation\n" + public_half(service, tmp_path) + "\n")
        for options, accepted in (
            (("--client-ca", f"agent:{agent}", "--trusted-client-cas", str(tmp_path / "trusted")), "ED25519-CERT"),
            # The key itself stays registered, so nobody is locked out by a rotation.
            (("--client-ca", f"agent:{agent}"), "ED25519 "),
        ):
            service.stop()
            service.ssh = f"127.0.0.1:{service.facts['ssh_port']}"
            service.http = service.facts["api_base"].removeprefix("http://")
            service.options = ("--keep-workspaces", *options)
            service.start()
            assert accepted_key(folder, by_disk).startswith(accepted)
    finally:
        service.stop()
        service.options = ()
        service.start()
        service.stop()  # and the box with it


def accepted_key(folder: Path, certificate: Path) -> str:
    """The kind of key by which the gateway let ssh in, that certificate's key being tried both ways."""
    identity = str(certificate).removesuffix("-cert.pub")
    lines = (folder / "config").read_text().splitlines()
    alias = next(line.split()[1] for line in lines if line.startswith("Host "))
    # A mint since then has put another key there.
    others = [line for line in lines if line.split()[:1] not in (["IdentityFile"], ["CertificateFile"])]
    config = folder / "config-of-test"
    config.write_text("\n".join(others) + "\n")
    named = ["-o", "ControlPath=none", "-o", f"CertificateFile={certificate}", "-i", identity]
    done = subprocess.run(
        ["ssh", "-v", *named, "-F", str(config), alias, "true"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.partition("Server accepts key: ")[2].partition(" ")[2]


def public_half(service: Service, folder: Path) -> str:
    private = service.data_dir / "keys" / "client_ca"
    return subprocess.run(
        ["ssh-keygen", "-yf", str(private)], capture_output=True, text=True, check=True
    ).stdout.strip()
