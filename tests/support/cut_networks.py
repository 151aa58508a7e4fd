"""Clients, gateways and control planes on three networks with a router between, so that a wire can be cut.

With root: four network namespaces that live as long as their holder processes (`unshare
… cat`, whose input is ours), so nothing is left however we end. Without: one machine's
loopback, where nothing can be cut. A cut is silent: the router drops both ways and
answers nothing, as a dead switch or a lost radio does.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_PLACES = ("clients", "gateways", "control")


class Place:
    """One network. `prefix` starts a program in it; `root` is its view of the file system."""

    def __init__(self, address: str, holder: subprocess.Popen[bytes] | None = None, *, mounts: bool = False) -> None:
        """`mounts`: programs there see what is mounted there, and nobody else does."""
        self.address = address
        self.holder = holder
        self.prefix: tuple[str, ...] = ()
        self.root = Path("/")
        if holder is not None:
            of_its_own = (f"--mount=/proc/{holder.pid}/ns/mnt",) if mounts else ()
            self.prefix = ("nsenter", f"--net=/proc/{holder.pid}/ns/net", *of_its_own, "--")
            self.root = Path(f"/proc/{holder.pid}/root")

    def run(self, *words: str) -> None:
        done = subprocess.run([*self.prefix, *words], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, (words, done.stderr)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Sockets that the calling thread makes meanwhile belong to this network."""
        if self.holder is None:
            yield
            return
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net") as ours, open(f"/proc/{self.holder.pid}/ns/net") as theirs:
            if libc.setns(theirs.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            try:
                yield
            finally:
                libc.setns(ours.fileno(), _CLONE_NEWNET)


class Networks:
    """`close` it. `can_cut` is False where there is but one machine's loopback."""

    def __init__(self, *, apart: bool) -> None:
        self.can_cut = apart
        self._holders: list[subprocess.Popen[bytes]] = []
        if not apart:
            self.clients = self.gateways = self.control = Place("127.0.0.1")
            return
        try:
            self._router = Place("10.88.0.1", self._hold())
            self._router.run("sh", "-c", "ip link set lo up; echo 1 > /proc/sys/net/ipv4/ip_forward")
            self.clients, self.gateways, self.control = (self._lay(number) for number in range(len(_PLACES)))
        except BaseException:
            self.close()
            raise

    def _hold(self) -> subprocess.Popen[bytes]:
        """A process with a network and mounts of its own; back once it has them."""
        holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", "echo up; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._holders.append(holder)
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"up\n"
        return holder

    def _lay(self, number: int) -> Place:
        name = _PLACES[number]
        place = Place(f"10.88.{number}.2", self._hold(), mounts=name == "gateways")
        assert place.holder is not None
        self._router.run(
            "ip", "link", "add", name, "type", "veth", "peer", "name", "up0", "netns", f"{place.holder.pid}"
        )
        self._router.run("ip", "address", "add", f"10.88.{number}.1/24", "dev", name)
        self._router.run("ip", "link", "set", name, "up")
        place.run("ip", "address", "add", f"{place.address}/24", "dev", "up0")
        place.run("sh", "-c", f"ip link set lo up; ip link set up0 up; ip route add default via 10.88.{number}.1")
        return place

    def cut(self, place: Place) -> None:
        """Nothing passes between `place` and the others, and nobody is told."""
        name = _PLACES[int(place.address.split(".")[2])]
        forwarding = f"/proc/sys/net/ipv4/conf/{name}/forwarding"
        self._router.run("sh", "-c", f"echo 0 > {forwarding}; ip route add blackhole {place.address}/32")

    def mend(self, place: Place) -> None:
        name = _PLACES[int(place.address.split(".")[2])]
        forwarding = f"/proc/sys/net/ipv4/conf/{name}/forwarding"
        self._router.run("sh", "-c", f"echo 1 > {forwarding}; ip route del blackhole {place.address}/32")

    def close(self) -> None:
        for holder in self._holders:
            for pipe in (holder.stdin, holder.stdout):
                if pipe is not None:
                    pipe.close()
            try:
                holder.wait(timeout=10)
            except subprocess.TimeoutExpired:
                holder.kill()
                holder.wait()


@functools.cache
def find_obstacle() -> str | None:
    """Why networks cannot be laid here, in the words of the NOT RUN list; None when they can."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    missing = [program for program in ("ip", "nsenter", "unshare") if shutil.which(program) is None]
    if missing:
        return f"needs {', '.join(missing)}: apt-get install iproute2 util-linux"
    try:
        Networks(apart=True).close()
    except (AssertionError, OSError) as error:
        return f"network namespaces cannot be made here: {str(error)[:120]}"
    return None
