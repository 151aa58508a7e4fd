"""Downloads from, and uploads to, a box that lies: nothing outside the target, nothing half-written.

The box is a real sshd whose every command is a program of the attacker's
(ForceCommand). It sees the client's real request and answers with whatever a
test has put into a folder; `@NONCE@` and `@SHA@` are filled in, so that the lies
get past the outermost checks.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.client_standin import ControlPlane, Person, service, signed_in

EVIL = """#!{python} -IS
import hashlib, os, re, sys
folder = {folder!r}
command = os.environ.get("SSH_ORIGINAL_COMMAND", "")
nonces = re.findall(r"\\brun" + r"code ([0-9a-f]{{32}})\\b", command)
if not nonces or not os.path.exists(folder + "/stdout"):
    os.execv("/bin/sh", ["sh", "-c", command])
def load(name):
    with open(folder + "/" + name, "rb") as file:
        return file.read().replace(b"@NONCE@", nonces[-1].encode())
out = load("stdout")
body = out.split(b"\\n" + nonces[-1].encode() + b" ", 1)[-1].split(b"\\n", 1)[-1]
err = load("stderr").replace(b"@SHA@", hashlib.sha256(body).hexdigest().encode())
os.write(2, err)
while out:
    out = out[os.write(1, out):]
if os.path.exists(folder + "/endless"):
    while True:
        os.write(1, open(folder + "/endless", "rb").read())
"""


class Box:
    """What the hostile box says next."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.program = folder / "evil"
        self.program.write_text(EVIL.format(python=sys.executable, folder=str(folder)))
        self.program.chmod(0o755)

    def says(self, stdout: bytes, stderr: bytes = b"", endless: bytes | None = None) -> None:
        (self.folder / "stdout").write_bytes(stdout)
        (self.folder / "stderr").write_bytes(stderr)
        (self.folder / "endless").unlink(missing_ok=True)
        if endless is not None:
            (self.folder / "endless").write_bytes(endless)

    def sends_file(self, header: bytes, body: bytes, digest: bytes = b"@SHA@", **more: bytes) -> None:
        self.says(b"\n@NONCE@ " + header + b"\n" + body, b"\n@NONCE@ " + digest + b"\n", **more)

    def sends_tree(self, stream: bytes, *, status: bytes = b"0", stderr: bytes = b"", **more: bytes) -> None:
        self.says(b"\n@NONCE@ tree\n" + stream, stderr + b"\n@NONCE@ @SHA@ " + status + b"\n", **more)

    def is_honest_again(self) -> None:
        (self.folder / "stdout").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Box:
    return Box(tmp_path_factory.mktemp("evil") / "box")


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory, box: Box) -> Iterator[ControlPlane]:
    options = f"MaxSessions 1000\nForceCommand {box.program}"
    with service(tmp_path_factory.mktemp("service"), sshd_options=options) as running:
        yield running


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, plane: ControlPlane) -> Iterator[Person]:
    with signed_in(tmp_path_factory.mktemp("person"), plane) as someone:
        someone.runcode("connect", "42", "--wait")
        yield someone


@pytest.fixture
def person(signed: Person, box: Box) -> Iterator[Person]:
    """With a neighbour that an escape would hit: its content and the folder's names are checked afterwards."""
    inside = signed.project / "in"
    inside.mkdir()
    victim = signed.project / "victim"
    victim.write_bytes(b"precious")
    yield signed
    box.is_honest_again()
    assert victim.read_bytes() == b"precious"
    assert stat.S_IMODE(victim.stat().st_mode) == 0o644
    assert sorted(os.listdir(signed.project)) == ["in", "victim"]
    left = [name for name in os.listdir(inside) if name.startswith(".runcode-")]
    assert left == []
    for folder, folders, files in os.walk(inside, topdown=False):
        for name in files:
            os.unlink(os.path.join(folder, name))
        for name in folders:
            path = os.path.join(folder, name)
            os.unlink(path) if os.path.islink(path) else os.rmdir(path)
    inside.rmdir()
    victim.unlink()


