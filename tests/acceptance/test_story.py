"""The story of issue 2 on real parts: our service, the real ssh client, a real sshd in a real box.

One service and one attached laptop serve the whole module; each test is one
promise that a person would notice being broken.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.ptys import run_in_pty
from support.service import Laptop, Service, processes_mentioning, running_service

TITLE = "royal-tree-01"
OTHER = "quiet-lake-02"
RANDOM_20_MB = os.urandom(20_000_000)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("service")) as running:
        for title in (TITLE, OTHER):
            running.operator("workspace", "create", title)
        yield running


@pytest.fixture(scope="module")
def laptop(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Laptop:
    """Signed in, attached to TITLE."""
    laptop = Laptop(tmp_path_factory.mktemp("laptop"))
    laptop.login(service)
    laptop.runcode("connect", TITLE, "--start", "--wait")
    laptop.runcode("run", OTHER, "--", "true", expect=None)
    return laptop


@pytest.fixture(scope="module")
def bundle(laptop: Laptop) -> dict[str, object]:
    """What `connect --json` says of the session that is already there."""
    connected: dict[str, object] = laptop.json("connect", TITLE)
    return connected


def ssh(bundle: dict[str, object], *words: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    """The real ssh with the session's own isolated config and nothing else."""
    command = ["ssh", "-F", str(bundle["config"]), *words]
    return subprocess.run(command, capture_output=True, check=False, timeout=60, **options)  # type: ignore[call-overload,no-any-return]


# ------------------------------------------------------------------ commands


@pytest.mark.parametrize("status", [0, 1, 77, 255])
def test_exit_codes_pass_whole(laptop: Laptop, status: int) -> None:
    done = laptop.runcode("exec", "--", f"exit {status}", expect=status)
    assert done.stdout == done.stderr == b""


@pytest.mark.parametrize("name", ["KILL", "TERM", "SEGV"])
def test_death_by_signal_is_128_plus_its_number(laptop: Laptop, name: str) -> None:
    number = int(getattr(signal, f"SIG{name}"))
    laptop.runcode("exec", "--", "sh", "-c", f"kill -{name} $$", expect=128 + number)


def test_the_landing_place(laptop: Laptop) -> None:
    seen = laptop.runcode("exec", "--", 'printf "%s|%s|%s" "$(id -un)" "$PWD" "$HOME"').stdout
    assert seen == b"ubuntu|/home/ubuntu/workspace|/home/ubuntu"
    assert laptop.runcode("exec", "--home", "--", "pwd").stdout == b"/home/ubuntu\n"


def test_argv_arrives_as_it_was_given(laptop: Laptop) -> None:
    words = ["a b", "", "$HOME `id` $(id)", "it's", '"', "\\", "*", "-n", "--", "line\nbreak", "é ✓", ";|&<>"]
    script = "import sys, json; print(json.dumps(sys.argv[1:]))"
    seen = laptop.runcode("exec", "--", "/usr/bin/python3", "-c", script, *words).stdout
    assert json.loads(seen) == words


def test_one_word_is_a_shell_command_line(laptop: Laptop) -> None:
    assert laptop.runcode("exec", "--", "echo a | tr a b && echo 'c  d'").stdout == b"b\nc  d\n"


def test_stdout_and_stderr_stay_apart(laptop: Laptop) -> None:
    done = laptop.runcode("exec", "--", "echo out; echo err >&2; echo out2; echo err2 >&2")
    assert (done.stdout, done.stderr) == (b"out\nout2\n", b"err\nerr2\n")


def test_twenty_megabytes_there_and_back(laptop: Laptop) -> None:
    assert laptop.runcode("exec", "--", "cat", stdin=RANDOM_20_MB).stdout == RANDOM_20_MB


def test_twenty_megabytes_to_readers_that_sleep_first(laptop: Laptop) -> None:
    """The box reads late, then the laptop does: nothing is lost in between."""
    digest = hashlib.sha256(RANDOM_20_MB).hexdigest().encode()
    seen = laptop.runcode("exec", "--", "sleep 1; sha256sum", stdin=RANDOM_20_MB).stdout
    assert seen.split()[0] == digest
    laptop.runcode("exec", "--", "cat > /tmp/random", stdin=RANDOM_20_MB)
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("runcode")), "exec", "--", "cat", "/tmp/random"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=laptop.environment,
        cwd=laptop.project,
    )
    time.sleep(1)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, hashlib.sha256(output).hexdigest().encode()) == (0, digest)


