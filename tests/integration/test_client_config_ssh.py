"""`config-ssh`: the file in all its states, and real tools that know nothing but its hosts."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.client_standin import TITLE, ControlPlane, Person, service, signed_in

HOST = f"runcode.{TITLE}"


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    with service(tmp_path / "service") as running:
        yield running


@pytest.fixture
def person(tmp_path: Path, plane: ControlPlane) -> Iterator[Person]:
    with signed_in(tmp_path / "person", plane) as someone:
        yield someone


class Tools:
    """Runs OpenSSH and friends with the config that `config-ssh` wrote, and no other help."""

    def __init__(self, person: Person) -> None:
        self.person = person
        self.config = person.home / ".ssh" / "config"
        # ssh reads the config of the account's home, whatever HOME says; the test's is elsewhere.
        self.ssh_words = ["ssh", "-F", str(self.config)]
        self.environment = {
            **person.environment,
            "GIT_SSH_COMMAND": f"ssh -F {self.config}",
            "RSYNC_RSH": f"ssh -F {self.config}",
            "GIT_CONFIG_GLOBAL": "/dev/null",
        }

    def run(
        self, *words: str, stdin: bytes = b"", expect: int = 0, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            words, input=stdin, env=self.environment, capture_output=True, cwd=cwd, timeout=120, check=False
        )
        assert done.returncode == expect, (words, done.returncode, done.stdout[-1000:], done.stderr[-2000:])
        return done

    def ssh(self, *words: str, stdin: bytes = b"", expect: int = 0) -> subprocess.CompletedProcess[bytes]:
        return self.run(*self.ssh_words, *words, stdin=stdin, expect=expect)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*self.ssh_words, *words], env=self.environment, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0
        )

    def resolve(self, host: str, config: Path | None = None) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for line in self.run("ssh", "-G", "-F", str(config or self.config), host).stdout.decode().splitlines():
            name, _, value = line.partition(" ")
            found.setdefault(name, []).append(value)
        return found


@pytest.fixture
def tools(person: Person) -> Tools:
    person.runcode("config-ssh")
    return Tools(person)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


# ---------------------------------------------------------------- the file


def test_ssh_sees_a_strict_host(tools: Tools, person: Person, plane: ControlPlane) -> None:
    seen = tools.resolve(HOST)
    assert seen["hostname"] == ["runcode-gateway"]
    assert seen["hostkeyalias"] == ["runcode-gateway"]
    assert seen["user"] == [TITLE]
    assert seen["stricthostkeychecking"] == ["true"]
    assert seen["batchmode"] == ["yes"]
    assert seen["identitiesonly"] == ["yes"]
    assert seen["identityagent"] == ["none"]
    assert seen["userknownhostsfile"] == [str(person.cache / "gateway_known_hosts")]
    assert seen["globalknownhostsfile"] == ["/dev/null"]
    assert seen["identityfile"] == [str(person.cache / "ws-42" / name) for name in ("proxy-a", "proxy-b")]
    assert seen["permitlocalcommand"] == ["no"]
    assert seen["forwardagent"] == ["no"]
    assert seen["proxycommand"][0].endswith(f" proxy --api-base {plane.base} 42")
    assert os.path.isabs(seen["proxycommand"][0].split(" ")[0])
    assert stat.S_IMODE(tools.config.stat().st_mode) == 0o600
    assert stat.S_IMODE(tools.config.parent.stat().st_mode) == 0o700
    assert sorted(path.name for path in tools.config.parent.iterdir()) == ["config"]


def test_only_workspaces_with_ssh_get_a_host_and_the_json_says_which(person: Person, plane: ControlPlane) -> None:
    plane.own += [
        plane.workspace(43, "no-ssh", provider="gcp"),
        plane.workspace(44, "Second.box", custom_title="two"),
        plane.workspace(45, "second.BOX", custom_title="looks like two"),
    ]
    plane.shared = [plane.workspace(46, "theirs", custom_title="shared one")]
    told = person.json("config-ssh")
    config = person.home / ".ssh" / "config"
    assert told["hosts"] == sorted([HOST, "runcode.Second.box", "runcode.theirs"])
    assert told["skipped"] == ["second.BOX (id 45)"]
    assert told["path"] == str(config)
    assert told["changed"] is True
    assert person.json("config-ssh")["changed"] is False
    assert config.read_text().count("Host runcode.") == 3
    # A workspace that is gone loses its host.
    plane.shared = []
    person.runcode("config-ssh")
    assert "theirs" not in config.read_text()


def test_a_second_run_changes_nothing_and_remove_gives_the_file_back(person: Person, plane: ControlPlane) -> None:
    config = person.home / ".ssh" / "config"
    config.parent.mkdir(mode=0o700)
    own = b"# mine \xff\xfe\r\nServerAliveInterval 61\r\nHost work\n\tPort 2200\n\nHost *\n  User bob"
    config.write_bytes(own)
    config.chmod(0o640)
    person.runcode("config-ssh")
    once = config.read_bytes()
    assert once.endswith(own)
    assert (config.parent / "config.bak").read_bytes() == own
    assert stat.S_IMODE(config.stat().st_mode) == 0o640
    before = config.stat()
    done = person.runcode("config-ssh")
    assert b"nothing to change" in done.stdout
    assert (config.read_bytes(), config.stat().st_ino) == (once, before.st_ino)
    assert (config.parent / "config.bak").read_bytes() == own
    person.runcode("config-ssh", "--remove")
    assert config.read_bytes() == own
    assert (config.parent / "config.bak").read_bytes() == once
    assert b"no host of ours" in person.runcode("config-ssh", "--remove").stdout
    assert sorted(path.name for path in config.parent.iterdir()) == ["config", "config.bak"]


def test_other_hosts_mean_what_they_meant(tools: Tools, person: Person, tmp_path: Path) -> None:
    """ssh -G of everything else is the same with our block and without it."""
    included = person.home / ".ssh" / "more"
    included.write_text("Host inc\n  Port 7\nCompression yes\n")
    files = {
        "globals first": "ServerAliveInterval 61\nHost a\n Port 1\n",
        "host star": "Host *\n User bob\n StrictHostKeyChecking no\n ProxyCommand nc %h %p\n",
        "match": "Match host a\n Port 3\nMatch all\n User z\n",
        "include first": f"Include {included}\nHost b\n Port 5\n",
        "include under a host": f"Host b\n Include {included}\n",
        "negated": "Host !runcode.* *\n User neg\n",
        "canonical": "CanonicalizeHostname no\nHost a b\n User ab\nMatch final all\n Port 9\n",
    }
    for name, text in files.items():
        plain = tmp_path / "plain"
        plain.write_text(text)
        tools.config.write_text(text)
        person.runcode("config-ssh")
        for host in ("a", "b", "inc", "other.example", "runcode", "xruncode.y"):
            assert tools.resolve(host) == tools.resolve(host, plain), (name, host)
        ours = tools.resolve(HOST)
        assert (ours["user"], ours["stricthostkeychecking"]) == ([TITLE], ["true"]), name
        assert "runcode" in ours["proxycommand"][0], name


def test_dry_run_shows_the_difference_and_touches_nothing(person: Person) -> None:
    folder = person.home / ".ssh"
    done = person.runcode("config-ssh", "--dry-run")
    assert f"+Host {HOST}".encode() in done.stdout
    assert not folder.exists()
    person.runcode("config-ssh")
    inode = (folder / "config").stat().st_ino
    done = person.runcode("config-ssh", "--remove", "--dry-run")
    assert f"-Host {HOST}".encode() in done.stdout
    assert person.json("config-ssh", "--dry-run") == {
        "path": str(folder / "config"),
        "changed": False,
        "would_change": False,
        "hosts": [HOST],
        "skipped": [],
    }
    assert (folder / "config").stat().st_ino == inode


def test_a_link_stays_a_link(person: Person, tmp_path: Path) -> None:
    dotfiles = tmp_path / "dotfiles"
    dotfiles.mkdir()
    (dotfiles / "ssh_config").write_text("Host work\n  Port 2\n")
    folder = person.home / ".ssh"
    folder.mkdir(mode=0o700)
    (folder / "config").symlink_to(dotfiles / "ssh_config")
    person.runcode("config-ssh")
    assert (folder / "config").is_symlink()
    assert f"Host {HOST}\n" in (dotfiles / "ssh_config").read_text()
    assert (folder / "config.bak").read_text() == "Host work\n  Port 2\n"
    assert [path.name for path in dotfiles.iterdir()] == ["ssh_config"]
    person.runcode("config-ssh", "--remove")
    assert (dotfiles / "ssh_config").read_text() == "Host work\n  Port 2\n"
    # One that points nowhere yet: the file is made where it points.
    (folder / "config").unlink()
    (folder / "config").symlink_to(dotfiles / "new")
    person.runcode("config-ssh")
    assert (folder / "config").is_symlink()
    assert stat.S_IMODE((dotfiles / "new").stat().st_mode) == 0o600


def test_many_at_once_leave_one_block(person: Person) -> None:
    running = [person.start("config-ssh", stdout=subprocess.DEVNULL) for _ in range(8)]
    assert [one.wait(timeout=60) for one in running] == [0] * 8
    text = (person.home / ".ssh" / "config").read_text()
    assert text.count(f"Host {HOST}\n") == 1
    assert text.count("# >>> runcode managed block") == 1


# ---------------------------------------------------------------- real tools


def test_ssh_carries_commands_statuses_and_bytes(tools: Tools) -> None:
    assert tools.ssh(HOST, "echo out; echo err >&2; exit 7", expect=7).stdout == b"out\n"
    blob = os.urandom(3_000_000)
    assert tools.ssh(HOST, "cat", stdin=blob).stdout == blob
    # ssh says nothing of its own: no banner, no remark on the key that is not there.
    assert tools.ssh(HOST, "true").stderr == b""


def test_scp_old_and_new_and_sftp(tools: Tools, tmp_path: Path, plane: ControlPlane) -> None:
    blob = os.urandom(1_000_000)
    (tmp_path / "file").write_bytes(blob)
    for name, flag in (("new", "-s"), ("old", "-O")):
        target = plane.workdir / name
        tools.run("scp", flag, "-F", str(tools.config), str(tmp_path / "file"), f"{HOST}:{target}")
        assert target.read_bytes() == blob
        tools.run("scp", flag, "-F", str(tools.config), f"{HOST}:{target}", str(tmp_path / f"{name}-back"))
        assert (tmp_path / f"{name}-back").read_bytes() == blob
    batch = f"put {tmp_path}/file {plane.workdir}/by-sftp\nget {plane.workdir}/by-sftp {tmp_path}/sftp-back\n"
    tools.run("sftp", "-F", str(tools.config), "-b", "-", HOST, stdin=batch.encode())
    assert (tmp_path / "sftp-back").read_bytes() == blob


def test_rsync_both_ways(tools: Tools, tmp_path: Path, plane: ControlPlane) -> None:
    tree = tmp_path / "tree"
    for number in range(40):
        (tree / f"d{number % 4}").mkdir(parents=True, exist_ok=True)
        (tree / f"d{number % 4}" / f"f {number}").write_bytes(os.urandom(3000))
    tools.run("rsync", "-a", f"{tree}/", f"{HOST}:{plane.workdir}/tree/")
    tools.run("rsync", "-a", f"{HOST}:{plane.workdir}/tree/", f"{tmp_path}/back/")
    tools.run("diff", "-r", str(tree), str(tmp_path / "back"))


def test_git_clones_and_pushes(tools: Tools, tmp_path: Path, plane: ControlPlane) -> None:
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.net", "-c", "init.defaultBranch=main"]
    bare = plane.workdir / "repo.git"
    tools.run(*git, "init", "--bare", str(bare))
    tools.run(*git, "clone", f"{HOST}:{bare}", "clone", cwd=tmp_path)
    (tmp_path / "clone" / "file").write_text("one\n")
    tools.run(*git, "add", "file", cwd=tmp_path / "clone")
    tools.run(*git, "commit", "-m", "one", cwd=tmp_path / "clone")
    tools.run(*git, "push", "origin", "HEAD:main", cwd=tmp_path / "clone")
    head = tools.run(*git, "rev-parse", "HEAD", cwd=tmp_path / "clone").stdout
    assert tools.run(*git, "--git-dir", str(bare), "rev-parse", "main").stdout == head


@contextlib.contextmanager
def echo_server() -> Iterator[int]:
    """Sends back what it gets until the other side says that was all, then a last word."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection:
                    while chunk := connection.recv(65536):
                        connection.sendall(chunk)
                    connection.sendall(b"bye")

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield server.getsockname()[1]
    finally:
        server.close()


