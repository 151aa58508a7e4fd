"""Client certificates with any field as a test says, in asyncssh's and ssh-keygen's despite."""

from __future__ import annotations

import binascii
import os
from pathlib import Path

import asyncssh

from runcode.core.certificate_names import CertifiedSession, render_key_id
from runcode.gateway.directory import SessionFacts, WorkspaceFacts
from runcode.gateway.packets import render_string as s
from runcode.gateway.packets import render_uint32 as u
from support.gateway_fakes import utc_now


def forge(
    authority: asyncssh.SSHKey,
    key: asyncssh.SSHKey,
    session: SessionFacts,
    workspace: WorkspaceFacts,
    *,
    kind: int = 1,
    key_id: str | None = None,
    principals: tuple[str, ...] | None = None,
    valid_after: int | None = None,
    valid_before: int | None = None,
    options: tuple[tuple[str, str], ...] = (),
    extensions: bytes = b"",
    reserved: bytes = b"",
    tail: bytes = b"",
    signer: asyncssh.SSHKey | None = None,
) -> bytes:
    """The blob of a certificate; good when nothing but the first four is given."""
    now = int(utc_now().timestamp())
    name = key.algorithm
    certified = CertifiedSession(session.session_id, session.user_id, session.workspace_id)
    signed = b"".join(
        (
            s(name + b"-cert-v01@openssh.com"),
            s(os.urandom(32)),
            key.public_data[4 + len(name) :],
            (7).to_bytes(8, "big"),
            u(kind),
            s((key_id if key_id is not None else render_key_id(certified)).encode()),
            s(
                b"".join(
                    s(each.encode()) for each in (principals if principals is not None else (workspace.principal,))
                )
            ),
            (now - 60 if valid_after is None else valid_after).to_bytes(8, "big"),
            (now + 600 if valid_before is None else valid_before).to_bytes(8, "big"),
            s(b"".join(s(option.encode()) + s(s(value.encode())) for option, value in options)),
            s(extensions),
            s(reserved),
            s(authority.public_data),
        )
    )
    return signed + s((signer or authority).sign(signed, authority.sig_algorithms[0])) + tail


def write_beside(key_path: Path, blob: bytes) -> None:
    """As ssh finds it by itself: `KEY-cert.pub`."""
    length = int.from_bytes(blob[:4], "big")
    text = binascii.b2a_base64(blob, newline=False).decode()
    key_path.with_name(key_path.name + "-cert.pub").write_text(f"{blob[4 : 4 + length].decode()} {text}\n")
