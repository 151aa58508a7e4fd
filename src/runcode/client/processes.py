"""Child processes, without the start-up price of `subprocess` (12 ms here, more than a warm ssh).

Called by `client.openssh` only. Children get default signals and the descriptors
named here; every other one of ours is close-on-exec.
"""

from __future__ import annotations

import os
import signal
import time

from runcode.core.errors import RunCodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# Not for programs that live on after us, as the master does.
_SECRETS = ("RUNCODE_TOKEN",)


def find_program(name: str, environ: Mapping[str, str]) -> str:
    """The absolute path of a program on PATH. Raises `missing_program`, saying how to install it.

    A relative PATH entry is skipped: a repository must not bring its own `ssh`.
    """
    for folder in environ.get("PATH", os.defpath).split(os.pathsep):
        candidate = os.path.join(folder, name)
        if os.path.isabs(folder) and os.access(candidate, os.X_OK) and os.path.isfile(candidate):
            return candidate
    raise RunCodeError("missing_program", f"`{name}` is not on PATH", resolution=_how_to_install())


def _how_to_install() -> str:
    import sys

    if sys.platform == "darwin":
        return "OpenSSH comes with macOS: put /usr/bin back on PATH"
    if sys.platform == "win32":
        return "install it with: Add-WindowsCapability -Online -Name OpenSSH.Client~~~~0.0.1.0"
    packages = (
        ("/etc/debian_version", "apt-get install openssh-client"),
        ("/etc/fedora-release", "dnf install openssh-clients"),
        ("/etc/redhat-release", "dnf install openssh-clients"),
        ("/etc/alpine-release", "apk add openssh-client"),
        ("/etc/arch-release", "pacman -S openssh"),
    )
    for marker, command in packages:
        if os.path.exists(marker):
            return f"install the OpenSSH client: `{command}`"
    return "install the OpenSSH client with your system's package manager"


def spawn(
    argv: list[str | bytes],
    environ: Mapping[str, str],
    *,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    in_own_session: bool = False,
) -> int:
    """Start a program and return its process id. A descriptor that is None is /dev/null.

    `in_own_session`: a signal to our terminal's or process group's programs does not reach it.
    """
    actions: list[tuple[int, int, int] | tuple[int, int, str, int, int]] = []
    for number, descriptor in enumerate((stdin, stdout, stderr)):
        if descriptor is None:
            actions.append((os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0))
        else:
            # Also when the numbers are equal: the dup clears close-on-exec.
            actions.append((os.POSIX_SPAWN_DUP2, descriptor, number))
    environment = {name: value for name, value in environ.items() if name not in _SECRETS}
    try:
        return os.posix_spawn(
            argv[0],
            argv,
            environment,
            file_actions=actions,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE,),
            setsid=in_own_session,
        )
    except OSError as error:
        program = os.fsdecode(argv[0])
        if error.errno == 7:  # E2BIG
            raise RunCodeError(
                "usage", "the command line is too long for this system", resolution="send it through stdin or a file"
            ) from error
        raise RunCodeError("io_error", f"cannot start {program}: {error.strerror}") from error


def wait(pid: int, timeout_s: float | None = None) -> int | None:
    """The exit status (128+N for a death by signal), or None when the time is over. Reaps it."""
    if timeout_s is None:
        return decode(os.waitpid(pid, 0)[1])
    deadline = time.monotonic() + timeout_s
    pause_s = 0.0005
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return decode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.02)


def wait_or_kill(pid: int, timeout_s: float) -> int | None:
    """As `wait`; a child that outstays its time, or our own interruption, is killed and reaped."""
    status: int | None = None
    try:
        status = wait(pid, timeout_s)
    finally:
        if status is None:
            kill(pid)
    return status


def kill(pid: int) -> None:
    """End a child of ours that was not reaped yet, and reap it."""
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def decode(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
