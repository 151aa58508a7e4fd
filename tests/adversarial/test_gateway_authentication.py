"""Strangers at the door: nobody passes with another's key, name, certificate or timing."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator

import asyncssh
import pytest

from runcode.gateway.admission import AdmissionPolicy
from runcode.gateway.packets import render_string as s
from support.gateway_box import Client, Scene, open_scene
from support.gateway_fakes import utc_now
from support.gateway_raw import USERAUTH_FAILURE, USERAUTH_PK_OK, USERAUTH_SUCCESS, raw_client


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with open_scene() as opened:
        opened.add_box("other-1")
        yield opened


def refused_clients(scene: Scene) -> dict[str, Client]:
    withdrawn = scene.add_client("royal-1")
    scene.directory.withdraw(scene.session_of(withdrawn).session_id)
    return {
        "unknown title": scene.add_client("nobody-1", registered_for="royal-1"),
        "unknown key": scene.add_client("royal-1", registered_for=None),
        "expired key": scene.add_client("royal-1", ttl_s=-1),
        "key of another workspace": scene.add_client("royal-1", registered_for="other-1"),
        "withdrawn session": withdrawn,
        "nothing known": scene.add_client("nobody-2", registered_for=None),
        "hostile name": scene.add_client("$(id);../x", registered_for="royal-1"),
    }


async def test_all_who_are_refused_see_the_same(scene: Scene) -> None:
    """The same words, the same exit status, the same packets and the same number of look-ups."""
    seen = {}
    for why, client in refused_clients(scene).items():
        scene.directory.asked.clear()
        finished = await client.run("true")
        words = finished.error_text.replace(client.title, "TITLE")
        async with raw_client(scene) as raw:
            raw.send_raw(raw.offer(client.title, client.key))
            offered = await raw.take()
            raw.send_raw(raw.signed(client.title, client.key))
            signed = await raw.take()
        seen[why] = (finished.status, words, offered, signed, len(scene.directory.asked))
    first = seen["unknown key"]
    assert first[0] == 255
    assert "Permission denied (publickey)" in first[1]
    assert first[2][0] == first[3][0] == USERAUTH_FAILURE
    assert {why for why, what in seen.items() if what != first} == set()
    assert scene.directory.signed == []
    # And one that is admitted, so that the comparison is not of a gateway that refuses all.
    assert (await scene.add_client("royal-1").run("echo in")).stdout == b"in\n"


async def test_the_key_that_is_offered_is_not_the_key_that_signs(scene: Scene) -> None:
    client = scene.add_client("royal-1")
    thief = asyncssh.generate_private_key("ssh-ed25519")
    async with raw_client(scene) as raw:
        raw.send_raw(raw.offer("royal-1", client.key))
        assert (await raw.take())[0] == USERAUTH_PK_OK
        raw.send_raw(raw.signed("royal-1", thief))
        assert (await raw.take())[0] == USERAUTH_FAILURE
        raw.send_raw(raw.signed("royal-1", client.key, signer=thief))
        assert (await raw.take())[0] == USERAUTH_FAILURE
        raw.send_raw(raw.signed("royal-1", client.key))
        assert (await raw.take())[0] == USERAUTH_SUCCESS


async def test_a_signature_for_one_title_opens_no_other(scene: Scene) -> None:
    client = scene.add_client("royal-1")
    async with raw_client(scene) as raw:
        raw.send_raw(raw.signed("other-1", client.key, signed_user="royal-1"))
        assert (await raw.take())[0] == USERAUTH_FAILURE
        raw.send_raw(raw.signed("royal-1", client.key, signed_user="other-1"))
        assert (await raw.take())[0] == USERAUTH_FAILURE


async def test_a_change_of_name_while_facts_are_loaded_admits_nobody(scene: Scene) -> None:
    """A good request for one's own title, overtaken by one for another's: neither passes as the other."""
    client = scene.add_client("royal-1")
    scene.directory.delay_s = 0.2
    async with raw_client(scene) as raw:
        raw.send_raw(raw.signed("royal-1", client.key))
        await asyncio.sleep(0.05)
        raw.send_raw(raw.signed("other-1", client.key))
        assert (await raw.take())[0] == USERAUTH_FAILURE
        await asyncio.sleep(0.3)
        assert raw.inbox.empty()
    assert scene.directory.signed == []


async def test_an_offer_after_a_good_signature_takes_the_admission_back(scene: Scene) -> None:
    client = scene.add_client("royal-1")
    scene.directory.delay_s = 0.2
    async with raw_client(scene) as raw:
        raw.send_raw(raw.signed("royal-1", client.key))
        await asyncio.sleep(0.05)
        raw.send_raw(raw.offer("royal-1", client.key))
        assert (await raw.take())[0] == USERAUTH_PK_OK
        await asyncio.sleep(0.3)
        assert raw.inbox.empty()
    assert scene.directory.signed == []


@pytest.mark.parametrize(
    ("method", "rest"),
    [
        (b"none", b""),
        (b"password", b"\0" + s(b"secret")),
        (b"password", b"\x01" + s(b"secret") + s(b"new")),
        (b"keyboard-interactive", s(b"") + s(b"")),
        (b"hostbased", s(b"ssh-ed25519") + s(b"x") + s(b"host") + s(b"user") + s(b"sig")),
        (b"gssapi-with-mic", b"\0\0\0\x01" + s(b"oid")),
        (b"gssapi-keyex", s(b"mic")),
        (b"made-up", b""),
    ],
)
async def test_only_public_keys_are_a_way_in(scene: Scene, method: bytes, rest: bytes) -> None:
    async with raw_client(scene) as raw:
        raw.send_raw(raw.auth_request("royal-1", method, rest))
        kind, payload = await raw.take()
        assert (kind, payload[1:]) == (USERAUTH_FAILURE, s(b"publickey") + b"\0")
    assert scene.directory.asked == []


@pytest.mark.parametrize("principals", [[], ["royal-1"], ["ws-101", "royal-1"]])
@pytest.mark.parametrize("own_ca", [True, False])
async def test_a_certificate_is_no_key(scene: Scene, principals: list[str], own_ca: bool) -> None:
    """Neither a stranger's CA nor the workspace CA opens the gateway; no principals would mean any user."""
    client = scene.add_client("royal-1")
    ca = asyncssh.generate_private_key("ssh-ed25519") if own_ca else scene.directory.ca
    certificate = ca.generate_user_certificate(
        asyncssh.import_public_key(client.public_line),
        "evil",
        principals=principals,
        valid_before=utc_now() + datetime.timedelta(hours=1),
    )
    async with raw_client(scene) as raw:
        tail = b"\x01" + s(certificate.algorithm) + s(certificate.public_data)
        covered = s(raw._session_id) + raw.auth_request("royal-1", b"publickey", tail)
        signature = client.key.sign(covered, b"ssh-ed25519")
        raw.send_raw(raw.auth_request("royal-1", b"publickey", tail) + s(signature))
        assert (await raw.take())[0] == USERAUTH_FAILURE


