"""Clients that work in parallel on a service that is being killed, and the judge of how each call ended.

A call's promise: the command's own exit status, or our one line and nothing done
twice. Each command appends its unique id to a counter file on the box, so the box
itself tells how often it ran.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import subprocess
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from runcode.core.errors import ERRORS
from support.service import RUNCODE, Laptop

# Nothing here takes a second; whoever is still there after this hangs.
HANG_S = 150.0
COUNTER = "counter"
SENTINEL = "sentinel.bin"
SENTINEL_SIZE = 3_000_000
_FAILURE = re.compile(r"runcode: ([a-z_]+): \S.*\(.*\)$")
_PROGRESS = re.compile(r"runcode: [a-zA-Z][^:]* …( \d+ s)?$")
# A box that ends sends its processes TERM and HUP, and the kernel KILL: then this is the command's own status.
_ENDED_WITH_THE_BOX = {128 + 1, 128 + 9, 128 + 15}


@dataclass
class Call:
    """One finished call of one client."""

    kind: str
    workspace: str
    identity: str
    status: int
    stdout: bytes
    stderr: str
    seconds: float
    was_killed: bool
    # ssh over somebody else's master says nothing when that one goes (mux.c of OpenSSH 9.2).
    may_be_silent: bool = False


@dataclass
class Books:
    """What was promised by the calls that ended, for the check against the boxes' storage."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    issued: dict[str, set[str]] = field(default_factory=dict)
    done: dict[str, set[str]] = field(default_factory=dict)
    uploads: dict[str, dict[str, tuple[str, bool]]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)

    def fault(self, text: str) -> None:
        with self.lock:
            self.faults.append(text)


