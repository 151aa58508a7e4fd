"""A box's network on the machine as it is, as root or as an ordinary user; `doctor` beside it.

What only a little internet can show is in tests/adversarial/test_local_box_network.py.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runcode.runtimes.base import OutboundNetworkSwitch
from runcode.runtimes.local import netlink, plan
from runcode.runtimes.local.runtime import LocalRuntime
from support.little_internet import PROBE
from support.runtime_boxes import Boxes, wait_until

pytest_plugins = ["support.runtime_fixtures"]

SERVER = Path(sys.executable).parent / "runcode-server"


@pytest.fixture
def everywhere() -> Iterator[int]:
    """The port of a server on every address of this machine."""
    with socket.create_server(("0.0.0.0", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"REACHED")

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def own_addresses() -> list[str]:
    found = [str(prefix.network_address) for prefix in netlink.read_own_prefixes() if prefix.prefixlen == 32]
    assert "127.0.0.1" in found
    return found


def test_the_runtime_has_the_operators_switch(local_runtime: LocalRuntime) -> None:
    assert isinstance(local_runtime, OutboundNetworkSwitch)


async def test_this_machine_is_out_of_reach_at_every_address_of_its(boxes: Boxes, everywhere: int) -> None:
    assert boxes.runtime.capabilities.outbound_network, boxes.runtime.find_shortcomings()
    spec = boxes.new_spec()
    ssh = await boxes.open(spec)
    addresses = [*own_addresses(), "10.0.2.2", "10.0.2.3"]
    order = {"addresses": addresses, "devices": ["tap0", "lo"], "port": everywhere, "timeout_s": 4}
    here = subprocess.run(
        [sys.executable, "-I", "-c", PROBE],
        input=json.dumps({**order, "devices": []}).encode(),
        capture_output=True,
        check=True,
        timeout=120,
    )
    assert ["127.0.0.1", "tcp"] in json.loads(here.stdout)
    # Its network carries packets: the guard is what refuses, not a wire that is not there.
    running = (
        "import fcntl, socket, struct\n"
        "print(struct.unpack_from('16xH', fcntl.ioctl(socket.socket(), 0x8913, struct.pack('16s24x', b'tap0')))[0]"
        " & 64)"
    )
    assert wait_until(lambda: ssh.run("python3 -", stdin=running.encode()).stdout.strip() == b"64", 30)
    ssh.run("cat > /tmp/probe.py", stdin=PROBE.encode())
    ran = ssh.run("python3 /tmp/probe.py", stdin=json.dumps(order).encode(), timeout_s=120)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == []


async def test_forbidden_places_fail_at_once_and_not_by_waiting(boxes: Boxes) -> None:
    ssh = await boxes.open()
    code = (
        "import errno, socket\n"
        "for where in ('169.254.169.254', '192.168.1.1', '172.16.0.1', '10.1.1.1', '100.64.0.1'):\n"
        "    try:\n        socket.create_connection((where, 80), 25)\n"
        "    except OSError as error:\n        print(errno.errorcode.get(error.errno))\n"
    )
    assert ssh.run("python3 -", stdin=code.encode()).stdout.split() == [b"EHOSTUNREACH"] * 5


async def test_a_box_without_a_network_has_the_loopback_only(boxes: Boxes) -> None:
    spec = boxes.new_spec()
    without = LocalRuntime(boxes.root)
    without.allow_outbound_network(False)
    assert not without.capabilities.outbound_network
    await without.create(spec)
    async for _ in without.start(spec):
        pass
    ssh = await boxes.client(spec)
    assert ssh.text("tail -n +3 /proc/net/dev | cut -d: -f1").split() == ["lo"]
    assert "nameserver" not in ssh.text("cat /etc/resolv.conf")
    await without.close()


async def test_processes_are_bounded_also_without_cgroups(boxes: Boxes) -> None:
    spec = boxes.new_spec()
    ssh = await boxes.open(spec)
    made = plan.load_plan(str(boxes.path(spec) / plan.PLAN_FILE))
    bound = ssh.text("ulimit -Hu")
    assert "pids" in made.cgroups or int(bound) <= made.processes


@pytest.mark.parametrize("words", [["--json"], []])
def test_doctor_tells_what_this_machine_gives(tmp_path: Path, words: list[str]) -> None:
    argv = [str(SERVER), "doctor", "--data-dir", str(tmp_path / "new"), *words]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert not (tmp_path / "new").exists()
    if not words:
        assert "box network" in ran.stdout
        return
    report = json.loads(ran.stdout)
    assert report["ok"] is True
    checks = {check["name"]: check for check in report["checks"]}
    assert {"python", "user", "clock", "bwrap", "sshd", "boxes", "box network", "limit memory", "data folder"} <= set(
        checks
    )
    assert checks["boxes"]["status"] == checks["box network"]["status"] == "ok"
    assert {check["status"] for check in report["checks"]} <= {"ok", "warn"}
    assert checks["user"]["status"] == ("ok" if os.geteuid() == 0 else "warn")


def test_doctor_fails_with_the_fix_for_a_data_folder_that_others_may_write(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "server.json").write_text('{"format": 1}')
    folder.chmod(0o777)
    argv = [str(SERVER), "doctor", "--json", "--data-dir", str(folder)]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    report = json.loads(ran.stdout)
    assert ran.returncode == 1
    assert report["ok"] is False
    failed = [check for check in report["checks"] if check["status"] == "fail"]
    assert [check["name"] for check in failed] == ["data folder"]
    assert f"chmod go-w {folder}" in failed[0]["detail"]
