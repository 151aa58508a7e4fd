"""Child processes, without the start-up price of `subprocess` (12 ms here, more than a warm ssh).

Called by `client.openssh` only. Children get default signals and the descriptors
named here; every other one of ours is close-on-exec.
"""

from __future__ import annotations

import os
import signal
import time

from runcode.client import platforms
from runcode.core.errors import RunCodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping

# Not for programs that live on after us, as the master does.
_SECRETS = ("RUNCODE_TOKEN",)


def find_program(name: str, environ: Mapping[str, str]) -> str:
    """The absolute path of a program on PATH. Raises `missing_program`, saying how to install it.

    A relative PATH entry is skipped: a repository must not bring its own `ssh`.
    """
    file_name = platforms.current().program_file(name)
    for folder in environ.get("PATH", os.defpath).split(os.pathsep):
        candidate = os.path.join(folder, file_name)
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
    if not platforms.current().has_posix_processes:
        return _spawn_portably(argv, environ, stdin, stdout, stderr)
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


# Children of a system without posix_spawn; `subprocess` holds the handle that they are waited for by.
_portable: dict[int, subprocess.Popen[bytes]] = {}


def _spawn_portably(
    argv: list[str | bytes],
    environ: Mapping[str, str],
    stdin: int | None,
    stdout: int | None,
    stderr: int | None,
) -> int:
    """`spawn` by `subprocess`. Of Ctrl-C every program of a Windows console hears by itself."""
    import subprocess

    given = [subprocess.DEVNULL if descriptor is None else descriptor for descriptor in (stdin, stdout, stderr)]
    environment = {name: value for name, value in environ.items() if name not in _SECRETS}
    words = [os.fsdecode(word) for word in argv]
    try:
        child = subprocess.Popen(words, env=environment, stdin=given[0], stdout=given[1], stderr=given[2])
    except OSError as error:
        # Windows: 206 is a command line that is too long.
        too_long = error.errno == 7 or getattr(error, "winerror", None) == 206
        if too_long:
            raise RunCodeError(
                "usage", "the command line is too long for this system", resolution="send it through stdin or a file"
            ) from error
        raise RunCodeError("io_error", f"cannot start {words[0]}: {error.strerror}") from error
    _portable[child.pid] = child
    return child.pid


def _wait_portably(pid: int, timeout_s: float | None) -> int | None:
    import subprocess

    try:
        code = _portable[pid].wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None
    del _portable[pid]
    return code if code >= 0 else 128 - code


def wait(pid: int, timeout_s: float | None = None) -> int | None:
    """The exit status (128+N for a death by signal), or None when the time is over. Reaps it."""
    if pid in _portable:
        return _wait_portably(pid, timeout_s)
    if timeout_s is None:
        return decode(os.waitpid(pid, 0)[1])
    deadline = time.monotonic() + timeout_s
    _await_end(pid, timeout_s)
    pause_s = 0.0005
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return decode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.02)


def _await_end(pid: int, timeout_s: float) -> None:
    """Return when the process ends or the time is over, or at once where the system cannot tell (not Linux)."""
    try:
        import select

        descriptor = os.pidfd_open(pid)
    except (ImportError, AttributeError, OSError):
        return
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll(timeout_s * 1000)
    finally:
        os.close(descriptor)


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
    if pid in _portable:
        _portable[pid].kill()
        _wait_portably(pid, None)
        return
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def decode(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
