"""A machine and an internet of its own for tests of boxes' networks: two network namespaces and a wire. Needs root.

The calling thread, and so every program that it starts, is moved onto the machine;
what listens on the "internet" and on the machine answers REACHED at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PORT = 8765
_CLONE_NEWNET = 0x40000000

# Real servers on every address of the namespace they start in. Port 53 answers `ip-1-2-3-4.…` with that, all else with
# PUBLIC.
_SERVER = """
import selectors, socket, struct, sys
answer, port = sys.argv[1], int(sys.argv[2])
chosen = selectors.DefaultSelector()
for number in (port, 53):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        s = socket.socket(socket.AF_INET, kind)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Answers come from the address that was asked.
        if kind == socket.SOCK_DGRAM:
            s.setsockopt(socket.IPPROTO_IP, 8, 1)
        s.bind(("0.0.0.0", number))
        if kind == socket.SOCK_STREAM:
            s.listen(64)
        chosen.register(s, selectors.EVENT_READ, (number, kind))
def dns(raw):
    first = raw[13:13 + raw[12]].decode("latin-1").split("-")
    said = ".".join(first[1:]) if first[0] == "ip" and len(first) == 5 else answer
    return (raw[:2] + b"\\x81\\x80" + raw[4:6] + b"\\0\\1\\0\\0\\0\\0" + raw[12:raw.index(b"\\0", 12) + 5]
            + b"\\xc0\\x0c\\0\\1\\0\\1" + struct.pack(">IH", 60, 4) + socket.inet_aton(said))
print("ready", flush=True)
while True:
    for key, _ in chosen.select():
        number, kind = key.data
        try:
            if kind == socket.SOCK_STREAM:
                with key.fileobj.accept()[0] as c:
                    c.sendall(b"REACHED")
            else:
                raw, control, _, peer = key.fileobj.recvmsg(4096, 256)
                said = dns(raw) if number == 53 else b"REACHED"
                info = [(socket.IPPROTO_IP, 8, struct.pack("=I", 0) + d[4:8] + bytes(4)) for _, _, d in control]
                key.fileobj.sendmsg([said], info, 0, peer)
        except Exception as error:
            print("server:", error, file=sys.stderr)
"""

# Tries every way in which a process without privileges can ask for an address; prints what answered.
PROBE = """
import concurrent.futures, json, socket, struct, sys
order = json.load(sys.stdin)
def attempts(address, port):
    lsrr = struct.pack("BBB", 131, 7, 4) + socket.inet_aton(address) + b"\\1"
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        label = "tcp" if kind == socket.SOCK_STREAM else "udp"
        yield f"{label}", socket.AF_INET, kind, (address, port), []
        for device in order["devices"]:
            bound = [(socket.SOL_SOCKET, 25, device.encode() + b"\\0")]
            yield f"{label} bound to {device}", socket.AF_INET, kind, (address, port), bound
        yield f"{label} IPv4-mapped", socket.AF_INET6, kind, ("::ffff:" + address, port), []
        if order.get("via"):
            yield (f"{label} source route", socket.AF_INET, kind, (order["via"], port),
                   [(socket.IPPROTO_IP, 4, lsrr)])
def attempt(one):
    label, family, kind, where, options = one
    try:
        with socket.socket(family, kind) as s:
            s.settimeout(order["timeout_s"])
            for option in options:
                s.setsockopt(*option)
            s.connect(where)
            s.send(b"x")
            return s.recv(64) == b"REACHED"
    except OSError:
        return False
jobs = [(address, one) for address in order["addresses"] for one in attempts(address, order["port"])]
# A box may have 256 processes at least, and each thread counts.
with concurrent.futures.ThreadPoolExecutor(192) as pool:
    results = pool.map(lambda job: attempt(job[1]), jobs)
    print(json.dumps([[address, one[0]] for (address, one), reached in zip(jobs, results) if reached]))
"""


@dataclass(frozen=True)
class LittleInternet:
    """`public` is far away; `resolver` is what this machine's /etc/resolv.conf names; `forbidden` all answer too."""

    public: str
    host_own: tuple[str, ...]
    neighbour: str
    elsewhere: tuple[str, ...]
    resolver: str

    @property
    def forbidden(self) -> tuple[str, ...]:
        return (*self.host_own, self.neighbour, *self.elsewhere)


def read_resolver() -> str:
    for line in Path("/etc/resolv.conf").read_text().splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver" and ":" not in words[1]:
            return words[1]
    raise AssertionError("these tests need an IPv4 name server in /etc/resolv.conf (none has to answer)")


def run_ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def little_internet() -> Iterator[LittleInternet]:
    libc = ctypes.CDLL(None, use_errno=True)
    world = LittleInternet(
        public="45.60.70.80",
        host_own=("127.0.0.1", "127.9.9.9", "45.60.71.2", "45.60.70.99"),
        neighbour="45.60.71.77",
        elsewhere=(
            *("169.254.169.254", "169.254.1.9", "10.9.9.9", "172.20.0.9", "192.168.9.9", "100.64.9.9"),
            *("100.100.100.200", "168.63.129.16", "192.0.0.192", "192.88.99.1", "198.18.0.9"),
            *("192.0.2.9", "198.51.100.9", "203.0.113.9", "240.0.0.9"),
        ),
        resolver=read_resolver(),
    )
    before = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, before)
        assert libc.unshare(_CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        stack.callback(libc.setns, before, _CLONE_NEWNET)
        argv = ["unshare", "--net", "sh", "-c", 'echo made; read line; exec "$@"', "sh"]
        argv += [sys.executable, "-I", "-c", _SERVER, world.public, str(PORT)]
        far = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stack.callback(_end, far)
        assert far.stdin is not None
        assert far.stdout is not None
        assert far.stdout.readline() == "made\n"
        run_ip("link", "set", "lo", "up")
        run_ip("link", "add", "wire", "type", "veth", "peer", "name", "wire-far")
        run_ip("link", "set", "wire-far", "netns", str(far.pid))
        run_ip("addr", "add", "45.60.71.2/24", "dev", "wire")
        run_ip("addr", "add", "45.60.70.99/32", "dev", "lo")
        run_ip("link", "set", "wire", "up")
        run_ip("route", "add", "default", "via", "45.60.71.1")
        there = ["nsenter", "--net", "--target", str(far.pid), "ip"]
        on_loopback = {world.public, *world.elsewhere}
        if not world.resolver.startswith("127."):
            on_loopback.add(world.resolver)
        commands = ["link set lo up", "addr add 45.60.71.1/24 dev wire-far", "addr add 45.60.71.77/24 dev wire-far"]
        commands += ["link set wire-far up", *(f"addr add {address}/32 dev lo" for address in sorted(on_loopback))]
        for command in [*commands, "route add default via 45.60.71.2"]:
            subprocess.run([*there, *command.split()], check=True, capture_output=True)
        far.stdin.write("go\n")
        far.stdin.flush()
        assert far.stdout.readline() == "ready\n"
        near = subprocess.Popen(
            [sys.executable, "-I", "-c", _SERVER, world.public, str(PORT)], stdout=subprocess.PIPE, text=True
        )
        stack.callback(_end, near)
        assert near.stdout is not None
        assert near.stdout.readline() == "ready\n"
        yield world


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