def test_fifty_parallel_execs(laptop: Laptop) -> None:
    def one(number: int) -> tuple[int, bytes]:
        done = laptop.runcode("exec", "--", f"cat; exit {number}", stdin=str(number).encode(), expect=None)
        return done.returncode, done.stdout

    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        assert list(pool.map(one, range(50))) == [(n, str(n).encode()) for n in range(50)]


def test_a_terminal_with_its_size(laptop: Laptop) -> None:
    status, screen = run_in_pty(
        [str(Path(sys.executable).with_name("runcode")), "exec", "--tty", "--", "stty size; test -t 0 && tty"],
        environment={**laptop.environment, "TERM": "xterm"},
        folder=laptop.project,
        rows=41,
        columns=123,
    )
    assert status == 0
    assert b"41 123" in screen
    assert re.search(rb"/dev/pts/\d+", screen)


def test_an_interactive_shell(laptop: Laptop) -> None:
    status, screen = run_in_pty(
        [str(Path(sys.executable).with_name("runcode")), "shell", TITLE],
        environment={**laptop.environment, "TERM": "xterm"},
        folder=laptop.project,
        typed=b"echo in-$((40+2)) $PWD; exit 7\n",
    )
    assert status == 7
    assert b"in-42 /home/ubuntu/workspace" in screen


def test_exec_timeout_ends_the_remote_process_group(laptop: Laptop) -> None:
    laptop.runcode("exec", "--timeout", "1", "--", "sleep 4242 & sleep 4242", expect=124)
    for _ in range(50):
        left = laptop.runcode("exec", "--", "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep 4242 ' || true")
        if left.stdout.strip() in (b"0", b"1"):  # the shell that counts names it once itself
            return
        time.sleep(0.1)
    pytest.fail("sleep went on after --timeout")


def test_a_missing_project_folder_is_an_error_not_home(laptop: Laptop) -> None:
    laptop.runcode("exec", "--home", "--", "mv workspace moved")
    try:
        done = laptop.runcode("exec", "--", "touch here", expect=255)
        assert done.stderr.startswith(b"runcode: not_found: ")
        assert laptop.runcode("exec", "--home", "--", "ls -d here 2>/dev/null; true").stdout == b""
    finally:
        laptop.runcode("exec", "--home", "--", "mv moved workspace")


# ------------------------------------------------------------------ files and forwards


def test_files_arrive_whole_in_both_directions(laptop: Laptop) -> None:
    (laptop.project / "big.bin").write_bytes(RANDOM_20_MB)
    os.chmod(laptop.project / "big.bin", 0o750)
    laptop.runcode("put", "big.bin", "big file.bin")
    assert laptop.runcode("exec", "--", "stat", "-c", "%a %s", "big file.bin").stdout == b"750 20000000\n"
    laptop.runcode("get", "big file.bin", "--out", "back.bin")
    assert (laptop.project / "back.bin").read_bytes() == RANDOM_20_MB
    assert laptop.runcode("get", "big file.bin").stdout == RANDOM_20_MB


def test_sftp_through_the_same_config(bundle: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "up").write_bytes(RANDOM_20_MB[:3_000_000])
    batch = f"put {tmp_path}/up workspace/up\nget workspace/up {tmp_path}/down\nls -l workspace\n"
    done = subprocess.run(
        ["sftp", "-F", str(bundle["config"]), "-b", "-", str(bundle["alias"])],
        input=batch.encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "down").read_bytes() == RANDOM_20_MB[:3_000_000]