class Load:
    """Threads that call the real CLI and the real ssh until told to stop. `running` names the calls under way."""

    def __init__(self, laptops: list[Laptop], titles: dict[str, int], books: Books, seed: str) -> None:
        self._laptops = laptops
        self._titles = titles
        self._books = books
        self._seed = seed
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._running: dict[int, str] = {}
        self._killed: set[int] = set()
        # Workspaces whose box was ended on purpose meanwhile: their commands may die of it.
        self.struck: set[str] = set()

    def start(self) -> None:
        kinds = ("exec", "exec", "put", "get", "connect", "ssh")
        for number, kind in enumerate(kinds):
            rng = random.Random(f"{self._seed}:{number}")
            laptop = self._laptops[number % len(self._laptops)]
            thread = threading.Thread(target=self._work, args=(kind, laptop, rng), daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Every call that is under way ends by itself; one that does not is a fault."""
        self._ending.set()
        deadline = time.monotonic() + HANG_S + 30
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self._books.fault("a client thread does not end")

    def find_running(self, kind: str) -> list[int]:
        with self._lock:
            return sorted(pid for pid, running in self._running.items() if running == kind)

    def kill(self, pid: int) -> bool:
        """SIGKILL a call that is still under way (its pid cannot have been reaped: the lock is held)."""
        with self._lock:
            if pid not in self._running:
                return False
            self._killed.add(pid)
            os.kill(pid, 9)
            return True

    # ------------------------------------------------------------ the clients

    def _work(self, kind: str, laptop: Laptop, rng: random.Random) -> None:
        while not self._ending.is_set():
            title = rng.choice(sorted(self._titles))
            identity = f"{kind}-{os.urandom(8).hex()}"
            try:
                getattr(self, f"_{kind}")(laptop, title, identity, rng)
            except Exception as error:  # the thread's outermost layer: a fault, not a silent end
                self._books.fault(f"the {kind} client failed: {type(error).__name__}: {error}")
            self._ending.wait(rng.uniform(0.0, 0.15))

    def _exec(self, laptop: Laptop, title: str, identity: str, rng: random.Random) -> None:
        command = self._counting(title, identity, rng)
        call = self._call("exec", laptop, title, identity, [RUNCODE, "run", title, "--", command])
        self._judge_command(call)

    def _ssh(self, laptop: Laptop, title: str, identity: str, rng: random.Random) -> None:
        config = laptop.home / ".cache" / "runcode" / f"ws-{self._titles[title]}" / "config"
        if not config.exists():
            return
        own_connection = ["-S", "none"] if rng.random() < 0.5 else []
        alias = re.findall(r"(?m)^Host (\S+)$", config.read_text())[0]
        words = ["ssh", "-F", str(config), *own_connection, alias, self._counting(title, identity, rng)]
        call = self._call("ssh", laptop, title, identity, words)
        call.may_be_silent = not own_connection
        self._judge_command(call)

    def _put(self, laptop: Laptop, title: str, identity: str, rng: random.Random) -> None:
        content = rng.randbytes(rng.randrange(1, 2_000_000))
        local = laptop.project / f"{identity}.bin"
        local.write_bytes(content)
        name = f"upload-{rng.randrange(4)}.bin"
        digest = hashlib.sha256(content).hexdigest()
        with self._books.lock:
            self._books.issued.setdefault(title, set())
        words = [RUNCODE, "put", "--workspace", title, local.name, f"{identity}-{name}"]
        call = self._call("put", laptop, title, identity, words)
        local.unlink()
        self._judge_own(call)
        with self._books.lock:
            self._books.uploads.setdefault(title, {})[f"{identity}-{name}"] = (digest, call.status == 0)

    def _get(self, laptop: Laptop, title: str, identity: str, rng: random.Random) -> None:
        target = laptop.project / f"{identity}.bin"
        words = [RUNCODE, "get", "--workspace", title, SENTINEL, "--out", target.name]
        call = self._call("get", laptop, title, identity, words)
        self._judge_own(call)
        if target.exists():
            if hashlib.sha256(target.read_bytes()).digest() != sentinel_digest(title):
                self._books.fault(f"a download has a wrong content (exit {call.status})")
            target.unlink()
        elif call.status == 0:
            self._books.fault("a download exited 0 without its file")

    def _connect(self, laptop: Laptop, title: str, identity: str, rng: random.Random) -> None:
        words = [RUNCODE, "connect", title, "--wait", "--timeout", "20"]
        if rng.random() < 0.3:
            words.append("--force")
        call = self._call("connect", laptop, title, identity, words)
        self._judge_own(call)
        if call.status == 0 and b"attached " not in call.stdout:
            self._books.fault(f"connect exited 0 without a word: {call.stdout!r}")

    def _counting(self, title: str, identity: str, rng: random.Random) -> str:
        with self._books.lock:
            self._books.issued.setdefault(title, set()).add(identity)
        pause_s = f"{rng.choice((0, 0, rng.uniform(0, 0.6))):.3f}"
        return f'printf "%s\\n" {identity} >> "$HOME/{COUNTER}" && sleep {pause_s} && echo {identity}'

    # ------------------------------------------------------------ calling and judging

    def _call(self, kind: str, laptop: Laptop, title: str, identity: str, words: list[str]) -> Call:
        """Output goes to files: a master that ssh leaves behind may keep a pipe open."""
        began = time.monotonic()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            with self._lock:
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env=laptop.environment,
                    cwd=laptop.project,
                )
                self._running[process.pid] = kind
            self._reap(process, kind)
            out.seek(0), err.seek(0)
            call = Call(
                kind,
                title,
                identity,
                process.returncode,
                out.read(),
                err.read().decode(errors="replace"),
                time.monotonic() - began,
                process.pid in self._killed,
            )
        with self._lock:
            self._killed.discard(process.pid)
        with self._books.lock:
            self._books.ends[self._name_end(call)] += 1
        return call

    def _reap(self, process: subprocess.Popen[bytes], kind: str) -> None:
        """Look first, then reap under the lock, so that `kill` never meets a pid that is free again."""
        deadline = time.monotonic() + HANG_S
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            if time.monotonic() > deadline:
                self._books.fault(f"a {kind} call hung for {HANG_S:.0f} s")
                process.kill()
            time.sleep(0.005)
        with self._lock:
            del self._running[process.pid]
            process.wait()

    def _name_end(self, call: Call) -> str:
        if call.was_killed:
            return f"{call.kind}: was killed"
        if call.status == 0:
            return f"{call.kind}: 0"
        code = find_code(call.stderr)
        return f"{call.kind}: {call.status}" + (f" {code}" if code else "")

    def _judge_own(self, call: Call) -> None:
        """A call of ours: 0, or its one line."""
        if call.was_killed:
            if "Traceback" in call.stderr:
                self._complain(call, "a traceback")
            return
        if call.status != 0 and find_code(call.stderr) is None:
            self._complain(call, "it failed without exactly one line of ours")
        if call.status == 0 and find_code(call.stderr) is not None:
            self._complain(call, "it exited 0 and names a failure")
        if find_code(call.stderr) == "internal":
            self._complain(call, f"an internal error: {find_crash(call.stderr)}")

    def _judge_command(self, call: Call) -> None:
        expected = f"{call.identity}\n".encode()
        if call.kind == "exec" and call.status in (0, 255):
            self._judge_own(call)
        if call.status == 0:
            with self._books.lock:
                self._books.done.setdefault(call.workspace, set()).add(call.identity)
            if call.stdout != expected:
                self._complain(call, f"it exited 0 with the output {call.stdout!r}")
        elif call.status == 255:
            if not call.stderr.strip() and not call.was_killed and not call.may_be_silent:
                self._complain(call, "it exited 255 without a word")
        elif call.status in _ENDED_WITH_THE_BOX and call.workspace in self.struck:
            pass
        elif not call.was_killed:
            self._complain(call, "an exit status that the command cannot have given")
        if "Traceback" in call.stderr:
            self._complain(call, "a traceback")

    def _complain(self, call: Call, what: str) -> None:
        text = f"{call.kind} on {call.workspace} exited {call.status}: {what}; stderr {call.stderr[-600:]!r}"
        self._books.fault(text)


def find_code(stderr: str) -> str | None:
    """The code of the one failure line; None when there is none, or more than that and progress."""
    lines = [line for line in stderr.splitlines() if line and not _PROGRESS.fullmatch(line)]
    match = _FAILURE.fullmatch(lines[0]) if len(lines) == 1 else None
    return match[1] if match is not None and match[1] in ERRORS else None


def find_crash(stderr: str) -> str:
    """The end of the traceback that an `internal` failure names."""
    match = re.search(r"details in (\S+\.log)", stderr)
    with contextlib.suppress(OSError):
        return Path(match[1]).read_text()[-500:] if match else ""
    return ""


def sentinel_content(title: str) -> bytes:
    return random.Random(title).randbytes(SENTINEL_SIZE)


def sentinel_digest(title: str) -> bytes:
    return hashlib.sha256(sentinel_content(title)).digest()


def check_storage(home: Path, title: str, books: Books) -> None:
    """The box's storage as the host sees it, against what the calls were told. Adds faults."""
    if hashlib.sha256((home / "workspace" / SENTINEL).read_bytes()).digest() != sentinel_digest(title):
        books.fault(f"{title}: the file that was written first has changed")
    lines: list[str] = []
    with contextlib.suppress(FileNotFoundError):
        lines = (home / COUNTER).read_text().splitlines()
    counts = Counter(lines)
    for identity, count in counts.items():
        if count > 1:
            books.fault(f"{title}: {identity} ran {count} times")
        if identity not in books.issued.get(title, set()):
            books.fault(f"{title}: {identity[:60]!r} was never issued")
    for identity in books.done.get(title, set()) - set(counts):
        books.fault(f"{title}: {identity} exited 0 and never ran")
    for name, (digest, acknowledged) in list(books.uploads.get(title, {}).items()):
        file = home / "workspace" / name
        if file.exists():
            if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
                books.fault(f"{title}: the upload {name} is half-written")
        elif acknowledged:
            books.fault(f"{title}: the upload {name} exited 0 and is not there")
