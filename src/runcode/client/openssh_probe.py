"""Questions to the installed ssh: its version, and what it makes of a config. Nothing connects.

Called by `ssh_user_config` and `doctor`, which are not in a hurry; whatever
connects or makes keys is `client.openssh`.
"""

from __future__ import annotations

import re

from runcode.client.processes import find_program
from runcode.core.terminal import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_VERSION = re.compile(r"OpenSSH_(?:for_Windows_)?([0-9]{1,3})\.([0-9]{1,3})")


def find_version(environ: Mapping[str, str], *, timeout_s: float = 10.0) -> tuple[tuple[int, int] | None, str]:
    """((major, minor) of OpenSSH or None for another ssh, its own words). Raises `missing_program`."""
    _, words = _ask(["-V"], environ, timeout_s)
    match = _VERSION.search(words)
    return (int(match[1]), int(match[2])) if match else None, printable(words.split("\n")[0].strip())


def resolve_host(
    config_path: str, host: str, environ: Mapping[str, str], *, timeout_s: float = 20.0
) -> dict[str, str] | str:
    """`ssh -G`: option → value (the first, lower-cased names), or ssh's complaint. Raises `missing_program`."""
    status, words = _ask(["-G", "-F", config_path, "--", host], environ, timeout_s)
    if status != 0:
        return "; ".join(line.strip() for line in words.split("\n") if line.strip()) or "ssh gave no reason"
    found: dict[str, str] = {}
    for line in words.split("\n"):
        name, _, value = line.partition(" ")
        found.setdefault(name.lower(), value.strip())
    return found


def _ask(words: list[str], environ: Mapping[str, str], timeout_s: float) -> tuple[int, str]:
    """ssh's status and what it printed (on stderr when it failed, or for `-V`)."""
    import subprocess

    argv = [find_program("ssh", environ), *words]
    environment = {name: value for name, value in environ.items() if name != "RUNCODE_TOKEN"}
    try:
        done = subprocess.run(
            argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return 255, f"ssh did not answer within {timeout_s:.0f} s"
    except OSError as error:
        return 255, f"ssh cannot be started: {error.strerror}"
    raw = done.stdout if done.returncode == 0 and done.stdout else done.stderr
    return done.returncode, raw.decode("utf-8", "replace")
