"""Which algorithms both legs speak, and why no others.

Owns: the lists. Called by `server` and `workspace_leg`.

- AES-GCM first and second: no MAC to compute, and the fastest here. aes256-ctr
  with an encrypt-then-MAC last, for libraries without GCM.
- No chacha20-poly1305: OpenSSH clients prefer it when it is offered, and it
  costs seven times as much here (DESIGN.md). No CBC at all: `asyncssh_relay`
  leaves out the countermeasure that only CBC needs.
- Compression off: it leaks lengths of secrets, and is an amplifier.
"""

from __future__ import annotations

from asyncssh.kex import get_kex_algs

VERSION = "RunCodeGateway"

# The hybrid with ML-KEM is there when the installed cryptography library can do it.
KEY_EXCHANGES: list[str] = [
    name
    for name in ("mlkem768x25519-sha256", "curve25519-sha256", "curve25519-sha256@libssh.org")
    if name.encode() in get_kex_algs()
]
CIPHERS = ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes256-ctr"]
MACS = ["hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com"]