def test_a_local_forward_through_the_same_config(laptop: Laptop, bundle: dict[str, object]) -> None:
    laptop.runcode("exec", "--", "mkdir -p web && echo 'from the box' > web/index.html")
    server = "import http.server as h, functools as f, socketserver as s\n"
    server += "s.TCPServer.allow_reuse_address = True\n"
    server += "s.TCPServer(('127.0.0.1', 8123), f.partial(h.SimpleHTTPRequestHandler, directory='web')).serve_forever()"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alias = str(bundle["alias"])
    tunnel = subprocess.Popen(
        ["ssh", "-F", str(bundle["config"]), "-S", "none", "-o", "ExitOnForwardFailure=yes"]
        + ["-L", f"127.0.0.1:{port}:127.0.0.1:8123", alias, f'cd workspace && exec python3 -c "{server}"'],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(100):
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/")
                body = connection.getresponse().read()
                break
            except (OSError, http.client.HTTPException):
                time.sleep(0.05)
        assert body == b"from the box\n"
    finally:
        tunnel.terminate()
        tunnel.wait()


def test_ssh_itself_sees_a_strict_isolated_config(laptop: Laptop, bundle: dict[str, object]) -> None:
    shown = ssh(bundle, "-G", str(bundle["alias"])).stdout.decode()
    settings = dict(line.split(" ", 1) for line in shown.splitlines() if " " in line)
    assert settings["stricthostkeychecking"] in ("true", "yes")
    assert settings["identitiesonly"] == "yes"
    assert settings["batchmode"] == "yes"
    assert settings["user"] == TITLE
    assert settings["globalknownhostsfile"] == "/dev/null"
    assert Path(settings["userknownhostsfile"]).is_relative_to(laptop.home)
    assert "proxycommand" not in settings
    assert not (laptop.home / ".ssh").exists()
    folder = Path(str(bundle["config"])).parent
    assert oct(folder.stat().st_mode)[-3:] == "700"
    assert {oct(file.stat().st_mode)[-3:] for file in folder.iterdir() if file.is_file()} == {"600"}


# ------------------------------------------------------------------ refusals


def _try_ssh(bundle: dict[str, object], user: str, identity: Path) -> tuple[int, bytes]:
    done = ssh(
        bundle,
        *("-S", "none", "-o", "ControlMaster=no", "-o", f"IdentityFile={identity}", "-o", "IdentitiesOnly=yes"),
        *("-o", "UserKnownHostsFile=" + str(Path(str(bundle["config"])).with_name("known_hosts"))),
        *("-o", f"User={user}", str(bundle["alias"]), "true"),
    )
    return done.returncode, done.stderr.replace(user.encode(), b"USER")


def _new_key(folder: Path, name: str) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    return folder / name


def _register(service: Service, workspace_id: int, key: Path, ttl: int) -> None:
    host = service.facts["api_base"].removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=10)
    body = json.dumps(
        {"public_key": key.with_name(key.name + ".pub").read_text().strip(), "ttl": ttl, "client": "test"}
    )
    connection.request(
        "POST",
        f"/api/rc/workspace/{workspace_id}/ssh-session",
        body,
        {"Authorization": f"Token {service.first_facts['token']}", "Content-Type": "application/json"},
    )
    response = connection.getresponse()
    assert response.status == 200, response.read()


def _ssh_without_identity_of_config(bundle: dict[str, object], tmp_path: Path) -> dict[str, object]:
    """The same config with the session's own key taken out, so that only the named key is offered."""
    text = Path(str(bundle["config"])).read_text()
    text = re.sub(r"(?m)^\s*(IdentityFile|Control\w+) .*\n", "", text)
    config = tmp_path / "config"
    config.write_text(text)
    (tmp_path / "known_hosts").write_text(Path(str(bundle["config"])).with_name("known_hosts").read_text())
    return {**bundle, "config": str(config)}


def test_wrong_keys_and_unknown_titles_are_refused_alike(
    service: Service, bundle: dict[str, object], tmp_path: Path
) -> None:
    keyless = _ssh_without_identity_of_config(bundle, tmp_path)
    ids = {row["title"]: row["id"] for row in service.operator_json("workspace", "list")}
    good, expired, stranger = (_new_key(tmp_path, name) for name in ("good", "expired", "stranger"))
    _register(service, ids[TITLE], good, 600)
    _register(service, ids[TITLE], expired, 1)
    assert _try_ssh(keyless, TITLE, good)[0] == 0, "the control: a registered key opens its own workspace"
    time.sleep(1.5)
    refusals = {
        "another workspace's title": _try_ssh(keyless, OTHER, good),
        "an expired key": _try_ssh(keyless, TITLE, expired),
        "an unregistered key": _try_ssh(keyless, TITLE, stranger),
        "an unknown title": _try_ssh(keyless, "no-such-workspace", good),
    }
    assert {status for status, _ in refusals.values()} == {255}, refusals
    assert len({message for _, message in refusals.values()}) == 1, refusals
    assert b"Permission denied (publickey)" in refusals["an unknown title"][1]


