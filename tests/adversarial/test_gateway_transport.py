"""Below authentication: algorithms, strict key exchange, extension info, renewals, sizes, slowness, floods."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator

import asyncssh
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from runcode.gateway import asyncssh_relay
from runcode.gateway.admission import AdmissionPolicy
from runcode.gateway.packets import Reader
from runcode.gateway.packets import render_string as s
from runcode.gateway.packets import render_uint32 as u
from support.gateway_box import Client, Scene, open_scene
from support.ssh_wire import KEXINIT, CannotGoOn, Pump, Wire, render_kexinit

PATIENCE_S = 180.0
HELLO = b"SSH-2.0-OpenSSH_9.2"
GCM, CTR = b"aes128-gcm@openssh.com", b"aes256-ctr"
IGNORE, DEBUG = b"\x02" + s(b""), b"\x04\0" + s(b"x") + s(b"")
EXT_INFO = b"\x07" + u(1) + s(b"server-sig-algs") + s(b"ssh-rsa")
SERVICE = b"\x05" + s(b"ssh-userauth")
UNKNOWN = b"\x08"


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with open_scene(box=None) as opened:
        yield opened


@contextlib.contextmanager
def dialled(scene: Scene) -> Iterator[Wire]:
    sock = socket.create_connection(("127.0.0.1", scene.port), timeout=PATIENCE_S)
    wire = Wire(Pump(), sock, is_client=True, seed="transport")
    wire.patience_s = PATIENCE_S
    try:
        yield wire
    finally:
        wire.close()


@contextlib.contextmanager
def keyed(scene: Scene, *, ciphers: bytes = GCM, strict: bool = True) -> Iterator[Wire]:
    """Keys are exchanged, nothing else is said."""
    with dialled(scene) as wire:
        wire.send_version(HELLO)
        wire.exchange(render_kexinit(is_client=True, ciphers=ciphers, strict=strict))
        yield wire


def log_in(wire: Wire, client: Client) -> None:
    wire.send(SERVICE)
    assert wire.wait(6) is not None
    blob = client.key.public_data
    request = b"\x32" + s(client.title.encode()) + s(b"ssh-connection") + s(b"publickey") + b"\x01"
    request += s(b"ssh-ed25519") + s(blob)
    wire.send(request + s(client.key.sign(s(wire.session_id) + request, b"ssh-ed25519")))
    assert wire.wait(52) is not None


async def in_thread(story: Callable[[], None]) -> None:
    """The gateway lives on this loop; the wire blocks."""
    await asyncio.to_thread(story)


# -- algorithms ----------------------------------------------------------


async def test_only_modern_algorithms_are_offered_and_no_compression(scene: Scene) -> None:
    def story() -> None:
        with dialled(scene) as wire:
            wire.send_version(HELLO)
            offer = wire.wait(KEXINIT)
            assert offer is not None
            reader = Reader(offer, 17)
            kex, host, up, down, mac_up, mac_down, zip_up, zip_down = (reader.string().split(b",") for _ in range(8))
            modern = {b"mlkem768x25519-sha256", b"curve25519-sha256", b"curve25519-sha256@libssh.org"}
            assert set(kex) - modern == {b"ext-info-s", b"kex-strict-s-v00@openssh.com"}
            assert host == [b"ssh-ed25519"]
            assert up == down == [b"aes128-gcm@openssh.com", b"aes256-gcm@openssh.com", b"aes256-ctr"]
            assert mac_up == mac_down == [b"hmac-sha2-256-etm@openssh.com", b"hmac-sha2-512-etm@openssh.com"]
            assert zip_up == zip_down == [b"none"]

    await in_thread(story)


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("kex", b"diffie-hellman-group14-sha1"),
        ("kex", b"diffie-hellman-group-exchange-sha1"),
        ("kex", b"ecdh-sha2-nistp256"),
        ("ciphers", b"aes128-cbc"),
        ("ciphers", b"3des-cbc"),
        ("ciphers", b"chacha20-poly1305@openssh.com"),
        ("ciphers", b"none"),
        ("compression", b"zlib"),
        ("compression", b"zlib@openssh.com"),
        ("compression", b""),
    ],
)
async def test_who_can_do_nothing_else_than_old_things_is_not_served(scene: Scene, what: str, name: bytes) -> None:
    def story() -> None:
        with dialled(scene) as wire:
            wire.send_version(HELLO)
            wire.wait(KEXINIT)
            wire.send_kexinit(
                render_kexinit(
                    is_client=True,
                    kex=name if what == "kex" else b"curve25519-sha256",
                    ciphers=name if what == "ciphers" else GCM,
                    compression=name if what == "compression" else b"none",
                )
            )
            assert wire.wait_closed(PATIENCE_S)
            assert wire.disconnect_reason.startswith("No matching")

    await in_thread(story)


async def test_the_signatures_that_are_announced_are_modern(scene: Scene) -> None:
    def story() -> None:
        with keyed(scene) as wire:
            told = wire.wait(7)
            assert told is not None
            reader = Reader(told)
            extensions = {reader.string(): reader.string() for _ in range(reader.uint32())}
            names = set(extensions[b"server-sig-algs"].split(b","))
            assert b"ssh-ed25519" in names
            assert not {name for name in names if name in (b"ssh-rsa", b"ssh-dss") or b"sha1" in name}

    await in_thread(story)


# -- strict key exchange (the Terrapin family) ------------------------------


@pytest.mark.parametrize("extra", [IGNORE, DEBUG, b"\x03" + u(0), EXT_INFO, UNKNOWN, b"\x53", SERVICE])
@pytest.mark.parametrize("place", ["before KEXINIT", "before the reply", "before NEWKEYS"])
async def test_nothing_slips_into_the_first_key_exchange(scene: Scene, place: str, extra: bytes) -> None:
    """An attacker in the middle shifts sequence numbers with it, and cuts off what comes later."""

    def story() -> None:
        with dialled(scene) as wire:
            wire.send_version(HELLO)
            with contextlib.suppress(CannotGoOn):
                if place == "before KEXINIT":
                    wire.send(extra)
                wire.send_kexinit(render_kexinit(is_client=True))
                part = wire.ephemeral()
                if place == "before the reply":
                    wire.send(extra)
                wire.send(part)
                wire.take_reply()
                if place == "before NEWKEYS":
                    wire.send(extra)
                wire.send_newkeys()
                wire.send(SERVICE)
                assert wire.wait(6) is None
            assert wire.wait_closed(PATIENCE_S)

    await in_thread(story)


async def test_without_strict_keys_an_ignored_message_is_ignored(scene: Scene) -> None:
    """The control of the test above: it is strictness that ends those connections."""

    def story() -> None:
        with dialled(scene) as wire:
            wire.send_version(HELLO)
            wire.send(IGNORE)
            wire.exchange(render_kexinit(is_client=True, strict=False))
            wire.send(SERVICE)
            assert wire.wait(6) is not None

    await in_thread(story)


@pytest.mark.parametrize("ciphers", [GCM, CTR])
async def test_strict_keys_start_the_numbers_anew_each_time(scene: Scene, ciphers: bytes) -> None:
    def story() -> None:
        with keyed(scene, ciphers=ciphers) as wire:
            # "Unimplemented" names the number of the message that it means (RFC 4253 §11.4).
            wire.send(UNKNOWN)
            wire.send(UNKNOWN)
            assert [wire.wait(3), wire.wait(3)] == [b"\x03" + u(0), b"\x03" + u(1)]
            # A renewal that drops the marker changes nothing.
            wire.exchange(render_kexinit(is_client=True, ciphers=ciphers, strict=False))
            wire.send(UNKNOWN)
            assert wire.wait(3) == b"\x03" + u(0)
        with keyed(scene, ciphers=ciphers, strict=False) as wire:
            wire.send(UNKNOWN)
            assert wire.wait(3) == b"\x03" + u(3)
            # Nor does one that brings it in.
            wire.exchange(render_kexinit(is_client=True, ciphers=ciphers, strict=True))
            wire.send(UNKNOWN)
            assert wire.wait(3) == b"\x03" + u(7)

    await in_thread(story)


class BoxDoor:
    """The socket of a workspace whose pinned key we hold."""

    def __init__(self, scene: Scene, title: str) -> None:
        self.key = Ed25519PrivateKey.generate()
        path = str(scene.folder / f"d-{title}")
        line = self.key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        scene.directory.add_workspace(title, host_key=line, socket_path=path, login="box")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(8)
        self._listener.settimeout(PATIENCE_S)

    def accept(self, pump: Pump) -> Wire:
        return Wire(pump, self._listener.accept()[0], is_client=False, seed="box", host_key=self.key)

    def close(self) -> None:
        self._listener.close()


def answer_keys(box: Wire, *, before_keys: bytes = b"") -> None:
    box.send_version(HELLO)
    box.send_kexinit(render_kexinit(is_client=False))
    part = box.ephemeral()
    if before_keys:
        box.send(before_keys)
    box.send(part)
    box.send_newkeys()


def let_in(box: Wire) -> None:
    answer_keys(box)
    assert box.wait(5) is not None
    box.send(b"\x06" + s(b"ssh-userauth"))
    assert box.wait(50) is not None
    box.send(b"\x34")


@pytest.mark.parametrize("extra", [IGNORE, DEBUG, EXT_INFO, UNKNOWN])
async def test_nothing_slips_into_the_first_key_exchange_with_a_box(scene: Scene, extra: bytes) -> None:
    door = BoxDoor(scene, "strict-1")
    client = scene.add_client("strict-1")

    def story() -> None:
        with keyed(scene) as wire:
            log_in(wire, client)
            box = door.accept(wire._pump)
            with contextlib.suppress(CannotGoOn):
                answer_keys(box, before_keys=extra)
                assert box.wait(50) is None
            assert wire.wait_closed(PATIENCE_S)
            assert wire.disconnect_reason == "the workspace could not be reached"
            box.close()
        with keyed(scene) as wire:
            log_in(wire, client)
            box = door.accept(wire._pump)
            let_in(box)
            wire.send(b"\x50" + s(b"keepalive@openssh.com") + b"\x01")
            assert box.wait(80) is not None
            box.close()

    await in_thread(story)
    door.close()


# -- extension info, and messages out of their place -------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b"\x07" + u(0xFFFFFFFF),
        b"\x07" + u(1) + s(b"server-sig-algs"),
        b"\x07" + u(0) + b"more",
        b"\x15",
        b"\x06" + s(b"ssh-userauth"),
        b"\x05" + s(b"ssh-connection"),
        b"\x1e" + s(bytes(32)),
        b"\x34",
        b"\x33" + s(b"publickey") + b"\x01",
        b"\x35" + s(b"banner") + s(b""),
    ],
)
async def test_what_belongs_nowhere_ends_a_stranger(scene: Scene, payload: bytes) -> None:
    def story() -> None:
        with keyed(scene) as wire:
            wire.send(payload)
            assert wire.wait_closed(PATIENCE_S)
        with keyed(scene) as wire:
            # After the service was granted, when extension info has no place any more.
            wire.send(SERVICE)
            assert wire.wait(6) is not None
            wire.send(payload)
            assert wire.wait_closed(PATIENCE_S)

    await in_thread(story)
    assert scene.directory.asked == []


async def test_a_clients_extension_info_decides_nothing(scene: Scene) -> None:
    """Well-formed, in its place: it may not widen what signatures are taken."""
    key = asyncssh.generate_private_key("ssh-rsa", key_size=2048)
    scene.add_box("royal-1")
    scene.directory.add_session("royal-1", key.export_public_key("openssh").decode().strip())

    def story() -> None:
        with keyed(scene) as wire:
            wire.send(EXT_INFO)
            wire.send(SERVICE)
            assert wire.wait(6) is not None
            request = b"\x32" + s(b"royal-1") + s(b"ssh-connection") + s(b"publickey") + b"\x01"
            request += s(b"ssh-rsa") + s(key.public_data)
            wire.send(request + s(key.sign(s(wire.session_id) + request, b"ssh-rsa")))
            answer = wire.wait(51, 52)
            assert answer is not None
            assert answer[0] == 51

    await in_thread(story)


async def test_a_stranger_gets_few_key_exchanges(scene: Scene) -> None:
    def story() -> None:
        with keyed(scene) as wire:
            for _ in range(2):
                wire.exchange(render_kexinit(is_client=True))
            wire.send(SERVICE)
            assert wire.wait(6) is not None
            wire.send_kexinit(render_kexinit(is_client=True))
            assert wire.wait_closed(PATIENCE_S)
            assert wire.disconnect_reason == "Too many key exchanges before authentication"

    await in_thread(story)


async def test_whoever_is_in_renews_keys_as_often_as_he_likes(scene: Scene) -> None:
    scene.add_box("royal-1")
    client = scene.add_client("royal-1")

    def story() -> None:
        with keyed(scene) as wire:
            log_in(wire, client)
            for _ in range(6):
                wire.exchange(render_kexinit(is_client=True))

    await in_thread(story)


async def test_a_signature_of_another_connection_is_none(scene: Scene) -> None:
    """Whoever gets a client to sign for himself (a false gateway) cannot use it here."""
    scene.add_box("royal-1")
    client = scene.add_client("royal-1")

    def story() -> None:
        with keyed(scene) as elsewhere, keyed(scene) as wire:
            elsewhere.session_id, wire.session_id = wire.session_id, elsewhere.session_id + b""
            wire.send(SERVICE)
            assert wire.wait(6) is not None
            request = b"\x32" + s(b"royal-1") + s(b"ssh-connection") + s(b"publickey") + b"\x01"
            request += s(b"ssh-ed25519") + s(client.key.public_data)
            wire.send(request + s(client.key.sign(s(wire.session_id) + request, b"ssh-ed25519")))
            answer = wire.wait(51, 52)
            assert answer is not None
            assert answer[0] == 51

    await in_thread(story)
    assert scene.directory.signed == []


async def test_another_name_after_authentication_leads_nowhere_else(scene: Scene) -> None:
    door, other = BoxDoor(scene, "first-1"), BoxDoor(scene, "second-1")
    client = scene.add_client("first-1")

    def story() -> None:
        with keyed(scene) as wire:
            log_in(wire, client)
            box = door.accept(wire._pump)
            let_in(box)
            for title in (b"second-1", b"first-1"):
                request = b"\x32" + s(title) + s(b"ssh-connection") + s(b"publickey") + b"\x01"
                request += s(b"ssh-ed25519") + s(client.key.public_data)
                wire.send(request + s(client.key.sign(s(wire.session_id) + request, b"ssh-ed25519")))
            wire.send(b"\x50" + s(b"keepalive@openssh.com") + b"\x01")
            assert box.wait(80) is not None
            # Of a request after that the whole connection ends.
            wire.send(b"\x32" + s(b"second-1") + s(b"ssh-connection") + s(b"none"))
            assert wire.wait_closed(PATIENCE_S)
            assert not wire.has(51, 52)
            box.close()

    await in_thread(story)
    assert {title for title, _ in scene.directory.asked} == {"first-1"}
    door.close()
    other.close()


# -- sizes ----------------------------------------------------------------


@pytest.mark.parametrize("ciphers", [GCM, CTR])
@pytest.mark.parametrize("said", [262_145, 0x7FFFFFFF, 0xFFFFFFFF])
async def test_a_packet_that_says_too_much_ends_an_admitted_connection_at_once(
    scene: Scene, said: int, ciphers: bytes
) -> None:
    """Its length alone does it: nothing is kept until the rest has come."""
    scene.add_box("royal-1")
    client = scene.add_client("royal-1")

    def story() -> None:
        with keyed(scene, ciphers=ciphers) as wire:
            log_in(wire, client)
            wire.send_raw(u(said) + bytes(12))
            assert wire.wait_closed(PATIENCE_S)
            assert wire.disconnect_reason == "Max packet size exceeded"

    await in_thread(story)


@pytest.mark.parametrize("raw", [bytes(16), u(1) + bytes(12), u(11) + bytes(12)])
async def test_a_packet_shorter_than_its_own_header_ends_a_stranger(scene: Scene, raw: bytes) -> None:
    def story() -> None:
        with dialled(scene) as wire:
            wire.send_version(HELLO)
            wire.send_raw(raw)
            assert wire.wait_closed(PATIENCE_S)
            assert wire.disconnect_reason == "Packet too short"

    await in_thread(story)


# -- slow peers -------------------------------------------------------------


def _say_nothing(wire: Wire) -> None:
    pass


def _say_version(wire: Wire) -> None:
    wire.send_version(HELLO)


def _exchange_keys(wire: Wire) -> None:
    wire.send_version(HELLO)
    wire.exchange(render_kexinit(is_client=True))


def _ask_for_service(wire: Wire) -> None:
    _exchange_keys(wire)
    wire.send(SERVICE)
    wire.wait(6)


@pytest.mark.parametrize(
    ("beginning", "dribbled"),
    [
        (_say_nothing, b""),
        (_say_nothing, b"SSH-2.0-" + b"x" * 200),
        (_say_version, b""),
        (_say_version, u(30_000) + bytes(400)),
        (_exchange_keys, b""),
        (_exchange_keys, u(30_000) + bytes(400)),
        (_ask_for_service, b""),
        (_ask_for_service, u(30_000) + bytes(400)),
    ],
)
async def test_who_is_slow_to_authenticate_loses_his_place_however_busy_he_looks(
    beginning: Callable[[Wire], None], dribbled: bytes
) -> None:
    async with open_scene(AdmissionPolicy(login_timeout_s=1.0), box=None) as scene:

        def story() -> None:
            with dialled(scene) as wire:
                with contextlib.suppress(CannotGoOn):
                    beginning(wire)
                for byte in dribbled:
                    if wire.closed:
                        break
                    wire.send_raw(bytes((byte,)))
                    wire.wait_closed(0.02)
                assert wire.wait_closed(PATIENCE_S)

        await in_thread(story)
        await scene.until(lambda: scene.gateway.health().strangers == 0, timeout_s=PATIENCE_S)


# -- answers that nobody reads -----------------------------------------------


def flood_unread(scene: Scene, wire: Wire, payload: bytes, answer: int) -> None:
    """Send until the gateway has stopped reading; then read, and see every single one answered."""
    (leg,) = [leg for leg in scene.gateway._legs if not leg.is_over]
    assert leg._transport is not None
    # The kernel would hide much of what waits.
    for sock in (wire.sock, leg._transport.get_extra_info("socket")):
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, 65_536)
    wire.inbox.clear()
    count, pending = 0, b""
    deadline = time.monotonic() + PATIENCE_S
    while not leg._reading_held:
        assert time.monotonic() < deadline, "the gateway reads on without end"
        if not pending:
            pending = b"".join(wire.seal(payload) for _ in range(100))
            count += 100
        try:
            pending = pending[wire.sock.send(pending) :]
        except BlockingIOError:
            time.sleep(0.01)
    assert leg._transport.get_write_buffer_size() < 2 * 1024 * 1024
    wire.send_raw(pending)
    assert wire._pump.until(lambda: len(wire.inbox) >= count, PATIENCE_S)
    assert {each[0] for each in wire.inbox} == {answer}


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncssh_relay, "_UNREAD_MAX", 32 * 1024)
    monkeypatch.setattr(asyncssh_relay, "_WRITE_HIGH_WATER", 16 * 1024)


@pytest.mark.usefixtures("small_buffers")
async def test_a_stranger_who_reads_no_answers_is_not_read_either(scene: Scene) -> None:
    def story() -> None:
        with keyed(scene) as wire:
            assert wire.wait(7) is not None
            flood_unread(scene, wire, UNKNOWN, 3)

    await in_thread(story)


@pytest.mark.usefixtures("small_buffers")
@pytest.mark.parametrize(
    ("ciphers", "payload", "answer"),
    [
        (GCM, b"\x50" + s(b"made-up@example.org") + b"\x01", 82),
        (CTR, b"\x5a" + s(b"made-up@example.org") + u(5) + u(0) + u(0), 92),
        (GCM, b"\xc0", 3),
    ],
)
async def test_an_admitted_client_who_reads_no_answers_is_not_read_either(
    scene: Scene, ciphers: bytes, payload: bytes, answer: int
) -> None:
    """Requests and channels that the gateway itself refuses, without end."""
    door = BoxDoor(scene, "quiet-1")
    client = scene.add_client("quiet-1")

    def story() -> None:
        with keyed(scene, ciphers=ciphers) as wire:
            log_in(wire, client)
            box = door.accept(wire._pump)
            let_in(box)
            # Both legs are joined: before that, what waits for the box is bounded by another rule.
            wire.send(b"\x50" + s(b"keepalive@openssh.com") + b"\0")
            assert box.wait(80) is not None
            flood_unread(scene, wire, payload, answer)

    await in_thread(story)
    door.close()
