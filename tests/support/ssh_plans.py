"""What a hostile SSH peer will say: steps, how recorded ones are twisted, and their text form. Pure.

A plan is a position and steps. A line of its text is one step:

    client send 5a0000000773657373696f6e… | flip 771
    box live ephemeral
    client wait 51 60

Sides are `client` and `box`. Kinds: `version HEX`, `send HEX` (one message), `live NAME …`
(made anew for each connection: ephemeral keys, signatures), `raw HEX` (past all framing),
`wait N …` (for a message of one of these numbers, not for long). Behind `|` stand twists:
a name and a number from which everything about it follows, so that a text says all.

A plan follows from seed and index alone. Called by `ssh_fuzz`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from runcode.gateway.packets import render_string as s
from runcode.gateway.packets import render_uint32 as u

CLIENT, BOX = "client", "box"
# Who is hostile, and whether that is before or after authentication.
POSITIONS: Final = ("client-before", "client-after", "box-before", "box-after")
CIPHERS: Final = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes256-ctr")
_STEPS_MAX = 160
_LARGE: Final = (300, 5_000, 34_000, 41_000, 200_000, 270_000)
_EXTREMES: Final = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE, 35_000, 262_144)


@dataclass(frozen=True)
class Step:
    side: str
    kind: str
    words: tuple[str, ...] = ()
    twists: tuple[tuple[str, int], ...] = ()

    def render(self) -> str:
        parts = [" ".join((self.side, self.kind, *self.words)), *(f"{name} {number}" for name, number in self.twists)]
        return " | ".join(parts)


@dataclass(frozen=True)
class Plan:
    position: str
    ciphers: str
    steps: tuple[Step, ...]

    def render(self) -> str:
        return "\n".join((f"position {self.position} {self.ciphers}", *(step.render() for step in self.steps))) + "\n"


@dataclass(frozen=True)
class Transcript:
    """A recorded session in two parts: each side's way through authentication, and all that followed, in order."""

    client_before: tuple[Step, ...]
    box_before: tuple[Step, ...]
    after: tuple[Step, ...]


# -- reading -------------------------------------------------------------


def parse_step(line: str) -> Step:
    head, *twists = line.split("|")
    side, kind, *words = head.split()
    if side not in (CLIENT, BOX):
        raise ValueError(f"no side: {line[:80]}")
    pairs = [twist.split() for twist in twists]
    return Step(side, kind, tuple(words), tuple((name, int(number)) for name, number in pairs))


