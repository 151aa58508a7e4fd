"""From inside a real box: the internet is reached, and nothing that trusts the host's place in the network.

Every forbidden address has a server that really answers: the same probe, run on the host, reaches them all.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from runcode.runtimes.base import ObservedState
from runcode.runtimes.local import keepers
from runcode.runtimes.local.runtime import LocalRuntime
from support.little_internet import PORT, PROBE, LittleInternet, little_internet, run_ip
from support.runtime_boxes import Boxes, find_host_processes, start_box, wait_until
from support.runtime_ssh import SshClient
from support.service import Laptop, running_service

pytestmark = pytest.mark.root_only


@pytest.fixture(scope="module")
def world() -> Iterator[LittleInternet]:
    with little_internet() as world:
        yield world


@pytest.fixture(scope="module")
def runtime(world: LittleInternet, tmp_path_factory: pytest.TempPathFactory) -> LocalRuntime:
    runtime = LocalRuntime(tmp_path_factory.mktemp("networked") / "root")
    assert runtime.find_obstacle() is None
    assert runtime.find_shortcomings() == []
    assert runtime.capabilities.outbound_network
    return runtime


@pytest.fixture
async def boxes(runtime: LocalRuntime, tmp_path: Path) -> AsyncIterator[Boxes]:
    boxes = Boxes(runtime, runtime.root, tmp_path)
    yield boxes
    for workspace_id in boxes.specs:
        await runtime.destroy(workspace_id)
    assert wait_until(lambda: find_host_processes(runtime.root) == {}, 30)


def probe_order(addresses: list[str], devices: list[str], via: str | None = None, timeout_s: float = 4) -> bytes:
    order = {"addresses": addresses, "devices": devices, "port": PORT, "timeout_s": timeout_s, "via": via}
    return json.dumps(order).encode()


def probe_box(ssh: SshClient, addresses: list[str], via: str | None = None) -> list[list[str]]:
    ssh.run("cat > /tmp/probe.py", stdin=PROBE.encode())
    ran = ssh.run("python3 /tmp/probe.py", stdin=probe_order(addresses, ["tap0", "lo"], via), timeout_s=120)
    assert ran.returncode == 0, ran.stderr
    reached: list[list[str]] = json.loads(ran.stdout)
    return reached


def probe_host(addresses: list[str]) -> list[list[str]]:
    argv = [sys.executable, "-I", "-c", PROBE]
    ran = subprocess.run(argv, input=probe_order(addresses, []), capture_output=True, check=True, timeout=120)
    reached: list[list[str]] = json.loads(ran.stdout)
    return reached


def wait_for_network(ssh: SshClient, world: LittleInternet) -> None:
    """The box is up before its packets flow; this waits for the first one that came back."""
    ssh.run("cat > /tmp/probe.py", stdin=PROBE.encode())
    # Only ways that lead there: one that does not is waited for to the end, each time.
    order = probe_order([world.public], [], timeout_s=1)
    assert wait_until(
        lambda: [world.public, "tcp"] in json.loads(ssh.run("python3 /tmp/probe.py", stdin=order).stdout or "[]"), 60
    )


def find_helper(boxes: Boxes, workspace_id: int) -> int | None:
    keeper = keepers.find_keeper(boxes.runtime._layout.workspace(workspace_id))
    if keeper is None:
        return None
    for child in Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split():
        if Path(f"/proc/{child}/comm").read_text().strip() == "slirp4netns":
            return int(child)
    return None


async def test_the_internet_is_reached_and_nothing_else(boxes: Boxes, world: LittleInternet) -> None:
    ssh = await boxes.open()
    wait_for_network(ssh, world)
    forbidden = list(world.forbidden)
    # The control: each really answers, to whoever stands where the host stands.
    assert {(address, how) for address, how in probe_host(forbidden)} >= {
        (address, how) for address in forbidden for how in ("tcp", "udp")
    }
    reached = probe_box(ssh, [world.public, *forbidden, "10.0.2.2", "10.0.2.3"], via=world.public)
    assert {how for address, how in reached if address == world.public} >= {"tcp", "udp", "tcp bound to tap0"}
    # A source route through the public server ends there: its options do not leave the box.
    assert [entry for entry in reached if entry[0] != world.public] == []


async def test_names_are_resolved_and_the_resolver_is_no_way_to_its_machine(
    boxes: Boxes, world: LittleInternet
) -> None:
    ssh = await boxes.open()
    wait_for_network(ssh, world)
    assert ssh.text("cat /etc/resolv.conf") == "nameserver 10.0.2.3"
    assert ssh.text("python3 -c \"import socket; print(socket.gethostbyname('example.org'))\"") == world.public
    # At another port the resolver's machine answers, but not to the box.
    assert probe_host([world.resolver])
    assert probe_box(ssh, ["10.0.2.3", world.resolver]) == []


async def test_a_name_that_leads_to_a_forbidden_address_leads_nowhere_through_the_gateway(
    world: LittleInternet, tmp_path: Path
) -> None:
    """The gateway lets a name pass, since what it resolves to is known in the box only; there the network refuses."""
    # Rebinding, split horizons, a tenant's own DNS: metadata of three clouds, private networks, the host, a neighbour.
    forbidden = ("169.254.169.254", "100.100.100.200", "168.63.129.16", "10.9.9.9", "192.168.9.9")
    with running_service(tmp_path / "service") as service:
        service.operator("workspace", "create", "box")
        laptop = Laptop(tmp_path / "laptop")
        laptop.login(service)
        bundle = laptop.json("connect", "box", "--start", "--wait")

        def ask(address: str) -> subprocess.CompletedProcess[bytes]:
            name = f"ip-{address.replace('.', '-')}.example.net"
            words = ["ssh", "-F", str(bundle["config"]), "-W", f"{name}:{PORT}", str(bundle["alias"])]
            return subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL, timeout=120, check=False)

        assert wait_until(lambda: ask(world.public).stdout == b"REACHED", 60), "the control: names are resolved"
        for address in (*forbidden, *world.host_own[2:], world.neighbour):
            done = ask(address)
            assert done.stdout == b"", address
            assert done.returncode == 255, (address, done.stderr)
        laptop.runcode("clean", "--all")


async def test_ipv6_leads_nowhere(boxes: Boxes, world: LittleInternet) -> None:
    ssh = await boxes.open()
    wait_for_network(ssh, world)
    said = ssh.text(
        "python3 - <<'EOF'\n"
        "import socket\n"
        "for where in ('::1', 'fe80::2%tap0', 'fd00:ec2::254', '64:ff9b::a9fe:a9fe', '2002:a9fe:a9fe::1', '2606::1'):\n"
        "    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):\n"
        "        try:\n"
        "            s = socket.socket(socket.AF_INET6, kind); s.settimeout(2)\n"
        f"            s.connect(socket.getaddrinfo(where, {PORT}, type=kind)[0][4]); s.send(b'x'); s.recv(1)\n"
        "            print(where, 'REACHED')\n"
        "        except OSError:\n"
        "            pass\n"
        "print(open('/proc/net/if_inet6').read().count('tap0'))\n"
        "EOF"
    )
    assert said == "0"


async def test_an_address_that_the_host_gets_later_is_out_of_reach_too(boxes: Boxes, world: LittleInternet) -> None:
    ssh = await boxes.open()
    wait_for_network(ssh, world)
    late = "45.60.72.9"
    run_ip("addr", "add", f"{late}/32", "dev", "lo")
    try:
        assert probe_host([late])
        assert wait_until(lambda: late in ssh.text("/sbin/ip route show type unreachable"), 30)
        assert probe_box(ssh, [late]) == []
    finally:
        run_ip("addr", "del", f"{late}/32", "dev", "lo")


async def test_the_guard_cannot_be_undone_from_inside(boxes: Boxes, world: LittleInternet) -> None:
    ssh = await boxes.open()
    wait_for_network(ssh, world)
    code = """
