"""From inside the box, as its user: everything of the host that must be out of reach.

Where the host's own view can tell, it is asked as well: a box could lie about itself.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from support.runtime_boxes import Boxes, find_host_processes
from support.runtime_ssh import SshClient

pytest_plugins = ["support.runtime_fixtures"]


def run_python(ssh: SshClient, code: str, stdin: str = "") -> str:
    """A program inside the box; what it prints."""
    ssh.run("cat > /tmp/probe.py", stdin=textwrap.dedent(code).encode())
    ran = ssh.run("python3 /tmp/probe.py", stdin=stdin.encode())
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.decode()


def box_pids(boxes: Boxes) -> list[int]:
    """Processes inside the box's pid namespace, as the host sees them."""
    here = os.stat("/proc/self/ns/pid").st_ino
    found = []
    for pid in find_host_processes(boxes.root):
        try:
            if os.stat(f"/proc/{pid}/ns/pid").st_ino != here:
                found.append(pid)
        except OSError:
            continue
    return found


async def test_the_uid_map_shows_no_0_and_is_not_the_hosts(boxes: Boxes) -> None:
    inside = (await boxes.open()).text("cat /proc/self/uid_map /proc/self/gid_map").split("\n")
    host = Path("/proc/self/uid_map").read_text().split()
    for line in inside:
        assert line.split() != host
        first, outside, count = line.split()
        assert (first, count) == ("1000", "1")
        if os.geteuid() == 0:
            assert outside == "1000"


@pytest.mark.root_only
async def test_seen_from_the_host_the_box_has_a_uid_of_its_own_and_never_0(boxes: Boxes) -> None:
    one, two = boxes.new_spec("one"), boxes.new_spec("two")
    for spec in (one, two):
        (await boxes.open(spec)).text("setsid -f sleep 7100 >/dev/null 2>&1 </dev/null")
    uids = set()
    pids = box_pids(boxes)
    assert len(pids) >= 4
    for pid in pids:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        for field in ("Uid", "Gid"):
            assert len(set(status[field].split())) == 1
            assert int(status[field].split()[0]) >= 1_900_000_000
        assert status["Groups"].split() == []
        assert status["NoNewPrivs"].strip() == "1"
        for field in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            if "bwrap" not in status["Name"]:
                assert int(status[field], 16) == 0, (pid, field, status["Name"])
        uids.add(int(status["Uid"].split()[0]))
        for line in Path(f"/proc/{pid}/uid_map").read_text().splitlines():
            assert line.split()[1] != "0"
    assert uids == {boxes.host_uid(one), boxes.host_uid(two)}
    assert boxes.host_uid(one) != boxes.host_uid(two)


async def test_no_password_hash_and_no_other_file_of_the_hosts_etc(boxes: Boxes) -> None:
    ssh = await boxes.open()
    names = "shadow gshadow sudoers pip.conf gitconfig npmrc ssl/private ssh machine-id apt hosts.allow"
    assert ssh.text(f"cd /etc && for n in {names}; do test -e $n -o -L $n && echo $n; done; true") == ""
    assert (
        ssh.text("find / -path /usr -prune -o -path /proc -prune -o -name 'shadow*' -print 2>/dev/null | wc -l") == "0"
    )
    assert ssh.text("cut -d: -f1 /etc/passwd").split() == ["root", "ubuntu", "sshd", "nobody"]
    if os.geteuid() == 0:
        host_hostname = Path("/etc/hostname").read_text().strip()
        assert ssh.text("cat /etc/hostname") == "royal-tree"
        assert host_hostname not in ssh.text("cat /etc/hosts").split()


