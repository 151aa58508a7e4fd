"""The box's own network namespace, made and guarded before the box's first program runs.

Owns: the namespace's owner, the tap device with its filter, addresses and routes; and,
on the keeper's side, becoming the helper (slirp4netns) that carries the packets.

Threat: see `destinations`. Beyond that, the box tries to undo what guards it.

Guarantee: the network namespace belongs to a user namespace that is an ancestor of the box's,
in which no process of the box has ever been; so the box has no CAP_NET_ADMIN there and can
get none. The filter sits on the tap device itself and survives the helper's end and return.
Routes say `unreachable` for the same places: programs fail at once instead of waiting, and a host's
address that appears later is refused by the route, and by the helper's silence to ARP for
whoever binds to the device to get around routes. The helper runs as the box's uid, sees /etc
and /run of the host only, and has a seccomp filter and no capability beyond CAP_NET_BIND_SERVICE.

Called by the keeper and its child only, between fork and exec. Standard library only.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import resource
import signal
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

from runcode.runtimes.local import destinations, limits, netlink, plan, staging

TUN_DEVICE = "/dev/net/tun"
TAP = "tap0"
# What the helper and the tap agree on: few large packets cost least, and they never leave this machine as such.
_MTU = 65520
_HELPER_FILES_MAX = 8192
_LIFELINE_FD, _NETWORK_FD = 3, 4
_BOX_UID = 1000

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
# linux/if_tun.h, for the machines of `staging`'s table except ppc64.
_TUNSETIFF, _TUNSETPERSIST, _TUNATTACHFILTER = 0x400454CA, 0x400454CB, 0x401054D5
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class BoxNetwork:
    """Descriptors of one box's network, as its keeper holds them."""

    user_namespace: int
    network_namespace: int
    routes: int

    def close(self) -> None:
        for descriptor in (self.user_namespace, self.network_namespace, self.routes):
            os.close(descriptor)


@dataclass(frozen=True)
class HostSide:
    """What a box's network needs of the host: the way to the keeper, the tap device, the host's own prefixes."""

    keeper: socket.socket
    tun_path: int
    own: list[netlink.Prefix]


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


# ---------------------------------------------------------------- the keeper's child, about to become the box


def prepare(keeper_descriptor: int) -> HostSide:
    """While this process is still in the host's network and sees its paths. Raises OSError."""
    keeper = socket.socket(fileno=keeper_descriptor)
    keeper.set_inheritable(False)
    return HostSide(keeper, os.open(TUN_DEVICE, os.O_PATH | os.O_CLOEXEC), netlink.read_own_prefixes())


def enter(host: HostSide) -> None:
    """Move this process (which has its final uid) into a new network, and hand that to the keeper.

    Afterwards the process is uid 1000 of a user namespace below the network's owner:
    it has lost every right over the network for good.
    """
    forbidden = destinations.forbid(host.own)
    uid, gid = os.getuid(), os.getgid()
    _become(_CLONE_NEWUSER | _CLONE_NEWNET, 0, uid, gid, "unshare network")
    with netlink.open_socket() as routes:
        _make_tap(host.tun_path, destinations.render_filter(forbidden))
        loopback, tap = socket.if_nametoindex("lo"), socket.if_nametoindex(TAP)
        netlink.bring_up(routes, loopback)
        for prefix in forbidden:
            netlink.add_unreachable(routes, prefix)
        _turn_off_ipv6()
        netlink.add_address(routes, tap, destinations.ADDRESS, destinations.LENGTH)
        netlink.bring_up(routes, tap, _MTU)
        netlink.add_default_route(routes, tap, destinations.GATEWAY)
        owned = [os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("user", "net")]
        sent = array.array("i", [*owned, routes.fileno()])
        host.keeper.sendmsg([b"N"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, sent)])
    host.keeper.close()
    for descriptor in (*owned, host.tun_path):
        os.close(descriptor)
    _become(_CLONE_NEWUSER, _BOX_UID, 0, 0, "unshare the box's user")


