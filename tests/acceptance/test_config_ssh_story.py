"""`config-ssh` against the real service: the real gateway, a real box, and tools that know nothing of RunCode."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from support.service import Laptop, running_service

BOX = "my-box"


def test_tools_reach_a_real_box_and_lose_it_when_it_stops(tmp_path: Path) -> None:
    with running_service(tmp_path / "service") as service:
        service.operator("workspace", "create", BOX)
        laptop = Laptop(tmp_path / "laptop")
        laptop.login(service)
        laptop.runcode("config-ssh")
        config = str(laptop.home / ".ssh" / "config")
        environment = {**laptop.environment, "GIT_SSH_COMMAND": f"ssh -F {config}", "RSYNC_RSH": f"ssh -F {config}"}

        def run(*words: str, expect: int = 0) -> subprocess.CompletedProcess[bytes]:
            done = subprocess.run(
                words, env=environment, capture_output=True, timeout=120, check=False, stdin=subprocess.DEVNULL
            )
            assert done.returncode == expect, (words, done.returncode, done.stdout[-500:], done.stderr[-2000:])
            return done

        ssh = ("ssh", "-F", config, f"runcode.{BOX}")
        # Not started yet: one line, and the very command to type.
        refused = run(*ssh, "true", expect=255)
        assert b"runcode: conflict: " in refused.stderr
        assert b"--start" in refused.stderr
        laptop.runcode("connect", BOX, "--start", "--wait")
        assert run(*ssh, "whoami; exit 0").stdout == b"ubuntu\n"
        run(*ssh, "exit 7", expect=7)
        blob = os.urandom(2_000_000)
        (tmp_path / "blob").write_bytes(blob)
        for flag in ("-O", "-s"):
            run("scp", flag, "-F", config, str(tmp_path / "blob"), f"runcode.{BOX}:workspace/b{flag}")
            run("scp", flag, "-F", config, f"runcode.{BOX}:workspace/b{flag}", str(tmp_path / f"back{flag}"))
            assert (tmp_path / f"back{flag}").read_bytes() == blob
        run(*ssh, "git init -q --bare workspace/repo.git")
        run("git", "clone", "-q", f"runcode.{BOX}:workspace/repo.git", str(tmp_path / "clone"))
        running = [subprocess.Popen([*ssh, f"echo {n}"], env=environment, stdout=-1, stderr=-1) for n in range(20)]
        assert [one.communicate(timeout=120)[0] for one in running] == [b"%d\n" % n for n in range(20)]
        # Stopped behind our back, as from a console: the gateway itself says what to type.
        service.operator("workspace", "stop", BOX)
        told = run(*ssh, "true", expect=255).stderr
        assert f"type `runcode connect {BOX} --start`".encode() in told, told
        laptop.runcode("config-ssh", "--remove")
        assert Path(config).read_bytes() == b""
        laptop.runcode("clean", "--all")