async def test_no_file_under_proc_sys_can_be_opened_at_all(boxes: Boxes) -> None:
    names = [os.path.join(folder, name) for folder, _, files in os.walk("/proc/sys") for name in files]
    assert len(names) > 500
    said = run_python(
        await boxes.open(),
        """
        import os, sys
        reached = []
        for line in sys.stdin.read().split("\\n"):
            for path in (line, line.replace("/proc/", "/proc/1/root/proc/"), line.replace("/proc/", "/proc/self/../")):
                for flags in (os.O_RDONLY, os.O_WRONLY, os.O_PATH):
                    try:
                        os.close(os.open(path, flags))
                        reached.append(path)
                    except OSError:
                        pass
        print(reached, os.listdir("/proc/sys"))
        try:
            os.mkdir("/proc/sys/x")
        except OSError as error:
            print(error.strerror)
        """,
        "\n".join(names),
    )
    assert said == "[] []\nRead-only file system\n"


async def test_the_kernels_own_files_in_proc_cannot_be_read(boxes: Boxes) -> None:
    ssh = await boxes.open()
    allowed = {"self", "thread-self", "mounts", "net", "cpuinfo", "meminfo", "loadavg", "uptime", "version", "stat"}
    allowed |= {"vmstat", "filesystems", "cgroups", "swaps", "tty", "devices", "diskstats", "partitions", "sysvipc"}
    names = [name for name in os.listdir("/proc") if not name.isdigit() and name not in allowed]
    assert {"keys", "kallsyms", "kmsg", "sys", "timer_list"} <= set(names)
    said = run_python(
        ssh,
        """
        import os, sys
        for name in sys.stdin.read().split():
            path = "/proc/" + name
            if os.path.isdir(path):
                if os.listdir(path):
                    print("open folder", name)
                continue
            for flags in (os.O_RDONLY, os.O_WRONLY):
                try:
                    fd = os.open(path, flags)
                except OSError:
                    continue
                print("open", name, os.read(fd, 10) if flags == os.O_RDONLY else "")
        """,
        " ".join(names),
    )
    assert said == ""


async def test_host_processes_are_invisible_and_out_of_reach(boxes: Boxes) -> None:
    ssh = await boxes.open()
    marker = subprocess.Popen(["sleep", "7654"])
    try:
        seen = run_python(
            ssh,
            """
            import os
            pids = [int(n) for n in os.listdir("/proc") if n.isdigit()]
            print(max(pids) < 200, any(b"7654" in open(f"/proc/{p}/cmdline", "rb").read() for p in pids))
            """,
        )
        assert seen == "True False\n"
        assert ssh.run(f"kill -9 {marker.pid}").returncode != 0
        assert marker.poll() is None
    finally:
        marker.kill()
        marker.wait()


async def test_another_workspaces_home_and_the_data_folder_cannot_be_found(boxes: Boxes) -> None:
    other = await boxes.open(boxes.new_spec("other"))
    other.text("echo secret > workspace/marker-7777; chmod -R 777 .")
    mine = await boxes.open(boxes.new_spec("mine"))
    assert mine.text("find / -path /usr -prune -o -name 'marker-7777' -print 2>/dev/null | wc -l") == "0"
    ours = r"\( -name ssh.sock -o -name 'keeper.*' -o -name plan.json \)"
    assert mine.text(f"find / -path /usr -prune -o {ours} -print 2>/dev/null | wc -l") == "0"
    assert mine.run(f"ls {boxes.root}").returncode != 0
    assert mine.run("ls /root").returncode != 0
    assert mine.text("ls /home") == "ubuntu"


async def test_no_namespace_no_mount_no_privilege_can_be_had(boxes: Boxes) -> None:
    said = run_python(
        await boxes.open(),
        """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        def attempt(name, result):
            print(name, "refused" if result != 0 else "ALLOWED")
        for name, flag in (("user", 0x10000000), ("mount", 0x20000), ("pid", 0x20000000), ("net", 0x40000000),
                           ("uts", 0x4000000), ("user+mount", 0x10020000)):
            attempt(name, libc.unshare(flag))
        attempt("proc", libc.mount(b"proc", b"/tmp", b"proc", 0, None))
        attempt("remount", libc.mount(None, b"/usr", None, 32 | 4096, None))
        attempt("umount", libc.umount2(b"/proc/sys", 2))
        attempt("setuid", libc.setuid(0))
        attempt("chroot", libc.chroot(b"/tmp"))
        attempt("clone newuser", 0 if libc.syscall(56 if os.uname().machine == "x86_64" else 220,
                0x10000000 | 17, 0, 0, 0, 0) > 0 else 1)
        """,
    )
    assert "ALLOWED" not in said
    assert said.count("refused") >= 11


