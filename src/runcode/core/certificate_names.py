"""What a client certificate's key id says: whose session it is, on which workspace.

Owns: that one text, written by the control plane and read by the gateway.

Guarantee: `parse_key_id` takes exactly what `render_key_id` writes, so that no
two texts name one session.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from runcode.core.errors import UnsafeInput

_NUMBER = "([1-9][0-9]{0,18})"
_KEY_ID = re.compile(f"runcode session {_NUMBER} user {_NUMBER} workspace {_NUMBER}", re.ASCII)


@dataclass(frozen=True)
class CertifiedSession:
    session_id: int
    user_id: int
    workspace_id: int


def render_key_id(certified: CertifiedSession) -> str:
    return f"runcode session {certified.session_id} user {certified.user_id} workspace {certified.workspace_id}"


def parse_key_id(raw_key_id: str) -> CertifiedSession:
    """Raises UnsafeInput for anything else."""
    match = _KEY_ID.fullmatch(raw_key_id)
    if match is None:
        raise UnsafeInput("a certificate's key id is not one of ours")
    return CertifiedSession(*(int(number) for number in match.groups()))
