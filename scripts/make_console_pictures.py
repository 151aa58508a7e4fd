"""Take the pictures of docs/images/console: a real server with a small story in it, before a real Chromium.

Run by hand when the console's looks have changed: `.venv/bin/python scripts/make_console_pictures.py`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from urllib.parse import urlencode

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.browser import Window, running_browser  # noqa: E402
from support.service import Laptop, Service, running_service  # noqa: E402

PICTURES = ROOT / "docs" / "images" / "console"
SHOWN = {"width": 1180, "height": 760}
BOXES = (("royal-tree-08189931", "Billing API"), ("calm-river-55510290", ""), ("brisk-otter-10293847", "Search index"))
COMMANDS = ("git status --short", "ls -la", "python3 -m unittest discover", "echo done > result.txt")
ANN, BOB = "ann@example.org", "bob@example.org"
OPTIONS = ("--workspaces-per-user", "10", "--running-per-user", "3", "--idle-stop-after", "30m", "--admin-email", ANN)


def live(service: Service, laptop: Laptop) -> None:
    service.operator("user", "create", BOB)
    for title, custom in BOXES:
        service.operator("workspace", "create", title, *(["--custom-title", custom] if custom else []))
    service.operator("workspace", "create", "keen-hawk-72610011", "--custom-title", "Design system", "--owner", BOB)
    service.operator("workspace", "share", "keen-hawk-72610011", ANN)
    service.operator("workspace", "share", BOXES[0][0], BOB)
    service.operator("workspace", "start", "keen-hawk-72610011")
    laptop.login(service)
    laptop.environment["CLAUDE_CODE_SESSION_ID"] = "picture"
    laptop.runcode("connect", BOXES[0][0], "--start", "--wait")
    for command in COMMANDS:
        laptop.runcode("exec", "--", command, expect=None)


def take(window: Window, path: str, name: str, within: str | None = None) -> None:
    window.open(path)
    window.page.wait_for_load_state("networkidle")
    picture = PICTURES / f"{name}.png"
    if within is None:
        window.page.screenshot(path=picture)
    else:
        window.page.locator(within).screenshot(path=picture)
    print(f"{picture.relative_to(ROOT)}: {picture.stat().st_size // 1000} kB")


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, running_browser() as browser:
        laptop = Laptop(Path(scratch) / "laptop")
        with running_service(Path(scratch) / "service", options=OPTIONS) as service:
            live(service, laptop)
            asked = {"port": "45677", "state": "s", "client": "claude-code", "machine": "ann-laptop"}
            asked |= {"code_challenge": "A" * 43, "code_challenge_method": "S256"}
            with browser.admin(service, viewport=SHOWN) as window:
                take(window, "/workspaces", "workspaces")
                take(window, f"/auth/cli-login/?{urlencode(asked)}", "consent", ".narrow")
                take(window, "/workspaces/1", "activity", "#activity")
            with browser.admin(service, viewport=SHOWN, color_scheme="dark") as window:
                take(window, "/workspaces/1", "workspace")


if __name__ == "__main__":
    main()
