"""Who gets in: only a certificate of the workspace CA that names this workspace's principal."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from support.runtime_boxes import Boxes
from support.runtime_ssh import SshClient, WorkspaceCa, render_public

pytest_plugins = ["support.runtime_fixtures"]


def assert_refused(ssh: SshClient, *options: str) -> None:
    ran = ssh.run("echo IN", *options)
    assert ran.returncode == 255, ran
    assert b"IN" not in ran.stdout
    assert b"Permission denied" in ran.stderr, ran.stderr


async def test_the_right_certificate_opens_the_box(boxes: Boxes) -> None:
    """The control: what the refusals below differ from in one thing each."""
    spec = boxes.new_spec()
    ssh = await boxes.open(spec)
    key = Ed25519PrivateKey.generate()
    ssh.use_key(key, boxes.ca.sign(key, ["someone-else", spec.principal]))
    assert ssh.text("echo IN") == "IN"


@pytest.mark.parametrize("principals", [["workspace-99999"], ["ubuntu"], ["root"], ["*"], [""], None])
async def test_a_certificate_without_this_principal_is_refused(boxes: Boxes, principals: list[str] | None) -> None:
    ssh = await boxes.open()
    key = Ed25519PrivateKey.generate()
    ssh.use_key(key, boxes.ca.sign(key, principals))
    assert_refused(ssh)


async def test_a_certificate_of_another_ca_is_refused(boxes: Boxes) -> None:
    spec = boxes.new_spec()
    ssh = await boxes.open(spec)
    key = Ed25519PrivateKey.generate()
    ssh.use_key(key, WorkspaceCa().sign(key, [spec.principal]))
    assert_refused(ssh)


async def test_an_expired_certificate_is_refused(boxes: Boxes) -> None:
    spec = boxes.new_spec()
    ssh = await boxes.open(spec)
    key = Ed25519PrivateKey.generate()
    ssh.use_key(key, boxes.ca.sign(key, [spec.principal], valid_s=-10))
    assert_refused(ssh)


async def test_a_plain_key_is_refused_also_the_cas_own_and_one_the_box_authorised(boxes: Boxes) -> None:
    ssh = await boxes.open()
    key = Ed25519PrivateKey.generate()
    line = render_public(key)
    ssh.text(
        f"mkdir -p -m 700 .ssh; for f in authorized_keys authorized_keys2; do echo '{line}' > .ssh/$f; done; "
        f"echo 'cert-authority {line}' >> .ssh/authorized_keys; echo '*' > .ssh/authorized_principals"
    )
    ssh.use_key(key, None)
    assert_refused(ssh)
    ssh.use_key(boxes.ca.key, None)
    assert_refused(ssh)


async def test_a_certificate_of_a_ca_that_the_box_authorised_is_refused(boxes: Boxes) -> None:
    spec = boxes.new_spec()
    ssh = await boxes.open(spec)
    own_ca = WorkspaceCa()
    ssh.text(f"mkdir -m 700 .ssh; echo 'cert-authority {render_public(own_ca.key)}' > .ssh/authorized_keys")
    key = Ed25519PrivateKey.generate()
    ssh.use_key(key, own_ca.sign(key, [spec.principal, "ubuntu"]))
    assert_refused(ssh)


async def test_what_a_box_holds_opens_no_other_box(boxes: Boxes) -> None:
    """Its host key, and a certificate of its own principal, tried on another one."""
    mine, other = boxes.new_spec("mine"), boxes.new_spec("other")
    stolen = (await boxes.open(mine)).text("cat /opt/runcode/host_key")
    assert stolen == mine.host_key.strip()
    ssh = await boxes.open(other)
    host_key = boxes.ca.host_keys[mine.workspace_id]
    ssh.use_key(host_key, None)
    assert_refused(ssh)
    ssh.use_key(host_key, boxes.ca.sign(host_key, [mine.principal]))
    assert_refused(ssh)


@pytest.mark.parametrize("user", ["root", "nobody", "sshd"])
async def test_no_other_user_can_log_in(boxes: Boxes, user: str) -> None:
    assert_refused(await boxes.open(), "-l", user)


async def test_a_box_shows_its_own_host_key_only(boxes: Boxes) -> None:
    ssh = await boxes.open()
    (ssh.folder / "known_hosts").write_text(f"box {render_public(Ed25519PrivateKey.generate())}\n")
    ran = ssh.run("echo IN")
    assert ran.returncode == 255
    assert b"Host key verification failed" in ran.stderr or b"IDENTIFICATION HAS CHANGED" in ran.stderr


async def test_no_tunnel_device_and_no_weak_cipher(boxes: Boxes) -> None:
    ssh = await boxes.open()
    assert ssh.run("echo IN", "-w", "0:0", "-o", "ExitOnForwardFailure=yes").stdout == b""
    for option in ("Ciphers=aes128-cbc", "Ciphers=chacha20-poly1305@openssh.com", "MACs=hmac-sha1"):
        extra = ["-o", "LogLevel=INFO", "-o", option] + (
            ["-o", "Ciphers=aes256-ctr"] if option.startswith("MACs") else []
        )
        ran = ssh.run("echo IN", *extra)
        assert ran.returncode == 255, option
        assert b"no matching" in ran.stderr.lower(), ran.stderr


async def test_the_socket_is_for_the_servers_user_only(boxes: Boxes) -> None:
    spec = boxes.new_spec()
    await boxes.open(spec)
    path = boxes.path(spec)
    assert (path / "run" / "ssh.sock").stat().st_mode & 0o777 == 0o600
    for folder in (path, path / "run", boxes.root, boxes.root / "workspaces"):
        assert Path(folder).stat().st_mode & 0o777 == 0o700, folder