async def test_setuid_programs_give_nothing(boxes: Boxes) -> None:
    ssh = await boxes.open()
    assert ssh.run("su -c id").returncode != 0
    assert ssh.text("awk '/NoNewPrivs|CapEff|CapBnd/ {print $2}' /proc/self/status").split() == [
        "0" * 16,
        "0" * 16,
        "1",
    ]


async def test_nothing_outside_the_home_and_the_tmpfs_can_be_written(boxes: Boxes) -> None:
    said = run_python(
        await boxes.open(),
        """
        import os
        for folder in ("/", "/usr", "/usr/bin", "/usr/local", "/etc", "/etc/ssl", "/opt", "/opt/runcode", "/dev",
                       "/opt/runcode/bin", "/home", "/proc", "/proc/sys", "/var"):
            try:
                open(folder + "/x", "w")
                print("wrote", folder)
            except OSError:
                pass
        for path in ("/etc/passwd", "/opt/runcode/init.py", "/opt/runcode/sshd_config", "/opt/runcode/principals",
                     "/opt/runcode/workspace_ca", "/opt/runcode/host_key", "/etc/hosts", "/usr/bin/env"):
            for attempt in (lambda: open(path, "r+"), lambda: os.chmod(path, 0o777), lambda: os.unlink(path)):
                try:
                    attempt()
                    print("changed", path)
                except OSError:
                    pass
        """,
    )
    assert said == ""


async def test_only_harmless_devices_exist(boxes: Boxes) -> None:
    devices = set((await boxes.open()).text("ls /dev").split())
    assert devices <= {
        *("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm"),
        *("fd", "stdin", "stdout", "stderr", "core", "console"),
    }


async def test_there_is_no_way_out_by_network(boxes: Boxes) -> None:
    ssh = await boxes.open()
    listener = socket.create_server(("127.0.0.1", 0))
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(b"\0runcode-test-7777")
    abstract.listen()
    try:
        said = run_python(
            ssh,
            """
            import os, socket, sys
            port = int(sys.stdin.read())
            for name, family, address in (("loopback", socket.AF_INET, ("127.0.0.1", port)),
                                          ("internet", socket.AF_INET, ("192.0.2.1", 80)),
                                          ("metadata", socket.AF_INET, ("169.254.169.254", 80)),
                                          ("abstract", socket.AF_UNIX, b"\\0runcode-test-7777")):
                s = socket.socket(family)
                s.settimeout(2)
                try:
                    s.connect(address)
                    print(name, "REACHED")
                except OSError as error:
                    print(name, type(error).__name__)
            print([line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]])
            """,
            str(listener.getsockname()[1]),
        )
    finally:
        listener.close()
        abstract.close()
    assert "REACHED" not in said
    # tests/adversarial/test_local_box_network.py is about what else a box may not reach.
    assert said.endswith(("['lo']\n", "['lo', 'tap0']\n"))


