"""What packaging/service brings is accepted by the programs that it is for, as far as this machine has them.

Always: our own option parser reads each command line in it, and each metric in it is one that we have. Where they
are installed: systemd-analyze, nginx, caddy and promtool judge their own files. An image is not built here.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from runcode.controlplane.metrics import Metrics
from runcode.gateway.server import GatewayHealth
from runcode.server.front import DoorNumbers, GatewayNumbers
from runcode.server.main import make_parser
from support.tls_files import write_pair

FOLDER = Path(__file__).resolve().parents[2] / "packaging" / "service"
DOCS = FOLDER.parents[1] / "docs"
# Of the Compose specification; a misspelt one would be passed over by some versions.
_COMPOSE_KEYS = """image command depends_on restart stop_grace_period init security_opt devices cap_drop ports
networks volumes environment healthcheck"""


def require(program: str) -> str:
    found = shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin")
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def run(*words: str, **more: Any) -> None:
    ran = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, **more)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def read_env() -> dict[str, str]:
    lines = [line for line in (FOLDER / "server.env").read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def unfold(text: str) -> str:
    return text.replace("\\\n", " ")


def unit_words() -> list[str]:
    """ExecStart as systemd reads it: `${X}` is one word, `$X` as many as it has (systemd.service(5))."""
    line = re.search(r"^ExecStart=(.*)$", unfold((FOLDER / "runcode.service").read_text()), re.MULTILINE)
    assert line is not None
    values, words = read_env(), []
    for word in shlex.split(line[1]):
        if word.startswith("$") and not word.startswith("${"):
            words += values[word[1:]].split()
        else:
            words.append(re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], word))
    return words


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    return loaded


def container_instructions() -> list[tuple[str, str]]:
    text = "\n".join(line for line in (FOLDER / "Containerfile").read_text().splitlines() if not line.startswith("#"))
    return [
        (name, rest.strip()) for name, _, rest in (line.partition(" ") for line in unfold(text).splitlines()) if name
    ]


# ---------------------------------------------------------------- our own part of them


def test_every_command_line_is_one_that_our_parser_takes() -> None:
    parser = make_parser()
    program, *words = unit_words()
    assert program == "/opt/runcode/bin/runcode-server"
    unit = parser.parse_args(words)
    assert unit.keep_workspaces
    assert (unit.trusted_proxy, unit.metrics, unit.log_format) == (["127.0.0.1"], "127.0.0.1:9464", "json")
    known = {option for action in _up_actions() for option in action.option_strings}
    for word in compose()["services"]["server"]["command"][1:]:
        assert word.partition("=")[0] in known | {"--database-file"}, word
    (command,) = [json.loads(rest) for name, rest in container_instructions() if name == "CMD" and "up" in rest]
    parser.parse_args(command)


def _up_actions() -> list[Any]:
    (nouns,) = [action for action in make_parser()._actions if hasattr(action, "choices") and action.choices]
    return list(nouns.choices["up"]._actions)


def test_the_pages_command_lines_are_ones_that_our_parser_takes() -> None:
    page = unfold((DOCS / "self-hosting.md").read_text())
    lines = [
        line.strip() for line in page.splitlines() if re.match(r"\s*(sudo -u runcode )?\S*runcode-server up ", line)
    ]
    assert lines
    for line in lines:
        words = shlex.split(line.partition(" # ")[0])
        make_parser().parse_args(words[words.index("up") :])


def test_every_number_that_is_alerted_on_is_one_that_we_have() -> None:
    class Idle:
        connections = refused = 0

        def health(self) -> GatewayHealth:
            return GatewayHealth(0, 0, 0.0, True, 0, 0, 0, 0, None, None, resealed_bytes=0, singly_bytes=0)

    metrics = Metrics()
    metrics.add_collector(DoorNumbers(Idle()))  # type: ignore[arg-type]
    metrics.add_collector(GatewayNumbers(Idle()))  # type: ignore[arg-type]
    families = {family.name: family.type for family in metrics.registry.collect()}
    series = set(families)
    for name, kind in families.items():
        series |= {"counter": {f"{name}_total"}, "histogram": {f"{name}_bucket", f"{name}_sum"}}.get(kind, set())
    rules = yaml.safe_load((FOLDER / "runcode-alerts.yml").read_text())["groups"][0]["rules"]
    for rule in rules:
        assert rule["annotations"]["summary"]
        named = set(re.findall(r"runcode_\w+", rule["expr"]))
        assert named <= series, rule
    told = set(re.findall(r"`(runcode_\w+)`", (DOCS / "self-hosting.md").read_text()))
    assert told
    assert told <= series


def test_compose_is_whole() -> None:
    """Names that are used are there, nothing of it is open to everybody that need not be, no secret stands in it."""
    file = compose()
    assert set(file) == {"name", "services", "networks", "volumes"}
    named = set(file["volumes"])
    for name, service in file["services"].items():
        assert set(service) <= set(_COMPOSE_KEYS.split()), name
        assert set(service["networks"]) <= set(file["networks"]), name
        assert set(service.get("depends_on", {})) <= set(file["services"]), name
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in named or source.startswith("./"), volume
    assert "ports" not in file["services"]["database"]
    assert [port for port in file["services"]["server"]["ports"] if port.endswith(":8080")] == ["127.0.0.1:8080:8080"]
    assert not re.search(r"(?i)(password|token|secret|key): +[^/\s]", (FOLDER / "compose.yaml").read_text())


def test_the_image_is_made_of_what_is_there() -> None:
    steps = container_instructions()
    known = "ARG FROM RUN WORKDIR COPY ENV USER VOLUME EXPOSE STOPSIGNAL HEALTHCHECK CMD ENTRYPOINT"
    assert {name for name, _ in steps} <= set(known.split())
    for name, rest in steps:
        if name == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (FOLDER.parents[1] / source).exists(), source
    users = [index for index, (name, _) in enumerate(steps) if name == "USER"]
    assert steps[users[-1]][1] == "runcode"
    assert not [rest for name, rest in steps[users[-1] :] if name == "RUN"]


# ---------------------------------------------------------------- the programs themselves


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    analyze = require("systemd-analyze")
    text = (FOLDER / "runcode.service").read_text().replace("/opt/runcode/bin/runcode-server", "/bin/true")
    (tmp_path / "runcode.service").write_text(text)
    ran = subprocess.run(
        [analyze, "verify", str(tmp_path / "runcode.service")], capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert "runcode.service" not in ran.stderr


def test_nginx_takes_its_file(tmp_path: Path) -> None:
    nginx = require("nginx")
    write_pair(tmp_path / "c.pem", tmp_path / "k.pem")
    site = re.sub(r"/etc/letsencrypt\S*/fullchain.pem", str(tmp_path / "c.pem"), (FOLDER / "nginx.conf").read_text())
    (tmp_path / "site.conf").write_text(re.sub(r"/etc/letsencrypt\S*/privkey.pem", str(tmp_path / "k.pem"), site))
    paths = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/pid; error_log stderr; events {{}}\nhttp {{ access_log off; {paths}\n"
        f"include {tmp_path}/site.conf; }}\n"
    )
    run(nginx, "-t", "-c", str(tmp_path / "nginx.conf"))


def test_caddy_takes_its_file(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    run(require("caddy"), "validate", "--adapter", "caddyfile", "--config", str(FOLDER / "Caddyfile"), env=environment)


def test_prometheus_takes_its_files(tmp_path: Path) -> None:
    promtool = require("promtool")
    (tmp_path / "token").write_text("x")
    shutil.copy(FOLDER / "runcode-alerts.yml", tmp_path)
    text = (FOLDER / "prometheus.yml").read_text()
    (tmp_path / "prometheus.yml").write_text(re.sub(r"/etc/prometheus/\S+", str(tmp_path / "token"), text))
    run(promtool, "check", "config", str(tmp_path / "prometheus.yml"))
