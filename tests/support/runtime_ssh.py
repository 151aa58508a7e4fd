"""A real ssh client for a box's unix socket, with CAs and certificates made in the test."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization.ssh import SSHCertificateBuilder, SSHCertificateType

from runcode.runtimes.base import UnixEndpoint, WorkspaceSpec

# ssh asks its ProxyCommand for a connected descriptor, so ssh itself speaks to the box.
_CONNECT = """
import array, os, socket, sys
folder, name = os.path.split(sys.argv[1])
at = os.open(folder, os.O_PATH)
s = socket.socket(socket.AF_UNIX)
s.connect(f"/proc/self/fd/{at}/{name}")
socket.socket(fileno=1).sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [s.fileno()]))])
"""


def render_private(key: Ed25519PrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    ).decode()


def render_public(key: Ed25519PrivateKey) -> str:
    public = key.public_key()
    return public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


@dataclass
class WorkspaceCa:
    """A CA, and the host keys of the workspaces that it made specs for."""

    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    host_keys: dict[int, Ed25519PrivateKey] = field(default_factory=dict)

    def make_spec(self, workspace_id: int, title: str = "royal-tree") -> WorkspaceSpec:
        host_key = self.host_keys.setdefault(workspace_id, Ed25519PrivateKey.generate())
        return WorkspaceSpec(
            workspace_id=workspace_id,
            title=title,
            principal=f"workspace-{workspace_id}",
            workspace_ca=render_public(self.key),
            host_key=render_private(host_key),
        )

    def sign(self, key: Ed25519PrivateKey, principals: list[str] | None, *, valid_s: int = 600) -> str:
        """An OpenSSH user certificate; `principals` None leaves the list empty."""
        now = int(time.time())
        builder = (
            SSHCertificateBuilder()
            .public_key(key.public_key())
            .serial(1)
            .type(SSHCertificateType.USER)
            .key_id(b"test")
            .valid_after(now - 60)
            .valid_before(now + valid_s)
            .add_extension(b"permit-pty", b"")
            .add_extension(b"permit-port-forwarding", b"")
            .add_extension(b"permit-agent-forwarding", b"")
            .add_extension(b"permit-X11-forwarding", b"")
        )
        if principals is None:
            builder = builder.valid_for_all_principals()
        else:
            builder = builder.valid_principals([name.encode() for name in principals])
        return builder.sign(self.key).public_bytes().decode()


class SshClient:
    """The real ssh, isolated: its own config, key, certificate and known_hosts in `folder`."""

    def __init__(self, folder: Path, ca: WorkspaceCa, spec: WorkspaceSpec, endpoint: UnixEndpoint) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.key = Ed25519PrivateKey.generate()
        self.use_key(self.key, ca.sign(self.key, [spec.principal]))
        (folder / "connect.py").write_text(_CONNECT)
        (folder / "known_hosts").write_text(f"box {render_public(ca.host_keys[spec.workspace_id])}\n")
        python = Path(sys.executable).resolve()
        (folder / "config").write_text(
            f"""Host box
    User ubuntu
    HostKeyAlias box
    ProxyCommand {python} -I -S {folder}/connect.py {endpoint.socket_path}
    ProxyUseFdpass yes
    IdentityFile {folder}/key
    IdentitiesOnly yes
    IdentityAgent none
    UserKnownHostsFile {folder}/known_hosts
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    BatchMode yes
    LogLevel ERROR
"""
        )

    def use_key(self, key: Ed25519PrivateKey, certificate: str | None) -> None:
        path = self.folder / "key"
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_text(render_private(key))
        beside = self.folder / "key-cert.pub"
        beside.unlink(missing_ok=True)
        if certificate is not None:
            beside.write_text(certificate + "\n")

    def command(self, *arguments: str, program: str = "ssh") -> list[str]:
        return [program, "-F", str(self.folder / "config"), *arguments]

    def run(
        self, command: str, *options: str, stdin: bytes = b"", timeout_s: float = 30
    ) -> subprocess.CompletedProcess[bytes]:
        argv = self.command(*options, "box", command)
        return subprocess.run(argv, input=stdin, capture_output=True, check=False, timeout=timeout_s)

    def text(self, command: str, *options: str) -> str:
        """What the command prints; the test fails with ssh's own words when it does not end well."""
        ran = self.run(command, *options)
        assert ran.returncode == 0, (ran.returncode, ran.stdout, ran.stderr)
        return ran.stdout.decode().strip()