import ctypes, fcntl, os, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, act):
    try:
        result = act()
    except OSError as error:
        return print(name, "refused")
    print(name, "refused" if result == -1 else "ALLOWED")
def ask(kind, body):
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    s.bind((0, 0))
    s.send(struct.pack("=IHHII", 16 + len(body), kind, 5 | 0x400, 1, 0) + body)
    code = struct.unpack_from("=i", s.recv(4096), 16)[0]
    if code:
        raise OSError(-code, "")
route = struct.pack("=BBBBBBBBI", 2, 16, 0, 0, 254, 4, 0, 7, 0) + struct.pack("=HH", 8, 1) + bytes([169, 254, 0, 0])
index = socket.if_nametoindex("tap0")
attempt("delete the route", lambda: ask(25, route))
attempt("add a route", lambda: ask(24, struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 254, 4, 253, 1, 0)
        + struct.pack("=HH", 8, 1) + bytes([169, 254, 169, 254]) + struct.pack("=HHi", 8, 4, index)))
attempt("add a neighbour", lambda: ask(28, struct.pack("=BxxxiHBB", 2, index, 0x80, 0, 0)
        + struct.pack("=HH", 8, 1) + bytes([169, 254, 169, 254]) + struct.pack("=HH", 10, 2) + b"RUNCODxx"))