def through_socks(port: int, target_port: int, sent: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"\x05\x01\x00")
        assert connection.recv(2) == b"\x05\x00"
        connection.sendall(b"\x05\x01\x00\x01\x7f\x00\x00\x01" + target_port.to_bytes(2, "big"))
        assert connection.recv(10)[:2] == b"\x05\x00"
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        got = b""
        while chunk := connection.recv(65536):
            got += chunk
        return got


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise AssertionError("nobody listens")


def test_a_socks_proxy_and_netcat_mode(tools: Tools) -> None:
    blob = os.urandom(200_000)
    with echo_server() as target:
        assert tools.ssh("-W", f"127.0.0.1:{target}", HOST, stdin=blob).stdout == blob + b"bye"
        port = free_port()
        running = tools.start("-N", "-D", f"127.0.0.1:{port}", HOST)
        try:
            wait_for_port(port)
            assert through_socks(port, target, blob) == blob + b"bye"
        finally:
            running.terminate()
            running.communicate(timeout=60)


def test_the_way_of_vs_code_remote_ssh(tools: Tools) -> None:
    """`ssh -T -D PORT host bash`, a script on stdin, and the connection kept for the editor's own channels."""
    port = free_port()
    running = tools.start("-T", "-D", str(port), "-o", "ConnectTimeout=60", HOST, "bash")
    assert running.stdin is not None
    assert running.stdout is not None
    try:
        running.stdin.write(b"echo ready-$((40+2)); uname -s; echo listeningOn==8123==\n")
        said = b""
        while b"listeningOn==8123==" not in said:
            chunk = os.read(running.stdout.fileno(), 4096)
            assert chunk, said
            said += chunk
        assert b"ready-42\n" in said
        with echo_server() as target:
            assert through_socks(port, target, b"editor") == b"editorbye"
        running.stdin.write(b"exit 3\n")
        running.stdin.close()
        assert running.wait(timeout=60) == 3
    finally:
        running.kill()
        running.wait()


