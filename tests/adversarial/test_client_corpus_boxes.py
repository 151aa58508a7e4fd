"""The corpus against the client: a box that lies, through a real sshd.

What every case must hold is looked at in `corpus.bench`, as in `test_client_corpus`.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adversarial.corpus import boxes
from adversarial.corpus.bench import SESSION_FILES, CorpusPlane, Victim
from support.client_standin import ControlPlane, service

_HOSTILE_BOX = r"""
import os, re, sys
folder = sys.argv[1]
command = os.environ.get("SSH_ORIGINAL_COMMAND", "")
found = re.search(r" runcode ([0-9a-f]{32})", command)
nonce = found[1].encode() if found else b""
out = open(folder + "/stdout", "rb").read()
err = open(folder + "/stderr", "rb").read()
digest = open(folder + "/digest", "rb").read()
os.write(2, err.replace(b"<n>", nonce).replace(b"<digest>", digest))
left = out.replace(b"<n>", nonce)
try:
    while left:
        left = left[os.write(1, left[:65536]):]
    # What an upload sends is taken, as an honest box does.
    while os.read(0, 65536):
        pass
except OSError:
    pass
"""


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostileBox]:
    made = HostileBox(tmp_path_factory.mktemp("box"))
    yield made
    made.close()


class HostileBox:
    """A real sshd whose every command is answered from files, and a Victim that is connected to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "box.py").write_text(_HOSTILE_BOX)
        banner = folder / "banner"
        banner.write_bytes(b"\x1b]52;c;x\x07\x1b[2J\xe2\x80\xae\x9b2Jwelcome\r\n")
        self.say(b"", b"")
        command = f"{sys.executable} -I -S {folder}/box.py {folder}"
        options = f"MaxSessions 1000\nMaxStartups 1000\nBanner {banner}\nForceCommand {command}"
        self._service = service(folder / "service", sshd_options=options)
        served = self._service.__enter__()
        assert served.sshd is not None
        self.plane = CorpusPlane()
        self.plane.forget()
        self.plane.sshd = served.sshd
        self._served = served
        self.person = Victim(folder, self.plane)
        made = ControlPlane.mint

        def mint(body: dict[str, Any]) -> dict[str, object]:
            return made(self.plane, body)

        self.plane.mint = mint  # type: ignore[method-assign]
        self.person.run("connect", "42", "--wait", expect=None, changes=(*SESSION_FILES, "{run}/rc/*"))
        (self.person.project / "mine-folder").mkdir()
        (self.person.project / "mine-folder" / "a").write_bytes(b"1")

    def say(self, stdout: bytes, stderr: bytes) -> None:
        """`<data>` and `</data>` go, and `<digest>` becomes the SHA-256 of what stood between them."""
        head, begun, rest = stdout.partition(b"<data>")
        data, _, tail = rest.partition(b"</data>")
        (self.folder / "stdout").write_bytes(head + data + tail if begun else stdout)
        (self.folder / "stderr").write_bytes(stderr)
        (self.folder / "digest").write_bytes(hashlib.sha256(data).hexdigest().encode())

    def close(self) -> None:
        subprocess.run(
            [str(Path(sys.executable).with_name("runcode")), "clean", "--all"],
            env=self.person.environment,
            capture_output=True,
            check=False,
            timeout=60,
        )
        self.person.close()
        self.plane.close()
        self._service.__exit__(None, None, None)


BOXES = {
    **{f"get: {name}": said for name, said in boxes.FILES.items()},
    **{f"get -r: {name}": said for name, said in boxes.TREES.items()},
    **{f"context: {name}": said for name, said in boxes.CONTEXTS.items()},
    **{f"put: {name}": said for name, said in boxes.UPLOADS.items()},
}


@pytest.mark.parametrize("case", BOXES.values(), ids=list(BOXES))
def test_a_box_that_lies(box: HostileBox, case: boxes.Said) -> None:
    box.say(case.stdout, case.stderr)
    said = box.person.run(
        *case.words, expect=case.code, changes=tuple(f"project/{name}" for name in case.made), here=True
    )
    for name in reversed(case.made):
        path = box.person.project / name
        assert path.stat().st_mode & 0o7022 == 0, name
        path.rmdir() if path.is_dir() else path.unlink()
    if case.words == ("context",) and case.code is None:
        assert len(said.stdout.splitlines()) <= 8
        box.person.run("context", "--json", expect=None, here=True)
    assert not Path("/tmp/runcode-corpus-x").exists()


def test_a_boxs_screen_texts_do_not_pass_through_connect(box: HostileBox) -> None:
    """sshd's banner, and what a command prints before anything was asked of it."""
    box.say(b"\x1b[2J" * 100, b"\x1b]52;c;x\x07")
    connect = ("connect", "42", "--wait")
    for words in (connect, ("status",), ("current",), ("disconnect", "--keep"), (*connect, "--force")):
        said = box.person.run(*words, expect=None, changes=(*SESSION_FILES, "{run}/rc/*"))
        assert b"welcome" not in said.stdout + said.stderr
