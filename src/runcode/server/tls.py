"""TLS on the server's own listener, from certificate files that may change while it runs.

Owns: which versions and algorithms, the check of the key file, and reading both
anew. Called by `up`.

Threat: an old protocol, a key that others on this machine can read, and a renewed
certificate that nobody loads (or half of one that is being written).
Guarantee: TLS 1.2 with forward secrecy and AEAD, or 1.3; a pair is taken only when
the key file is the owner's alone and certificate and key belong together;
otherwise the one in use stays, and the log says why.

Source: RFC 9325 (recommendations for TLS).
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import stat
from pathlib import Path
from typing import Final

from runcode.core.errors import RunCodeError

_log = logging.getLogger(__name__)

# Of TLS 1.2; those of 1.3 are all fine.
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
_LOOK_EVERY_S: Final = 10.0
_State = tuple[tuple[int, int, int], ...]


class ServerTls:
    """`context` is the listener's, and has the newest good pair. Raises RunCodeError when the first is bad."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate, self._key = certificate, key
        self._seen = self._look()
        self._require_private()
        self.context = _make_context(certificate, key)
        self._task: asyncio.Task[None] | None = None

    def reload(self) -> bool:
        """Read the files again; True when the new pair is in use. What is bad changes nothing."""
        self._seen = self._look()
        try:
            self._require_private()
            _make_context(self._certificate, self._key)
        except RunCodeError as error:
            _log.error("the certificate was not reloaded: %s", error.message)
            return False
        self.context.load_cert_chain(self._certificate, self._key)
        _log.warning("the certificate was reloaded")
        return True

    def start(self) -> None:
        """Look for changes every few seconds."""
        self._task = asyncio.get_running_loop().create_task(self._watch(), name="tls-files")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            if self._look() != self._seen:
                # Whoever renews writes two files: the second may follow at once.
                await asyncio.sleep(1)
                self.reload()

    def _look(self) -> _State:
        found = []
        for path in (self._certificate, self._key):
            try:
                seen = path.stat()
                found.append((seen.st_ino, seen.st_mtime_ns, seen.st_size))
            except OSError:
                found.append((0, 0, 0))
        return tuple(found)

    def _require_private(self) -> None:
        try:
            seen = self._key.stat()
        except OSError as error:
            raise _unusable(f"{self._key}: {error.strerror}") from error
        if stat.S_IMODE(seen.st_mode) & 0o077 or seen.st_uid not in (0, os.geteuid()):
            raise RunCodeError(
                "unsafe_path",
                f"the TLS key {self._key} is open to others on this machine",
                resolution=f"chmod 600 {self._key}, and make it the server's own",
            )


def _make_context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    try:
        # A key with a passphrase would ask for it on the terminal.
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        raise _unusable(f"{certificate} with {key} is no pair ({error.reason or 'unreadable'})") from error
    except OSError as error:
        raise _unusable(f"{error.filename or certificate}: {error.strerror}") from error
    return context


def _unusable(message: str) -> RunCodeError:
    return RunCodeError(
        "io_error",
        message,
        resolution="name PEM files: --tls-cert with its chain, --tls-key without a passphrase",
    )
