"""One side of an SSH connection that sends whatever it is told to, in any state, byte for byte.

Owns: version lines, frames, a curve25519 key exchange on either side, AES-GCM and
aes256-ctr with an encrypt-then-MAC. Never: an opinion about order or content. Blocking
sockets under one `Pump`, so that a peer that writes much never waits for one that we do
not read. All secrets come from a seed: the same seed sends the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import random
import select
import socket
import time
from collections.abc import Callable
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from runcode.gateway.packets import MalformedPacket, Reader
from runcode.gateway.packets import render_string as s
from runcode.gateway.packets import render_uint32 as u

KEXINIT, NEWKEYS, KEX_INIT, KEX_REPLY = 20, 21, 30, 31
STRICT_CLIENT, STRICT_SERVER = b"kex-strict-c-v00@openssh.com", b"kex-strict-s-v00@openssh.com"
_GCM = {b"aes128-gcm@openssh.com": 16, b"aes256-gcm@openssh.com": 32}
_CTR = b"aes256-ctr"
_MACS = {b"hmac-sha2-256-etm@openssh.com": "sha256", b"hmac-sha2-512-etm@openssh.com": "sha512"}
_READ_SIZE = 1 << 18
_PATIENCE_S = 30.0


class CannotGoOn(Exception):
    """The two sides have nothing in common any more; the socket may be open still."""


class Sealer(Protocol):
    block: int
    length_is_padded: bool

    def seal(self, sequence: int, header: bytes, packet: bytes) -> bytes: ...

    def open(self, sequence: int, buffer: bytes, at: int) -> tuple[bytes, int] | None:
        """The packet at `at`, and where the next begins; None while more bytes are needed."""
        ...


class Plain:
    block, length_is_padded = 8, True

    def seal(self, sequence: int, header: bytes, packet: bytes) -> bytes:
        return header + packet

    def open(self, sequence: int, buffer: bytes, at: int) -> tuple[bytes, int] | None:
        stop = at + 4 + int.from_bytes(buffer[at : at + 4], "big")
        return None if len(buffer) < max(stop, at + 5) else (buffer[at + 4 : stop], stop)


class Gcm:
    block, length_is_padded = 16, False

    def __init__(self, key: bytes, nonce: bytes) -> None:
        self._aead, self._fixed, self._count = AESGCM(key), nonce[:4], int.from_bytes(nonce[4:12], "big")

    def _nonce(self) -> bytes:
        self._count += 1
        return self._fixed + ((self._count - 1) & ((1 << 64) - 1)).to_bytes(8, "big")

    def seal(self, sequence: int, header: bytes, packet: bytes) -> bytes:
        return header + self._aead.encrypt(self._nonce(), packet, header)

    def open(self, sequence: int, buffer: bytes, at: int) -> tuple[bytes, int] | None:
        stop = at + 20 + int.from_bytes(buffer[at : at + 4], "big")
        if len(buffer) < max(stop, at + 5):
            return None
        try:
            return self._aead.decrypt(self._nonce(), buffer[at + 4 : stop], buffer[at : at + 4]), stop
        except InvalidTag:
            raise CannotGoOn("the gateway's tag does not fit") from None


class CtrEtm:
    block, length_is_padded = 16, False

    def __init__(self, key: bytes, nonce: bytes, mac_key: bytes, digest: str) -> None:
        self._stream = Cipher(algorithms.AES(key), modes.CTR(nonce)).encryptor()
        self._mac_key, self._digest = mac_key, digest
        self._mac_size = hashlib.new(digest).digest_size

    def _mac(self, sequence: int, covered: bytes) -> bytes:
        return hmac.digest(self._mac_key, u(sequence) + covered, self._digest)

    def seal(self, sequence: int, header: bytes, packet: bytes) -> bytes:
        covered = header + self._stream.update(packet)
        return covered + self._mac(sequence, covered)

    def open(self, sequence: int, buffer: bytes, at: int) -> tuple[bytes, int] | None:
        stop = at + 4 + int.from_bytes(buffer[at : at + 4], "big")
        if len(buffer) < max(stop, at + 5) + self._mac_size:
            return None
        if self._mac(sequence, buffer[at:stop]) != buffer[stop : stop + self._mac_size]:
            raise CannotGoOn("the gateway's MAC does not fit")
        return self._stream.update(buffer[at + 4 : stop]), stop + self._mac_size


class Wire:
    """`inbox` has the messages that came and were not waited for; `closed` is true when the peer has said its last."""

    def __init__(
        self, pump: Pump, sock: socket.socket, *, is_client: bool, seed: str, host_key: Ed25519PrivateKey | None = None
    ) -> None:
        sock.setblocking(False)
        self.sock, self.is_client = sock, is_client
        self.inbox: list[bytes] = []
        # The latest message of each number that ever came.
        self.heard: dict[int, bytes] = {}
        self.closed = False
        # How long a wait lasts that nobody gave a time.
        self.patience_s = _PATIENCE_S
        self.session_id = b""
        self.peer_version = b""
        self.my_version = b""
        self.agreed: dict[str, bytes] = {}
        self.host_key = host_key
        self._chance = random.Random(seed)
        self._pump = pump
        self._out, self._in = bytearray(), bytearray()
        self._sends: Sealer = Plain()
        self._opens: Sealer = Plain()
        # Agreed on, and not in use yet: with NEWKEYS of either side one of them is.
        self._next_sends: Sealer | None = None
        self._next_opens: Sealer | None = None
        # The gateway changed its keys, and we have not worked out ours: what follows cannot be read yet.
        self._is_ahead = False
        self._send_sequence = self._receive_sequence = 0
        self._strict = False
        self._my_kexinit = self._peer_kexinit = b""
        self._secret: X25519PrivateKey | None = None
        pump.wires.append(self)

    # -- the socket ---------------------------------------------------------

    def send_raw(self, raw: bytes, *, with_next: bool = False) -> None:
        """`with_next`: it goes out in one write with what is sent next."""
        self._out += raw
        if not with_next:
            self._pump.turn(0)

    @property
    def unsent(self) -> int:
        return len(self._out)

    def write_some(self) -> None:
        try:
            del self._out[: self.sock.send(self._out)]
        except BlockingIOError:
            return
        except OSError:
            self._out.clear()

    def read_some(self) -> None:
        try:
            raw = self.sock.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            raw = b""
        if not raw:
            self.closed = True
            return
        self._in += raw
        try:
            self._parse()
        except CannotGoOn:
            self.closed = True

    def shut(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        if self in self._pump.wires:
            self._pump.wires.remove(self)
        self.sock.close()

    # -- what comes ---------------------------------------------------------

    def _parse(self) -> None:
        if not self.peer_version:
            line, found, rest = bytes(self._in).partition(b"\n")
            if not found:
                return
            self.peer_version, self._in = line.rstrip(b"\r"), bytearray(rest)
        buffer, at = bytes(self._in), 0
        while len(buffer) - at > 4 and not self._is_ahead:
            opened = self._opens.open(self._receive_sequence, buffer, at)
            if opened is None:
                break
            packet, at = opened
            self._receive_sequence = (self._receive_sequence + 1) & 0xFFFFFFFF
            payload = packet[1 : len(packet) - packet[0]]
            if payload[0] == KEXINIT:
                self._peer_kexinit = payload
            elif payload[0] == NEWKEYS:
                self._is_ahead = True
                self._change_opener()
            self.inbox.append(payload)
            self.heard[payload[0]] = payload
        del self._in[:at]

    def _change_opener(self) -> None:
        if self._is_ahead and self._next_opens is not None:
            self._opens, self._next_opens, self._is_ahead = self._next_opens, None, False
            if self._strict:
                self._receive_sequence = 0

    def has(self, *kinds: int) -> bool:
        return any(payload[0] in kinds for payload in self.inbox)

    def wait(self, *kinds: int) -> bytes | None:
        """The oldest message of these kinds, taken out of the inbox; None when the peer ends, or is not in time."""
        if not self._pump.until(lambda: self.closed or self.has(*kinds), self.patience_s):
            self.patience_s /= 4  # it will not come; nor may what is waited for next
        for index, payload in enumerate(self.inbox):
            if payload[0] in kinds:
                return self.inbox.pop(index)
        return None

    def wait_closed(self, patience_s: float = _PATIENCE_S) -> bool:
        return self._pump.until(lambda: self.closed, patience_s)

    @property
    def disconnect_reason(self) -> str:
        for payload in self.inbox:
            if payload[0] == 1:
                return Reader(payload, 5).string().decode()
        return ""

    # -- what goes ----------------------------------------------------------

    def seal(self, payload: bytes, *, padding: int | None = None, length: int | None = None) -> bytes:
        """The message as a frame. `padding` and `length`: what its fields say, true or not."""
        sealer = self._sends
        size = len(payload) + 1 + (4 if sealer.length_is_padded else 0)
        fill = -size % sealer.block
        fill += sealer.block if fill < 4 else 0
        packet = bytes((fill if padding is None else padding,)) + payload + self._chance.randbytes(fill)
        frame = sealer.seal(self._send_sequence, u(len(packet) if length is None else length), packet)
        self._send_sequence = (self._send_sequence + 1) & 0xFFFFFFFF
        return frame

    def send(self, payload: bytes) -> None:
        self.send_raw(self.seal(payload))

    def send_version(self, line: bytes) -> None:
        self.my_version = line
        self.send_raw(line + b"\r\n")

    def send_kexinit(self, payload: bytes) -> None:
        self._my_kexinit = payload
        self.send(payload)

    def ephemeral(self) -> bytes:
        """Our part of the exchange. The gateway's must have come, and for a server the client's as well."""
        self.wait(KEXINIT)
        self._secret = X25519PrivateKey.from_private_bytes(self._chance.randbytes(32))
        mine = self._secret.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        if self.is_client:
            self._client_part = mine
            return bytes((KEX_INIT,)) + s(mine)
        initial = self.wait(KEX_INIT)
        if initial is None:
            raise CannotGoOn("the gateway began no key exchange")
        assert self.host_key is not None
        host_blob = s(b"ssh-ed25519") + s(self.host_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
        shared, exchanged = self._finish(Reader(initial).string(), host_blob, mine)
        signature = s(b"ssh-ed25519") + s(self.host_key.sign(exchanged))
        self._take_keys(shared, exchanged)
        return bytes((KEX_REPLY,)) + s(host_blob) + s(mine) + s(signature)

    def take_reply(self) -> None:
        """A client's part after `ephemeral` was sent: the keys that follow from the gateway's reply."""
        reply = self.wait(KEX_REPLY)
        if reply is None:
            raise CannotGoOn("the gateway did not reply")
        reader = Reader(reply)
        host_blob, theirs = reader.string(), reader.string()
        self._take_keys(*self._finish(theirs, host_blob, theirs))

    def send_newkeys(self) -> None:
        self.send(bytes((NEWKEYS,)))
        if self._next_sends is None:
            raise CannotGoOn("there are no keys")
        self._sends, self._next_sends = self._next_sends, None
        if self._strict:
            self._send_sequence = 0

    def exchange(self, kexinit: bytes) -> None:
        """A whole key exchange. Raises CannotGoOn."""
        self.send_kexinit(kexinit)
        part = self.ephemeral()
        self.send(part)
        if self.is_client:
            self.take_reply()
        self.send_newkeys()
        if self.wait(NEWKEYS) is None:
            raise CannotGoOn("the gateway took no new keys")

    def _finish(self, theirs: bytes, host_blob: bytes, server_part: bytes) -> tuple[bytes, bytes]:
        assert self._secret is not None
        try:
            secret = self._secret.exchange(X25519PublicKey.from_public_bytes(theirs))
            self._agree()
        except (ValueError, MalformedPacket) as error:
            raise CannotGoOn(str(error)) from error
        shared = _mpint(secret)
        mine = (self.my_version, self._my_kexinit)
        peers = (self.peer_version, self._peer_kexinit)
        client, server = (mine, peers) if self.is_client else (peers, mine)
        client_part = self._client_part if self.is_client else theirs
        fields = (client[0], server[0], client[1], server[1], host_blob, client_part, server_part)
        return shared, hashlib.sha256(b"".join(map(s, fields)) + shared).digest()

    def _agree(self) -> None:
        """Raises MalformedPacket, ValueError."""
        mine, theirs = _read_lists(self._my_kexinit), _read_lists(self._peer_kexinit)
        client, server = (mine, theirs) if self.is_client else (theirs, mine)
        names = ("kex", "host key", "cipher up", "cipher down", "MAC up", "MAC down", "compression up")
        for index, name in enumerate(names):
            self.agreed[name] = next((each for each in client[index] if each in server[index]), b"")
        if self.agreed["kex"] not in (b"curve25519-sha256", b"curve25519-sha256@libssh.org"):
            raise ValueError("another key exchange was chosen")
        if not self.session_id:
            self._strict = STRICT_CLIENT in client[0] and STRICT_SERVER in server[0]

    def _take_keys(self, shared: bytes, exchanged: bytes) -> None:
        self.session_id = self.session_id or exchanged

        def derive(letter: bytes, size: int) -> bytes:
            made = hashlib.sha256(shared + exchanged + letter + self.session_id).digest()
            while len(made) < size:
                made += hashlib.sha256(shared + exchanged + made).digest()
            return made[:size]

        def make(direction: str, letters: tuple[bytes, bytes, bytes]) -> Sealer:
            name = self.agreed[f"cipher {direction}"]
            if name in _GCM:
                return Gcm(derive(letters[1], _GCM[name]), derive(letters[0], 12))
            digest = _MACS.get(self.agreed[f"MAC {direction}"])
            if name != _CTR or digest is None:
                raise CannotGoOn("another cipher was chosen")
            mac_size = hashlib.new(digest).digest_size
            return CtrEtm(derive(letters[1], 32), derive(letters[0], 16), derive(letters[2], mac_size), digest)

        up, down = make("up", (b"A", b"C", b"E")), make("down", (b"B", b"D", b"F"))
        self._next_sends, self._next_opens = (up, down) if self.is_client else (down, up)
        self._change_opener()
        self._parse()


class Pump:
    """Every wire of one case: all are read whenever one of them waits."""

    def __init__(self) -> None:
        self.wires: list[Wire] = []
        # What else ends a turn when it can be read.
        self.listeners: list[socket.socket] = []

    def turn(self, timeout_s: float) -> None:
        reading = {wire.sock: wire for wire in self.wires if not wire.closed}
        writing = {wire.sock: wire for wire in self.wires if wire.unsent}
        if not reading and not writing and not self.listeners:
            return
        readable, writable, _ = select.select([*reading, *self.listeners], list(writing), [], timeout_s)
        for sock in writable:
            writing[sock].write_some()
        for sock in readable:
            if sock in reading:
                reading[sock].read_some()

    def until(self, condition: Callable[[], bool], patience_s: float = _PATIENCE_S) -> bool:
        deadline = time.monotonic() + patience_s
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self.turn(min(left, 0.05))
        return True


def render_kexinit(
    *,
    is_client: bool,
    kex: bytes = b"curve25519-sha256",
    ciphers: bytes = b"aes128-gcm@openssh.com",
    compression: bytes = b"none",
    strict: bool = True,
    cookie: bytes = bytes(16),
) -> bytes:
    extra = (b"ext-info-c", STRICT_CLIENT) if is_client else (b"ext-info-s", STRICT_SERVER)
    names = b",".join((kex, *(extra if strict else extra[:1])))
    macs = b"hmac-sha2-256-etm@openssh.com"
    lists = (names, b"ssh-ed25519", ciphers, ciphers, macs, macs, compression, compression, b"", b"")
    return bytes((KEXINIT,)) + cookie + b"".join(map(s, lists)) + b"\0" + u(0)


def _read_lists(kexinit: bytes) -> list[list[bytes]]:
    reader = Reader(kexinit, 17)
    return [reader.string().split(b",") for _ in range(8)]


def _mpint(raw: bytes) -> bytes:
    number = raw.lstrip(b"\0")
    return s((b"\0" if number and number[0] & 0x80 else b"") + number)
