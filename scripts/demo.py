"""`make demo`: an agent-like session on a remote workspace, through our own service, on this machine.

Every step runs the real commands that a person or an agent would type, shows
them, what came back and how long it took. Everything it makes stands in `.demo/`
of this clone; the person's own RunCode login and `~/.ssh` stay untouched.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import demo_project
from demo_project import REPOSITORY, Counts, read_report

# Where everything of the demo stands; tests give it a folder of their own.
DEMO = Path(os.environ.get("RUNCODE_DEMO_FOLDER") or REPOSITORY / ".demo")
BIN = REPOSITORY / ".venv" / "bin"
RUNTIME = os.environ.get("RUNTIME", "local")
TITLE = "demo-box"
SERVER_START_S = 60


class StepFailed(Exception):
    """A step did not do what the story says; the message says which."""


class Screen:
    """What the person sees: numbered steps, commands, output, durations. Colour on a terminal only."""

    def __init__(self) -> None:
        self.colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self.step_number = 0
        self.started = time.monotonic()

    def _paint(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.colour else text

    def step(self, title: str) -> None:
        self.step_number += 1
        print(f"\n{self._paint('1', f'{self.step_number}. {title}')}", flush=True)

    def command(self, words: list[str]) -> None:
        shown = [Path(words[0]).name, *words[1:]]
        print(f"   {self._paint('36', '$ ' + shlex.join(shown))}", flush=True)

    def output(self, text: str, *, last: int = 12) -> None:
        lines = text.rstrip("\n").split("\n") if text.strip() else []
        if len(lines) > last:
            print(self._paint("2", f"   │ … {len(lines) - last} lines above"))
        for line in lines[-last:]:
            print(f"   {self._paint('2', '│')} {line}")

    def done(self, status: int, seconds: float) -> None:
        print(self._paint("2", f"   └ exit {status}, {seconds:.2f} s"), flush=True)

    def say(self, text: str) -> None:
        print(f"   {text}", flush=True)


class Demo:
    def __init__(self) -> None:
        self.screen = Screen()
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("RUNCODE_")},
            "XDG_CONFIG_HOME": str(DEMO / "config"),
            "XDG_CACHE_HOME": str(DEMO / "cache"),
            "RUNCODE_CLIENT": "demo",
        }
        # An agent's session would own the attachment; here the folder does.
        for name in ("CLAUDE_CODE_SESSION_ID", "CODEX_THREAD_ID", "CODEX_SESSION_ID"):
            self.environment.pop(name, None)
        self.project_folder = DEMO / "project"
        self.server: subprocess.Popen[bytes] | None = None

    # ------------------------------------------------------------ running things
    def run(self, *words: str, expect: int = 0, stdin: str = "", show: int = 12, secret: bool = False) -> str:
        """Run one command of `.venv/bin`, show it and its output; any other exit status ends the demo."""
        command = [str(BIN / words[0]), *words[1:]]
        self.screen.command(command)
        began = time.monotonic()
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=self.project_folder,
            check=False,
        )
        self.screen.output("(a token, not shown)" if secret else done.stdout, last=show)
        self.screen.output(done.stderr, last=show)
        self.screen.done(done.returncode, time.monotonic() - began)
        if done.returncode != expect:
            raise StepFailed(f"`{shlex.join(words)}` exited {done.returncode}, expected {expect}")
        return done.stdout

    def run_suite(self, *, expect: int) -> Counts:
        """The project's own tests, on the box; copies the report back and reads it."""
        self.run("runcode", "exec", "--", demo_project.SUITE, expect=expect, show=4)
        self.run("runcode", "get", "report.xml", "--out", "report.xml")
        counts = read_report(self.project_folder / "report.xml")
        self.screen.say(f"→ {counts.tests} tests, {counts.failures + counts.errors} failed, on the box")
        return counts

    # ------------------------------------------------------------ the server
    def start_server(self) -> dict[str, object]:
        ready = DEMO / "ready.json"
        ready.unlink(missing_ok=True)
        command = [str(BIN / "runcode-server"), "up", "--data-dir", str(DEMO / "data")]
        command += ["--http", "127.0.0.1:0", "--ssh", "127.0.0.1:0", "--ready-file", str(ready)]
        self.screen.command(command)
        began = time.monotonic()
        with (DEMO / "server.log").open("wb") as log:
            self.server = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        while not ready.exists():
            if self.server.poll() is not None:
                raise StepFailed(f"the server exited {self.server.returncode} before it was ready")
            if time.monotonic() - began > SERVER_START_S:
                raise StepFailed(f"the server was not ready after {SERVER_START_S} s")
            time.sleep(0.02)
        facts: dict[str, object] = json.loads(ready.read_text())
        self.screen.output(
            f"control plane  {facts['api_base']}\nSSH gateway    {facts['ssh_host']}:{facts['ssh_port']}"
        )
        self.screen.say(f"ready after {time.monotonic() - began:.2f} s")
        return facts

    def stop_server(self) -> None:
        if self.server is None or self.server.poll() is not None:
            return
        self.server.send_signal(signal.SIGTERM)
        try:
            self.server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.wait()

    # ------------------------------------------------------------ the story
    def play(self) -> None:
        project = demo_project.load_project()
        # The data folder stays: a server of an earlier, interrupted demo may have left its box to adopt.
        for folder in ("config", "cache", "project"):
            shutil.rmtree(DEMO / folder, ignore_errors=True)
        self.project_folder.mkdir(parents=True)

        self.screen.step("Host the service: control plane, SSH gateway and a local runtime, one command")
        facts = self.start_server()

        self.screen.step("Sign the CLI in (an agent never sees a key or a password)")
        data = str(DEMO / "data")
        token = facts.get("token") or self.run(
            "runcode-server", "token", "create", "demo", "--data-dir", data, secret=True
        )
        api = str(facts["api_base"])
        self.run(
            "runcode", "login", "--paste", "--api-base", api, "--web-base", str(facts["web_base"]), stdin=str(token)
        )

        self.screen.step("Create a workspace, as its operator")
        if TITLE in self.run("runcode-server", "workspace", "list", "--data-dir", data):
            self.run("runcode-server", "workspace", "delete", TITLE, "--data-dir", data)
        self.run("runcode-server", "workspace", "create", TITLE, "--data-dir", data, "--runtime", RUNTIME)
        self.run("runcode", "list")

        self.screen.step("Attach: boots the box, mints a short-lived session, pins the gateway's host key")
        self.run("runcode", "connect", TITLE, "--start", "--wait")
        self.run("runcode", "exec", "--", "id -un; hostname; pwd; uname -sr; cat /proc/self/uid_map")

        self.screen.step("Put a real project on the box: click 8.1.8, its tests and what they need")
        self.run("runcode", "put", str(project.sdist), project.sdist.name)
        self.run("runcode", "put", str(project.wheelhouse), project.wheelhouse.name)
        for words in demo_project.prepare_commands():
            self.run("runcode", "exec", "--", *words)

        self.screen.step("Run its real test suite, there")
        whole = self.run_suite(expect=0)

        self.screen.step("Break one line: the suite must fail, with the suite's own exit code")
        edited = f"{demo_project.FOLDER}/{demo_project.EDITED_FILE}"
        self.run("runcode", "get", edited, "--out", "utils.py")
        file = self.project_folder / "utils.py"
        good = file.read_text()
        if good.count(demo_project.GOOD_LINE) != 1:
            raise StepFailed("the line to break is not where it was")
        file.write_text(good.replace(demo_project.GOOD_LINE, demo_project.BROKEN_LINE))
        self.run("runcode", "put", "utils.py", edited)
        broken = self.run_suite(expect=1)
        if broken.failures == 0 or broken.tests != whole.tests:
            raise StepFailed("the broken suite did not fail as it should")

        self.screen.step("Repair it: the suite passes again, and its report is here")
        file.write_text(good)
        self.run("runcode", "put", "utils.py", edited)
        repaired = self.run_suite(expect=0)
        if repaired != whole:
            raise StepFailed("the repaired suite did not run as before")

        if sys.stdin.isatty() and sys.stdout.isatty():
            self.leave_running()
        self.screen.step("Stop the box (its storage stays) and the service")
        self.run("runcode", "stop")
        self.stop_server()
        if self.server is None or self.server.returncode != 0:
            raise StepFailed("the server did not stop cleanly")
        self.screen.say("stopped")
        seconds = time.monotonic() - self.screen.started
        print(f"\nThe whole story took {seconds:.1f} s: {whole.tests} tests ran on the box, three times.")

    def leave_running(self) -> None:
        """On a terminal: the person's turn, until Ctrl-C."""
        self.screen.step("Your turn: the server keeps running until you press Ctrl-C here")
        folder = shlex.quote(str(self.project_folder))
        config, cache = shlex.quote(str(DEMO / "config")), shlex.quote(str(DEMO / "cache"))
        runcode = shlex.quote(str(BIN / "runcode"))
        self.screen.say("In another terminal:")
        self.screen.say(f"    cd {folder} && export XDG_CONFIG_HOME={config} XDG_CACHE_HOME={cache}")
        self.screen.say(f"    {runcode} exec -- ls -la        # a command, as if it were local")
        self.screen.say(f"    {runcode} shell {TITLE}         # a terminal on the box")
        self.screen.say(f"    {runcode} status                # how long the session lasts")
        try:
            while self.server is not None and self.server.poll() is None:
                time.sleep(0.2)
        except KeyboardInterrupt:
            print()


def main() -> int:
    DEMO.mkdir(mode=0o700, exist_ok=True)
    lock = (DEMO / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("demo: another `make demo` of this clone is running; stop that one first (Ctrl-C there)", file=sys.stderr)
        return 1
    demo = Demo()
    try:
        demo.play()
    except StepFailed as failure:
        print(f"\ndemo: {failure}", file=sys.stderr)
        print(f"demo: the server's log is {DEMO / 'server.log'}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted", file=sys.stderr)
        return 130
    finally:
        demo.stop_server()
    return 0


if __name__ == "__main__":
    sys.exit(main())