attempt("add a rule", lambda: ask(32, struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 0, 0, 1, 0)))
attempt("take the device down", lambda: ask(16, struct.pack("=BxHiII", 0, 0, index, 0, 1)))
attempt("nf_tables", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12).send(b"") and -1)
for name, kind in (("packet socket", socket.SOCK_RAW), ("packet datagram", socket.SOCK_DGRAM)):
    attempt(name, lambda: socket.socket(socket.AF_PACKET, kind).fileno())
attempt("raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 17).fileno())
attempt("tun device", lambda: os.open("/dev/net/tun", os.O_RDWR))
attempt("make a tun device", lambda: os.mknod("/tmp/tun", 0o20666, os.makedev(10, 200)))
attempt("change the address", lambda: fcntl.ioctl(socket.socket(), 0x8916, struct.pack("16sHH4s8x", b"tap0", 2, 0,
        bytes([10, 0, 2, 2]))))
for flag in (0x10000000, 0x40000000, 0x50000000):
    attempt(f"unshare {flag:x}", lambda: libc.unshare(flag))
for pid in os.listdir("/proc"):
    if pid.isdigit():
        for kind in ("net", "user"):
            try:
                there = os.stat(f"/proc/{pid}/ns/{kind}").st_ino
                if kind == "net":
                    print("process", "fine" if there == os.stat("/proc/self/ns/net").st_ino else "OTHER NETWORK")
                fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY)
            except OSError:
                continue
            # NS_GET_USERNS, NS_GET_PARENT: the way up to the network's owner.
            attempt("owner of a namespace", lambda: libc.setns(fcntl.ioctl(fd, 0xb701), 0))
            attempt("parent of a namespace", lambda: libc.setns(fcntl.ioctl(fd, 0xb702), 0))
            attempt("enter a namespace", lambda: libc.setns(fd, 0))
        print("process", open(f"/proc/{pid}/comm").read().strip() == "slirp4netns" and "HELPER" or "fine")
