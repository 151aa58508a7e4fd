"""ssh_config text: what we write, and the tripwire for what a server wrote.

Threat: an ssh_config directive can run commands on the laptop (`ProxyCommand`,
`Match exec`) or redirect what ssh trusts.

Guarantee: the text for ssh is built here from values that `core.names` accepted
and from paths of our own; no text from a server is ever part of it.

Source: ssh_config(5) of OpenSSH 9.2, and readconf.c for how a keyword is split
from its arguments.
"""

from __future__ import annotations

import re

from runcode.core.errors import RunCodeError
from runcode.core.values import Value

# The directives that run a program, load a library, read another file, or take ssh another way.
_TRIPWIRES = frozenset(
    (
        *("proxycommand", "localcommand", "permitlocalcommand", "knownhostscommand", "include", "match", "exec"),
        *("proxyjump", "pkcs11provider", "smartcarddevice", "securitykeyprovider", "xauthlocation"),
    )
)
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9]*")
_UNQUOTABLE = re.compile(r'[\x00-\x1f\x7f"]')


class SshTarget(Value):
    """Everything that a session's own ssh config holds. Paths are absolute, and ours.

    `control_path` is None where OpenSSH has no multiplexing (Windows).
    `control_persist_s` is how long an unused master stays.
    """

    alias: str
    host: str
    port: int
    user: str
    identity_file: str
    known_hosts_file: str
    certificate_file: str | None = None
    control_path: str | None = None
    control_persist_s: int = 600
    null_device: str = "/dev/null"


def render_ssh_config(target: SshTarget) -> str:
    """The whole isolated config file. Raises `unsafe_path` for a path that ssh_config cannot express."""
    lines = [
        f"Host {target.alias}",
        f"    HostName {target.host}",
        f"    Port {target.port}",
        f"    User {target.user}",
        f"    IdentityFile {quote_path(target.identity_file)}",
        "    IdentitiesOnly yes",
        "    IdentityAgent none",
        f"    UserKnownHostsFile {quote_path(target.known_hosts_file)}",
        f"    GlobalKnownHostsFile {target.null_device}",
        "    StrictHostKeyChecking yes",
        "    UpdateHostKeys no",
        "    CheckHostIP no",
        "    VerifyHostKeyDNS no",
        "    BatchMode yes",
        "    PreferredAuthentications publickey",
        "    ForwardAgent no",
        "    ForwardX11 no",
        "    PermitLocalCommand no",
        "    ServerAliveInterval 15",
        "    ServerAliveCountMax 4",
        "    ConnectTimeout 20",
    ]
    if target.certificate_file is not None:
        lines.append(f"    CertificateFile {quote_path(target.certificate_file)}")
    if target.control_path is not None:
        lines += [
            "    ControlMaster auto",
            f"    ControlPath {quote_path(target.control_path)}",
            f"    ControlPersist {target.control_persist_s}",
        ]
    return "\n".join(lines) + "\n"


def quote_path(path: str) -> str:
    """A path as one ssh_config argument: `%` doubled (it would expand), blanks quoted."""
    if _UNQUOTABLE.search(path) or "${" in path:
        raise RunCodeError("unsafe_path", f"ssh cannot be given the path {path!r}")
    return '"' + path.replace("\\", "\\\\").replace("%", "%%") + '"'


def find_tripwire(raw_ssh_config: object) -> str | None:
    """The first command-executing directive in a server's ssh_config text, or None.

    Reads wider than ssh does: any line whose first word, after blanks, quotes, a
    byte-order mark or control bytes, is such a keyword in any case counts,
    however it is separated from its arguments.
    """
    if raw_ssh_config is None:
        return None
    if not isinstance(raw_ssh_config, str):
        return "something that is not text"
    for line in re.split(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029\x00]", raw_ssh_config):
        word = _WORD.search(line)
        if word is None or line[: word.start()].lstrip().startswith("#"):
            continue
        if word[0].lower() in _TRIPWIRES:
            return word[0]
    return None
