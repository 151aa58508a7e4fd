"""`make soak`: mixed load on the real service for SOAK_MINUTES (30), and whether anything grows.

Clients mint, execute, transfer both ways, forward, connect and disconnect; boxes
are made, started, stopped and deleted; tokens are revoked; now and then a box's
keeper is killed. Every few seconds the server, its keepers, boxes, database,
folders and the clients' leftovers are measured from outside (/proc and the file
system). In the end: a table, `.soak/samples.csv`, `.soak/soak.svg`, exit 1 when a
metric grew beyond its tolerance (scripts/soak_judge.py) or a call failed that should
not. It stops by itself and leaves no process.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts"), str(ROOT / "src")]

from soak_judge import MIB, Samples, render_table  # noqa: E402

from runcode.runtimes.local import identity, keepers  # noqa: E402
from runcode.runtimes.local.layout import Layout  # noqa: E402
from support import kill_proc  # noqa: E402
from support.service import Laptop, Service  # noqa: E402

STEADY = ("steady-1", "steady-2", "steady-3")
CYCLED = "cycled"
CALL_TIMEOUT_S = 120.0
# From the beginning of one piece of work to the next, in each of the eight threads.
PACE_S = 1.5
# Short, so that what is to be forgotten is forgotten within the run.
TTL_S = "100"
SERVER_OPTIONS = ("--keep-ended-sessions-s", "20", "--keep-events", "500")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Soak:
    def __init__(self, seconds: float, every_s: float) -> None:
        self.seconds, self.every_s = seconds, every_s
        self.folder = Path(tempfile.mkdtemp(prefix="rs-", dir="/tmp"))
        self.service = Service(self.folder, options=SERVER_OPTIONS)
        self.runtime = self.folder / "x"
        self.laptops = [Laptop(self.folder / f"laptop{number}") for number in range(3)]
        self.footprint = kill_proc.Footprint(self.folder)
        self.samples = Samples()
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.ids: dict[str, int] = {}
        # Boxes whose keeper was just killed: calls to them may fail for a while.
        self.excused_until: dict[str, float] = {}
        self._cgroups: set[str] = set()
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._began = 0.0

    # ------------------------------------------------------------ the run

    def run(self) -> int:
        threads: list[threading.Thread] = []
        try:
            self._open()
            self._began = time.monotonic()
            for number, work in enumerate(
                (self._execute, self._execute, self._transfer, self._forward, self._attach, self._cycle, self._revoke)
                + (self._strike,)
            ):
                thread = threading.Thread(target=self._repeat, args=(work, random.Random(number)), daemon=True)
                thread.start()
                threads.append(thread)
            self._sample_until_the_end()
        except KeyboardInterrupt:
            say("soak: interrupted; cleaning up")
            self.faults.append("interrupted")
        finally:
            self._ending.set()
            for thread in threads:
                thread.join(CALL_TIMEOUT_S + 60)
            self._close()
        return self._report()

    def _open(self) -> None:
        self.runtime.mkdir(mode=0o700)
        self.service.start()
        for title in STEADY:
            self._make(title)
        for laptop in self.laptops:
            laptop.environment["XDG_RUNTIME_DIR"] = str(self.runtime)
        for laptop in self.laptops[:2]:
            laptop.login(self.service)
            for title in STEADY:
                laptop.runcode("connect", title, "--start", "--wait", "--ttl", TTL_S)

    def _make(self, title: str) -> None:
        made = self.service.operator_json("workspace", "create", title)
        self.ids[title] = made["id"]
        host_uid = identity.host_uid_for(self._layout, made["id"])
        if host_uid is not None:
            self.footprint.host_uids.add(host_uid)

    def _close(self) -> None:
        for laptop in self.laptops:
            laptop.runcode("clean", "--all", expect=None)
        if self.service.process is not None and self.service.stop() != 0:
            self.faults.append(f"the server ended with {self.service.process.returncode}")
        deadline = time.monotonic() + 20
        while (left := self.footprint.find_members(kill_proc.look())) and time.monotonic() < deadline:
            time.sleep(0.2)
        self.faults += [f"the cgroup {path} was left" for path in sorted(self._find_cgroups())]
        if left:
            self.faults.append(f"{len(left)} processes were left and had to be killed")
            for pid in left:
                kill_proc.kill_exactly(pid)
        log = self.service.log.read_text(errors="replace") if self.service.log.exists() else ""
        if "Traceback (most recent call last)" in log:
            self.faults.append("the server's log has a traceback: " + log[log.index("Traceback") :][:1500])
        shutil.rmtree(self.folder, ignore_errors=True)

    def _report(self) -> int:
        calls = ", ".join(f"{name} ×{count}" for name, count in sorted(self.counts.items()))
        minutes = (self.samples.rows[-1][0] if self.samples.rows else 0) / 60
        print(f"{minutes:.1f} minutes, {len(self.samples.rows)} samples; {calls}\n")
        grown: list[str] = []
        try:
            verdicts = self.samples.judge()
        except ValueError as error:
            self.faults.append(str(error))
        else:
            out = ROOT / ".soak"
            out.mkdir(exist_ok=True)
            self.samples.write_csv(out / "samples.csv")
            self.samples.write_svg(out / "soak.svg")
            print(render_table(verdicts))
            print(f"\n{out.name}/samples.csv and {out.name}/soak.svg hold every sample")
            grown = [verdict.metric.name for verdict in verdicts if not verdict.flat]
        for fault in self.faults[:20]:
            print(f"FAULT {fault}")
        if grown:
            print(f"grows: {', '.join(grown)}")
        if not grown and not self.faults:
            print("everything is flat")
        return 1 if grown or self.faults else 0

    # ------------------------------------------------------------ the load

    def _repeat(self, work: Callable[[random.Random], None], rng: random.Random) -> None:
        while not self._ending.is_set():
            began = time.monotonic()
            try:
                work(rng)
            except Exception as error:  # the thread's outermost layer
                self._fault(f"{work.__name__}: {type(error).__name__}: {str(error)[:400]}")
            # A steady pace: as fast as the machine allows would be more and more load as other work on it ends,
            # and each mint leaves a connection that stays for ten unused minutes.
            self._ending.wait(max(rng.uniform(0.05, 0.4), began + PACE_S - time.monotonic()))

    def _fault(self, text: str) -> None:
        if not self._ending.is_set():
            with self._lock:
                self.faults.append(f"at {time.monotonic() - self._began:.0f} s: {text}")
                say(f"soak: fault {self.faults[-1]}")

    def _note(self, name: str) -> None:
        with self._lock:
            self.counts[name] += 1

    def _call(self, laptop: Laptop, title: str, *words: str, stdin: bytes = b"") -> bytes:
        began = time.monotonic()
        done = laptop.runcode(*words, stdin=stdin, expect=None, timeout_s=CALL_TIMEOUT_S)
        self._note(words[0])
        excused = self.excused_until.get(title, 0.0) > began
        if done.returncode != 0 and not excused:
            self._fault(f"{words[0]} on {title} exited {done.returncode}: {done.stderr[-300:]!r}")
        if b"Traceback" in done.stderr:
            self._fault(f"{words[0]}: a traceback: {done.stderr[-600:]!r}")
        return done.stdout if done.returncode == 0 else b""

    def _execute(self, rng: random.Random) -> None:
        laptop, title = rng.choice(self.laptops[:2]), rng.choice(STEADY)
        word = f"w{rng.randrange(10**9)}"
        seen = self._call(laptop, title, "run", title, "--", f"seq 2000 >/dev/null; echo {word}")
        if seen not in (b"", f"{word}\n".encode()):
            self._fault(f"run: {seen[:100]!r} instead of {word}")

    def _transfer(self, rng: random.Random) -> None:
        laptop, title = rng.choice(self.laptops[:2]), rng.choice(STEADY)
        content = rng.randbytes(rng.randrange(1, 3 * MIB))
        there, back = laptop.project / "up.bin", laptop.project / "down.bin"
        there.write_bytes(content)
        self._call(laptop, title, "put", "--workspace", title, "up.bin", "soak.bin")
        self._call(laptop, title, "get", "--workspace", title, "soak.bin", "--out", "down.bin")
        if self.excused_until.get(title, 0.0) < time.monotonic() - 60 and back.read_bytes() != content:
            self._fault(f"a file came back with another content ({hashlib.sha256(content).hexdigest()[:8]})")

    def _forward(self, rng: random.Random) -> None:
        """A tunnel of plain ssh over the bundle's config, used and closed."""
        laptop, title = rng.choice(self.laptops[:2]), rng.choice(STEADY)
        config = laptop.home / ".cache" / "runcode" / f"ws-{self.ids[title]}" / "config"
        self._call(laptop, title, "connect", title, "--ttl", TTL_S)
        alias = re.findall(r"(?m)^Host (\S+)$", config.read_text())[0]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); s.settimeout(60); "
        server += "print(s.getsockname()[1], flush=True); c = s.accept()[0]; c.sendall(c.recv(99)); c.close()"
        plain = ["ssh", "-F", str(config), "-S", "none"]
        with _running([*plain, alias, f'python3 -c "{server}"']) as listening:
            assert listening.stdout is not None
            remote = listening.stdout.readline().decode().strip()
            if not remote:
                return  # its box was just ended
            words = [
                *plain,
                "-N",
                "-o",
                "ExitOnForwardFailure=yes",
                "-L",
                f"127.0.0.1:{port}:127.0.0.1:{remote}",
                alias,
            ]
            began = time.monotonic()
            with _running(words) as tunnel:
                if _echo(port, tunnel) == b"ping":
                    self._note("forward")
                elif self.excused_until.get(title, 0.0) < time.monotonic() - 60:
                    ended = tunnel.poll()
                    tunnel.kill()
                    said = tunnel.stderr.read()[-300:] if tunnel.stderr is not None else b""
                    waited_s = time.monotonic() - began
                    self._fault(f"a forward did not answer for {waited_s:.0f} s (ssh: {ended}, {said!r})")

    def _attach(self, rng: random.Random) -> None:
        laptop, title = rng.choice(self.laptops[:2]), rng.choice(STEADY)
        words = ("--force",) if rng.random() < 0.1 else ()
        self._call(laptop, title, "connect", title, "--wait", "--ttl", TTL_S, *words)
        self._call(laptop, title, "status", "--json")
        self._ending.wait(0.5)

    def _cycle(self, rng: random.Random) -> None:
        """The whole life of a box."""
        title = f"{CYCLED}-{rng.randrange(10**9)}"
        laptop = self.laptops[0]
        self._make(title)
        self._call(laptop, title, "connect", title, "--start", "--wait", "--ttl", TTL_S)
        self._call(laptop, title, "run", title, "--", "head -c 300000 /dev/urandom > junk")
        self.service.operator("workspace", "stop", title)
        self.service.operator("workspace", "start", title)
        self.service.operator("workspace", "delete", title)
        laptop.runcode("clean", title, expect=None)
        # Nobody is attached to a workspace that is gone.
        self._note("workspace made, started twice, stopped, deleted")
        self._ending.wait(3)

    def _revoke(self, rng: random.Random) -> None:
        """Somebody signs in with a token of their own, works, and is shut out."""
        laptop, title = self.laptops[2], STEADY[0]
        made = self.service.operator_json("token", "create", f"soak-{rng.randrange(10**9)}")
        laptop.login(self.service, token=made["token"])
        self._call(laptop, title, "connect", title, "--wait", "--ttl", TTL_S)
        self._call(laptop, title, "run", title, "--", "true")
        self.service.operator("token", "revoke", str(made["id"]))
        done = laptop.runcode("run", title, "--", "true", expect=None)
        deadline = time.monotonic() + 20
        while done.returncode == 0 and time.monotonic() < deadline:
            done = laptop.runcode("run", title, "--", "true", expect=None)
        if done.returncode != 255:
            self._fault(f"a revoked token still opens the box: {done.returncode} {done.stderr[-300:]!r}")
        # On this laptop, where no other thread's calls would end with it.
        self._call(laptop, title, "disconnect")
        laptop.runcode("clean", "--all", expect=None)
        self._note("token made, revoked")
        self._ending.wait(5)

    def _strike(self, rng: random.Random) -> None:
        """Kill the keeper of one box; the server notices, says so and starts it again."""
        self._ending.wait(rng.uniform(30, 60))
        if self._ending.is_set():
            return
        title = rng.choice(STEADY[1:])
        keeper = keepers.find_keeper(self._layout.workspace(self.ids[title]))
        if keeper:
            self.excused_until[title] = time.monotonic() + CALL_TIMEOUT_S
            kill_proc.kill_exactly(keeper)
            self._note("keeper killed")
            # A box that is killed again and again comes back with a pause: excused until it answers, and no longer.
            laptop = self.laptops[0]
            deadline = time.monotonic() + CALL_TIMEOUT_S - 10
            while laptop.runcode("run", title, "--", "true", expect=None).returncode != 0:
                if time.monotonic() > deadline:
                    self._fault(f"{title} did not come back after its keeper was killed")
                    break
                self._ending.wait(0.5)
            self.excused_until[title] = time.monotonic() + 10

    # ------------------------------------------------------------ measuring

    def _sample_until_the_end(self) -> None:
        end_s = self.seconds
        next_s = said_s = 0.0
        while (now_s := time.monotonic() - self._began) < end_s:
            assert self.service.process is not None
            if self.service.process.poll() is not None:
                self.faults.append(f"the server ended with {self.service.process.returncode}")
                return
            if now_s >= next_s:
                next_s = now_s + self.every_s
                values = self._measure()
                self.samples.add(now_s, values)
                if now_s >= said_s:
                    said_s = now_s + 30
                    say(
                        f"soak: {now_s / 60:.1f} of {end_s / 60:.0f} min, {sum(self.counts.values())} calls, server "
                        f"{values['server RSS']:.0f} MiB, {values['server descriptors']:.0f} descriptors, database "
                        f"{values['database and WAL']:.1f} MiB, {len(self.faults)} faults"
                    )
            time.sleep(0.2)

    def _measure(self) -> dict[str, float]:
        assert self.service.process is not None
        processes = kill_proc.look()
        server = self.service.process.pid
        data = self.service.data_dir
        guards = [pid for pid, p in processes.items() if "local.keeper" in p.command and str(data) in p.command]
        boxes = kill_proc.descendants_of(guards, processes)
        self.footprint.remember(boxes, processes)
        homes = sum(_size_of(path) for path in self._layout.workspaces.glob("*/storage"))
        database = sum(_size_of(data / f"runcode.db{suffix}") for suffix in ("", "-wal", "-shm"))
        return {
            "server RSS": _status(server, "VmRSS") / 1024,
            "server descriptors": _count(Path(f"/proc/{server}/fd")),
            "server threads": _status(server, "Threads"),
            "server children": len(kill_proc.children_of(server, processes)),
            "keepers": len(guards),
            "keepers RSS": sum(_status(pid, "VmRSS") for pid in guards) / 1024 / max(1, len(guards)),
            "keeper descriptors": sum(_count(Path(f"/proc/{pid}/fd")) for pid in guards) / max(1, len(guards)),
            "box processes": len(boxes) - len(guards),
            "all processes": len(self.footprint.find_members(processes)),
            "masters": sum(1 for path in (self.runtime / "rc").glob("*") if path.is_socket()),
            "database and WAL": database / MIB,
            "data folder without homes": (_size_of(data) - homes) / MIB,
            "homes": homes / MIB,
            "client cache files": sum(1 for laptop in self.laptops for _ in (laptop.home / ".cache").rglob("*")),
            "control folder files": _count(self.runtime / "rc"),
            "mounts": len(kill_proc.find_mounts(self.folder)),
            "cgroups": len(self._find_cgroups()),
        }

    def _find_cgroups(self) -> set[str]:
        """Every one that a box of this run ever had and that is still there."""
        for plan in self._layout.workspaces.glob("*/plan.json"):
            with contextlib.suppress(OSError, ValueError):
                self._cgroups.update(json.loads(plan.read_text()).get("cgroups", {}).values())
        return {path for path in self._cgroups if os.path.isdir(path)}

    @property
    def _layout(self) -> Layout:
        return Layout(self.service.data_dir / "runtimes" / "local")


@contextlib.contextmanager
def _running(words: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Terminated and reaped at the end of the block."""
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _echo(port: int, tunnel: subprocess.Popen[bytes]) -> bytes:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and tunnel.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
                connection.sendall(b"ping")
                return connection.recv(99)
        except OSError:
            time.sleep(0.1)
    return b""


def _status(pid: int, name: str) -> float:
    """A number of /proc/PID/status; 0 when the process is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return float(line.split()[1])
    return 0.0


def _count(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir(folder))
    return 0


def _size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; what goes away meanwhile counts nothing."""
    with contextlib.suppress(OSError):
        if path.is_file():
            return path.stat().st_size
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    minutes = float(os.environ.get("SOAK_MINUTES") or 30)
    parser.add_argument("--minutes", type=float, default=minutes, help="default: SOAK_MINUTES, else 30")
    parser.add_argument("--every", type=float, default=3.0, metavar="S", help="seconds between samples (%(default)s)")
    options = parser.parse_args()
    say(f"soak: {options.minutes:g} minutes of mixed load")
    return Soak(options.minutes * 60, options.every).run()


if __name__ == "__main__":
    sys.exit(main())
