"""The real Claude Code and the real Codex, offline, on a laptop of their own, against a scripted model.

`scripts/setup_agent_clients.sh` installs them (`make agent-clients`); a machine that
cannot have them lists these tests as NOT RUN (tests/conftest.py). An AgentLaptop is an
empty HOME that is signed in nowhere, with a copy of `plugin/`; nothing of the person who
runs the tests is read. Below the system's temp folder Codex refuses to work, so these
homes stand in `.cache/agent-homes` and go when the test ends.

A story, in either client:

    def test_something(agent_laptop, service):           # fixtures: support.agent_fixtures
        agent_laptop.login(service)                       # the person's own `runcode login`
        script = [Call("Bash", command="runcode list --json")]
        with FakeModel(script) as model:
            run = agent_laptop.claude(model, "hello", allow=["Bash(runcode:*)"])
        assert model.results[0].text ...                  # what the model was told
        assert run.shell_lines == [...]                   # every line that a shell ran on the laptop

    Codex:  [Call("exec_command", cmd="…")] and agent_laptop.codex(model, "hello")

- Permission rules: `allow=`, `ask=`, `deny=` are the person's own settings.json, in
  Claude Code's words; any other setting goes into `settings=`. Without an allow rule
  `claude -p` refuses a tool, which the model sees as an error result.
- A subagent: Call("Agent", description="…", prompt="MARK …", subagent_type="general-purpose")
  and FakeModel(..., others={"MARK": [...]}); read it with `model.conversation("MARK")`.
  In Codex: Call("tool_search", query="spawn agent"), then Call("spawn_agent",
  namespace="multi_agent_v1", message="MARK …"). Both run beside the main conversation: give
  that one a step that takes a moment, or it may end first.
- A tool that Claude Code defers (Monitor, WebFetch, …): Call("ToolSearch",
  query="select:Monitor", max_results=1) first.
- A hook of one's own making: overwrite `agent_laptop.program` (tests/agents/test_hooks_wiring.py).
- A second turn of the same session: `resume=run.session_id`. A second session: run again.
- What ran here: `run.executions` is the kernel's list of every program that the client
  and all its descendants started (strace). A command on the workspace is never in it: its
  parent is the box's keeper. `run.shell_lines` are the texts given to shells among them.
- What changed here: `with watch_files(agent_laptop.project) as changes:` (support.file_watch).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runcode.cli.main import COMMANDS
from support.executions import Execution, read_executions
from support.fake_model import FakeModel
from support.service import BARE_PATH, RUNCODE, Laptop

ROOT = Path(__file__).resolve().parents[2]
SETUP = ROOT / "scripts" / "setup_agent_clients.sh"
CLIENTS = ROOT / ".cache" / "agent-clients"
# As it really is: a link to it may stand below the system's temp folder.
HOMES = (ROOT / ".cache" / "agent-homes").resolve()
VERSIONS = dict(re.findall(r"^(claude|codex|claude_before)=([0-9.]+)$", SETUP.read_text(), re.MULTILINE))
PROGRAMS = {
    "claude": CLIENTS / "now" / "node_modules" / ".bin" / "claude",
    "claude_before": CLIENTS / "before" / "node_modules" / ".bin" / "claude",
    "codex": CLIENTS / "now" / "node_modules" / ".bin" / "codex",
}
PLUGIN = ROOT / "plugin"
# Names that Codex 0.169.0 knows: the first is given single tools (exec_command, apply_patch, …), the second
# only code mode, in which JavaScript calls them.
CODEX_MODEL = "gpt-5.5"
CODE_MODE_MODEL = "gpt-6-sol"
# The workspaces of the fixture `agent_service`.
TITLE = "royal-tree-01"
OTHER = "quiet-lake-02"
_RUN_S = 180
_REPORT_STATUS = Path(__file__).with_name("report_status.sh")


def find_obstacle() -> str | None:
    """Why the clients cannot run on this machine, or None."""
    stamp = CLIENTS / "stamp"
    wanted = "claude {claude} codex {codex} before {claude_before}".format(**VERSIONS)
    if not stamp.is_file() or stamp.read_text().strip() != wanted:
        return "the agent clients are not installed: `make agent-clients` says why (it needs npm and its registry)"
    if shutil.which("strace") is None:
        return "strace is missing: apt-get install strace"
    return None


@dataclass(frozen=True)
class Run:
    """One run of a client, ended. `events` are its own JSON lines."""

    status: int
    stdout: str
    stderr: str
    took_s: float
    executions: list[Execution]
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def session_id(self) -> str:
        """Claude Code's session id, or Codex's thread id."""
        for event in self.events:
            found = event.get("session_id") or event.get("thread_id")
            if found:
                return str(found)
        raise AssertionError(f"the client named no session: {self.stdout[:2000]}{self.stderr[:2000]}")

    @property
    def shell_lines(self) -> list[str]:
        """What shells here were told to run with `-c`, as the model's commands are; the client's frame is off."""
        return [line for one in self.executions if (line := one.shell_line) is not None]

    def hook_events(self) -> list[dict[str, Any]]:
        """Claude Code's own account of the hooks that it ran (stream-json)."""
        return [event for event in self.events if event.get("subtype") == "hook_response"]


