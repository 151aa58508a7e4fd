"""The process that owns one box's life: `python -I -m runcode.runtimes.local.keeper FOLDER`.

Started by the server, detached from it at once, and outliving it: a server that is
killed or upgraded leaves its boxes running, and the next one finds the keepers by
their locks. A keeper holds the lock for as long as anything of the box may be
alive, makes the socket, starts bwrap as a child of its main thread (bwrap's
--die-with-parent follows the thread that started it), writes the box's bounded log,
and exits when the box ends. SIGTERM ends the box.

Threat: the box is hostile. The keeper reads from two pipes that lead into it (a
bounded log, one status byte) and opens no path that the box can write.

Standard library only, one thread. It never imports the control plane's world, so
that it stays small for years of uptime.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import sys
import time

from runcode.runtimes.local import box_network, bubblewrap, limits, plan, staging
from runcode.runtimes.local.box_helper import BoxHelper
from runcode.runtimes.local.keeper_log import RATE, KeeperLog

# The init inside gives processes 0.3 s; after this, bwrap is killed and the kernel takes the rest.
_GRACE_S = 1.0
_REAP_S = 10.0
_QUEUE = 128
# Instead of keeping a box, become the plan's command inside one: `machine` learns what this machine allows.
PROBE = "--probe"
# In the keeper's child: where `box_network` hands the network over.
NETWORK_FD = 6


def main(arguments: list[str]) -> int:
    probing, folder = arguments[0] == PROBE, arguments[-1]
    os.umask(0o077)
    os.chdir(folder)
    if probing:
        return run_probe(plan.load_plan(plan.PLAN_FILE))
    if os.fork() != 0:
        os._exit(0)
    os.setsid()
    report = Report()
    try:
        box_plan = plan.load_plan(plan.PLAN_FILE)
        lock = hold_lock(plan.LOCK_FILE)
    except (OSError, ValueError) as error:
        report.failed(f"the keeper cannot start: {error}")
        return 1
    if lock is None:
        report.busy()
        return 0
    log = KeeperLog(plan.LOG_FILE)
    try:
        return Keeper(box_plan, report, log).run()
    except Exception as error:  # the outermost layer of this process
        log.note(f"keeper: {type(error).__name__}: {error}")
        report.failed(str(error))
        return 1


def run_probe(box_plan: plan.BoxPlan) -> int:
    """The plan's command inside a box, with its network helper when the plan has one; its exit status."""
    if box_plan.network_helper is None:
        become_box(box_plan, {1: 1, 2: 2})
    helper = BoxHelper(box_plan, lambda line: None)
    lifeline_read, _ = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        become_box(box_plan, {1: 1, 2: 2, NETWORK_FD: helper.box_end.fileno()})
    helper.guard_lifeline(lifeline_read)
    helper.hear_box()
    _, status = os.waitpid(pid, 0)
    helper.end()
    return 0 if status == 0 else 1