async def test_sha1_signatures_are_refused(scene: Scene) -> None:
    key = asyncssh.generate_private_key("ssh-rsa", key_size=2048)
    scene.directory.add_session("royal-1", key.export_public_key("openssh").decode().strip())
    async with raw_client(scene) as raw:
        raw.send_raw(raw.signed("royal-1", key, algorithm=b"ssh-rsa"))
        assert (await raw.take())[0] == USERAUTH_FAILURE
        raw.send_raw(raw.signed("royal-1", key, algorithm=b"rsa-sha2-256"))
        assert (await raw.take())[0] == USERAUTH_SUCCESS


@pytest.mark.parametrize(
    "blob", [b"", b"\0", s(b"ssh-ed25519"), s(b"ssh-ed25519") + s(b"short"), b"\xff" * 40, s(b"ssh-dss") + s(b"x") * 4]
)
async def test_a_malformed_key_is_an_unknown_key(scene: Scene, blob: bytes) -> None:
    async with raw_client(scene) as raw:
        tail = b"\x01" + s(b"ssh-ed25519") + s(blob) + s(s(b"ssh-ed25519") + s(b"x" * 64))
        raw.send_raw(raw.auth_request("royal-1", b"publickey", tail))
        assert (await raw.take())[0] == USERAUTH_FAILURE
    assert len(scene.directory.asked) == 1