"""
    ssh.run("cat > /tmp/undo.py", stdin=code.encode())
    said = ssh.text("python3 /tmp/undo.py")
    assert said.count("refused") >= 17
    lines = said.splitlines()
    # The box may enter what it is in already, if the kernel lets it; it has no rights over a network there.
    assert [line for line in lines if line.endswith(("ALLOWED", "HELPER", "OTHER NETWORK"))] == [], said
    assert probe_box(ssh, ["169.254.169.254"]) == []


async def test_the_helper_is_confined(boxes: Boxes, world: LittleInternet) -> None:
    spec = boxes.new_spec()
    ssh = await boxes.open(spec)
    wait_for_network(ssh, world)
    helper = find_helper(boxes, spec.workspace_id)
    assert helper is not None
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{helper}/status").read_text().splitlines() if ":\t" in line
    )
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(boxes.host_uid(spec))}
    assert status["Groups"].strip() == ""
    # CAP_NET_BIND_SERVICE, and that in the box's own user namespace only.
    assert int(status["CapPrm"], 16) == int(status["CapBnd"], 16) == 1 << 10
    assert os.stat(f"/proc/{helper}/ns/user").st_ino != os.stat("/proc/self/ns/user").st_ino
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert set(os.listdir(f"/proc/{helper}/root")) <= {"etc", "run"}
    # What it holds open: the wires to the box and to its keeper's life, and nothing of the host's.
    held = {os.readlink(f"/proc/{helper}/fd/{name}") for name in os.listdir(f"/proc/{helper}/fd")}
    assert {name.split(":")[0] for name in held} <= {"/dev/null", "/dev/net/tun", "pipe", "socket", "net"}, held


@pytest.mark.parametrize("victim", ["keeper", "bwrap", "box"])
async def test_whatever_dies_no_helper_is_left(boxes: Boxes, world: LittleInternet, victim: str) -> None:
    spec = boxes.new_spec()
    await boxes.open(spec)
    folder = boxes.runtime._layout.workspace(spec.workspace_id)
    state = keepers.find_serving_state(folder)
    assert state is not None
    assert state.first_pid is not None
    assert wait_until(lambda: find_helper(boxes, spec.workspace_id) is not None, 30)
    helper = find_helper(boxes, spec.workspace_id)
    children = Path(f"/proc/{state.pid}/task/{state.pid}/children").read_text().split()
    bwrap = next(int(pid) for pid in children if int(pid) != helper)
    os.kill({"keeper": state.pid, "bwrap": bwrap, "box": state.first_pid}[victim], signal.SIGKILL)
    assert wait_until(lambda: not Path(f"/proc/{helper}").exists() or is_zombie(helper), 30)
    assert wait_until(lambda: find_host_processes(boxes.root) == {}, 30)
    assert (await boxes.runtime.inspect(spec.workspace_id)).state is ObservedState.STOPPED
    await start_box(boxes.runtime, spec)
    wait_for_network(await boxes.client(spec), world)


def is_zombie(pid: int | None) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def test_a_helper_that_dies_comes_back_and_the_guard_with_it(boxes: Boxes, world: LittleInternet) -> None:
    spec = boxes.new_spec()
    ssh = await boxes.open(spec)
    wait_for_network(ssh, world)
    first = find_helper(boxes, spec.workspace_id)
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert wait_until(lambda: find_helper(boxes, spec.workspace_id) not in (None, first), 30)
    wait_for_network(ssh, world)
    assert probe_box(ssh, ["169.254.169.254", "45.60.71.2", "127.0.0.1"]) == []


async def test_the_operators_switch_and_a_box_that_runs_on(boxes: Boxes, world: LittleInternet) -> None:
    spec, other = boxes.new_spec(), boxes.new_spec("other")
    ssh = await boxes.open(spec)
    wait_for_network(ssh, world)
    # The next server, told to give no network, adopts the box as it is, and starts others without.
    next_one = LocalRuntime(boxes.root)
    next_one.allow_outbound_network(False)
    assert next_one.find_obstacle() is None
    assert not next_one.capabilities.outbound_network
    assert "--box-network off" in next_one.find_shortcomings()[0]
    assert (await next_one.inspect(spec.workspace_id)).state is ObservedState.RUNNING
    wait_for_network(ssh, world)
    await next_one.create(other)
    await start_box(next_one, other)
    without = await boxes.client(other)
    assert without.text("ls /proc/sys/net 2>/dev/null; tail -n +3 /proc/net/dev | cut -d: -f1").split() == ["lo"]
    assert probe_box(without, [world.public]) == []
    assert "nameserver" not in without.text("cat /etc/resolv.conf")
    await next_one.close()


async def test_much_data_arrives_whole(boxes: Boxes, world: LittleInternet) -> None:
    """The filter and the large packets of the tap do not harm what is allowed."""
    ssh = await boxes.open()
    wait_for_network(ssh, world)
    started = time.monotonic()
    code = (
        "import socket\n"
        "n = 0\n"
        f"for _ in range(50):\n    n += len(socket.create_connection(('{world.public}', {PORT}), 20).recv(64))\n"
        "print(n)\n"
    )
    assert ssh.run("python3 -", stdin=code.encode()).stdout.decode().strip() == str(50 * len("REACHED"))
    print(f"50 connections from a box: {time.monotonic() - started:.3f} s")