def hold_lock(path: str) -> int | None:
    """The descriptor that holds the lock, or None when another keeper has it.

    A POSIX record lock: unlike flock it is not shared with children, and F_GETLK
    names its holder, so nobody ever has to believe a pid file.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


class Report:
    """One line to the server that started us, on stdout; afterwards stdio is /dev/null. It may be gone by then.

    What fails later is left in a file of ours, for whoever waits for the box.
    """

    def __init__(self) -> None:
        self._open = True

    def started(self) -> None:
        self._say({"event": "started"})

    def busy(self) -> None:
        self._say({"event": "busy"})

    def failed(self, reason: str) -> None:
        if not self._open:
            plan.write_failure(reason)
        self._say({"event": "failed", "reason": reason})

    def _say(self, record: dict[str, str]) -> None:
        if not self._open:
            return
        self._open = False
        try:
            os.write(1, json.dumps(record).encode() + b"\n")
        except OSError:
            pass
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        os.close(null)


class Keeper:
    def __init__(self, box_plan: plan.BoxPlan, report: Report, log: KeeperLog) -> None:
        self._plan = box_plan
        self._report = report
        self._log = log
        self._bwrap = -1
        self._ended = False
        self._serving = False
        self._asked_to_stop = False
        self._deadline: float | None = None
        self._budget = RATE
        self._lifeline = -1
        self._helper: BoxHelper | None = None

    def run(self) -> int:
        wake = self._catch_signals()
        staging.become_subreaper()
        limits.make_cgroups(self._plan.cgroups, limits_of(self._plan))
        if self._plan.network_helper is not None:
            self._helper = BoxHelper(self._plan, self._log.note)
        log_read, status_read = self._start_box()
        self._write_state()
        self._log.note(f"keeper: pid {os.getpid()} started the box, bwrap is {self._bwrap}")
        self._report.started()
        try:
            self._watch(wake, log_read, status_read)
        finally:
            # First of all nobody may take the box for a running one any more.
            for path in (plan.STATE_FILE, plan.SOCKET_FILE):
                try:
                    os.unlink(path)
                except OSError:
                    pass
            self._end_box()
            self._drain(log_read)
        if not self._serving:
            said = [line.removeprefix("box: ") for line in self._log.tail if line.startswith("box: ")]
            self._report.failed("; ".join(said[-3:]) or "the box ended before it served")
            return 1
        self._log.note("keeper: the box has ended")
        return 0

    def _catch_signals(self) -> int:
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        return wake_read

    def _on_stop(self, *_: object) -> None:
        self._asked_to_stop = True

    def _start_box(self) -> tuple[int, int]:
        """Forks bwrap; returns our ends of the log and status pipes."""
        # Relative to our folder, so its path may have any length; nothing of the box can write there.
        try:
            os.unlink(plan.SOCKET_FILE)
        except FileNotFoundError:
            pass
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(plan.SOCKET_FILE)
        os.chmod(plan.SOCKET_FILE, 0o600)
        listener.listen(_QUEUE)
        lifeline_read, self._lifeline = os.pipe2(os.O_CLOEXEC)
        log_read, log_write = os.pipe2(os.O_CLOEXEC)
        status_read, status_write = os.pipe2(os.O_CLOEXEC)
        self._bwrap = os.fork()
        if self._bwrap == 0:
            become_box(
                self._plan,
                {
                    1: log_write,
                    2: log_write,
                    bubblewrap.LISTEN_FD: listener.fileno(),
                    bubblewrap.LIFELINE_FD: lifeline_read,
                    bubblewrap.STATUS_FD: status_write,
                    **({NETWORK_FD: self._helper.box_end.fileno()} if self._helper is not None else {}),
                },
            )
        # Ours must go: a connection to a box that died has to be refused, not queued for ever.
        listener.close()
        if self._helper is not None:
            self._helper.guard_lifeline(lifeline_read)
        else:
            os.close(lifeline_read)
        for descriptor in (log_write, status_write):
            os.close(descriptor)
        os.set_blocking(log_read, False)
        self._deadline = time.monotonic() + self._plan.start_timeout_s
        return log_read, status_read

    def _write_state(self) -> None:
        pid = os.getpid()
        first_pid, pid_namespace = find_first_process(self._bwrap) or (None, None)
        state = plan.KeeperState(
            pid=pid,
            started_ticks=plan.read_started_ticks(pid) or 0,
            serving=self._serving,
            pid_namespace=pid_namespace,
            first_pid=first_pid,
            first_ticks=plan.read_started_ticks(first_pid) if first_pid is not None else None,
        )
        plan.write_private_json(plan.STATE_FILE, state)

    def _watch(self, wake: int, log_read: int, status_read: int) -> None:
        """Until bwrap has ended, or has to be."""
        poller = select.poll()
        poller.register(wake, select.POLLIN)
        poller.register(log_read, select.POLLIN)
        poller.register(status_read, select.POLLIN)
        helper = self._helper
        if helper is not None:
            box_said, host_routes = helper.keeper_end.fileno(), helper.host_routes.fileno()
            poller.register(box_said, select.POLLIN)
            poller.register(host_routes, select.POLLIN)
        refill_at: float | None = None
        while True:
            wait_s = [
                at - time.monotonic()
                for at in (self._deadline, refill_at, helper.retry_at if helper is not None else None)
                if at is not None
            ]
            ready = {fd for fd, _ in poller.poll(max(0, min(wait_s)) * 1000 + 1 if wait_s else None)}
            if wake in ready:
                self._drain_wake(wake)
            if self._asked_to_stop and self._lifeline >= 0:
                os.close(self._lifeline)
                self._lifeline = -1
                self._deadline = time.monotonic() + _GRACE_S
            self._reap()
            if self._ended or (self._deadline is not None and time.monotonic() > self._deadline):
                return
            if helper is not None:
                if box_said in ready:
                    poller.unregister(box_said)
                    helper.hear_box()
                    box_said = -1
                if host_routes in ready:
                    helper.hear_host()
                helper.start_again_if_due()
            if status_read in ready:
                poller.unregister(status_read)
                self._hear_status(os.read(status_read, 16))
            if log_read in ready and not self._hear_log(log_read):
                poller.unregister(log_read)
            if refill_at is not None and time.monotonic() >= refill_at:
                refill_at, self._budget = None, RATE
                poller.register(log_read, select.POLLIN)
            elif self._budget <= 0 and refill_at is None:
                poller.unregister(log_read)
                refill_at = time.monotonic() + 1.0

    def _hear_status(self, raw: bytes) -> None:
        if raw != b"S" or self._asked_to_stop:
            return
        self._serving = True
        self._deadline = None
        self._write_state()

    def _hear_log(self, log_read: int) -> bool:
        """False at its end."""
        try:
            raw = os.read(log_read, 4096)
        except BlockingIOError:
            return True
        self._budget -= len(raw)
        self._log.feed(raw)
        return bool(raw)

    def _drain_wake(self, wake: int) -> None:
        try:
            while os.read(wake, 512):
                pass
        except BlockingIOError:
            pass

    def _drain(self, log_read: int) -> None:
        for _ in range(16):
            try:
                raw = os.read(log_read, 4096)
            except OSError:
                break
            if not raw:
                break
            self._log.feed(raw)
        self._log.finish()

    def _reap(self) -> bool:
        """Collect what ended; False when no child is left at all."""
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._ended = True
                return False
            if pid == 0:
                return True
            if pid == self._bwrap:
                self._ended = True
            elif self._helper is not None:
                self._helper.hear_end(pid)

    def _end_box(self) -> None:
        """No process of the box is left afterwards; the lock goes only then, with us."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        if self._helper is not None:
            self._helper.end()
        if not self._ended:
            os.kill(self._bwrap, signal.SIGKILL)
        # As the subreaper we get the box's own pid 1 when bwrap was killed; once that one
        # can be reaped, the kernel has ended everything in its pid namespace.
        deadline = time.monotonic() + _REAP_S
        while self._reap():
            if time.monotonic() > deadline:
                self._log.note("keeper: processes of the box do not end")
                return
            time.sleep(0.001)
        for folder in limits.remove_cgroups(self._plan.cgroups):
            self._log.note(f"keeper: {folder} cannot be removed")


