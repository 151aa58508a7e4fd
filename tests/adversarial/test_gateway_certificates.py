"""Certificates that open nothing: each is good but for one thing, and its key alone would open the workspace."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import asyncssh
import pytest

from runcode.gateway.client_certificates import CERTIFICATE_BYTES_MAX
from runcode.gateway.packets import render_string as s
from support.client_certificates import forge, write_beside
from support.gateway_box import Client, Scene, open_scene
from support.gateway_fakes import utc_now
from support.gateway_raw import USERAUTH_FAILURE, USERAUTH_SUCCESS, raw_client


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with open_scene() as opened:
        opened.add_box("other-1")
        opened.directory.trust(opened.directory.client_ca)
        yield opened


def certify(scene: Scene, client: Client, **fields: object) -> bytes:
    session = scene.session_of(client)
    workspace = next(w for w in scene.directory.workspaces.values() if w.workspace_id == session.workspace_id)
    given = {"authority": scene.directory.client_ca, "session": session, "workspace": workspace, **fields}
    return forge(key=client.key, **given)  # type: ignore[arg-type]


async def present(scene: Scene, client: Client, certificate: bytes, **how: object) -> int:
    """The gateway's answer to that certificate, signed by the client's key unless said otherwise."""
    async with raw_client(scene) as raw:
        raw.send_raw(raw.signed(client.title, client.key, certificate=certificate, **how))  # type: ignore[arg-type]
        return (await raw.take())[0]


def now() -> int:
    return int(utc_now().timestamp())


Forgery = Callable[[Scene, Client], bytes]
FORGERIES: dict[str, Forgery] = {
    "no principals": lambda scene, client: certify(scene, client, principals=()),
    "principals in one text": lambda scene, client: certify(
        scene, client, principals=(f"{scene.directory.workspaces['royal-1'].principal},other",)
    ),
    "one principal too many": lambda scene, client: certify(
        scene, client, principals=(scene.directory.workspaces["royal-1"].principal, "other")
    ),
    "the title as principal": lambda scene, client: certify(scene, client, principals=("royal-1",)),
    "an authority of somebody's own": lambda scene, client: certify(
        scene, client, authority=asyncssh.generate_private_key("ssh-ed25519")
    ),
    "our authority's name, another's signature": lambda scene, client: certify(
        scene, client, signer=asyncssh.generate_private_key("ssh-ed25519")
    ),
    "the workspace leg's authority": lambda scene, client: certify(scene, client, authority=scene.directory.ca),
    "not yet valid": lambda scene, client: certify(scene, client, valid_after=now() + 60),
    "expired": lambda scene, client: certify(scene, client, valid_before=now() - 1),
    "valid never": lambda scene, client: certify(scene, client, valid_after=now() + 60, valid_before=now() - 60),
    "a host's": lambda scene, client: certify(scene, client, kind=2),
    "of no kind": lambda scene, client: certify(scene, client, kind=0),
    "an unknown critical option": lambda scene, client: certify(
        scene, client, options=(("force-command", "127.0.0.1"),)
    ),
    "one option twice": lambda scene, client: certify(
        scene, client, options=(("source-address", "127.0.0.1"), ("source-address", "127.0.0.1"))
    ),
    "another source address": lambda scene, client: certify(scene, client, options=(("source-address", "192.0.2.7"),)),
    "no source address": lambda scene, client: certify(scene, client, options=(("source-address", ""),)),
    "a source address with rubbish": lambda scene, client: certify(
        scene, client, options=(("source-address", "127.0.0.1,x"),)
    ),
    "another session": lambda scene, client: certify(
        scene, client, session=replace(scene.session_of(client), session_id=9999)
    ),
    "another user": lambda scene, client: certify(scene, client, session=replace(scene.session_of(client), user_id=9)),
    "no key id of ours": lambda scene, client: certify(scene, client, key_id="root"),
    "a reserved field": lambda scene, client: certify(scene, client, reserved=b"x"),
    "bytes behind the end": lambda scene, client: certify(scene, client, tail=b"x"),
    "oversized": lambda scene, client: certify(
        scene, client, extensions=s(b"x@example.org") + s(b"x" * CERTIFICATE_BYTES_MAX)
    ),
    "cut short": lambda scene, client: certify(scene, client)[:-9],
    "a certificate of a certificate": lambda scene, client: certify(scene, client).replace(
        b"-cert-v01@openssh.com", b"-cert-v01@openssh.com-cert-v01@openssh.com", 1
    ),
}


@pytest.mark.parametrize("what", FORGERIES)
async def test_a_certificate_with_one_thing_wrong_opens_nothing(scene: Scene, what: str) -> None:
    client = scene.add_client("royal-1")
    assert await present(scene, client, FORGERIES[what](scene, client)) == USERAUTH_FAILURE
    assert scene.directory.signed == []


async def test_the_control_and_a_source_address_that_is_right(scene: Scene) -> None:
    client = scene.add_client("royal-1")
    assert await present(scene, client, certify(scene, client)) == USERAUTH_SUCCESS
    here = certify(scene, client, options=(("source-address", "192.0.2.0/24,127.0.0.0/8"),))
    assert await present(scene, client, here) == USERAUTH_SUCCESS


async def test_without_certificate_mode_a_good_certificate_is_none(scene: Scene) -> None:
    client = scene.add_client("royal-1")
    scene.directory.trust()
    assert await present(scene, client, certify(scene, client)) == USERAUTH_FAILURE


async def test_a_certificate_opens_no_other_workspace(scene: Scene) -> None:
    client = scene.add_client("royal-1")
    certificate = certify(scene, client)
    for registered_for in ("royal-1", "other-1"):
        thief = scene.add_client("other-1", registered_for=registered_for)
        assert await present(scene, thief, certificate) == USERAUTH_FAILURE
    client.title = "other-1"
    assert await present(scene, client, certificate) == USERAUTH_FAILURE


async def test_a_certificate_is_nothing_without_its_key(scene: Scene) -> None:
    client, thief = scene.add_client("royal-1"), scene.add_client("royal-1")
    assert await present(scene, client, certify(scene, client), signer=thief.key) == USERAUTH_FAILURE
    # Nor with a key that no session has.
    stranger = scene.add_client("royal-1", registered_for=None)
    session = scene.session_of(client)
    unregistered = forge(scene.directory.client_ca, stranger.key, session, scene.directory.workspaces["royal-1"])
    assert await present(scene, stranger, unregistered) == USERAUTH_FAILURE


async def test_a_revoked_sessions_certificate_opens_nothing_and_its_connection_is_cut(scene: Scene) -> None:
    client = scene.add_client("royal-1")
    certificate = certify(scene, client)
    write_beside(client.key_path, certificate)
    process = await client.start("box", "cat /dev/zero", options=(f"CertificateFile={client.key_path}-cert.pub",))
    assert process.stdout is not None
    assert await process.stdout.read(1)
    scene.directory.withdraw(scene.session_of(client).session_id)
    await process.stdout.read()
    assert await process.wait() == 255
    assert await present(scene, client, certificate) == USERAUTH_FAILURE


async def test_two_authorities_count_until_one_is_retired(scene: Scene) -> None:
    """A rotation: what the old one signed is good while both are trusted, and not a moment longer."""
    old, new = scene.directory.client_ca, asyncssh.generate_private_key("ssh-ed25519")
    client = scene.add_client("royal-1")
    scene.directory.trust(old, new)
    by_old, by_new = certify(scene, client), certify(scene, client, authority=new)
    assert await present(scene, client, by_old) == await present(scene, client, by_new) == USERAUTH_SUCCESS
    scene.directory.trust(new)
    assert await present(scene, client, by_old) == USERAUTH_FAILURE
    assert await present(scene, client, by_new) == USERAUTH_SUCCESS


async def test_refused_certificates_take_the_same_look_up_as_a_strangers_key(scene: Scene) -> None:
    client = scene.add_client("royal-1")
    for forgery in FORGERIES.values():
        scene.directory.asked.clear()
        await present(scene, client, forgery(scene, client))
        assert len(scene.directory.asked) == 1


@pytest.mark.parametrize("kind", ["ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa"])
async def test_the_real_ssh_gets_in_by_its_certificate(scene: Scene, kind: str) -> None:
    client = scene.add_client("royal-1", registered_for=None)
    client.key = asyncssh.generate_private_key(kind)
    client.key_path.write_bytes(client.key.export_private_key("openssh"))
    client.public_line = client.key.export_public_key("openssh").decode().strip()
    scene.sessions[client.public_line] = scene.directory.add_session("royal-1", client.public_line)
    write_beside(client.key_path, certify(scene, client))
    # Named, as our client's configuration does it: a certificate that ssh finds by itself comes after the plain key.
    named = f"CertificateFile={client.key_path}-cert.pub"
    finished = await client.run("echo in", "-v", options=("LogLevel=DEBUG", named))
    assert (finished.status, finished.stdout) == (0, b"in\n")
    assert "-CERT SHA256" in finished.error_text.partition("Server accepts key:")[2].partition("\n")[0]