def test_a_boxs_own_key_opens_neither_the_gateway_nor_another_box(
    service: Service, laptop: Laptop, bundle: dict[str, object], tmp_path: Path
) -> None:
    """What a box can read of its own sshd: its host key. It must be of no use anywhere."""
    found = laptop.runcode("exec", "--", "grep -rls 'BEGIN OPENSSH PRIVATE KEY' /opt /run /etc 2>/dev/null | head -n 1")
    assert found.stdout.strip(), "sshd runs as the box's user, so the box can read its own host key"
    key = tmp_path / "box_host_key"
    key.write_bytes(laptop.runcode("exec", "--", "cat", found.stdout.decode().strip()).stdout)
    key.chmod(0o600)
    keyless = _ssh_without_identity_of_config(bundle, tmp_path)
    for title in (TITLE, OTHER):
        assert _try_ssh(keyless, title, key)[0] == 255
    # A certificate of the real workspace CA for this box opens this box only.
    ids = {row["title"]: row["id"] for row in service.operator_json("workspace", "list")}
    subject = _new_key(tmp_path, "subject")
    authority = service.data_dir / "keys" / "workspace_ca"
    sign = ["ssh-keygen", "-q", "-s", str(authority), "-I", "t", "-n", f"workspace-{ids[TITLE]}", "-V", "-1m:+5m"]
    subprocess.run([*sign, str(subject) + ".pub"], check=True)
    laptop.runcode("connect", OTHER, "--start", "--wait")
    laptop.runcode("connect", TITLE, "--wait")
    assert _try_box_directly(service, ids[TITLE], subject) == 0, "the control: it opens its own box"
    assert _try_box_directly(service, ids[OTHER], subject) == 255
    # And the client CA, which the gateway side will use, is no workspace's business.
    client_authority = service.data_dir / "keys" / "client_ca"
    other_subject = _new_key(tmp_path, "other_subject")
    sign[3] = str(client_authority)
    subprocess.run([*sign, str(other_subject) + ".pub"], check=True)
    assert _try_box_directly(service, ids[TITLE], other_subject) == 255


def _try_box_directly(service: Service, workspace_id: int, key: Path) -> int:
    """From the host, past the gateway, straight to the box's socket."""
    rows = {row["id"]: row for row in service.operator_json("workspace", "list")}
    pump = Path(__file__).resolve().parents[1] / "support" / "socket_pump.py"
    proxy = f"{sys.executable} {pump} {rows[workspace_id]['endpoint']}"
    command = ["ssh", "-F", "/dev/null", "-i", str(key), "-o", "IdentitiesOnly=yes", "-o", f"ProxyCommand={proxy}"]
    command += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes"]
    return subprocess.run([*command, "ubuntu@box", "true"], capture_output=True, timeout=30, check=False).returncode


# ------------------------------------------------------------------ nothing is faked


def test_the_box_is_a_box(service: Service, laptop: Laptop) -> None:
    inside = laptop.runcode("exec", "--", "cat /proc/self/uid_map").stdout.split()
    assert inside != Path("/proc/self/uid_map").read_bytes().split()
    assert inside[0] == b"1000"
    if os.geteuid() == 0:
        assert inside[1] != b"0"
    marker = "sleep 31415"
    holder = subprocess.Popen(
        [str(Path(sys.executable).with_name("runcode")), "exec", "--", marker],
        stdin=subprocess.DEVNULL,
        env=laptop.environment,
        cwd=laptop.project,
    )
    try:
        for _ in range(100):
            outside = [p for p in processes_mentioning(marker) if Path(f"/proc/{p}/comm").read_text() == "sleep\n"]
            if outside:
                break
            time.sleep(0.05)
        # The host's own view of the box's process: which host user it really is.
        mapping = Path(f"/proc/{outside[0]}/uid_map").read_text().split()
        assert mapping[0] == "1000"
        assert mapping[2] == "1"
        status = Path(f"/proc/{outside[0]}/status").read_text()
        uids = re.findall(r"^Uid:\s+(.*)$", status, re.M)[0].split()
        assert set(uids) == {uids[0]}
        assert uids[0] == mapping[1]
        assert uids[0] != "0"
        assert uids[0] == str(os.geteuid()) or os.geteuid() == 0
    finally:
        holder.terminate()
        holder.wait()