def limits_of(box_plan: plan.BoxPlan) -> limits.BoxLimits:
    return limits.BoxLimits(box_plan.memory_bytes, box_plan.processes, box_plan.cpus)


def find_first_process(bwrap: int) -> tuple[int, int] | None:
    """(the pid of bwrap's child, the inode of its pid namespace); None before it is in one of its own."""
    try:
        with open(f"/proc/{bwrap}/task/{bwrap}/children", encoding="ascii") as file:
            child = int(file.read().split()[0])
        inner = os.stat(f"/proc/{child}/ns/pid").st_ino
    except (OSError, IndexError, ValueError):
        return None
    return (child, inner) if inner != os.stat("/proc/self/ns/pid").st_ino else None


def become_box(box_plan: plan.BoxPlan, descriptors: dict[int, int]) -> None:
    """In a process of its own: descriptors, stage, uid, exec. Never returns."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.umask(0o022)
        place_descriptors(descriptors)
        argv = prepare_box(box_plan)
        os.execve(argv[0], argv, {"PATH": "/usr/bin:/bin"})  # noqa: S606 (a list, and no shell on purpose)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    os._exit(127)


def place_descriptors(wanted: dict[int, int]) -> None:
    """Each source at its number, inheritable, 0 from /dev/null, and nothing else across exec."""
    sources = {number: fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, 64) for number, source in wanted.items()}
    sources[0] = fcntl.fcntl(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), fcntl.F_DUPFD_CLOEXEC, 64)
    os.closerange(0, 64)
    for number, source in sources.items():
        os.dup2(source, number)
    os.closerange(64, 4096)


def prepare_box(box_plan: plan.BoxPlan) -> list[str]:
    """Enter the stage and drop root when we have it; argv of bwrap as seen from there."""
    staging.leave_session_keyring()
    limits.join_cgroups(box_plan.cgroups)
    # What the network needs of the host is found before the stage leaves the host's world.
    network = box_network.prepare(NETWORK_FD) if box_plan.network_helper is not None else None
    facts = collect_host_facts(box_plan.disable_userns, network is not None)
    here = os.getcwd()
    etc, box = box_plan.etc_folder, box_plan.box_folder
    if box_plan.host_uid is None:
        sources = bubblewrap.BoxSources(
            home=f"{here}/{plan.HOME_FOLDER}",
            etc=os.path.realpath(etc),
            hosts=f"{here}/{box}/hosts",
            hostname_file=f"{here}/{box}/hostname",
            box_folder=f"{here}/{box}/opt",
            own_devices=False,
        )
    else:
        os.makedirs(plan.STAGE_FOLDER, exist_ok=True)
        staging.enter_stage(
            plan.STAGE_FOLDER,
            folders={"/etc": etc, "/home/ubuntu": plan.HOME_FOLDER, "/opt/runcode": f"{box}/opt"},
            files={"/tmp/hosts": f"{box}/hosts", "/tmp/hostname": f"{box}/hostname"},  # noqa: S108 (the stage's own)
        )
        staging.drop_to(box_plan.host_uid, box_plan.host_uid)
        sources = bubblewrap.BoxSources(
            home="/home/ubuntu",
            etc="/etc",
            hosts="/tmp/hosts",  # noqa: S108
            hostname_file="/tmp/hostname",  # noqa: S108
            box_folder="/opt/runcode",
            own_devices=True,
        )
    if network is not None:
        box_network.enter(network)
    if box_plan.host_uid is None and box_plan.processes:
        # Only now: in the namespace of its own, where the user's other processes do not count.
        limits.bound_processes(box_plan.processes)
    return bubblewrap.render_bwrap_arguments(box_plan.bwrap, sources, facts, box_plan.title, box_plan.command)


def collect_host_facts(disable_userns: bool, own_network: bool) -> bubblewrap.HostFacts:
    covered = sorted(
        name for name in {"sys", *os.listdir("/proc")} if not name.isdigit() and name not in bubblewrap.PROC_ALLOWED
    )
    return bubblewrap.HostFacts(
        usr_links=[name for name in staging.USR_LINKS if os.path.isdir(f"/usr/{name}")],
        proc_folders=[name for name in covered if os.path.isdir(f"/proc/{name}")],
        proc_files=[name for name in covered if not os.path.isdir(f"/proc/{name}")],
        usr_sudo=os.path.lexists("/usr/bin/sudo"),
        disable_userns=disable_userns,
        own_network=own_network,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