def _become(flags: int, inside: int, uid: int, gid: int, what: str) -> None:
    # Whoever changed its uid owns its /proc/self no more, and could not write the maps.
    _check(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl dumpable")
    _check(_libc.unshare(flags), what)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{inside} {uid} 1"),
        ("gid_map", f"{inside} {gid} 1"),
    ):
        descriptor = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


def _make_tap(tun_path: int, program: list[destinations.Instruction]) -> None:
    """A tap that stays, with the filter on it: whoever attaches to it later gets filtered frames only."""
    tap = os.open(f"/proc/self/fd/{tun_path}", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", TAP.encode(), _IFF_TAP | _IFF_NO_PI))
        raw = ctypes.create_string_buffer(destinations.pack_filter(program))
        fcntl.ioctl(tap, _TUNATTACHFILTER, struct.pack("HxxxxxxP", len(program), ctypes.addressof(raw)))
        fcntl.ioctl(tap, _TUNSETPERSIST, 1)
    finally:
        os.close(tap)


def _turn_off_ipv6() -> None:
    """No link-local address that looks like IPv6 were there. The filter drops it whatever this achieves."""
    try:
        descriptor = os.open(f"/proc/sys/net/ipv6/conf/{TAP}/disable_ipv6", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(descriptor, b"1")
    except OSError:
        pass
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------- the keeper


def receive(child: socket.socket) -> BoxNetwork | None:
    """What `enter` sent; None when the child ended before it."""
    raw, passed, _, _ = socket.recv_fds(child, 1, 3)
    for descriptor in passed:
        os.set_inheritable(descriptor, False)
    if raw != b"N" or len(passed) != 3:
        for descriptor in passed:
            os.close(descriptor)
        return None
    return BoxNetwork(*passed)


def forbid_in(network: BoxNetwork, prefixes: Iterable[netlink.Prefix]) -> None:
    """Make more places unreachable for a box that runs."""
    with socket.socket(fileno=os.dup(network.routes)) as routes:
        routes.settimeout(netlink.ANSWER_S)
        for prefix in prefixes:
            netlink.add_unreachable(routes, prefix)


def become_helper(box_plan: plan.BoxPlan, network: BoxNetwork, lifeline: int, keeper_pid: int) -> NoReturn:
    """In a fork of the keeper: drop to the box's uid, enter the network's owner, exec. Never returns.

    The lifeline's end of file ends the helper, and so does the keeper's death.
    """
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        staging.leave_session_keyring()
        # High first: a low number may be one that still has to be copied.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in (lifeline, network.network_namespace)]
        user = fcntl.fcntl(network.user_namespace, fcntl.F_DUPFD_CLOEXEC, 64)
        null = fcntl.fcntl(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), fcntl.F_DUPFD_CLOEXEC, 64)
        os.chdir("/")
        os.closerange(0, 64)
        for wanted, source in ((0, null), (1, null), (2, null), (_LIFELINE_FD, high[0]), (_NETWORK_FD, high[1])):
            os.dup2(source, wanted)
        limit = min(_HELPER_FILES_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        limits.join_cgroups(box_plan.cgroups)
        if box_plan.host_uid is not None:
            staging.drop_to(box_plan.host_uid, box_plan.host_uid)
        _check(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl dumpable")
        _check(_libc.setns(user, _CLONE_NEWUSER), "setns")
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        _check(_libc.prctl(staging.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl no_new_privs")
        # Last: a change of credentials takes it back.
        _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl pdeathsig")
        os.closerange(64, 4096)
        if os.getppid() != keeper_pid:
            os._exit(0)
        assert box_plan.network_helper is not None
        argv = render_helper_arguments(box_plan.network_helper)
        os.execve(argv[0], argv, {"PATH": "/usr/bin:/bin"})  # noqa: S606 (a list, and no shell on purpose)
    finally:
        os._exit(127)


def render_helper_arguments(program: str) -> list[str]:
    """argv of the helper, as slirp4netns(1) 1.2.0 has it."""
    return [
        program,
        "--disable-host-loopback",
        "--enable-sandbox",
        "--enable-seccomp",
        f"--mtu={_MTU}",
        f"--exit-fd={_LIFELINE_FD}",
        "--netns-type=path",
        f"/proc/self/fd/{_NETWORK_FD}",
        TAP,
    ]