def test_the_host_is_out_of_reach(laptop: Laptop) -> None:
    probe = """
    for file in /etc/shadow /proc/sys/kernel/hostname /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/kcore; do
        cat "$file" >/dev/null 2>&1 && echo "read $file"
        (echo x > "$file") 2>/dev/null && echo "wrote $file"
    done
    find /proc/sys -type f 2>/dev/null | head -n 3
    test -e /etc/shadow && echo shadow
    true
    """
    assert laptop.runcode("exec", "--", probe).stdout == b""


def test_without_the_gateway_nothing_works(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The box goes on living when the server is killed; only the way in is gone."""
    with running_service(tmp_path_factory.mktemp("killed")) as service:
        service.operator("workspace", "create", "lonely")
        laptop = Laptop(tmp_path_factory.mktemp("lonely-laptop"))
        laptop.login(service)
        laptop.runcode("connect", "lonely", "--start", "--wait")
        laptop.runcode("exec", "--", "true")
        service.kill()
        try:
            done = laptop.runcode("exec", "--", "echo reached", expect=255)
            assert done.stdout == b""
            assert done.stderr.startswith(b"runcode: ")
        finally:
            service.start()
        laptop.runcode("exec", "--", "true", expect=None)


def test_storage_survives_a_stop_and_no_process_does(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with running_service(tmp_path_factory.mktemp("stopping")) as service:
        service.operator("workspace", "create", "keeps-things")
        laptop = Laptop(tmp_path_factory.mktemp("stopping-laptop"))
        laptop.login(service)
        laptop.runcode("connect", "keeps-things", "--start", "--wait")
        laptop.runcode("exec", "--", "echo kept > file; (setsid sleep 27182 </dev/null >/dev/null 2>&1 &)")
        assert processes_mentioning("sleep 27182")
        stopped = laptop.json("stop")
        assert stopped["stopped"] is True
        assert stopped["detached"] is True
        for _ in range(100):
            row = service.operator_json("workspace", "list")[0]
            if row["state"] == "stopped":
                break
            time.sleep(0.05)
        assert row["state"] == "stopped"
        assert processes_mentioning("sleep 27182") == []
        assert processes_mentioning(str(service.data_dir / "runtimes")) == []
        laptop.runcode("connect", "keeps-things", "--start", "--wait")
        assert laptop.runcode("exec", "--", "cat file").stdout == b"kept\n"


def test_sigterm_ends_everything_cleanly(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running_service(tmp_path_factory.mktemp("ending")) as service:
        service.operator("workspace", "create", "short-lived")
        laptop = Laptop(tmp_path_factory.mktemp("ending-laptop"))
        laptop.login(service)
        laptop.runcode("connect", "short-lived", "--start", "--wait")
        assert service.stop() == 0
        assert processes_mentioning(str(service.data_dir)) == []


def test_an_exec_in_flight_when_the_server_dies_is_never_run_again(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with running_service(tmp_path_factory.mktemp("dying")) as service:
        service.operator("workspace", "create", "counted")
        laptop = Laptop(tmp_path_factory.mktemp("dying-laptop"))
        laptop.login(service)
        laptop.runcode("connect", "counted", "--start", "--wait")
        result: list[subprocess.CompletedProcess[bytes]] = []
        caller = threading.Thread(
            target=lambda: result.append(laptop.runcode("exec", "--", "echo ran >> count; sleep 30", expect=None))
        )
        caller.start()
        deadline = time.monotonic() + 20
        home = service.data_dir / "runtimes"
        while not list(home.rglob("workspace/count")) and time.monotonic() < deadline:
            time.sleep(0.05)
        service.kill()
        caller.join(timeout=60)
        assert result[0].returncode == 255
        assert b"runcode: connection_lost: " in result[0].stderr
        assert next(iter(home.rglob("workspace/count"))).read_text() == "ran\n"
        service.start()
