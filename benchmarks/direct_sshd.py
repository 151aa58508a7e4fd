"""The reference for the gateway: an ordinary sshd on loopback, as the user who runs the benchmark.

Same key exchange and cipher as the gateway offers first, so that the ratio shows
the relay and not the cipher.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

KEY_EXCHANGE = "curve25519-sha256"
CIPHER = "aes128-gcm@openssh.com"
SAME_ALGORITHMS = ["-o", f"KexAlgorithms={KEY_EXCHANGE}", "-o", f"Ciphers={CIPHER}"]


def _make_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


@contextlib.contextmanager
def direct_sshd(folder: Path) -> Iterator[list[str]]:
    """Yields the ssh command line that reaches it."""
    folder.mkdir(parents=True)
    host_key, user_key = _make_key(folder / "host"), _make_key(folder / "user")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if os.geteuid() == 0:
        # The distribution's own unit makes sshd's privilege separation folder.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    config = folder / "sshd_config"
    config.write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {host_key}\nAuthorizedKeysFile {user_key}.pub\nPidFile none\n"
        "UsePAM no\nStrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\nMaxStartups 200\nLogLevel ERROR\n"
    )
    # A home and a passwd of its own, as the box has: the person's .bashrc would be part of every command.
    home = folder / "home"
    home.mkdir()
    passwd = folder / "passwd"
    entry = f"{getpass.getuser()}:x:{os.getuid()}:{os.getgid()}::{home}:/bin/bash\n"
    passwd.write_text(entry + "sshd:x:102:65534::/run/sshd:/usr/sbin/nologin\n")
    view = ["bwrap", "--dev-bind", "/", "/", "--ro-bind", str(passwd), "/etc/passwd", "--die-with-parent"]
    server = subprocess.Popen([*view, "/usr/sbin/sshd", "-D", "-e", "-f", str(config)], stdin=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as up:
                if up.recv(256):
                    break
            time.sleep(0.02)
        yield [
            *("ssh", "-F", "/dev/null", "-i", str(user_key), "-p", str(port), "-o", "IdentitiesOnly=yes"),
            *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes"),
            *("-o", "LogLevel=ERROR", *SAME_ALGORITHMS, f"{getpass.getuser()}@127.0.0.1"),
        ]
    finally:
        server.terminate()
        server.wait()
