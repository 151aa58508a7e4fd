"""Says plans of `ssh_plans` to a real gateway process, and judges what became of it.

Owns: `Target`, that process with its keys and its box's socket; carrying a plan out; the
oracles. Called by `scripts/fuzz_gateway.py` and by tests/adversarial/test_gateway_fuzz.py.

A finding is: the process ended; its log has a line that no peer may cause; a connection was
admitted although nothing that opens one was sent; the box heard of a client although its key
was not proved; a connection does not end with its client; what stays behind of connections,
tasks, descriptors or memory; a bystander who is not served.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from runcode.gateway.packets import MalformedPacket, Reader
from runcode.gateway.packets import render_string as s
from runcode.gateway.packets import render_uint32 as u
from support.fuzzed_gateway import TITLE
from support.ssh_plans import BOX, CLIENT, Plan, Step, twist
from support.ssh_wire import KEXINIT, CannotGoOn, Pump, Wire, render_kexinit

CORPUS = Path(__file__).resolve().parent.parent / "adversarial" / "corpus" / "ssh"
_PROGRAM = Path(__file__).resolve().parent / "fuzzed_gateway.py"
_PATIENCE_S = 60.0
# How long a plan waits for what it says must come: it goes on without, so this decides no verdict.
WAIT_S = 0.2
# What the process may be larger by than after its first connections: two packets' worth of buffers for each of the
# few connections at a time, and what the allocator keeps.
_GROWTH_MAX = 96 * 1024 * 1024
_BYSTANDER_EVERY = 20
_HELLO = b"SSH-2.0-OpenSSH_9.2"


@dataclass
class Outcome:
    messages: int = 0
    findings: list[str] = field(default_factory=list)


class Target:
    """A gateway process, one box's socket, and a bystander's connection through it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rcf"))
        self.good, self.stranger, self.box_key = (_make_key(self.folder / name) for name in ("good", "other", "box"))
        _make_key(self.folder / "gateway")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.folder / "door"))
        self.listener.listen(64)
        self.listener.setblocking(False)
        self.errors = (self.folder / "stderr").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, str(_PROGRAM), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )
        self.port = int(self._read_line())
        # How many plans sent what rightly opens a connection, and how many connections were our own.
        self.rightful = 0
        self.pump = Pump()
        self.first = self.facts()
        self.peak = 0
        self.known_errors = self.seen_errors = 0

    def _read_line(self) -> str:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(_PATIENCE_S):
                raise AssertionError("the gateway does not answer")
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"the gateway ended: {(self.folder / 'stderr').read_text()[-2000:]}")
        return line.decode()

    def facts(self) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        return json.loads(self._read_line())

    def close(self) -> None:
        for wire in tuple(self.pump.wires):
            wire.close()
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.errors.close()
        self.listener.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- connections --------------------------------------------------------

    def dial(self, pump: Pump, seed: str) -> Wire:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=_PATIENCE_S)
        return Wire(pump, sock, is_client=True, seed=seed)

    def accept(self, pump: Pump, seed: str) -> Wire | None:
        """The box's side of the gateway's next connection to it."""
        found: list[socket.socket] = []

        def take() -> bool:
            with contextlib.suppress(BlockingIOError):
                found.append(self.listener.accept()[0])
            return bool(found) or any(wire.closed for wire in pump.wires)

        pump.listeners.append(self.listener)
        pump.until(take, _PATIENCE_S)
        pump.listeners.remove(self.listener)
        return Wire(pump, found[0], is_client=False, seed=seed, host_key=self.box_key) if found else None

    def refuse_unclaimed(self) -> None:
        """Of a client that nobody plays the box for."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.listener.accept()[0].close()

    def log_in(self, wire: Wire, ciphers: bytes) -> None:
        """Raises CannotGoOn."""
        wire.send_version(_HELLO)
        wire.exchange(render_kexinit(is_client=True, ciphers=ciphers))
        wire.send(b"\x05" + s(b"ssh-userauth"))
        wire.wait(6)
        wire.send(render_signed(wire, TITLE, self.good))
        self.rightful += 1
        if wire.wait(52) is None:
            raise CannotGoOn("the rightful client was not let in")

    def let_in(self, wire: Wire, ciphers: bytes) -> None:
        wire.send_version(_HELLO)
        wire.exchange(render_kexinit(is_client=False, ciphers=ciphers))
        wire.wait(5)
        wire.send(b"\x06" + s(b"ssh-userauth"))
        wire.wait(50)
        wire.send(b"\x34")

    def connect_bystander(self) -> tuple[Wire, Wire]:
        client = self.dial(self.pump, "bystander")
        self.log_in(client, b"aes128-gcm@openssh.com")
        box = self.accept(self.pump, "bystander's box")
        assert box is not None
        self.let_in(box, b"aes128-gcm@openssh.com")
        return client, box

    # -- oracles ------------------------------------------------------------

    def judge_bystander(self, client: Wire, box: Wire, number: int) -> list[str]:
        there, back = (b"\x5e" + u(0) + s(b"%d" % (number + side) * 100) for side in (0, 1))
        client.send(there)
        heard = box.wait(94)
        box.send(back)
        answered = client.wait(94)
        return [] if (heard, answered) == (there, back) else ["a bystander was not served"]

    def wait_settled(self) -> None:
        """Until the bystander is alone; that it never is, `judge_rest` will tell."""
        deadline = time.monotonic() + _PATIENCE_S
        while self.facts()["live"] > 1 and time.monotonic() < deadline:
            time.sleep(0.005)

    def judge(self) -> list[str]:
        """Between two plans, while only the bystander is connected."""
        if self.process.poll() is not None:
            return [f"the gateway ended: {(self.folder / 'stderr').read_text()[-2000:]}"]
        facts = self.facts()
        self.peak = max(self.peak, facts["resident"])
        found = [f"its log: {line}" for line in facts["errors"][self.known_errors :]]
        self.seen_errors = len(facts["errors"])
        if facts["admitted"] > self.rightful:
            found.append(f"{facts['admitted']} were admitted, {self.rightful} rightly")
        if facts["resident"] > self.first["resident"] + _GROWTH_MAX:
            found.append(f"it holds {facts['resident'] >> 20} MiB, {self.first['resident'] >> 20} at the start")
        return found

    def forget_errors(self) -> None:
        """What was found has been told; the next plan is not blamed for it."""
        self.known_errors = self.seen_errors
        if self.process.poll() is None:
            self.rightful = max(self.rightful, self.facts()["admitted"])

    def judge_rest(self) -> list[str]:
        """When all is over: nothing stays behind of the connections that there were."""
        names = ("strangers", "live", "tasks", "descriptors")
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            facts = self.facts()
            kept = [name for name in names if facts[name] > self.first[name]]
            if not kept:
                return []
            if time.monotonic() > deadline:
                return [f"{name} stay behind: {facts[name]}, {self.first[name]} at the start" for name in kept]
            time.sleep(0.05)

    def read_stderr(self) -> list[str]:
        self.errors.flush()
        text = (self.folder / "stderr").read_text()
        return [f"its standard error: {text[-2000:]}"] if text else []


@contextlib.contextmanager
def open_target() -> Iterator[Target]:
    target = Target()
    try:
        yield target
    finally:
        target.close()


def _make_key(path: Path) -> Ed25519PrivateKey:
    key = Ed25519PrivateKey.generate()
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.with_suffix(".pub").write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    return key


def _blob(key: Ed25519PrivateKey) -> bytes:
    return s(b"ssh-ed25519") + s(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))


def render_offer(title: str, key: Ed25519PrivateKey, *, signed: bool = False) -> bytes:
    head = b"\x32" + s(title.encode()) + s(b"ssh-connection") + s(b"publickey")
    return head + bytes((signed,)) + s(b"ssh-ed25519") + s(_blob(key))


def render_signed(wire: Wire, title: str, key: Ed25519PrivateKey, signer: Ed25519PrivateKey | None = None) -> bytes:
    request = render_offer(title, key, signed=True)
    return request + s(s(b"ssh-ed25519") + s((signer or key).sign(s(wire.session_id) + request)))


def render_confirmation(request: bytes) -> bytes:
    """That the key in a request would be good (RFC 4252 §7); of no key when it names none."""
    reader = Reader(request)
    try:
        _user, _service, _method, _signed = reader.string(), reader.string(), reader.string(), reader.boolean()
        return b"\x3c" + s(reader.string()) + s(reader.string())
    except MalformedPacket:
        return b"\x3c" + s(b"") + s(b"")


class _Run:
    """One plan being carried out."""

    def __init__(self, target: Target, plan: Plan, seed: str, wait_s: float) -> None:
        self.target, self.plan, self.seed, self.wait_s = target, plan, seed, wait_s
        self.pump = Pump()
        self.wires: dict[str, Wire] = {}
        self.outcome = Outcome()
        # Did anything go out that opens a connection, and was the box's key proved as it should be?
        self.is_rightful = False
        self.is_proved = True

    def run(self) -> Outcome:
        target, plan = self.target, self.plan
        ciphers = plan.ciphers.encode()
        client = self.wires[CLIENT] = target.dial(self.pump, self.seed)
        try:
            if plan.position != "client-before":
                target.log_in(client, ciphers)
                client.send(b"\x5a" + s(b"session") + u(0) + u(1 << 20) + u(1 << 15))
                box = target.accept(self.pump, f"{self.seed} box")
                if box is None:
                    raise CannotGoOn("the gateway does not come to the box")
                self.wires[BOX] = box
                if plan.position != "box-before":
                    target.let_in(box, ciphers)
                    box.wait(90)
        except CannotGoOn as error:
            self.outcome.findings.append(f"before the plan began: {error}")
        for wire in self.wires.values():
            wire.patience_s = self.wait_s
        for step in plan.steps:
            speaker = self.wires.get(step.side)
            if speaker is not None and not speaker.closed:
                with contextlib.suppress(CannotGoOn):
                    self._take(step, speaker)
        self._end(client)
        return self.outcome

    def _take(self, step: Step, wire: Wire) -> None:
        if step.kind == "wait":
            wire.wait(*(int(word) for word in step.words))
            return
        self.outcome.messages += 1
        if step.kind == "version":
            line = twist(bytes.fromhex(step.words[0]), step.twists)
            wire.send_version(line)
        elif step.kind == "raw":
            wire.send_raw(bytes.fromhex("".join(step.words)))
        elif step.kind == "send":
            self._say(step, wire, bytes.fromhex(step.words[0]))
        else:
            self._take_live(step, wire)

    def _take_live(self, step: Step, wire: Wire) -> None:
        name, *words = step.words
        if name == "ephemeral":
            is_first = not wire.session_id
            if words:
                # A box that holds another key than the pinned one, and does all else right.
                wire.host_key = self.target.stranger
            part = wire.ephemeral()
            said = self._say(step, wire, part)
            if wire.is_client:
                wire.take_reply()
            elif is_first and (words or said != part):
                # A false renewal ends the leg, but by then the box may rightly have heard of the client.
                self.is_proved = False
        elif name == "newkeys":
            wire.send_newkeys()
            wire.wait(21)
        elif name == "confirm":
            self._say(step, wire, render_confirmation(wire.heard.get(50, b"")))
        elif name == "rekey":
            wire.exchange(render_kexinit(is_client=wire.is_client, ciphers=self.plan.ciphers.encode()))
        else:
            self._authenticate(step, wire, name, words)

    def _authenticate(self, step: Step, wire: Wire, name: str, words: list[str]) -> None:
        title, whose = words
        key = self.target.good if whose == "good" else self.target.stranger
        if name == "offer":
            self._say(step, wire, render_offer(title, key))
            return
        # The rightful key, signed with another.
        signer = self.target.stranger if name == "swapped" else None
        request = render_signed(wire, title, key, signer)
        said = self._say(step, wire, request)
        if said == request and whose == "good" and title == TITLE and signer is None and not self.is_rightful:
            self.is_rightful = True
            self.target.rightful += wire is self.wires[CLIENT] and self.plan.position == "client-before"

    def _say(self, step: Step, wire: Wire, payload: bytes) -> bytes:
        """The message as it went out."""
        payload = twist(payload, step.twists)
        frame_twists = dict(each for each in step.twists if each[0].startswith("frame-"))
        if payload[:1] == bytes((KEXINIT,)) and not frame_twists:
            wire.send_kexinit(payload)
            return payload
        said = {
            name: frame_twists[f"frame-{name}"] % modulus
            for name, modulus in (("padding", 256), ("length", 1 << 20))
            if f"frame-{name}" in frame_twists
        }
        frame = wire.seal(payload, **said)
        if "frame-tag" in frame_twists:
            frame = frame[:-1] + bytes((frame[-1] ^ 1,))
        if "frame-torn" in frame_twists:
            frame = frame[: frame_twists["frame-torn"] % len(frame)]
        if "frame-bytewise" in frame_twists and len(frame) < 400:
            for byte in frame:
                wire.send_raw(bytes((byte,)))
        else:
            wire.send_raw(frame, with_next="frame-with-next" in frame_twists)
        return payload

    def _end(self, client: Wire) -> None:
        findings = self.outcome.findings
        self.pump.until(lambda: client.closed or not client.unsent, 1.0)
        wires = tuple(self.wires.values())
        if client.unsent and not client.closed:
            # The gateway holds it for the other side's sake; whoever goes away in the middle is no finding.
            client.close()
        else:
            client.shut()
            if not client.wait_closed():
                findings.append("the connection does not end with its client")
        if BOX in self.wires:
            if not self.wires[BOX].wait_closed():
                findings.append("the box's leg does not end with its client")
            if not self.is_proved and 90 in self.wires[BOX].heard:
                findings.append("a client's request reached a box that had not proved its key")
        if self.plan.position == "client-before" and 52 in client.heard and not self.is_rightful:
            findings.append("admitted without a good key")
        for wire in wires:
            wire.close()
        if self.is_rightful:
            # The gateway may still be on its way to the box, which the next plan would take for its own.
            self.target.wait_settled()
        self.target.refuse_unclaimed()


@dataclass
class Report:
    """Of a number of plans, one after the other. `failed` has those with findings, by their index."""

    plans: int = 0
    messages: int = 0
    peak: int = 0
    seconds: float = 0.0
    failed: dict[int, tuple[Plan, list[str]]] = field(default_factory=dict)
    rest: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not self.failed and not self.rest

    def render(self, seed: int) -> str:
        lines = []
        for index, (plan, findings) in self.failed.items():
            again = f'make fuzz-ssh SSH_FUZZ_ARGS="--seed {seed} --only {index}"'
            lines += [f"seed {seed}, plan {index} ({plan.position}): {finding}" for finding in findings]
            lines.append(f"  again: {again}")
        lines += [f"after all plans: {each}" for each in self.rest]
        rate = self.messages / self.seconds if self.seconds else 0.0
        lines.append(
            f"{self.plans} plans, {self.messages} messages, {rate:.0f} a second; "
            f"{len(self.failed)} with findings; the gateway held at most {self.peak >> 20} MiB"
        )
        return "\n".join(lines)


def fuzz(
    target: Target, plans: Iterable[tuple[int, Plan]], seed: int, *, failures_max: int = 5, wait_s: float = WAIT_S
) -> Report:
    """Carry all of them out while a bystander is connected, and judge after each. Ends early when much is wrong."""
    report, began = Report(), time.monotonic()
    bystander = target.connect_bystander()
    for index, plan in plans:
        outcome = carry_out(target, plan, f"{seed}/{index}", wait_s=wait_s)
        report.plans += 1
        report.messages += outcome.messages
        findings = outcome.findings + target.judge()
        if index % _BYSTANDER_EVERY == 0:
            findings += target.judge_bystander(*bystander, index)
        if findings:
            report.failed[index] = (plan, findings)
            target.forget_errors()
            if target.process.poll() is not None or len(report.failed) >= failures_max:
                break
    if target.process.poll() is None:
        report.rest = target.judge_bystander(*bystander, 1)
        for wire in bystander:
            wire.close()
        report.rest += target.judge_rest() + target.read_stderr()
    report.peak, report.seconds = target.peak, time.monotonic() - began
    return report


def carry_out(target: Target, plan: Plan, seed: str, *, wait_s: float = WAIT_S) -> Outcome:
    return _Run(target, plan, seed, wait_s).run()
