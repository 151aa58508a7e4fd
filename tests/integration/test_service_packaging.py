"""What packaging/service brings is accepted by the programs that it is for, as far as this machine has them.

Always: our own option parser reads each command line in it, each metric in it is one that we have, and the unit
takes nothing from boxes that they need. Where they are installed: systemd-analyze, nginx, caddy and promtool judge
their own files, and nginx serves through its. An image is not built here.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from runcode.controlplane.metrics import Metrics
from runcode.gateway.server import GatewayHealth
from runcode.runtimes.local.box_network import TUN_DEVICE
from runcode.server.front import DoorNumbers, GatewayNumbers
from runcode.server.main import make_parser
from support.service import Service, running_service
from support.tls_files import write_pair

FOLDER = Path(__file__).resolve().parents[2] / "packaging" / "service"
DOCS = FOLDER.parents[1] / "docs"
# Of the Compose specification; a misspelt one would be passed over by some versions.
_COMPOSE_KEYS = """image command depends_on restart stop_grace_period init security_opt devices cap_drop ports
networks volumes environment healthcheck"""
# What a box of the local runtime cannot be made under: it has a name, namespaces, mounts, a /proc and a /dev of its own
# (a fresh /proc only where none of ours is covered), and programs that compile at run time.
_NOT_WITH_BOXES = """ProtectHostname ProtectKernelTunables ProtectKernelLogs ProtectProc ProcSubset RestrictNamespaces
PrivateDevices PrivateUsers PrivateNetwork SystemCallFilter MemoryDenyWriteExecute"""


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


def test_the_unit_leaves_boxes_what_they_need() -> None:
    lines = re.findall(r"^(\w+)=(.*)$", (FOLDER / "runcode.service").read_text(), re.MULTILINE)
    assert not {name for name, _ in lines} & set(_NOT_WITH_BOXES.split())
    # ProtectClock allows the clocks' devices and, without another list, no other one (systemd.exec(5)).
    assert ("DeviceAllow", f"{TUN_DEVICE} rw") in lines
    families = dict(lines)["RestrictAddressFamilies"].split()
    assert {"AF_UNIX", "AF_INET", "AF_NETLINK"} <= set(families)


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


def write_nginx_files(folder: Path, *changes: tuple[str, str]) -> Path:
    """Our file inside a main one that writes below `folder`; with a certificate of this test, and `changes`."""
    write_pair(folder / "c.pem", folder / "k.pem")
    site = (FOLDER / "nginx.conf").read_text()
    for pattern, text in (
        (r"/etc/letsencrypt\S*/fullchain.pem", str(folder / "c.pem")),
        (r"/etc/letsencrypt\S*/privkey.pem", str(folder / "k.pem")),
        *changes,
    ):
        site, found = re.subn(pattern, text, site)
        assert found, pattern
    (folder / "site.conf").write_text(site)
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = f"daemon off; worker_processes 1; pid {folder}/pid; error_log stderr; events {{}}\n"
    main += f"http {{ access_log off; {paths}\ninclude {folder}/site.conf; }}\n"
    (folder / "nginx.conf").write_text(main)
    return folder / "nginx.conf"


def test_nginx_takes_its_file(tmp_path: Path) -> None:
    run(require("nginx"), "-t", "-c", str(write_nginx_files(tmp_path)))


def find_http_port(service: Service) -> int:
    """The server listens on two, and its ready file names the public address and the other."""
    assert service.process is not None
    held = {os.readlink(link) for link in Path(f"/proc/{service.process.pid}/fd").iterdir() if link.is_symlink()}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ports = {int(row[1].partition(":")[2], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in held}
    (port,) = ports - {service.facts["ssh_port"]}
    return port


def test_a_server_behind_nginx(tmp_path: Path) -> None:
    """With the options that the page names. A port other than 443 arrives whole, a forged address does not."""
    nginx = require("nginx")
    with socket.create_server(("127.0.0.1", 0)) as front:
        name = f"localhost:{front.getsockname()[1]}"
        options = ("--public-url", f"https://{name}", "--trusted-proxy", "127.0.0.1", "--log-format", "json")
        with running_service(tmp_path / "service", options=options) as service:
            changes = (
                (r"listen 443 ", f"listen 127.0.0.1:{front.getsockname()[1]} "),
                (r"listen \[::\]:443 .*", ""),
                (r"127\.0\.0\.1:8080", f"127.0.0.1:{find_http_port(service)}"),
            )
            main = write_nginx_files(tmp_path, *changes)
            # The socket is handed over as nginx hands its own to its next version, so the port cannot be lost.
            handed = {"NGINX": f"{front.fileno()};", "PATH": "/usr/bin:/bin"}
            words = [nginx, "-c", str(main)]
            with subprocess.Popen(words, env=handed, pass_fds=[front.fileno()], stderr=subprocess.DEVNULL) as proxy:
                try:
                    trust = ssl.create_default_context(cafile=str(tmp_path / "c.pem"))
                    connection = http.client.HTTPSConnection(name, context=trust, timeout=60)
                    connection.request("GET", "/workspaces", headers={"X-Forwarded-For": "192.0.2.9"})
                    reply = connection.getresponse()
                    assert (reply.status, reply.getheader("Location")) == (303, "/sign-in?next=%2Fworkspaces"), (
                        reply.read()
                    )
                    assert reply.getheader("Strict-Transport-Security")
                    reference = reply.getheader("X-Request-Id")
                    connection.close()
                finally:
                    proxy.terminate()
        (line,) = [line for line in service.log.read_text().splitlines() if f'"{reference}"' in line]
        assert json.loads(line)["address"] == "127.0.0.1"


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