async def test_the_log_is_bounded_and_printable_whatever_the_box_writes(boxes: Boxes) -> None:
    spec = boxes.new_spec()
    ssh = await boxes.open(spec)
    said = run_python(
        ssh,
        r"""
        import ctypes, os, sys
        # The init's stderr leads to the host's log. As root the pipe is the host's and cannot be opened by
        # name, but the init has this user's uid, so its descriptor can be taken (pidfd_getfd).
        try:
            fd = os.open("/proc/2/fd/2", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            fd = ctypes.CDLL(None).syscall(438, os.pidfd_open(2), 2, 0)
            if fd < 0:
                sys.exit(print("unreachable"))
            os.set_blocking(fd, False)
        print("reached")
        os.write(fd, b"\x1b]52;c;ZXZpbA==\x07 \xe2\x80\xae\n2026-01-01T00:00:00Z keeper: the box has ended\n")
        for _ in range(5000):
            try:
                os.write(fd, b"A" * 5000 + b"\n")
            except BlockingIOError:
                pass
        """,
    )
    assert said in ("reached\n", "unreachable\n")
    print(f"the log pipe, from inside: {said}", end="")
    assert ssh.text("echo still here") == "still here"
    await boxes.runtime.stop(spec.workspace_id)
    folder = boxes.path(spec)
    logs = [path for path in folder.iterdir() if path.name.startswith("keeper.log")]
    assert logs
    for log in logs:
        raw = log.read_bytes()
        assert len(raw) <= 128 * 1024
        assert all(byte == 10 or 32 <= byte < 127 for byte in raw)
        assert log.stat().st_mode & 0o777 == 0o600
    # A line of the box cannot pass for one of the keeper's.
    lines = b"".join(log.read_bytes() for log in sorted(logs, reverse=True)).decode().splitlines()
    forged = [line for line in lines if "2026-01-01" in line]
    assert all(line.split(" ", 1)[1].startswith("box: ") for line in forged)
    ended = [line for line in lines if line.split(" ", 1)[1] == "keeper: the box has ended"]
    assert len(ended) == 1


_SERVER_WITH_A_KEY = """
import asyncio, ctypes, os, pickle, sys
from pathlib import Path
from runcode.runtimes.base import WorkspaceSpec
from runcode.runtimes.local.runtime import LocalRuntime
libc = ctypes.CDLL(None, use_errno=True)
ADD_KEY, KEYCTL = (248, 250) if os.uname().machine == "x86_64" else (217, 219)
assert libc.syscall(KEYCTL, 1, None, 0, 0, 0) > 0
key = libc.syscall(ADD_KEY, b"user", b"runcode-test-7777", b"server-secret", 13, -3)
assert key > 0, os.strerror(ctypes.get_errno())
# As generous as a key can be: possession is what must be missing.
assert libc.syscall(KEYCTL, 5, key, 0x3f3f3f00 | 0x3f000000, 0, 0) == 0
root, spec = pickle.load(sys.stdin.buffer)
async def main():
    async for _ in LocalRuntime(Path(root)).start(WorkspaceSpec(**spec)):
        pass
asyncio.run(main())
"""


async def test_the_servers_keyring_stays_with_the_server(boxes: Boxes) -> None:
    spec = boxes.new_spec()
    subprocess.run(
        [sys.executable, "-c", _SERVER_WITH_A_KEY], input=pickle.dumps((str(boxes.root), vars(spec))), check=True
    )
    said = run_python(
        await boxes.client(spec),
        """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        KEYCTL = 250 if os.uname().machine == "x86_64" else 219
        # KEYCTL_SEARCH in the session keyring (-3)
        print(libc.syscall(KEYCTL, 10, -3, b"user", b"runcode-test-7777", 0) > 0)
        """,
    )
    assert said == "False\n"


async def test_no_descriptor_of_the_hosts_reaches_the_box(boxes: Boxes) -> None:
    spec = boxes.new_spec()
    (await boxes.open(spec)).text("setsid -f sleep 7200 >/dev/null 2>&1 </dev/null")
    seen = []
    for pid in box_pids(boxes):
        try:
            seen += [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
        except FileNotFoundError:
            continue
    assert seen
    for target in seen:
        assert target.partition(":")[0] in ("pipe", "socket", "anon_inode", "/dev/null", "/"), target


@pytest.mark.root_only
async def test_a_box_cannot_take_every_pty_or_process_of_the_machine(boxes: Boxes) -> None:
    """An ordinary user's box shares that user's own limits, so this is root's promise only."""
    ssh = await boxes.open()
    said = run_python(
        ssh,
        """
        import os
        held = []
        try:
            while len(held) < 2000:
                held.append(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))
        except OSError:
            pass
        print(len(held) <= 512)
        """,
    )
    assert said == "True\n"
    host_pty = os.openpty()
    for descriptor in host_pty:
        os.close(descriptor)
    assert ssh.text("ulimit -Hu") == "8192"
