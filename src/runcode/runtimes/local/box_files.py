"""What a start puts beside the box's storage: sshd's configuration and keys, the init, the sudo stub.

Threat: whoever reaches the box's sshd must hold a certificate of the workspace CA
with this workspace's principal. A certificate with no principals, of another box, or
of the client CA opens nothing; no key of the person's own is ever looked at, since
the box could write such a file.

Called by the runtime before it spawns a keeper. The folder is new at each start and
bound read-only.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from runcode.core.errors import RunCodeError
from runcode.core.hostkeys import parse_public_key
from runcode.core.names import is_title
from runcode.runtimes.base import WorkspaceSpec
from runcode.runtimes.local import box_init, etc_tree
from runcode.runtimes.local.bubblewrap import BOX_FOLDER
from runcode.runtimes.local.layout import write_new_file

_PRINCIPAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}", re.ASCII)
_HOSTNAME_MAX = 64
_CERTIFICATES = ",".join(
    f"{name}-cert-v01@openssh.com"
    for name in ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "rsa-sha2-512")
)

# OpenSSH 9.2, sshd_config(5). StrictModes looks at owners, which user namespaces map away.
_SSHD_CONFIG = f"""\
HostKey {BOX_FOLDER}/host_key
TrustedUserCAKeys {BOX_FOLDER}/workspace_ca
AuthorizedPrincipalsFile {BOX_FOLDER}/principals
AuthorizedKeysFile none
AuthenticationMethods publickey
PubkeyAcceptedAlgorithms {_CERTIFICATES}
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
AllowUsers ubuntu
PermitRootLogin no
LoginGraceTime 20
MaxAuthTries 4
MaxSessions 1000
AllowAgentForwarding yes
AllowTcpForwarding yes
AllowStreamLocalForwarding yes
StreamLocalBindUnlink yes
GatewayPorts no
X11Forwarding yes
X11UseLocalhost yes
PermitTunnel no
PermitUserEnvironment no
PermitUserRC no
AcceptEnv LANG LC_*
SetEnv PATH={etc_tree.DEFAULT_PATH}
Subsystem sftp internal-sftp
Ciphers aes128-gcm@openssh.com,aes256-gcm@openssh.com,aes256-ctr
MACs hmac-sha2-256-etm@openssh.com,hmac-sha2-512-etm@openssh.com
Compression no
UseDNS no
TCPKeepAlive no
PrintMotd no
PrintLastLog no
PidFile none
LogLevel INFO
"""

_SUDO = """\
#!/bin/sh
echo "sudo: there is no root in a workspace of the local runtime; install into your home, or use another runtime" >&2
exit 1
"""


def check_spec(spec: WorkspaceSpec) -> None:
    """Raises `bad_request`: each field ends up in a file that sshd reads, or as an argument."""
    if not is_title(spec.title):
        raise RunCodeError("bad_request", "the workspace's title is not a safe name")
    if not _PRINCIPAL.fullmatch(spec.principal):
        raise RunCodeError("bad_request", "the workspace's principal is not a safe name")
    parse_public_key(spec.workspace_ca)
    if not spec.host_key.strip().startswith("-----BEGIN OPENSSH PRIVATE KEY-----"):
        raise RunCodeError("bad_request", "the workspace's host key is not in OpenSSH's form")


def render_sshd_command(sshd: str) -> list[str]:
    return [sshd, "-i", "-e", "-f", f"{BOX_FOLDER}/sshd_config"]


def render_init_command(python: str, sshd: str) -> list[str]:
    return [python, "-I", "-S", f"{BOX_FOLDER}/init.py", *render_sshd_command(sshd)]


def write_box_files(folder: Path, spec: WorkspaceSpec, host_uid: int | None) -> None:
    """Fill a new folder. As root the host key is readable by the box's group only; sshd itself runs as the box."""
    check_spec(spec)
    opt, programs = folder / "opt", folder / "opt" / "bin"
    for path in (folder, opt, programs):
        path.mkdir(mode=0o755)
        path.chmod(0o755)
    key_mode, key_gid = (0o400, -1) if host_uid is None else (0o440, host_uid)
    write_new_file(opt / "host_key", spec.host_key.strip() + "\n", key_mode, key_gid)
    write_new_file(opt / "workspace_ca", parse_public_key(spec.workspace_ca).line + "\n", 0o644)
    write_new_file(opt / "principals", spec.principal + "\n", 0o644)
    write_new_file(opt / "sshd_config", _SSHD_CONFIG, 0o644)
    write_new_file(opt / "init.py", read_init(), 0o644)
    write_new_file(programs / "sudo", _SUDO, 0o755)
    write_new_file(folder / "hosts", etc_tree.render_hosts(spec.title), 0o644)
    write_new_file(folder / "hostname", spec.title[:_HOSTNAME_MAX] + "\n", 0o644)


def read_init() -> bytes:
    loader = getattr(box_init, "__loader__", None)
    path = os.fspath(box_init.__file__)
    raw = loader.get_data(path) if loader is not None and hasattr(loader, "get_data") else Path(path).read_bytes()
    assert isinstance(raw, bytes)
    return raw