def parse_plan(text: str) -> Plan:
    """Raises ValueError."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    word, position, ciphers = lines[0].split()
    if word != "position" or position not in POSITIONS:
        raise ValueError("a plan begins with its position")
    return Plan(position, ciphers, tuple(parse_step(line) for line in lines[1:]))


def parse_transcript(text: str) -> Transcript:
    steps = [parse_step(line) for line in text.splitlines() if line and not line.startswith("#")]
    before: dict[str, list[Step]] = {CLIENT: [Step(CLIENT, "version", (b"SSH-2.0-OpenSSH_9.2".hex(),))], BOX: []}
    before[BOX].append(Step(BOX, "version", (b"SSH-2.0-OpenSSH_9.2".hex(),)))
    after: list[Step] = []
    authenticated = {CLIENT: False, BOX: False}
    for step in steps:
        if authenticated[step.side]:
            after.append(step)
        else:
            before[step.side] += _with_waits(step)
            authenticated[step.side] = step.words[:1] == (("signed",) if step.side == CLIENT else ("34",))
    return Transcript(tuple(before[CLIENT]), tuple(before[BOX]), tuple(after))


def load_transcripts(folder: Path) -> list[Transcript]:
    return [parse_transcript(path.read_text()) for path in sorted(folder.glob("*.txt")) if is_recorded(path)]


def load_findings(folder: Path) -> dict[str, Plan]:
    """Plans that once broke the gateway, by the name of their file."""
    return {path.stem: parse_plan(path.read_text()) for path in sorted(folder.glob("*.txt")) if not is_recorded(path)}


def is_recorded(path: Path) -> bool:
    return path.read_text().startswith("# recorded:")


def _with_waits(step: Step) -> list[Step]:
    number = step.words[0][:2] if step.kind == "send" else ""
    if step.side == CLIENT:
        is_request = number == "32" or step.words[:1] in (("offer",), ("signed",))
        return [step, *([Step(CLIENT, "wait", ("51", "52", "60"))] if is_request else [])]
    if number == "06":
        return [Step(BOX, "wait", ("5",)), step]
    return [*([Step(BOX, "wait", ("50",))] if number in ("33", "34") or step.words == ("confirm",) else []), step]


# -- twisting one message ------------------------------------------------


def _flip(payload: bytes, number: int) -> bytes:
    at = number % (8 * len(payload))
    return payload[: at // 8] + bytes((payload[at // 8] ^ 1 << at % 8,)) + payload[at // 8 + 1 :]


def _byte(payload: bytes, number: int) -> bytes:
    at = (number >> 8) % len(payload)
    return payload[:at] + bytes((number & 0xFF,)) + payload[at + 1 :]


def _find_lengths(payload: bytes) -> list[int]:
    """Where a length of a string may stand: what follows is at least that long."""
    return [
        at
        for at in range(1, len(payload) - 3)
        if int.from_bytes(payload[at : at + 4], "big") <= min(len(payload) - at - 4, 4096)
    ]


def _length(payload: bytes, number: int) -> bytes:
    places = _find_lengths(payload)
    if not places:
        return _number(payload, number)
    at = places[(number >> 8) % len(places)]
    said = int.from_bytes(payload[at : at + 4], "big")
    choices = (*_EXTREMES, said + 1, max(said - 1, 0), len(payload))
    return payload[:at] + u(choices[number % len(choices)] & 0xFFFFFFFF) + payload[at + 4 :]


def _number(payload: bytes, number: int) -> bytes:
    if len(payload) < 5:
        return payload + b"\xff"
    at = 1 + (number >> 8) % (len(payload) - 4)
    return payload[:at] + u(_EXTREMES[number % len(_EXTREMES)]) + payload[at + 4 :]


def _string(payload: bytes, number: int, text: bytes) -> bytes:
    """`text` in place of a string."""
    places = _find_lengths(payload)
    at = places[(number >> 8) % len(places)] if places else len(payload)
    said = int.from_bytes(payload[at : at + 4], "big") if places else 0
    return payload[:at] + s(text) + payload[at + 4 + said :]


def _huge(payload: bytes, number: int) -> bytes:
    return _string(payload, number, b"A" * _LARGE[number % len(_LARGE)])


def _commas(payload: bytes, number: int) -> bytes:
    return _string(payload, number, b"," * (_LARGE[number % 3]))


def _not_utf8(payload: bytes, number: int) -> bytes:
    texts = (b"\xff\xfe\xfd", b"\xc0\x80", b"\xed\xa0\x80", b"\x00", b"\x1b]0;x\x07", "\u202e\u0378".encode(), b"\xf5")
    return _string(payload, number, texts[number % len(texts)])


def _cut(payload: bytes, number: int) -> bytes:
    return payload[: number % len(payload)]


def _grow(payload: bytes, number: int) -> bytes:
    return payload + random.Random(number).randbytes(1 + number % 64)


def _kind(payload: bytes, number: int) -> bytes:
    return bytes((number % 256,)) + payload[1:]


def _noise(payload: bytes, number: int) -> bytes:
    return payload[:1] + random.Random(number).randbytes(number % 200)


_TWISTS: dict[str, Callable[[bytes, int], bytes]] = {
    "flip": _flip,
    "byte": _byte,
    "length": _length,
    "number": _number,
    "huge": _huge,
    "commas": _commas,
    "not-utf8": _not_utf8,
    "cut": _cut,
    "grow": _grow,
    "kind": _kind,
    "noise": _noise,
}
# Of the frame around a message: `ssh_fuzz` does these.
FRAME_TWISTS: Final = ("frame-padding", "frame-length", "frame-tag", "frame-torn", "frame-bytewise", "frame-with-next")


def twist(payload: bytes, twists: Sequence[tuple[str, int]]) -> bytes:
    for name, number in twists:
        if name not in FRAME_TWISTS and payload:
            payload = _TWISTS[name](payload, number)
    return payload


# -- making plans --------------------------------------------------------

# What belongs nowhere, or elsewhere: any of it may be put anywhere.
_ODDITIES: Final = tuple(
    raw.hex()
    for raw in (
        b"\x02" + s(b"ignored"),
        b"\x03" + u(7),
        b"\x04\x01" + s(b"debug\x1b[2J") + s(b""),
        b"\x05" + s(b"ssh-userauth"),
        b"\x05" + s(b"ssh-connection"),
        b"\x06" + s(b"ssh-userauth"),
        b"\x07" + u(1) + s(b"server-sig-algs") + s(b"ssh-rsa," * 40),
        b"\x07" + u(0xFFFFFFFF),
        b"\x08",
        b"\x15",
        b"\x1e" + s(bytes(32)),
        b"\x1f" + s(b"") + s(bytes(32)) + s(b""),
        b"\x22" + u(1024) + u(2048) + u(8192),
        b"\x32" + s(b"royal-1") + s(b"ssh-connection") + s(b"none"),
        b"\x32" + s(b"other-1") + s(b"ssh-connection") + s(b"none"),
        b"\x32" + s(b"royal-1") + s(b"ssh-userauth") + s(b"none"),
        b"\x33" + s(b"publickey") + b"\x01",
        b"\x34",
        b"\x35" + s(b"banner\xff") + s(b""),
        b"\x3c" + s(b"ssh-ed25519") + s(b"key"),
        b"\x3d" + u(0xFFFFFFFF),
        b"\x50" + s(b"keepalive@openssh.com") + b"\x01",
        b"\x50" + s(b"hostkeys-00@openssh.com") + b"\x01" + s(b"key"),
        b"\x50" + s(b"tcpip-forward") + b"\x01" + s(b"::") + u(0),
        b"\x50" + s(b"streamlocal-forward@openssh.com") + b"\x01" + s(b"/x" * 3000),
        b"\x51",
        b"\x52",
        b"\x5a" + s(b"session") + u(0) + u(0xFFFFFFFF) + u(0xFFFFFFFF),
        b"\x5a" + s(b"direct-tcpip") + u(9) + u(0) + u(0) + s(b"0xa9fea9fe") + u(80) + s(b"") + u(0),
        b"\x5a" + s(b"auth-agent@openssh.com") + u(3) + u(1) + u(1),
        b"\x5a" + s(b"x11") + u(4) + u(1) + u(1) + s(b"h") + u(1),
        b"\x5a" + s(b"forwarded-tcpip") + u(5) + u(1) + u(1) + s(b"localhost") + u(0) + s(b"") + u(0),
        b"\x5b" + u(0) + u(0) + u(0) + u(0),
        b"\x5c" + u(0) + u(1) + s(b"no\xff") + s(b""),
        b"\x5d" + u(0) + u(0xFFFFFFFF),
        b"\x5e" + u(0) + s(b"x" * 32_768),
        b"\x5f" + u(0) + u(1) + s(b"err"),
        b"\x60" + u(0xFFFFFFFF),
        b"\x61" + u(0),
        b"\x62" + u(0) + s(b"env") + b"\x01" + s(b"LD_PRELOAD") + s(b"/x"),
        b"\x62" + u(0) + s(b"exec") + b"\x01" + s(b"\xff\0" * 100),
        b"\x62" + u(0) + s(b"exit-status") + b"\0",
        b"\x62" + u(0) + s(b"signal") + b"\x01" + s(b"KILL"),
        b"\x63" + u(0),
        b"\x64" + u(0),
        b"\x53",
        b"\x7f",
        b"\xc0" + s(b"x"),
        b"\xff",
        b"\x00",
    )
)
_LIVE: Final = {
    CLIENT: (
        ("ephemeral",), ("newkeys",), ("rekey",), ("offer", "royal-1", "good"), ("offer", "royal-1", "stranger"),
        ("signed", "royal-1", "good"), ("signed", "royal-1", "stranger"), ("signed", "other-1", "good"),
        ("swapped", "royal-1", "good"),
    ),
    BOX: (("ephemeral",), ("newkeys",), ("rekey",), ("confirm",)),
}  # fmt: skip
_FALSE_PROOFS: Final = (
    ("swapped", "royal-1", "good"), ("signed", "royal-1", "stranger"), ("signed", "other-1", "good"),
)  # fmt: skip
_RAW: Final = (
    b"",
    b"\n" * 9000,
    bytes(64),
    b"\xff" * 64,
    b"SSH-2.0-again\r\n",
    b"SSH-1.5-old\n",
    b"\r\n\r\n\0\r\nQUIT\n",
)


def make_plan(transcripts: Sequence[Transcript], seed: int, index: int) -> Plan:
    chance = random.Random(f"{seed}/{index}")
    position = POSITIONS[index % len(POSITIONS)]
    hostile = position.partition("-")[0]
    base = chance.choice(transcripts)
    if position == "client-before":
        steps = [*base.client_before, *base.after[: chance.choice((0, 0, 3, 9))]]
    elif position == "box-before":
        steps = [*base.box_before, *base.after[: chance.choice((0, 3, 9))]]
    else:
        bodies = [base, *chance.choices(transcripts, k=chance.choice((0, 0, 1, 3)))]
        steps = [step for body in bodies for step in _without_farewells(body.after)]
    for _ in range(1 + min(int(chance.expovariate(0.5)), 9)):
        _change(steps, hostile if chance.random() < 0.85 else chance.choice((CLIENT, BOX)), transcripts, chance)
    if position == "client-before":
        steps = [step for step in steps if step.side == CLIENT]
        if chance.random() < 0.5:
            _falsify(steps, chance)
    if position == "box-before" and chance.random() < 0.3:
        steps = [
            replace(step, words=("ephemeral", "stranger")) if step.words == ("ephemeral",) else step for step in steps
        ]
    return Plan(position, chance.choice(CIPHERS), tuple(steps[:_STEPS_MAX]))


def _falsify(steps: list[Step], chance: random.Random) -> None:
    """What would be the rightful client's proof is not: another's signature, name or key, or some of its bytes."""
    for at, step in enumerate(steps):
        if step.words[:1] != ("signed",):
            continue
        if chance.random() < 0.5:
            steps[at] = replace(step, words=chance.choice(_FALSE_PROOFS))
        else:
            name = chance.choice(("flip", "flip", "byte", "not-utf8", "length"))
            steps[at] = replace(step, twists=((name, chance.randrange(1 << 24)),))


def _without_farewells(steps: Sequence[Step]) -> list[Step]:
    """What comes behind a client's disconnect is never read."""
    return [step for step in steps if not (step.kind == "send" and step.words[0].startswith("01"))]