@pytest.mark.parametrize(
    "payload",
    [
        b"\x5a" + s(b"session") + bytes(12),
        b"\x50" + s(b"tcpip-forward") + b"\x01" + s(b"") + bytes(4),
        b"\x5e" + bytes(4) + s(b"data"),
        b"\x34",
        b"\x3c",
    ],
)
async def test_nothing_passes_before_authentication(scene: Scene, payload: bytes) -> None:
    async with raw_client(scene) as raw:
        raw.send_early(payload)
        if payload != b"\x3c":
            await raw.wait_gone()
        else:
            raw.send_raw(raw.offer("royal-1", asyncssh.generate_private_key("ssh-ed25519")))
            await raw.wait_gone()
    assert scene.directory.signed == []
    assert len(scene.gateway._registry) == 0


async def test_keys_cannot_be_tried_for_ever() -> None:
    async with open_scene(AdmissionPolicy(max_auth_requests=3), box=None) as scene, raw_client(scene) as raw:
        for _ in range(3):
            raw.send_raw(raw.offer("royal-1", asyncssh.generate_private_key("ssh-ed25519")))
            assert (await raw.take())[0] == USERAUTH_FAILURE
        raw.send_raw(raw.offer("royal-1", asyncssh.generate_private_key("ssh-ed25519")))
        await raw.wait_gone()
        assert raw.disconnect_reason == "Too many authentication failures"


async def test_silent_strangers_get_no_more_than_their_places() -> None:
    policy = AdmissionPolicy(max_unauthenticated=3, login_timeout_s=0.5)
    async with open_scene(policy) as scene:
        client = scene.add_client("royal-1")
        streams = [await asyncio.open_connection("127.0.0.1", scene.port) for _ in range(5)]
        greetings = [await reader.read(100) for reader, _ in streams]
        assert [bool(greeting) for greeting in greetings] == [True, True, True, False, False]
        assert scene.gateway.health().strangers == 3
        # The login timeout takes the places back, and the rightful client comes in.
        await scene.until(lambda: scene.gateway.health().strangers == 0)
        assert (await client.run("echo in")).stdout == b"in\n"
        for _, writer in streams:
            writer.close()


async def test_an_authenticated_client_takes_no_place_at_the_door() -> None:
    async with open_scene(AdmissionPolicy(max_unauthenticated=1)) as scene:
        client = scene.add_client("royal-1")
        first = await client.start("box", "sleep 5")
        await scene.until(lambda: len(scene.gateway._registry) == 1)
        assert (await client.run("echo in")).stdout == b"in\n"
        first.kill()


@pytest.mark.parametrize(
    "option",
    ["Ciphers=chacha20-poly1305@openssh.com", "Ciphers=aes128-cbc", "KexAlgorithms=diffie-hellman-group14-sha256"],
)
async def test_old_or_costly_algorithms_are_not_spoken(scene: Scene, option: str) -> None:
    finished = await scene.add_client("royal-1").run("true", options=(option, "LogLevel=INFO"))
    assert finished.status == 255
    assert "no matching" in finished.error_text


async def test_compression_is_off(scene: Scene) -> None:
    finished = await scene.add_client("royal-1").run("true", "-v", "-C", options=("LogLevel=DEBUG1",))
    assert finished.status == 0
    assert "compression: none" in finished.error_text