class AgentLaptop(Laptop):
    """One person's machine with both clients. Make it with the fixture `agent_laptop`; `close` removes it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        # ssh's sockets need a short path; a checkout may stand anywhere.
        self.runtime = Path(tempfile.mkdtemp(prefix="rc-agents-"))
        self.claude_config = folder / ".claude"
        self.codex_home = folder / ".codex"
        for made in (self.claude_config, self.codex_home):
            made.mkdir()
        self.plugin = copy_plugin(folder / "marketplace" / "plugin")
        # How a shell of the client calls us; in Codex, `bin/` is not on PATH.
        self.runcode_words = "runcode"
        self.program = _write_program(folder / "runcode-program")
        # A root of its own: this folder stands inside a checkout, whose files are none of the person's.
        subprocess.run(["git", "init", "-q", str(self.project)], check=True)
        node = shutil.which("node")
        assert node is not None
        self.environment = {
            "HOME": str(folder),
            "PATH": f"{BARE_PATH}:{os.path.dirname(node)}",
            "LANG": "C.UTF-8",
            "SHELL": "/bin/bash",
            "XDG_RUNTIME_DIR": str(self.runtime),
            "XDG_CONFIG_HOME": str(folder / ".config"),
            "XDG_CACHE_HOME": str(folder / ".cache"),
            "CLAUDE_CONFIG_DIR": str(self.claude_config),
            "CODEX_HOME": str(self.codex_home),
            "RUNCODE_BIN": str(self.program),
            "DISABLE_AUTOUPDATER": "1",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }

    def close(self) -> None:
        self.runcode("clean", "--all", expect=None)
        shutil.rmtree(self.runtime, ignore_errors=True)
        shutil.rmtree(self.home, ignore_errors=True)

    # ------------------------------------------------------------ runs

    def claude(
        self,
        model: FakeModel,
        prompt: str,
        *,
        allow: Sequence[str] = (),
        ask: Sequence[str] = (),
        deny: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        plugin: bool = True,
        version: str = "claude",
        resume: str | None = None,
        arguments: Iterable[str] = (),
        environment: Mapping[str, str] | None = None,
        timeout_s: float = _RUN_S,
    ) -> Run:
        """`claude -p PROMPT` in the project folder, with the plugin by `--plugin-dir` unless told otherwise.

        The rules replace what settings.json held. `version="claude_before"` is the older one.
        """
        rules = {"allow": list(allow), "ask": list(ask), "deny": list(deny)}
        document = {**(settings or {}), "permissions": rules}
        (self.claude_config / "settings.json").write_text(json.dumps(document))
        words = [str(PROGRAMS[version]), "-p", prompt, "--output-format", "stream-json", "--verbose"]
        words.append("--include-hook-events")
        if plugin:
            words += ["--plugin-dir", str(self.plugin)]
        if resume is not None:
            words += ["--resume", resume]
        changed = {"ANTHROPIC_BASE_URL": model.address, "ANTHROPIC_API_KEY": "loopback-only", **(environment or {})}
        return self._run([*words, *arguments], changed, timeout_s)

    def codex(
        self,
        model: FakeModel,
        prompt: str,
        *,
        model_name: str = CODEX_MODEL,
        config: Iterable[str] = (),
        trust_hooks: bool = True,
        sandbox: bool = False,
        resume: str | None = None,
        arguments: Iterable[str] = (),
        environment: Mapping[str, str] | None = None,
        timeout_s: float = _RUN_S,
    ) -> Run:
        """`codex exec PROMPT` in the project folder. Install the plugin first: `install_in_codex`.

        `config` are further `-c` values. Codex's own sandbox does not start on every
        machine, so it is off unless asked for; in this isolated home nothing else is at stake.
        """
        provider = (
            f'{{name="scripted",base_url="{model.address}/v1",wire_api="responses",env_key="SCRIPTED_KEY",'
            "supports_websockets=false,request_max_retries=0,stream_max_retries=0}"
        )
        given = [f"model_providers.scripted={provider}", "model_provider=scripted", f"model={model_name}", *config]
        words = [str(PROGRAMS["codex"]), "exec"]
        if resume is not None:
            words.append("resume")
        words += ["--skip-git-repo-check", "--json"]
        if not sandbox:
            words.append("--dangerously-bypass-approvals-and-sandbox")
        if trust_hooks:
            words.append("--dangerously-bypass-hook-trust")
        words += [word for value in given for word in ("-c", value)]
        words += [*arguments, *([resume] if resume else []), prompt]
        return self._run(words, {"SCRIPTED_KEY": "loopback-only", **(environment or {})}, timeout_s)

    def ask_client(
        self, program: str, *words: str, expect: int | None = 0, folder: Path | None = None, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """One of a client's own verbs (`plugin validate`, `mcp list`, …), without a model."""
        done = subprocess.run(
            [str(PROGRAMS[program]), *words],
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=folder or self.project,
            check=False,
            timeout=_RUN_S,
        )
        assert expect is None or done.returncode == expect, (words, done.returncode, done.stdout, done.stderr)
        return done

    def install_in_codex(self) -> Path:
        """The plugin from its marketplace, as a person installs it; where Codex put it."""
        self.ask_client("codex", "plugin", "marketplace", "add", str(copy_marketplace(self.plugin)), "--json")
        done = self.ask_client("codex", "plugin", "add", "runcode@runcode", "--json")
        return Path(json.loads(done.stdout)["installedPath"])

    def _run(self, words: list[str], changed: Mapping[str, str], timeout_s: float) -> Run:
        trace = self.runtime / f"trace-{time.monotonic_ns()}"
        # --seccomp-bpf: only execve stops the program, so a client runs at its usual pace.
        tracer = ["strace", "-I2", "-f", "--seccomp-bpf", "-qq", "-e", "trace=execve,execveat", "-e", "signal=none"]
        tracer += ["-s", "200000", "-x", "-o", str(trace)]
        status_file, told, failures = (self.runtime / f"{trace.name}.{kind}" for kind in ("status", "out", "err"))
        # strace stays for as long as anything lives below the client, and ssh's shared connection outlives it on
        # purpose. So the client's own end is what is waited for; files, since the others hold pipes open.
        words = ["/bin/sh", str(_REPORT_STATUS), str(status_file), *words]
        began = time.monotonic()
        with told.open("wb") as out, failures.open("wb") as err:
            tracing = subprocess.Popen(
                [*tracer, *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**self.environment, **changed},
                cwd=self.project,
            )
            try:
                while tracing.poll() is None and not status_file.exists():
                    if time.monotonic() - began > timeout_s:
                        raise AssertionError(f"the client did not end in {timeout_s} s: {told.read_text()[-2000:]}")
                    time.sleep(0.02)
                took_s = time.monotonic() - began
            finally:
                # -I2 has it listen to this; it lets go of what still lives.
                tracing.terminate()
                tracing.wait()
        status = int(status_file.read_text())
        executions = read_executions(trace)
        stdout, stderr = told.read_text(), failures.read_text()
        for file in (trace, status_file, told, failures):
            file.unlink()
        events = []
        for line in stdout.splitlines():
            if line.startswith("{"):
                events.append(json.loads(line))
        return Run(status, stdout, stderr, took_s, executions, events)


# ---------------------------------------------------------------- the plugin as it is tried


def copy_plugin(target: Path) -> Path:
    """`plugin/` as a folder of its own, since a client writes beside what it loads."""
    shutil.copytree(PLUGIN, target)
    launcher = target / "bin" / "runcode"
    if not launcher.exists():
        # In the real one's place: with RUNCODE_BIN set it does the same.
        launcher.parent.mkdir(exist_ok=True)
        launcher.write_text('#!/bin/sh\nexec "$RUNCODE_BIN" "$@"\n')
        launcher.chmod(0o755)
    return target


def copy_marketplace(plugin: Path) -> Path:
    """The root's marketplaces beside the copied plugin: what a clone of the repository looks like to a client."""
    root = plugin.parent
    for name in (".claude-plugin", ".agents"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, dirs_exist_ok=True)
    return root


def _write_program(path: Path) -> Path:
    """What RUNCODE_BIN names: the checkout's own `runcode`."""
    lines = ["#!/bin/sh"]
    if "hook" not in COMMANDS:
        lines.append('[ "$1" = hook ] && exit 0')
    lines.append(f'exec {RUNCODE} "$@"')
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o755)
    return path
