"""What is said, and given, when a machine cannot give boxes a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from runcode.runtimes.local import box_network, machine
from runcode.runtimes.local.layout import Layout
from runcode.server import doctor

_PLAIN = machine.Machine(bwrap="/usr/bin/bwrap", sshd="/usr/sbin/sshd", python="/usr/bin/python3", disable_userns=True)


def test_a_missing_helper_and_a_missing_device_are_named_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(box_network, "TUN_DEVICE", str(tmp_path / "tun"))
    monkeypatch.setattr(machine, "_SEARCH_PATH", str(tmp_path))
    with pytest.raises(machine.Obstacle, match="apt install slirp4netns"):
        machine.find_network_helper()
    (tmp_path / "slirp4netns").write_text("#!/bin/sh\n")
    (tmp_path / "slirp4netns").chmod(0o755)
    with pytest.raises(machine.Obstacle, match="modprobe tun"):
        machine.find_network_helper()
    assert machine.may_have_network() is False
    (tmp_path / "tun").touch(0o600)
    with pytest.raises(machine.Obstacle, match="chmod 666"):
        machine.find_network_helper()
    (tmp_path / "tun").chmod(0o666)
    assert machine.find_network_helper() == str(tmp_path / "slirp4netns")


def test_boxes_run_without_a_network_where_none_can_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    probed = []

    def probe(found: machine.Machine, layout: Layout, host_uid: int | None) -> None:
        probed.append(found.network_helper)
        if found.network_helper is not None:
            raise machine.Obstacle("slirp4netns does not carry packets")

    monkeypatch.setattr(machine, "probe", probe)
    monkeypatch.setattr(machine, "find_network_helper", lambda: "/usr/bin/slirp4netns")
    found = machine.probe_all(_PLAIN, Layout(tmp_path), None, want_network=True)
    assert (found.network_helper, found.network_obstacle) == (None, "slirp4netns does not carry packets")
    assert probed == ["/usr/bin/slirp4netns", None]
    told = machine.probe_all(_PLAIN, Layout(tmp_path), None, want_network=False)
    assert "--box-network off" in str(told.network_obstacle)


def test_the_helpers_arguments_forward_nothing_inwards_and_close_the_way_to_the_loopback() -> None:
    argv = box_network.render_helper_arguments("/usr/bin/slirp4netns")
    assert {"--disable-host-loopback", "--enable-sandbox", "--enable-seccomp"} <= set(argv)
    # The API socket is what forwards ports; IPv6 is not guarded.
    assert not any(word.startswith(("--api-socket", "-a", "--enable-ipv6", "-6")) for word in argv)


def test_a_clock_before_the_program_was_installed_is_a_failure() -> None:
    assert doctor.check_clock(1_000_000_000).status == "fail"
    assert doctor.check_clock().status == "ok"