def _change(steps: list[Step], side: str, transcripts: Sequence[Transcript], chance: random.Random) -> None:
    """One change to what `side` says."""
    own = [at for at, step in enumerate(steps) if step.side == side and step.kind != "wait"]
    at = chance.choice(own) if own else 0
    move = chance.randrange(100)
    if own and move < 50:
        # Early steps matter most: what comes after a fatal one is never read.
        name = chance.choice((*_TWISTS, *FRAME_TWISTS))
        steps[at] = replace(steps[at], twists=(*steps[at].twists, (name, chance.randrange(1 << 24))))
    elif own and move < 56:
        del steps[at]
    elif own and move < 62:
        steps.insert(chance.randrange(len(steps) + 1), steps[at])
    elif own and move < 68:
        other = chance.choice(own)
        steps[at], steps[other] = steps[other], steps[at]
    elif own and move < 72:
        steps[at:at] = [steps[at]] * chance.choice((3, 20, 60))
    elif move < 78:
        source = chance.choice(transcripts)
        whole = [*source.client_before, *source.box_before, *source.after]
        start = chance.randrange(len(whole))
        spliced = [replace(step, side=side) for step in whole[start : start + chance.randrange(1, 8)]]
        steps[at:at] = [step for step in spliced if step.kind != "version"]
    elif move < 92:
        steps.insert(at, Step(side, "send", (chance.choice(_ODDITIES),)))
    elif move < 96:
        steps.insert(at, Step(side, "live", chance.choice(_LIVE[side])))
    else:
        raw = chance.choice((*_RAW, chance.randbytes(chance.randrange(200))))
        if raw:
            steps.insert(at, Step(side, "raw", (raw.hex(),)))