def sha(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


# Single files


@pytest.mark.parametrize(
    ("header", "body", "digest", "code"),
    [
        (b"5 644 0", b"12345678", b"@SHA@", "io_error"),
        (b"5 644 0", b"123", b"@SHA@", "io_error"),
        (b"5 644 0", b"12345", sha(b"54321"), "io_error"),
        (b"5 644 0", b"12345", b"", "io_error"),
        (b"5 644 0", b"12345", sha(b"12345").upper(), "io_error"),
        (b"5 644 5", b"", sha(b""), "io_error"),
        (b"5 644 2", b"345", sha(b"345"), "io_error"),
        (b"-5 644 0", b"", b"@SHA@", "io_error"),
        (b"99999999999999999 644 0", b"", b"@SHA@", "io_error"),
        (b"9999999999999999 644 0", b"", b"@SHA@", "http_error"),
        (b"9000000000000000 644 0", b"", b"@SHA@", "io_error"),
        (b"5 644 9", b"", b"@SHA@", "http_error"),
        (b"5 888 0", b"12345", b"@SHA@", "io_error"),
        (b"5 644", b"12345", b"@SHA@", "io_error"),
        (b"\xd9\xa5 644 0", b"12345", b"@SHA@", "io_error"),
        (b"error not_found", b"", b"", "not_found"),
        (b"error \x1b]52;c;ZXZpbA==\x07", b"", b"", "io_error"),
        (b"error internal", b"", b"", "io_error"),
        (b"", b"", b"", "io_error"),
    ],
)
def test_a_lying_answer_leaves_the_old_file(
    person: Person, box: Box, header: bytes, body: bytes, digest: bytes, code: str
) -> None:
    (person.project / "in" / "f").write_bytes(b"old")
    box.sends_file(header, body, digest)
    for more in ([], ["--resume"]):
        done = person.runcode("get", "x", "--out", "in/f", *more, expect=1)
        assert done.stderr.startswith(f"runcode: {code}: ".encode()), done.stderr
        assert b"\x1b" not in done.stderr
        assert (person.project / "in" / "f").read_bytes() == b"old"
        for name in os.listdir(person.project / "in"):
            # `--resume` may keep what arrived, under a name of its own.
            if name.startswith(".runcode-"):
                assert more
                (person.project / "in" / name).unlink()


@pytest.mark.parametrize("endless", [b"x" * 65536, b"\nnoise\n" * 9000])
def test_endless_noise_and_endless_data_end(person: Person, box: Box, endless: bytes) -> None:
    box.says(b"noise", endless=endless)
    assert person.runcode("get", "x", "--out", "in/f", expect=1).stderr.startswith(b"runcode: io_error: ")
    box.sends_file(b"5 644 0", b"12345", endless=endless)
    assert person.runcode("get", "x", "--out", "in/f", expect=1).stderr.startswith(b"runcode: io_error: ")
    box.sends_tree(b"", endless=bytes(endless))
    assert person.runcode("get", "-r", "x", "--out", "in/f", expect=1).stderr.startswith(b"runcode: ")
    assert os.listdir(person.project / "in") == []


def test_a_setuid_mode_is_not_kept(person: Person, box: Box) -> None:
    box.sends_file(b"1 6777 0", b"x")
    person.runcode("get", "x", "--out", "in/f")
    assert stat.S_IMODE((person.project / "in" / "f").stat().st_mode) == 0o755


def test_a_planted_partial_file_is_not_gone_on_with(person: Person, box: Box, tmp_path: Path) -> None:
    """Somebody else's file, or a link, under the name that `--resume` uses."""
    box.says(b"\n@NONCE@ 3000000 644 0\n" + b"x" * 100)
    inside = person.project / "in"
    person.runcode("get", "x", "--out", "in/f", "--resume", expect=1)
    [partial] = [inside / name for name in os.listdir(inside)]
    target = tmp_path / "elsewhere"
    target.write_bytes(b"precious")
    for plant in (
        lambda: partial.symlink_to(target),
        lambda: os.link(target, partial),
        lambda: os.mkfifo(partial),
        partial.mkdir,
        lambda: (partial.touch(), partial.chmod(0o666)),
    ):
        partial.unlink()
        plant()
        done = person.runcode("get", "x", "--out", "in/f", "--resume", expect=1)
        assert done.stderr.startswith((b"runcode: unsafe_path: ", b"runcode: io_error: ")), done.stderr
        assert target.read_bytes() == b"precious"
        if partial.is_dir() and not partial.is_symlink():
            partial.rmdir()
            partial.touch()
    partial.unlink()


@pytest.mark.parametrize(
    "answer",
    [b"partial 99999999 " + b"0" * 64, b"partial -1 x", b"partial 1 " + b"0" * 64, b"ok", b"", b"partial 1 $(id)"],
)
def test_a_lie_about_what_an_upload_left_is_harmless(person: Person, box: Box, answer: bytes) -> None:
    (person.project / "in" / "up").write_bytes(os.urandom(2_000_000))
    box.says(b"\n@NONCE@ " + answer + b"\n")
    done = person.runcode("put", "in/up", "there", "--resume", expect=1)
    assert done.stderr.startswith(b"runcode: io_error: "), done.stderr


@pytest.mark.parametrize("answer", [b"", b"okay", b"OK", b"error unsafe_path", b"error \xff\x00", b"\x1b[2J"])
def test_an_upload_is_done_when_the_box_says_so_and_not_before(person: Person, box: Box, answer: bytes) -> None:
    (person.project / "in" / "d").mkdir()
    (person.project / "in" / "d" / "up").write_bytes(b"1")
    box.says(b"\n@NONCE@ " + answer + b"\n", b"\x1b]0;evil\x07")
    for words in (["put", "in/d/up", "x"], ["put", "-r", "in/d", "x"], ["write", "x"]):
        done = person.runcode(*words, expect=1)
        assert b"\x1b" not in done.stderr + done.stdout


# Folders


def tree(*members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as writer:
        for given in members:
            member, content = given if isinstance(given, tuple) else (given, b"")
            member.size = len(content)
            writer.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = kind, link, mode
    return member


LINK, HARD, FOLDER = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE
EVIL_FILE = b"evil"
ESCAPES: dict[str, Callable[[], bytes]] = {
    "dots": lambda: tree((entry("../victim"), EVIL_FILE)),
    "dots inside": lambda: tree(entry("d", FOLDER), (entry("d/../../victim"), EVIL_FILE)),
    "many dots": lambda: tree((entry("../" * 30 + "tmp/evil"), EVIL_FILE)),
    "absolute": lambda: tree((entry("/tmp/runcode-evil"), EVIL_FILE)),
    "a folder by dots": lambda: tree(entry("../in2", FOLDER)),
    "a link by dots": lambda: tree(entry("../link", LINK, "x")),
    "through a link": lambda: tree(entry("l", LINK, ".."), (entry("l/victim"), EVIL_FILE)),
    "through an absolute link": lambda: tree(entry("l", LINK, "/tmp"), (entry("l/runcode-evil"), EVIL_FILE)),
    "through an inner link": lambda: tree(entry("d", FOLDER), entry("l", LINK, "d"), (entry("l/f"), EVIL_FILE)),
    "over a link": lambda: tree(entry("l", LINK, "../victim"), (entry("l"), EVIL_FILE)),
    "over an inner link": lambda: tree(entry("l", LINK, "f"), (entry("l"), EVIL_FILE)),
    "a link over a file": lambda: tree((entry("f"), b"1"), entry("f", LINK, "g")),
    "a link out": lambda: tree(entry("l", LINK, "../victim")),
    "a link out from below": lambda: tree(entry("d", FOLDER), entry("d/l", LINK, "../../victim")),
    "an absolute link": lambda: tree(entry("l", LINK, "/etc/passwd")),
    "a link by a detour": lambda: tree(
        entry("d", FOLDER), entry("d/e", FOLDER), entry("d/e/up", LINK, "../.."), entry("l", LINK, "d/e/up/../victim")
    ),
    "a second name of the victim": lambda: tree(entry("h", HARD, "../victim")),
    "a second name by an absolute path": lambda: tree(entry("h", HARD, "/etc/passwd")),
    "a second name of nothing": lambda: tree(entry("h", HARD, "nothing")),
    "a second name of a link": lambda: tree(entry("l", LINK, "f"), entry("h", HARD, "l")),
    "a second name of a folder": lambda: tree(entry("d", FOLDER), entry("h", HARD, "d")),
    "a pipe": lambda: tree(entry("p", tarfile.FIFOTYPE)),
    "a character device": lambda: tree(entry("c", tarfile.CHRTYPE)),
    "a block device": lambda: tree(entry("b", tarfile.BLKTYPE)),
    "a sparse file": lambda: tree(entry("s", tarfile.GNUTYPE_SPARSE)),
    "an unknown kind": lambda: tree(entry("u", b"Z")),
    "a file twice": lambda: tree((entry("f"), b"1"), (entry("f"), b"2")),
    "a file twice, spelt anew": lambda: tree((entry("f"), b"1"), (entry("./f"), b"2")),
    "a file, then a folder": lambda: tree((entry("f"), b"1"), entry("f", FOLDER)),
    "a folder, then a file": lambda: tree(entry("f", FOLDER), (entry("f"), b"1")),
    "below a file": lambda: tree((entry("f"), b"1"), (entry("f/g"), b"2")),
    "a folder twice": lambda: tree(entry("d", FOLDER), entry("d", FOLDER)),
    "too deep": lambda: tree((entry("d/" * 201 + "f"), b"1")),
    "too long": lambda: tree((entry("n" * 256), b"1")),
    "far too long": lambda: tree((entry("/".join(["n" * 200] * 30)), b"1")),
    "a pipe in the folder's place": lambda: tree(entry(".", tarfile.FIFOTYPE)),
    "a file in the folder's place": lambda: tree((entry("."), b"1")),
    "more behind the end": lambda: tree((entry("f"), b"1")) + tree((entry("../victim"), EVIL_FILE)),
}


@pytest.mark.parametrize("name", ESCAPES)
def test_a_hostile_folder_is_refused_whole(person: Person, box: Box, name: str) -> None:
    good = tree((entry("good"), b"good"))[:1024]
    box.sends_tree(good + ESCAPES[name]())
    for out in ("in/new", "in"):
        done = person.runcode("get", "-r", "x", "--out", out, expect=1)
        assert done.stderr.startswith(b"runcode: unsafe_path: "), done.stderr
        assert os.listdir(person.project / "in") == []
    assert not os.path.exists("/tmp/runcode-evil")


@pytest.mark.parametrize("name", ["a link out", "an absolute link", "a link by a detour", "a pipe", "a block device"])
def test_what_is_left_out_on_request_is_not_made(person: Person, box: Box, name: str) -> None:
    box.sends_tree(ESCAPES[name]())
    done = person.runcode("get", "-r", "x", "--out", "in/new", "--skip-special")
    assert done.stderr.count(b"left out: ") == 1
    for _, _, files in os.walk(person.project / "in" / "new"):
        assert set(files) <= {"up"}
        assert "l" not in files


def test_links_that_are_there_already_are_not_followed(person: Person, box: Box, tmp_path: Path) -> None:
    """The second of two downloads: the first one, or the person, made a link where a folder comes."""
    inside = person.project / "in"
    for link in (tmp_path, Path("..")):
        (inside / "d").symlink_to(link)
        box.sends_tree(tree(entry("d", FOLDER), (entry("d/victim"), EVIL_FILE)))
        done = person.runcode("get", "-r", "x/.", "--out", "in", expect=1)
        assert done.stderr.startswith(b"runcode: unsafe_path: ")
        (inside / "d").unlink()
    assert os.listdir(tmp_path) == []
    # A link in a file's place is replaced.
    (inside / "f").symlink_to("../victim")
    box.sends_tree(tree((entry("f"), b"new")))
    person.runcode("get", "-r", "x/.", "--out", "in")
    assert not (inside / "f").is_symlink()


@pytest.mark.parametrize("cut", [100, 600, 1100, 2000, 2600])
def test_a_folder_that_is_cut_short_is_not_there(person: Person, box: Box, cut: int) -> None:
    stream = tree((entry("f"), os.urandom(1000)), (entry("g"), b"1"))
    box.sends_tree(stream[:cut])
    assert person.runcode("get", "-r", "x", "--out", "in/new", expect=1).stderr.startswith(b"runcode: io_error: ")
    assert os.listdir(person.project / "in") == []


def test_modes_are_tamed(person: Person, box: Box) -> None:
    box.sends_tree(tree(entry("d", FOLDER, mode=0o7000), (entry("d/f", mode=0o6777), b"1")))
    person.runcode("get", "-r", "x", "--out", "in/new")
    assert stat.S_IMODE((person.project / "in" / "new" / "d").stat().st_mode) == 0o700
    assert stat.S_IMODE((person.project / "in" / "new" / "d" / "f").stat().st_mode) == 0o755


def test_names_and_complaints_are_printed_without_their_teeth(person: Person, box: Box) -> None:
    box.sends_tree(tree(entry("\x1b]52;c;ZXZpbA==\x07", tarfile.FIFOTYPE)))
    shown = person.runcode("get", "-r", "x", "--out", "in/new", expect=1).stderr
    shown += person.runcode("get", "-r", "x", "--out", "in/new", "--skip-special").stderr
    box.sends_tree(tree((entry("f"), b"1")), status=b"2", stderr=b"tar: \x1b]0;evil\x07\xe2\x80\xaegood\n")
    failed = person.runcode("get", "-r", "x", "--out", "in/other", expect=1)
    assert failed.stderr.startswith(b"runcode: io_error: ")
    for byte in (b"\x1b", b"\x07", b"\xe2\x80\xae"):
        assert byte not in shown + failed.stderr


@pytest.mark.parametrize("ending", [b"", b"\n@NONCE@ \n", b"\n@NONCE@ @SHA@\n", b"\n@NONCE@ " + b"0" * 64 + b" 0\n"])
def test_without_the_right_digest_nothing_is_made(person: Person, box: Box, ending: bytes) -> None:
    box.says(b"\n@NONCE@ tree\n" + tree((entry("f"), b"1")), ending)
    assert person.runcode("get", "-r", "x", "--out", "in/new", expect=1).stderr.startswith(b"runcode: io_error: ")
    assert os.listdir(person.project / "in") == []
