"""Rounds of kills and cuts between real ssh clients and their boxes, and what must be true after each one.

A Campaign is one Postgres, two control planes on it, a gateway of several workers that
asks the first of them, one box, and ssh clients, on three networks where the machine
lets us lay them (`cut_networks`). `play(n)` kills or cuts one thing at a moment chosen by
the seed and n, repairs it as an init system or a technician would, ends the load, and
judges each call, looks for commands that ran twice, for what leaked, and for events that
were lost. Used by `make gateway-chaos` (many rounds) and by an acceptance test (a few).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from runcode.core.hostkeys import parse_public_key
from runcode.runtimes.local import keepers
from runcode.runtimes.local.layout import Layout
from support import kill_proc
from support.cut_networks import Networks
from support.gateway_load import COUNTER, Books, Call, Client, Load, Stream
from support.gateways import GatewayRun, free_port, make_host_key
from support.postgres import Cluster
from support.service import SERVER, Service
from support.tls_files import write_pair

TITLE = "chaos-box"
CLIENTS = 4
# Generous: what is measured stands in the table, and these only end a hang.
PROMPT_S = 30.0
BACK_S = 90.0
QUIET_S = 45.0
# A gateway is deaf for 2 s before it lets nobody in.
_STALE_S = 2.0
# ssh gives a silent network up after three seconds (gateway_load); what blinks is back before that.
_BLINK_S = 1.2
# What an idle process may hold more than at its first rest: kept-alive connections, a database pool.
_SPARE_DESCRIPTORS = 24
_SPARE_KIB = 48 * 1024
_SPOOL_SIZE = "1m"
_DISK_FULL = "events wait in memory only"

# Each kind, and how often it comes up.
VICTIMS = {
    "workspace sshd": 3,
    "gateway worker": 3,
    "gateway": 2,
    "gateway, SIGTERM": 2,
    "control plane": 3,
    "other control plane": 1,
    "revocation": 3,
    "worker and control plane": 2,
    "network cut": 2,
    "network blink": 2,
    "feed cut": 2,
    "full disk": 1,
}
NEEDS_NETWORKS = frozenset(("network cut", "network blink", "feed cut", "full disk"))


@dataclass
class Strike:
    """What a kill may do. `spared`: streams that must live on. `doomed`: those that must end."""

    spared: Collection[Stream] = ()
    doomed: Collection[Stream] = ()
    calls_may_fail: bool = True


@dataclass
class Outcome:
    """`cut_s`: each stream's end after the strike; `failed_s`: each failed call's. `back_s`: until a new ssh got in."""

    number: int
    victim: str
    cut_s: list[float] = field(default_factory=list)
    failed_s: list[float] = field(default_factory=list)
    calls: int = 0
    back_s: float = 0.0
    quiet_s: float = 0.0
    faults: list[str] = field(default_factory=list)


class Campaign:
    def __init__(self, seed: int, *, apart: bool, workers: int = 2, pace_s: float = 0.0) -> None:
        """`apart`: on networks of their own. `pace_s`: what each client waits between two calls, and a little more."""
        self.seed = seed
        self._pace_s = pace_s
        self.folder = Path(tempfile.mkdtemp(prefix="rg-", dir="/tmp"))
        self.folder.chmod(0o700)
        self.networks = Networks(apart=apart)
        self.cluster = Cluster()
        self.books = Books()
        self.outcomes: list[Outcome] = []
        self.clients: list[Client] = []
        self.database = ""
        self.services: list[Service] = []
        self.gateway: GatewayRun | None = None
        self.ids: dict[str, int] = {}
        # By pid: descriptors and KiB of memory at its first rest, and the most since.
        self.rests: dict[int, tuple[int, int]] = {}
        self.most: dict[int, tuple[int, int]] = {}
        self._workers = workers
        self._tls = ssl.create_default_context()
        self._ssh_port = 2222 if apart else free_port()
        self._judged = 0

    # ------------------------------------------------------------ before and after

    def open(self) -> Campaign:
        self.database = self.cluster.make().make_database(empty=True).conninfo
        private, public = make_host_key(self.folder)
        certificate, key = self.folder / "tls.pem", self.folder / "tls.key"
        write_pair(certificate, key, addresses=(self.networks.control.address,))
        self._tls.load_verify_locations(certificate)
        at = self.networks.control
        for number, name in enumerate(("a", "b")):
            options = ["--database", self.database, "--box-network", "off", "--tls-cert", str(certificate)]
            options += ["--tls-key", str(key), "--ssh-public", f"{self.networks.gateways.address}:{self._ssh_port}"]
            options += ["--ssh-host-key", str(public)]
            if number:
                options += ["--keys", str(self.services[0].data_dir / "keys")]
            port = 8443 + number if self.networks.can_cut else free_port()
            service = Service(
                self.folder / name,
                ssh="remote",
                http=f"{at.address}:{port}",
                program=(*at.prefix, SERVER),
                options=tuple(options),
            )
            self.services.append(service)
            service.start()
            if not number:
                # Before there is a second server that could take it.
                self.ids[TITLE] = self._make_box()
        self._start_gateway_first(private, certificate)
        host_key = " ".join(public.read_text().split()[:2])
        for number in range(CLIENTS):
            self.clients.append(self._make_client(f"client{number}", host_key))
        self._mint(self.clients[0])
        self.wait_until(self._gets_in, "the first ssh gets in")
        return self

    def _make_box(self) -> int:
        made = self.request("POST", "/api/rc/workspaces", {"title": TITLE})["data"]["workspace"]
        self.request("POST", f"/api/rc/workspace/start?workspace_id={made['id']}")

        def runs() -> bool:
            shown = self.request("GET", f"/api/rc/workspace/{made['id']}")["data"]["workspace"]
            return bool(shown["current_state"] == "running")

        self.wait_until(runs, "the box runs")
        return int(made["id"])

    def _start_gateway_first(self, private: Path, certificate: Path) -> None:
        credential = self.services[0].operator("gateway", "create", "edge").stdout.strip()
        options = ["--workers", str(self._workers), "--drain-s", "1.5", "--ca-file", str(certificate)]
        self.gateway = _GatewayThere(self.folder / "gateway", private, credential, *options)
        self.gateway.prefix = self.networks.gateways.prefix
        spool = self.gateway.folder / "spool"
        spool.mkdir(mode=0o700)
        if self.networks.can_cut:
            mount = ["mount", "-t", "tmpfs", "-o", f"size={_SPOOL_SIZE},mode=700", "spool", str(spool)]
            self.networks.gateways.run(*mount)
        self._start_gateway()

    def _start_gateway(self) -> None:
        """Again, as an init system does: workers that drain keep their spool until they are gone."""
        assert self.gateway is not None
        deadline = time.monotonic() + BACK_S
        while True:
            try:
                address = f"{self.networks.gateways.address}:{self._ssh_port}"
                self.gateway.start(self.services[0].facts["api_base"], address)
                return
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _make_client(self, name: str, host_key: str) -> Client:
        at = self.networks.gateways.address
        return Client(self.folder / name, TITLE, at, self._ssh_port, host_key, self.networks.clients.prefix)

    def close(self) -> list[str]:
        """End everything in the ordinary way; what is left after that is a fault. Removes the folder."""
        left: list[str] = []
        try:
            if self.gateway is not None and self.gateway.process is not None and self.gateway.stop() != 0:
                left.append(f"the gateway's last exit status was {self.gateway.process.returncode}")
            for service in reversed(self.services):
                if service.process is not None and service.stop() != 0:
                    left.append(f"a control plane's last exit status was {service.process.returncode}")
            for log in (*(s.log for s in self.services), *([self.gateway.log] if self.gateway else [])):
                tracebacks = log.read_text().count("Traceback (most recent call last)") if log.exists() else 0
                left += [f"{log.parent.name}/{log.name} has {tracebacks} tracebacks"] if tracebacks else []
        finally:
            self._end_by_force()
            self.cluster.remove()
            self.networks.close()
            shutil.rmtree(self.folder, ignore_errors=True)
        return left

    def _end_by_force(self) -> None:
        """Whatever went wrong: nothing of ours stays on the machine."""
        footprint = kill_proc.Footprint(self.folder)
        for _ in range(50):
            members = footprint.find_members(kill_proc.look())
            for pid in members:
                kill_proc.kill_exactly(pid)
            if not members:
                return
            time.sleep(0.1)

    # ------------------------------------------------------------ one round

    def draw(self, number: int) -> str:
        """The victim of a round, from the seed alone."""
        kinds = {
            kind: weight for kind, weight in VICTIMS.items() if self.networks.can_cut or kind not in NEEDS_NETWORKS
        }
        return random.Random(f"{self.seed}:{number}").choices(list(kinds), list(kinds.values()))[0]

    def play(self, number: int, *, victim: str | None = None) -> Outcome:
        outcome = Outcome(number, victim or self.draw(number))
        rng = random.Random(f"{self.seed}:{number}:moment")
        faults_before = len(self.books.faults)
        for client in self.clients:
            self._mint(client)
        streams = [Stream(self.clients[0]), Stream(self.clients[1]), Stream(self.clients[2], bulk=True)]
        load = Load(self.clients[1:], self.books, f"{self.seed}:{number}", pace_s=self._pace_s)
        load.start()
        try:
            time.sleep(rng.uniform(0.2, 1.2))
            struck_at = time.monotonic()
            strike = _STRIKES[outcome.victim](self, outcome, streams, rng)
            repaired_at = time.monotonic()
            self.wait_until(self._gets_in, "ssh gets in again", faults=outcome.faults)
            outcome.back_s = time.monotonic() - repaired_at
            self._judge_streams(outcome, strike, streams, struck_at)
            time.sleep(rng.uniform(0.1, 0.5))
        finally:
            load.stop()
            for stream in streams:
                stream.end()
        for stream in streams:
            outcome.faults += stream.judge()
        self._judge_calls(outcome, strike, load.calls, struck_at)
        outcome.faults += self._wait_for_quiet(outcome)
        outcome.faults += self._compare_with_box()
        outcome.faults += self.books.faults[faults_before:]
        self.outcomes.append(outcome)
        return outcome

    def _judge_streams(self, outcome: Outcome, strike: Strike, streams: list[Stream], struck_at: float) -> None:
        for stream in strike.doomed:
            if not stream.wait_for_end(PROMPT_S):
                outcome.faults.append("a stream that had to end goes on")
        for stream in streams:
            lives = stream.died_at is None
            if stream in strike.spared and not (lives and (stream.bulk or stream.flows())):
                outcome.faults.append(f"a stream that had to live ended or stands still: {stream.stderr[-300:]!r}")
            if stream.died_at is not None:
                outcome.cut_s.append(stream.died_at - struck_at)

    def _judge_calls(self, outcome: Outcome, strike: Strike, calls: list[Call], struck_at: float) -> None:
        outcome.calls = len(calls)
        for call in calls:
            if not call.failed:
                continue
            took_s = call.ended - max(call.began, struck_at)
            outcome.failed_s.append(took_s)
            if took_s > PROMPT_S:
                outcome.faults.append(f"a failure took {took_s:.1f} s: {call.stderr[-200:]!r}")
            if not strike.calls_may_fail:
                outcome.faults.append(f"a call failed that had no reason to: {call.stderr[-300:]!r}")

    # ------------------------------------------------------------ the strikes

    def _kill_sshd(self, outcome: Outcome, streams: list[Stream], rng: random.Random) -> Strike:
        """Both processes of some connections, without a word to anybody."""
        found = self._find_sshds()
        for pid in rng.sample(found, max(1, len(found) // 2)):
            kill_proc.kill_exactly(pid)
        return Strike()

    def _kill_worker(self, outcome: Outcome, streams: list[Stream], rng: random.Random) -> Strike:
        self._kill_one_worker(rng)
        return Strike()

    def _kill_one_worker(self, rng: random.Random) -> None:
        """And wait until its supervisor has another one that serves."""
        assert self.gateway is not None
        before = self.gateway.facts["workers"]
        victim = rng.choice(before)
        kill_proc.kill_exactly(victim)
        gateway = self.gateway
        self.wait_until(lambda: victim not in gateway.facts["workers"], "another worker took its place")

    def _kill_gateway(self, outcome: Outcome, streams: list[Stream], rng: random.Random) -> Strike:
        """The supervisor alone: its workers drain and end by themselves."""
        assert self.gateway is not None
        assert self.gateway.process is not None
        workers = self.gateway.facts["workers"]
        self.gateway.process.kill()
        self.gateway.process.wait()
        self.wait_until(lambda: not any(map(_lives, workers)), "the workers of a killed supervisor end")
        self._start_gateway()
        return Strike(doomed=streams)

    def _end_gateway(self, outcome: Outcome, streams: list[Stream], rng: random.Random) -> Strike:
        assert self.gateway is not None
        status = self.gateway.stop()
        if status != 0:
            outcome.faults.append(f"SIGTERM: the gateway exited {status}")
        self._start_gateway()
        return Strike(doomed=streams)

    def _kill_control_plane(self, outcome: Outcome, streams: list[Stream], rng: random.Random) -> Strike:
        service = self.services[0]
        service.kill()
        if rng.random() < 0.5:
            time.sleep(_STALE_S + 0.5)
            self._expect_shut(outcome)
            if not streams[0].flows():
                outcome.faults.append("a stream stands still while the control plane is away")
        service.start()
        return Strike(spared=streams)

    def _kill_other_control_plane(self, outcome: Outcome, streams: list[Stream], rng: random.Random) -> Strike:
        self.services[1].kill()
        time.sleep(rng.uniform(0.0, 1.0))
        self.services[1].start()
        return Strike(spared=streams, calls_may_fail=False)

    def _revoke(self, outcome: Outcome, streams: list[Stream], rng: random.Random) -> Strike:
        """On the control plane that the gateway does not know of."""
        victim = rng.choice(streams)
        self.request("DELETE", f"/api/rc/session/{victim.client.session_id}", service=self.services[1])
        if not victim.wait_for_end(PROMPT_S):
            outcome.faults.append("a revoked stream goes on")
        elif "access to this workspace has ended" not in victim.stderr:
            outcome.faults.append(f"a revoked stream was not told: {victim.stderr[-300:]!r}")
        if victim.client.run("true").returncode != 255:
            outcome.faults.append("a revoked session got in")
        # Calls of the same client go on failing until it has a new one.
        self._mint(victim.client)
        return Strike(doomed=[victim], spared=[stream for stream in streams if stream is not victim])

    def _kill_worker_and_control_plane(self, outcome: Outcome, streams: list[Stream], rng: random.Random) -> Strike:
        """What that worker saw meanwhile can be told by its successor only."""
        self.services[0].kill()
        time.sleep(rng.uniform(0.0, 1.0))
        self._kill_one_worker(rng)
        self.services[0].start()
        return Strike()

    def _cut_clients(self, outcome: Outcome, streams: list[Stream], rng: random.Random) -> Strike:
        """Until every client has given up."""
        self.networks.cut(self.networks.clients)
        try:
            for stream in streams:
                if not stream.wait_for_end(PROMPT_S):
                    outcome.faults.append("a client does not notice that its network is gone")
        finally:
            self.networks.mend(self.networks.clients)
        return Strike(doomed=streams)

    def _blink(self, outcome: Outcome, streams: list[Stream], rng: random.Random) -> Strike:
        self.networks.cut(self.networks.clients)
        time.sleep(rng.uniform(0.2, _BLINK_S))
        self.networks.mend(self.networks.clients)
        return Strike(spared=streams, calls_may_fail=False)

    def _cut_feed(self, outcome: Outcome, streams: list[Stream], rng: random.Random) -> Strike:
        """Between gateway and control plane."""
        self.networks.cut(self.networks.control)
        try:
            time.sleep(_STALE_S + rng.uniform(0.5, 2.0))
            self._expect_shut(outcome)
            if not streams[0].flows():
                outcome.faults.append("a stream stands still while the feed is cut")
        finally:
            self.networks.mend(self.networks.control)
        return Strike(spared=streams)

    def _fill_disk(self, outcome: Outcome, streams: list[Stream], rng: random.Random) -> Strike:
        assert self.gateway is not None
        filler, log = self._spool / "filler", self.gateway.log
        before = log.read_text().count(_DISK_FULL)
        deadline = time.monotonic() + PROMPT_S
        with filler.open("wb", buffering=0) as file:
            # Again and again, until an event met it: what is delivered gives its room back.
            while log.read_text().count(_DISK_FULL) == before and time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(4096))
                time.sleep(0.005)
        time.sleep(rng.uniform(0.2, 1.0))
        if log.read_text().count(_DISK_FULL) == before:
            outcome.faults.append("a full disk is not told")
        filler.unlink()
        return Strike(spared=streams, calls_may_fail=False)

    # ------------------------------------------------------------ what must be true

    def _gets_in(self) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.clients[0].run("true").returncode == 0
        return False

    def _expect_shut(self, outcome: Outcome) -> None:
        began = time.monotonic()
        done = self.clients[0].run("true")
        outcome.failed_s.append(time.monotonic() - began)
        if done.returncode != 255 or not done.stderr.strip():
            outcome.faults.append(f"with a stale feed ssh ended with {done.returncode}: {done.stderr[-200:]!r}")

    def _wait_for_quiet(self, outcome: Outcome) -> list[str]:
        """Until nothing is left of the round; else what is."""
        began = time.monotonic()
        while left := self._find_left():
            if time.monotonic() - began > QUIET_S:
                return left
            time.sleep(0.1)
        outcome.quiet_s = time.monotonic() - began
        return []

    def _find_left(self) -> list[str]:
        assert self.gateway is not None
        assert self.gateway.process is not None
        workers = self.gateway.facts["workers"]
        left = [f"{len(found)} sshd in the box"] if (found := self._find_sshds()) else []
        processes = kill_proc.look()
        children = [p.pid for p in processes.values() if p.parent == self.gateway.process.pid]
        left += ["the supervisor has other children"] if sorted(children) != sorted(workers) else []
        left += [f"{count} connections at the gateway"] if (count := self._count_connections()) else []
        left += [f"{path.name} in the spool" for path in self._spool.glob("worker-*/*.events")]
        if not left and (open_ones := self._count_open()):
            left.append(f"{open_ones} events have no end")
        for pid in [*workers, *(s.process.pid for s in self.services if s.process is not None)]:
            left += self._weigh(pid) if not left else []
        return left

    def _weigh(self, pid: int) -> list[str]:
        """Descriptors and memory of a process at rest, against its first rest."""
        try:
            descriptors = len(os.listdir(f"/proc/{pid}/fd"))
            rss = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * (os.sysconf("SC_PAGE_SIZE") // 1024)
        except OSError:
            return [f"process {pid} is gone"]
        first = self.rests.setdefault(pid, (descriptors, rss))
        most = self.most.get(pid, first)
        self.most[pid] = (max(most[0], descriptors), max(most[1], rss))
        left = []
        if descriptors > first[0] + _SPARE_DESCRIPTORS:
            left.append(f"process {pid} holds {descriptors} descriptors, {first[0]} at first")
        if rss > first[1] + _SPARE_KIB:
            left.append(f"process {pid} holds {rss} KiB, {first[1]} at first")
        return left

    def _count_connections(self) -> int:
        """At the gateway's port, as the kernel tells, but for those that merely wait to be forgotten."""
        assert self.gateway is not None
        count = 0
        for line in Path(f"/proc/{self.gateway.process.pid}/net/tcp").read_text().splitlines()[1:]:  # type: ignore[union-attr]
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == self._ssh_port and fields[3] not in ("0A", "06"):
                count += 1
        return count

    def _count_open(self) -> int:
        """Commands, forwards and connections that began and did not end, as the database tells."""
        query = (
            "SELECT count(*) FROM events s WHERE s.phase = 'start' AND NOT EXISTS "
            "(SELECT 1 FROM events e WHERE e.subject_id = s.subject_id AND e.phase = 'end')"
        )
        return int(self.query(query)[0][0])

    def _compare_with_box(self) -> list[str]:
        """Nothing ran twice, what exited 0 ran, and what ran was told once, with its end."""
        faults = []
        counter = self._home / COUNTER
        ran = Counter(counter.read_text().splitlines() if counter.exists() else [])
        told: Counter[str] = Counter()
        last = self._judged
        for number, detail in self.query(
            "SELECT id, detail FROM events WHERE id > %s AND kind = 'command' AND phase = 'start' ORDER BY id", last
        ):
            self._judged = max(self._judged, number)
            words = str(detail.get("text", "")).split()
            told.update(words[2:3] if words[:1] == ["printf"] else [])
        for identity, count in ran.items():
            if count != 1:
                faults.append(f"{identity} ran {count} times")
            if identity not in self.books.issued.get(TITLE, set()):
                faults.append(f"{identity[:60]!r} was never issued")
            if told[identity] != 1:
                faults.append(f"{identity} ran and was told {told[identity]} times")
        faults += [f"{identity} exited 0 and never ran" for identity in self.books.done.get(TITLE, set()) - set(ran)]
        counter.unlink(missing_ok=True)
        self.books.issued.clear()
        self.books.done.clear()
        return faults

    def verify_audit(self) -> list[str]:
        done = self.services[0].operator("audit", "verify", check=False)
        return [] if done.returncode == 0 else [f"the audit is not whole: {done.stdout[-300:]}{done.stderr[-300:]}"]

    def render_growth(self) -> list[str]:
        """What the process of each kind that lived longest held at its first rest, and at most."""
        lines = []
        for pid, (descriptors, rss) in sorted(self.rests.items()):
            if _lives(pid):
                at_most = self.most[pid]
                name = kill_proc.look()[pid].command.split("runcode-server")[-1].split("main")[-1].split()[:2]
                lines.append(
                    f"{' '.join(name)} (to the end): descriptors {descriptors}, at most {at_most[0]}; "
                    f"memory {rss / 1024:.1f} MiB, at most {at_most[1] / 1024:.1f}"
                )
        return lines

    # ------------------------------------------------------------ small things

    @property
    def _spool(self) -> Path:
        assert self.gateway is not None
        return self.networks.gateways.root / (self.gateway.folder / "spool").relative_to("/")

    @property
    def _home(self) -> Path:
        return Layout(self.services[0].data_dir / "runtimes" / "local").workspace(self.ids[TITLE]).home

    def _find_sshds(self) -> list[int]:
        """Those that serve somebody; the box has no other."""
        layout = Layout(self.services[0].data_dir / "runtimes" / "local")
        keeper = keepers.find_keeper(layout.workspace(self.ids[TITLE]))
        processes = kill_proc.look()
        inside = kill_proc.descendants_of([keeper], processes) if keeper else set()
        return sorted(pid for pid in inside if processes[pid].name.startswith("sshd") and not processes[pid].ended)

    def _mint(self, client: Client) -> None:
        body = {"public_key": client.public_key, "client": "chaos"}
        self.request("POST", f"/api/rc/workspace/{self.ids[TITLE]}/ssh-session", body)
        fingerprint = _fingerprint(client.public_key)
        found = self.query("SELECT max(id) FROM sessions WHERE fingerprint = %s AND revoked_at IS NULL", fingerprint)
        client.session_id = int(found[0][0])

    def request(
        self, method: str, path: str, body: dict[str, object] | None = None, *, service: Service | None = None
    ) -> Any:
        at = service or self.services[0]
        host, _, port = at.http.rpartition(":")
        with self.networks.control.entered():
            raw = socket.create_connection((host, int(port)), timeout=30)
        connection = http.client.HTTPSConnection(host, int(port), context=self._tls)
        connection.sock = self._tls.wrap_socket(raw, server_hostname=host)
        with contextlib.closing(connection):
            headers = {
                "Authorization": f"Token {self.services[0].first_facts['token']}",
                "Content-Type": "application/json",
            }
            connection.request(method, path, body=None if body is None else json.dumps(body), headers=headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        assert response.status == 200, (method, path, response.status, answer)
        return answer

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database, autocommit=True) as connection:
            return connection.execute(sql, values or None).fetchall()  # type: ignore[arg-type]

    def wait_until(self, condition: Callable[[], object], what: str, *, faults: list[str] | None = None) -> None:
        """Raises AssertionError, or adds a fault where there is a list for them."""
        deadline = time.monotonic() + BACK_S
        while not condition():
            if time.monotonic() > deadline:
                if faults is None:
                    raise AssertionError(f"it did not happen: {what}")
                faults.append(f"it did not happen: {what}")
                return
            time.sleep(0.05)


class _GatewayThere(GatewayRun):
    """A gateway in another network. nsenter becomes the program: its pid is the supervisor's."""

    prefix: tuple[str, ...] = ()

    def words(self, api_base: str, ssh: str) -> list[str]:
        return [*self.prefix, *super().words(api_base, ssh)]


_STRIKES: dict[str, Callable[[Campaign, Outcome, list[Stream], random.Random], Strike]] = {
    "workspace sshd": Campaign._kill_sshd,
    "gateway worker": Campaign._kill_worker,
    "gateway": Campaign._kill_gateway,
    "gateway, SIGTERM": Campaign._end_gateway,
    "control plane": Campaign._kill_control_plane,
    "other control plane": Campaign._kill_other_control_plane,
    "revocation": Campaign._revoke,
    "worker and control plane": Campaign._kill_worker_and_control_plane,
    "network cut": Campaign._cut_clients,
    "network blink": Campaign._blink,
    "feed cut": Campaign._cut_feed,
    "full disk": Campaign._fill_disk,
}


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _fingerprint(public_key: str) -> str:
    return parse_public_key(" ".join(public_key.split()[:2])).fingerprint
