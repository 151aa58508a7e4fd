"""Files, folders and context whatever the box's shells are: as the login shell, and as its /bin/sh.

ForceCommand puts another shell where the person's would be, and rewrites which
`sh` our scripts run under; for busybox also the programs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.client_standin import ControlPlane, Person, service, signed_in

# Login shell → the `sh` that our own scripts find there.
CASES = {
    "dash": ("/bin/dash", "/bin/sh"),
    "bash": ("/bin/bash", "/bin/sh"),
    "bash as sh": ("/bin/sh", "/bin/bash --posix"),
    "zsh": ("zsh", "/bin/sh"),
    "fish": ("fish", "/bin/sh"),
    "dash without Python": ("/bin/dash", "/bin/sh"),
    "bash as sh without Python": ("/bin/sh", "/bin/bash --posix"),
    "busybox": ("/bin/sh", "busybox sh"),
}


@pytest.fixture(params=CASES)
def plane(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ControlPlane]:
    login, inner = CASES[request.param]
    for name in (login, inner.split()[0]):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
    tools = tmp_path / "tools"
    tools.mkdir()
    if "Python" in request.param or request.param == "busybox":
        # One that stands where the system's does not is not asked.
        (tools / "python3").write_text("#!/bin/sh\nexit 1\n")
        (tools / "python3").chmod(0o755)
    if request.param == "busybox":
        # All of its programs before the usual ones: tar, dd, head, tee, find, xargs, sha256sum.
        listed = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True).stdout.split()
        for applet in listed:
            (tools / applet).symlink_to(str(shutil.which("busybox")))
    force = tmp_path / "force"
    force.write_text(
        f'#!/bin/bash\nexport PATH="{tools}:$PATH"\n'
        'command=${SSH_ORIGINAL_COMMAND//"/bin/sh -c"/"' + inner + f' -c"}}\nexec {login} -c "$command"\n'
    )
    force.chmod(0o755)
    options = f"MaxSessions 1000\nForceCommand {force}"
    with service(tmp_path / "service", sshd_options=options) as running:
        yield running


@pytest.fixture
def person(tmp_path: Path, plane: ControlPlane) -> Iterator[Person]:
    with signed_in(tmp_path / "person", plane) as someone:
        someone.runcode("connect", "42", "--wait")
        yield someone


def test_everything_arrives_whole(person: Person, plane: ControlPlane) -> None:
    name = 'it\'s a \\ "$HOME" `id`\n*;é'
    content = os.urandom(9_000_000)
    (person.project / "up").write_bytes(content)
    person.runcode("put", "up", "--", name)
    assert (plane.workdir / name).read_bytes() == content
    assert person.runcode("get", "--", name).stdout == content
    person.runcode("write", f"new/{name}", stdin=b"written")
    assert (plane.workdir / "new" / name).read_bytes() == b"written"
    (person.project / "tree" / name).mkdir(parents=True)
    (person.project / "tree" / name / "f").write_bytes(content[:5000])
    for _ in ("new", "merged"):
        person.runcode("put", "-r", "tree/.", "there")
        assert (plane.workdir / "there" / name / "f").read_bytes() == content[:5000]
    person.runcode("get", "-r", "there", "--out", "back")
    assert (person.project / "back" / name / "f").read_bytes() == content[:5000]
    assert person.json("context")["workdir"] == str(plane.workdir)
    assert [n for n in os.listdir(plane.workdir) + os.listdir(person.project) if n.startswith(".runcode-")] == []
