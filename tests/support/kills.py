"""Rounds of kill -9 on the real service under load, and what must be true after each one.

A Campaign is one data folder, one `runcode-server up` that is started again as an
init system would, a few boxes and two laptops. `play(n)` kills one process, chosen
by the seed and n, at a moment chosen likewise; then it waits until every state that
the control plane tells is what /proc shows and every box runs again, ends the
load, and looks for orphans, leftovers, lost files and commands that ran twice.
Used by `make chaos` (many rounds) and by the acceptance test (a few).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from runcode.runtimes.local import identity, keepers
from runcode.runtimes.local.layout import Layout, WorkspaceFolder
from support import kill_proc
from support.kill_load import SENTINEL, Books, Load, check_storage, sentinel_content
from support.postgres import Cluster
from support.service import Laptop, Service

TITLES = ("north-box", "east-box", "south-box", "restless-box")
# Stopped and started all the time under load, so that kills also meet half a start and half a stop.
RESTLESS = TITLES[-1]
# Generous: what is measured stands in the table, and these only end a hang.
BACK_S = 90.0
QUIET_S = 30.0
# A survey of the reconciler takes a second: what holds this long has been seen by one.
_STABLE_S = 1.3
_FIND_VICTIM_S = 20.0

# Each kind, and how often it comes up.
VICTIMS = {
    "server": 4,
    "keeper": 3,
    "bwrap": 2,
    "box pid 1": 2,
    "box init": 2,
    "network helper": 2,
    "sshd": 3,
    "cli exec": 3,
    "cli connect": 3,
    "cli put": 3,
    "cli get": 1,
    "ssh master": 2,
    "server+keeper": 2,
    "everything": 1,
}
# Beside those, where the database is a server's own.
DATABASE = "database"
BOX_KINDS = {"keeper", "bwrap", "network helper", "box pid 1", "box init", "server+keeper", "everything"}


@dataclass
class Outcome:
    """What one round measured, in seconds since the kill, or since the server was up again.

    `true_s`: an upper bound of the longest time that a state was told which /proc did not show.
    `back_s`: until every box ran for good, back-off included.
    `quiet_s`: after the load had ended, until nothing was without an owner.
    """

    number: int
    victim: str
    workspace: str
    killed: list[int] = field(default_factory=list)
    server_up_s: float | None = None
    true_s: float = 0.0
    back_s: float = 0.0
    quiet_s: float = 0.0
    faults: list[str] = field(default_factory=list)


class Campaign:
    def __init__(self, seed: int, *, postgres: bool = False, report: Callable[[str], None] = lambda _: None) -> None:
        self.seed = seed
        self._report = report
        self.cluster = Cluster() if postgres else None
        # Short: control sockets live below it.
        self.folder = Path(tempfile.mkdtemp(prefix="rk-", dir="/tmp"))
        self.folder.chmod(0o700)
        http_port, ssh_port = _free_ports(2)
        self.service = Service(self.folder, http=f"127.0.0.1:{http_port}", ssh=f"127.0.0.1:{ssh_port}")
        self.books = Books()
        self.runtime = self.folder / "x"
        self.runtime.mkdir(mode=0o700)
        self.laptops: list[Laptop] = []
        self.ids: dict[str, int] = {}
        self.token = ""
        self.footprint = kill_proc.Footprint(self.folder)
        self.outcomes: list[Outcome] = []
        self._cgroups: dict[str, set[str]] = {}

    # ------------------------------------------------------------ before and after

    def open(self) -> Campaign:
        if self.cluster is not None:
            url = self.cluster.make().make_database(empty=True)
            self.service.options = ("--database", url.conninfo)
        self.service.start()
        self.token = self.service.first_facts["token"]
        for title in TITLES:
            made = self.service.operator_json("workspace", "create", title)
            self.ids[title] = made["id"]
            self.request(f"workspace/start?workspace_id={made['id']}")
            if os.geteuid() == 0:
                host_uid = identity.host_uid_for(self.layout, made["id"])
                assert host_uid is not None
                self.footprint.host_uids.add(host_uid)
        for number in range(2):
            laptop = Laptop(self.folder / f"laptop{number}")
            laptop.environment["XDG_RUNTIME_DIR"] = str(self.runtime)
            laptop.login(self.service, token=self.token)
            self.laptops.append(laptop)
        for title in TITLES:
            (self.laptops[0].project / "s").write_bytes(sentinel_content(title))
            self.laptops[0].runcode("connect", title, "--start", "--wait")
            self.laptops[0].runcode("put", "--workspace", title, "s", SENTINEL)
            self.laptops[1].runcode("connect", title, "--wait")
        (self.laptops[0].project / "s").unlink()
        return self

    def close(self) -> list[str]:
        """End everything in the ordinary way; what is left after that is a fault. Removes the folder."""
        left: list[str] = []
        try:
            for laptop in self.laptops:
                laptop.runcode("clean", "--all")
            if self.service.process is not None and self.service.stop() != 0:
                left.append(f"the server's last exit status was {self.service.process.returncode}")
            left += [f"left after the end: {p}" for p in self._wait_for_quiet(lambda processes: set())[1]]
            left += [f"left in the control folder: {p.name}" for p in (self.runtime / "rc").glob("*")]
            left += [f"left in the data folder: {p.relative_to(self.folder)}" for p in self._find_box_files()]
            left += [f"left mounted: {line}" for line in kill_proc.find_mounts(self.folder)]
            left += [f"left a cgroup: {path}" for title in TITLES for path in self._find_cgroups(title, running=False)]
        finally:
            self._end_by_force()
            if self.cluster is not None:
                self.cluster.remove()
            shutil.rmtree(self.folder, ignore_errors=True)
        return left

    def _end_by_force(self) -> None:
        """Whatever went wrong: nothing of ours stays on the machine."""
        if self.service.process is not None and self.service.process.poll() is None:
            self.service.kill()
        for _ in range(50):
            members = self.footprint.find_members(kill_proc.look())
            for pid in members:
                kill_proc.kill_exactly(pid)
            if not members:
                return
            time.sleep(0.1)

    # ------------------------------------------------------------ one round

    def play(self, number: int, *, victim: str | None = None) -> Outcome:
        rng = random.Random(f"{self.seed}:{number}")
        kinds = VICTIMS if self.cluster is None else {**VICTIMS, DATABASE: 6}
        drawn = rng.choices(list(kinds), list(kinds.values()))[0]
        outcome = Outcome(number, victim or drawn, rng.choice(TITLES))
        if outcome.victim == "sshd" and outcome.workspace == RESTLESS:
            outcome.workspace = TITLES[0]  # a box that is stopped all the time may never serve long enough
        if outcome.victim == "network helper" and not self._has_network():
            outcome.victim = "keeper"
        faults_before = len(self.books.faults)
        load = Load(self.laptops, self.ids, self.books, f"{self.seed}:{number}")
        load.struck.add(RESTLESS)
        load.start()
        restless = Restless(self, rng.random())
        restless.start()
        try:
            time.sleep(rng.uniform(0.1, 1.5))
            self._strike(outcome, load, rng)
            possible_at = time.monotonic()
            if "server" in outcome.victim or outcome.victim == "everything":
                time.sleep(rng.choice((0.0, rng.uniform(0.0, 1.0))))
                began = time.monotonic()
                self.service.start()
                possible_at = time.monotonic()
                outcome.server_up_s = possible_at - began
            restless.end_after(rng.uniform(0.0, 0.5))
            self._wait_until_true(outcome, possible_at, restless)
        finally:
            restless.stop()
            load.stop()
        outcome.quiet_s, orphans = self._wait_for_quiet(self._find_owned)
        outcome.faults += [f"nobody owns {process}" for process in orphans]
        outcome.faults += self._find_leftovers()
        for title in TITLES:
            check_storage(self._folder_of(title).home, title, self.books)
        outcome.faults += self.books.faults[faults_before:]
        self.outcomes.append(outcome)
        # What a person does who will not wait: the back-off begins anew.
        for workspace_id in self.ids.values():
            self.request(f"workspace/start?workspace_id={workspace_id}")
        return outcome

    def _strike(self, outcome: Outcome, load: Load, rng: random.Random) -> None:
        """Kill the victim; a client may just be between two calls, so it is waited for."""
        title, kind = outcome.workspace, outcome.victim
        for known in TITLES:
            self._look_at_box(known, kill_proc.look())
        if kind in BOX_KINDS:
            load.struck |= {title} if kind != "everything" else set(TITLES)
        if kind == DATABASE:
            assert self.cluster is not None
            assert self.cluster.process is not None
            outcome.killed.append(self.cluster.process.pid)
            self.cluster.kill()
            time.sleep(rng.uniform(0.0, 1.5))
            self.cluster.start()
        elif kind.startswith("cli "):
            deadline = time.monotonic() + _FIND_VICTIM_S
            while time.monotonic() < deadline and not outcome.killed:
                time.sleep(rng.uniform(0.0, 0.25))
                for pid in load.find_running(kind.removeprefix("cli "))[:1]:
                    # Anywhere in the life of a call, not only at its beginning.
                    time.sleep(rng.uniform(0.0, 0.3))
                    if load.kill(pid):
                        outcome.killed.append(pid)
        else:
            deadline = time.monotonic() + _FIND_VICTIM_S
            while time.monotonic() < deadline and not outcome.killed:
                for pid in self._find_victims(kind, title, rng):
                    if kill_proc.kill_exactly(pid):
                        outcome.killed.append(pid)
                time.sleep(0.02)
        if not outcome.killed:
            outcome.faults.append(f"found no {kind} to kill within {_FIND_VICTIM_S:.0f} s")
        if "server" in kind or kind == "everything":
            assert self.service.process is not None
            self.service.process.wait(timeout=30)

    def _find_victims(self, kind: str, title: str, rng: random.Random) -> list[int]:
        assert self.service.process is not None
        processes = kill_proc.look()
        server = self.service.process.pid
        if kind == "server":
            return [server]
        if kind == "ssh master":
            masters = sorted(kill_proc.find_masters(self.runtime / "rc"))
            return [rng.choice(masters)] if masters else []
        box = self._look_at_box(title, processes)
        if box is None:
            return []
        if kind == "server+keeper":
            return [server, box.keeper]
        if kind == "everything":
            # As when the machine's power goes: all at once, in any order.
            victims = sorted(self.footprint.find_members(processes) & kill_proc.descendants_of([server], processes))
            for other in TITLES:
                keeper = keepers.find_keeper(self._folder_of(other))
                victims += [keeper] if keeper else []
            rng.shuffle(victims)
            return victims
        if kind == "sshd":
            inside = kill_proc.descendants_of([box.init], processes)
            serving = sorted(pid for pid in inside if processes[pid].name.startswith("sshd"))
            return [rng.choice(serving)] if serving else []
        if kind == "network helper":
            return box.helpers
        return [{"keeper": box.keeper, "bwrap": box.bwrap, "box pid 1": box.first, "box init": box.init}[kind]]

    # ------------------------------------------------------------ what must be true

    def _wait_until_true(self, outcome: Outcome, possible_at: float, restless: Restless | None = None) -> None:
        """Every state is what /proc shows, every box runs for good; measures how long each took."""
        back_since = None
        untrue_since = dict.fromkeys(TITLES, possible_at)
        deadline = time.monotonic() + BACK_S
        while True:
            now = time.monotonic()
            claims = self._claims()
            seen = {title: self._is_serving(title) for title in TITLES}
            if claims != self._claims():
                continue  # it changed while we looked
            for title in TITLES:
                if claims is None or claims[title] != seen[title]:
                    untrue_since.setdefault(title, now)
                elif title in untrue_since:
                    outcome.true_s = max(outcome.true_s, time.monotonic() - untrue_since.pop(title))
            settled = restless is None or restless.ended
            back = settled and not untrue_since and all(seen.values())
            back_since = (back_since or now) if back else None
            if back_since is not None and now - back_since >= _STABLE_S:
                break
            if now > deadline:
                told = f"told {claims}, seen {seen}"
                outcome.faults.append(f"after {BACK_S:.0f} s not every box runs as it should: {told}")
                return
            time.sleep(0.05)
        outcome.back_s = max(0.0, back_since - possible_at)
        for title in TITLES:
            if not _greets(self._folder_of(title).socket):
                outcome.faults.append(f"{title} is told to run, but its sshd does not greet")

    def _claims(self) -> dict[str, bool] | None:
        """What the control plane tells people: title → it runs. None when it does not answer."""
        try:
            rows = self.request("workspaces")["data"]["workspaces"]
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            return None
        return {
            row["title"]: row["current_state"] == "running" and row["interim_state"] is None
            for row in rows
            if row["title"] in self.ids
        }

    def _is_serving(self, title: str) -> bool:
        folder = self._folder_of(title)
        return keepers.find_serving_state(folder) is not None and self._look_at_box(title, kill_proc.look()) is not None

    def _look_at_box(self, title: str, processes: dict[int, kill_proc.Process]) -> Box | None:
        """The box's processes by descent from whoever holds its lock; None unless all of them are there."""
        folder = self._folder_of(title)
        keeper = keepers.find_keeper(folder)
        if keeper is None or keeper not in processes:
            return None
        self.footprint.remember(kill_proc.descendants_of([keeper], processes), processes)
        with contextlib.suppress(OSError, ValueError):
            self._cgroups.setdefault(title, set()).update(
                json.loads(folder.plan_file.read_text()).get("cgroups", {}).values()
            )
        for bwrap in kill_proc.children_of(keeper, processes):
            for first in kill_proc.children_of(bwrap.pid, processes):
                for init in kill_proc.children_of(first.pid, processes):
                    if bwrap.name == first.name == "bwrap" and "init" in init.command:
                        beside = [p.pid for p in kill_proc.children_of(keeper, processes) if p != bwrap]
                        return Box(keeper, bwrap.pid, first.pid, init.pid, beside)
        return None

    def _has_network(self) -> bool:
        box = self._look_at_box(TITLES[0], kill_proc.look())
        return box is not None and bool(box.helpers)

    def _find_owned(self, processes: dict[int, kill_proc.Process]) -> set[int]:
        """The server and what it started, keepers that hold a lock with their boxes, masters of sessions."""
        assert self.service.process is not None
        roots = [self.service.process.pid]
        for title in TITLES:
            keeper = keepers.find_keeper(self._folder_of(title))
            roots += [keeper] if keeper else []
        return kill_proc.descendants_of(roots, processes) | kill_proc.find_masters(self.runtime / "rc")

    def _wait_for_quiet(
        self, find_owned: Callable[[dict[int, kill_proc.Process]], set[int]]
    ) -> tuple[float, list[kill_proc.Process]]:
        """Seconds until nothing of ours is without an owner, and what still is in the end."""
        began = time.monotonic()
        while True:
            owned = find_owned(kill_proc.look())
            processes = kill_proc.look()
            orphans = self.footprint.find_members(processes) - owned - kill_proc.descendants_of(owned, processes)
            if not orphans or time.monotonic() - began > QUIET_S:
                return time.monotonic() - began, [processes[pid] for pid in sorted(orphans)]
            time.sleep(0.1)

    def _find_leftovers(self) -> list[str]:
        """Files and mounts that outlived whoever needed them."""
        left = [f"a mount is left: {line}" for line in kill_proc.find_mounts(self.folder)]
        for title in TITLES:
            folder = self._folder_of(title)
            boxes = folder.find_box_folders()
            left += [f"{title} has the files of {len(boxes)} boxes"] if len(boxes) > 1 else []
            left += [f"{title}: {path.name}" for path in folder.path.glob("*.new")]
            left += [f"{title} left the cgroup {path}" for path in self._find_cgroups(title, running=True)]
        left += [f"the trash holds {path.name}" for path in self.layout.trash.iterdir()]
        return left

    def _find_cgroups(self, title: str, *, running: bool) -> list[str]:
        """Those that this box ever had and that are still there; `running`: beside the ones of its plan."""
        known = self._cgroups.get(title, set())
        if running:
            plan = json.loads(self._folder_of(title).plan_file.read_text())
            known = known - set(plan.get("cgroups", {}).values())
        return [path for path in sorted(known) if os.path.isdir(path)]

    def _find_box_files(self) -> list[Path]:
        found = []
        for title in TITLES:
            folder = self._folder_of(title)
            found += [*folder.find_box_folders(), *folder.path.glob("run/*"), *folder.path.glob("*.new")]
        return found

    # ------------------------------------------------------------ small things

    @property
    def layout(self) -> Layout:
        return Layout(self.service.data_dir / "runtimes" / "local")

    def _folder_of(self, title: str) -> WorkspaceFolder:
        return self.layout.workspace(self.ids[title])

    def request(self, path: str) -> dict[str, dict[str, list[dict[str, object]]]]:
        connection = http.client.HTTPConnection(self.service.http, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", f"/api/rc/{path}", headers={"Authorization": f"Token {self.token}"})
            parsed: dict[str, dict[str, list[dict[str, object]]]] = json.loads(connection.getresponse().read())
        return parsed


class Restless:
    """Stops and starts one box over and over, through the API; in the end it shall run."""

    def __init__(self, campaign: Campaign, seed: float) -> None:
        self._campaign = campaign
        self._rng = random.Random(seed)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def end_after(self, pause_s: float) -> None:
        threading.Timer(pause_s, self._ending.set).start()

    def stop(self) -> None:
        """Idempotent. A box that shall run is the last word, as soon as the server takes it."""
        self._ending.set()
        self._thread.join()

    def _work(self) -> None:
        number = self._campaign.ids[RESTLESS]
        while not self._ending.is_set():
            for verb in ("stop", "start"):
                self._ask(f"workspace/{verb}?workspace_id={number}")
                self._ending.wait(self._rng.choice((0.0, self._rng.uniform(0.0, 0.1), self._rng.uniform(0.1, 1.0))))
        deadline = time.monotonic() + BACK_S
        while not self._ask(f"workspace/start?workspace_id={number}") and time.monotonic() < deadline:
            time.sleep(0.05)

    def _ask(self, path: str) -> bool:
        """False while the server is down."""
        try:
            self._campaign.request(path)
        except (OSError, http.client.HTTPException, ValueError):
            return False
        return True


@dataclass(frozen=True)
class Box:
    keeper: int
    bwrap: int
    first: int
    init: int
    # What gives the box its network, where this machine has that.
    helpers: list[int]


def _greets(path: Path) -> bool:
    """Does an sshd say its version on the box's socket?"""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            connection.connect(f"/proc/self/fd/{folder}/{path.name}")
            return connection.recv(8) == b"SSH-2.0-"
        except OSError:
            return False
        finally:
            os.close(folder)


def _free_ports(count: int) -> list[int]:
    """Ports that stay the same over restarts, as a real server's do."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
