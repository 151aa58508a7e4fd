"""The block in a person's own ssh config: its text, and how it gets in and out of a file.

Owns: the two marker lines, one `Host runcode.<title>` per workspace, and the rule
for which lines of a file are ours. Pure text; `client.ssh_user_config` does the
file. A released client's block has the same markers and is replaced as well.

Threat: a workspace's display name is typed by a stranger and stands in a
comment; the file belongs to the person, and a block in it may have been cut in
half, edited, or written by another version.

Guarantee: what was outside the markers comes back byte for byte, in its order.
Between markers, and after a marker that is never closed, only lines that are
recognisably ours are dropped: a `Host runcode.…` line, what is indented under it,
and comments of ours. The block stands first, since ssh takes the first value it
finds, and ends in `Host *`, so that what follows means what it meant before.

Source: ssh_config(5) and readconf.c of OpenSSH 9.2 (a comment ends at the line's
end; no continuation lines; a section ends at the next Host or Match).
"""

from __future__ import annotations

import re

from runcode.core.errors import RunCodeError
from runcode.core.names import is_title
from runcode.core.terminal import printable
from runcode.core.values import Value

START_MARKER = "# >>> runcode managed block (do not edit) >>>"
END_MARKER = "# <<< runcode managed block <<<"
# The name under which the pinned keys of the gateway stand in the shared known_hosts.
GATEWAY_NAME = "runcode-gateway"
ALIAS_PREFIX = "runcode."
_DISPLAY_NAME_MAX = 80
_SECTION = re.compile(rb"[ \t]*(?:host|match)(?:[ \t=]|$)", re.IGNORECASE)
_OUR_SECTION = re.compile(rb"[ \t]*host[ \t=]+\"?runcode\.[A-Za-z0-9._-]+\"?[ \t]*", re.IGNORECASE)
_CLOSING_SECTION = b"Host *"
# ssh ends a line at a newline only.
_LINE = re.compile(rb"[^\n]*\n|[^\n]+")
_OUR_COMMENT = re.compile(rb"[ \t]*# runcode(?:\.[A-Za-z0-9._-]+)?: ")


class HostEntry(Value):
    """One workspace's host. Paths and `proxy_command` are quoted for ssh already; `display_name` is untrusted."""

    title: str
    display_name: str
    proxy_command: str
    identity_files: tuple[str, ...]
    known_hosts_file: str
    null_device: str = "/dev/null"

    @property
    def alias(self) -> str:
        return ALIAS_PREFIX + self.title


def render_block(entries: list[HostEntry]) -> str:
    """The block with its markers; the same entries give the same text. Raises `usage` for an unsafe title."""
    lines = [START_MARKER, "# runcode: written by `runcode config-ssh`; `runcode config-ssh --remove` takes it out"]
    for entry in entries:
        if not is_title(entry.title):
            raise RunCodeError("usage", "a workspace's title is not a safe name")
        lines += _render_host(entry)
    lines += [_CLOSING_SECTION.decode(), END_MARKER]
    return "\n".join(lines) + "\n"


def _render_host(entry: HostEntry) -> list[str]:
    shown = render_display_name(entry.display_name)
    options = [
        f"HostName {GATEWAY_NAME}",
        f"HostKeyAlias {GATEWAY_NAME}",
        "Port 22",
        f"User {entry.title}",
        f"ProxyCommand {entry.proxy_command}",
        *(f"IdentityFile {path}" for path in entry.identity_files),
        "IdentitiesOnly yes",
        "IdentityAgent none",
        "AddKeysToAgent no",
        f"UserKnownHostsFile {entry.known_hosts_file}",
        f"GlobalKnownHostsFile {entry.null_device}",
        "StrictHostKeyChecking yes",
        "UpdateHostKeys no",
        "CheckHostIP no",
        "VerifyHostKeyDNS no",
        "CanonicalizeHostname no",
        "BatchMode yes",
        "PreferredAuthentications publickey",
        "ForwardAgent no",
        "ForwardX11 no",
        "PermitLocalCommand no",
        "RemoteCommand none",
        "ServerAliveInterval 15",
        "ServerAliveCountMax 4",
        "ConnectTimeout 60",
        # Two key files take turns, and ssh would remark on the one that is not there.
        "LogLevel ERROR",
    ]
    return [
        *([f"# {entry.alias}: {shown}"] if shown else []),
        f"Host {entry.alias}",
        *(f"    {option}" for option in options),
    ]


def render_display_name(untrusted_name: str) -> str:
    """A stranger's text as the inside of one comment line: printable, short, and never a marker."""
    words = " ".join(untrusted_name.split())
    return printable(re.sub(r">>+|<<+", "", words), limit=_DISPLAY_NAME_MAX).strip()


def insert_block(content: bytes, block: str) -> bytes:
    """The file with this block first and no other block of ours."""
    return block.encode() + remove_blocks(content)


def remove_blocks(content: bytes) -> bytes:
    """The file without any block of ours, whole or cut in half."""
    kept: list[bytes] = []
    held: list[bytes] | None = None  # the lines since an opening marker
    for line in _LINE.findall(content):
        bare = line.strip()
        if bare == START_MARKER.encode():
            kept += _foreign_lines(held or [], closed=False)
            held = []
        elif bare == END_MARKER.encode() and held is not None:
            kept += _foreign_lines(held, closed=True)
            held = None
        elif held is not None:
            held.append(line)
        else:
            kept.append(line)
    kept += _foreign_lines(held or [], closed=False)
    return b"".join(kept)


def _foreign_lines(held: list[bytes], *, closed: bool) -> list[bytes]:
    """Of the lines after an opening marker, those that are not ours."""
    kept: list[bytes] = []
    ours = True  # does the current line stand under something of ours?
    if closed:
        while held and held[-1].strip() in (b"", _CLOSING_SECTION):
            held = held[:-1]
    for line in held:
        bare = line.strip()
        if _OUR_SECTION.fullmatch(line.rstrip()) or (not closed and bare and b"Host runcode.".startswith(bare)):
            ours = True
        elif _SECTION.match(line):
            ours = False
            kept.append(line)
        elif _OUR_COMMENT.match(line):
            continue
        elif not ours or (not closed and not (bare and line[:1] in b" \t")):
            # Nobody closed this block: whatever is not indented under our host belongs to the person.
            ours = ours and (not bare or bare.startswith(b"#"))
            kept.append(line)
    return kept