def test_twenty_at_once_mint_once(tools: Tools, plane: ControlPlane) -> None:
    running = [tools.start(HOST, f"echo {number}") for number in range(20)]
    told = [one.communicate(timeout=120) for one in running]
    assert [one.returncode for one in running] == [0] * 20, told
    assert [stdout for stdout, _ in told] == [b"%d\n" % number for number in range(20)]
    assert len(plane.mint_requests) == 1
    assert "certificates" not in plane.mint_requests[0]


def test_twenty_at_once_across_a_re_mint(tools: Tools, plane: ControlPlane, person: Person) -> None:
    """The session runs out while they start: one of them mints, all of them get in, and a long one goes on."""
    tools.ssh(HOST, "true")
    long_one = tools.start(HOST, "cat; echo over")
    assert long_one.stdin is not None
    for round_number in range(2):
        session = person.session_folder() / "session.json"
        stored = json.loads(session.read_text())
        stored["expires_at"] = int(time.time()) + 30
        # As the client writes it: one field a line.
        session.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in stored.items()) + "\n}\n")
        running = [tools.start(HOST, f"echo {number}") for number in range(20)]
        told = [one.communicate(timeout=120) for one in running]
        assert [one.returncode for one in running] == [0] * 20, told
        assert len(plane.mint_requests) == 2 + round_number
        # Exactly one of the two key files stays.
        assert len([name for name in os.listdir(person.session_folder()) if name.startswith("proxy-")]) == 1
    assert long_one.communicate(b"still here\n", timeout=60)[0] == b"still here\nover\n"
    assert long_one.returncode == 0


def test_it_shares_the_session_of_connect(tools: Tools, person: Person, plane: ControlPlane) -> None:
    person.runcode("connect", "42")
    tools.ssh(HOST, "true")
    person.runcode("exec", "--", "true")
    assert len(plane.mint_requests) == 1
    person.runcode("connect", "42", "--force")
    tools.ssh(HOST, "true")
    assert len(plane.mint_requests) == 2
    person.runcode("disconnect")
    tools.ssh(HOST, "true")
    assert len(plane.mint_requests) == 3


@pytest.mark.parametrize("shell", ["sh", "bash", "zsh", "fish"])
def test_odd_folders_reach_the_proxy_through_every_shell(tmp_path: Path, plane: ControlPlane, shell: str) -> None:
    """ssh hands the ProxyCommand to the person's own shell; the paths in it are theirs too."""
    path = shutil.which(shell)
    assert path is not None, f"these tests need {shell}: apt-get install {shell}"
    odd = tmp_path / "o'dd $HOME `id` %h !x \\ (y) & ü;"
    person = Person(tmp_path / "person")
    person.environment |= {
        "XDG_CACHE_HOME": str(odd / "cache"),
        "XDG_CONFIG_HOME": str(odd / "config"),
    }
    person.login(plane)
    person.runcode("config-ssh")
    tools = Tools(person)
    # A program that a desktop started: it knows nothing of these variables.
    tools.environment = {name: value for name, value in tools.environment.items() if not name.startswith("XDG_")} | {
        "SHELL": path
    }
    assert tools.ssh(HOST, "echo in").stdout == b"in\n"
    assert not (person.home / ".cache").exists()
    person.runcode("clean", "--all")
