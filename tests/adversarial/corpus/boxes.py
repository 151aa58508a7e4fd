"""What a hostile box says: its answers to `get`, `context`, `put` and its screen, as bytes.

`<n>` is the call's nonce, `<digest>` and `<crc>` are true digests of what stands between `<data>` and
`</data>`. A case is (words, stdout, stderr, the client's code or None for success, file names that may appear).
"""

from __future__ import annotations

import io
import tarfile
from typing import NamedTuple

from adversarial.corpus.payloads import TERMINAL


class Said(NamedTuple):
    words: tuple[str, ...]
    stdout: bytes
    stderr: bytes = b""
    code: str | None = "io_error"
    made: tuple[str, ...] = ()


_FILE = ("get", "file", "--out", "file")
_TREE = ("get", "-r", "tree", "--out", "tree")
_GOOD_END = b"\n<n> <digest>\n"
_TREE_END = b"\n<n> <digest> 0\n"


def _file(header: bytes, data: bytes = b"abc", stderr: bytes = _GOOD_END, **rest: object) -> Said:
    return Said(_FILE, b"\n<n> " + header + b"\n<data>" + data + b"</data>", stderr, **rest)  # type: ignore[arg-type]


FILES: dict[str, Said] = {
    "good": _file(b"3 644 0", code=None, made=("file",)),
    "setuid is taken off": _file(b"3 6755 0", code=None, made=("file",)),
    "longer than it said": _file(b"2 644 0"),
    "shorter than it said": _file(b"4 644 0"),
    "wrong digest": _file(b"3 644 0", stderr=b"\n<n> " + b"0" * 64 + b"\n"),
    "no digest": _file(b"3 644 0", stderr=b""),
    "digest of another call": _file(b"3 644 0", stderr=b"\n" + b"0" * 32 + b" <digest>\n"),
    "digest with an escape": _file(b"3 644 0", stderr=b"\n<n> \x1b]52;c;x\x07\n"),
    "negative size": _file(b"-3 644 0"),
    "size beyond any disk": _file(b"9999999999999999 644 0", code="http_error"),
    "size of 100 digits": _file(b"9" * 100 + b" 644 0"),
    "size is a word": _file(b"many 644 0"),
    "mode is a word": _file(b"3 rwx 0"),
    "offset beyond its size": _file(b"3 644 4", code="http_error"),
    "offset that nobody asked for": _file(b"2097152 644 1048576"),
    "escape in the header": _file(b"3 644 \x1b[2J"),
    "unknown error": _file(b"error \x1b]52;c;x\x07", b""),
    "error with a path": _file(b"error ../../etc/passwd", b""),
    "known error": _file(b"error not_found", b"", code="not_found"),
    "not a plain file": _file(b"error unsafe_path", b"", code="unsafe_path"),
    "header of another call": Said(_FILE, b"\n" + b"0" * 32 + b" 3 644 0\nabc"),
    "nothing": Said(_FILE, b""),
    "2 MiB of noise": Said(_FILE, b"\x1b[2J" * 524288),
    "noise on stderr": Said(_FILE, b"", b"\x1b]52;c;x\x07" * 20000),
}


def _tar(*members: tuple[str, bytes, str | bytes], end: bool = True, tail: bytes = b"") -> bytes:
    """(name, kind, content or link) each, as GNU tar would write it; nothing is refused here."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:
        for name, kind, rest in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                content = rest.encode() if isinstance(rest, str) else rest
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.linkname = rest if isinstance(rest, str) else rest.decode()
                archive.addfile(info)
        cut = stream.tell()
    return (stream.getvalue() if end else stream.getvalue()[:cut]) + tail


def _tree(
    stream: bytes, code: str | None = "unsafe_path", made: tuple[str, ...] = (), stderr: bytes = _TREE_END
) -> Said:
    return Said(_TREE, b"\n<n> tree\n<data>" + stream + b"</data>", stderr, code, made)


_REG, _LNK, _HARD, _DIR = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE
_GOOD_TAR = _tar(("./", _DIR, ""), ("./a", _REG, "1"))
TREES: dict[str, Said] = {
    "good": _tree(_GOOD_TAR, None, ("tree", "tree/a")),
    "climbing": _tree(_tar(("../x", _REG, "1"))),
    "climbing inside": _tree(_tar(("a/../../x", _REG, "1"))),
    "absolute": _tree(_tar(("/tmp/runcode-corpus-x", _REG, "1"))),
    "link to an absolute path": _tree(_tar(("l", _LNK, "/etc/passwd"))),
    "link that climbs": _tree(_tar(("l", _LNK, "../x"))),
    "link that climbs behind a name": _tree(_tar(("l", _LNK, "a/../../x"))),
    "link to nothing": _tree(_tar(("l", _LNK, ""))),
    "a file through a link": _tree(_tar(("d", _LNK, "."), ("d/x", _REG, "1"))),
    "a file in a link's place": _tree(_tar(("l", _LNK, "a"), ("l", _REG, "1"))),
    "second name of what is outside": _tree(_tar(("h", _HARD, "/etc/passwd"))),
    "second name that climbs": _tree(_tar(("h", _HARD, "../x"))),
    "second name of nothing": _tree(_tar(("h", _HARD, "missing"))),
    "device": _tree(_tar(("d", tarfile.CHRTYPE, ""))),
    "block device": _tree(_tar(("d", tarfile.BLKTYPE, ""))),
    "pipe": _tree(_tar(("p", tarfile.FIFOTYPE, ""))),
    "unknown kind": _tree(_tar(("p", b"Z", ""))),
    "the same twice": _tree(_tar(("a", _REG, "1"), ("a", _REG, "2"))),
    "a folder below a file": _tree(_tar(("a", _REG, "1"), ("a/b", _REG, "2"))),
    "300 deep": _tree(_tar(("a/" * 300 + "b", _REG, "1"))),
    "a name of 300": _tree(_tar(("a" * 300, _REG, "1"))),
    "empty name": _tree(_tar(("", _REG, "1"))),
    "something behind the end": _tree(_tar(("a", _REG, "1"), tail=b"x" * 512)),
    "no end": _tree(_tar(("a", _REG, "1"), end=False), "io_error"),
    "cut header": _tree(_GOOD_TAR[:700], "io_error"),
    "damaged header": _tree(b"\1" + _GOOD_TAR[1:], "io_error"),
    "random": _tree(bytes(range(256)) * 8, "io_error"),
    "wrong digest": _tree(_GOOD_TAR, "io_error", stderr=b"\n<n> " + b"0" * 64 + b" 0\n"),
    "no digest": _tree(_GOOD_TAR, "io_error", stderr=b""),
    "its tar failed": _tree(_GOOD_TAR, "io_error", stderr=b"tar: \x1b]52;c;x\x07\xe2\x80\xae\n<n> <digest> 2\n"),
    "unknown answer": Said(_TREE, b"\n<n> \x1b[2J\n"),
    "escapes in a name that clashes": _tree(_tar(("\x1b]52;c;x\x07", _REG, "1"), ("\x1b]52;c;x\x07", _REG, "2"))),
}


def _context(*records: bytes) -> bytes:
    whole = (b"cwd=/workx", b"os=Linux", b"arch=x", b"kernel=6", *records)
    return b"\n<n> context\n" + b"".join(record + b"\0" for record in whole) + b"\n<n> end\n"


_LOOK = ("context",)
CONTEXTS: dict[str, Said] = {
    **{
        f"everything is {name}": Said(
            _LOOK,
            _context(
                *(
                    f"{key}=".encode()
                    + text.encode("utf-8", "surrogateescape" if name != "lone-surrogates" else "replace")
                    for key in ("distro", "disk", "git.branch", "git.head", "git.remote", "git.dirty", "marker")
                )
            ),
            code=None,
        )
        for name, text in TERMINAL.items()
        if "nul" not in name
    },
    "unknown keys": Said(_LOOK, _context(b"\x1b]52;c;x\x07=y", b"tool.\x1b=z", b"=", b"x"), code=None),
    "silly disk": Said(_LOOK, _context(b"disk=a 999999999999999999 1 -5 100% /\x1b"), code=None),
    "invalid utf-8": Said(_LOOK, _context(b"git.dirty=1", b"git.branch=\xff\xfe\x9b2J"), code=None),
    "no end": Said(_LOOK, b"\n<n> context\ncwd=/x\0"),
    "another call's": Said(_LOOK, b"\n" + b"0" * 32 + b" context\n\n" + b"0" * 32 + b" end\n"),
    "no folder": Said(_LOOK, b"\n<n> error no_folder\n", code="not_found"),
    "nothing": Said(_LOOK, b""),
    "2 MiB": Said(_LOOK, b"\n<n> context\n" + b"\x1b[2J" * 524288),
}

_PUT = ("put", "mine", "there")
_PUT_TREE = ("put", "-r", "mine-folder", "there")
UPLOADS: dict[str, Said] = {
    "ok without the nonce": Said(_PUT, b"\nok\n"),
    "ok of another call": Said(_PUT, b"\n" + b"0" * 32 + b" ok\n"),
    "okay": Said(_PUT, b"\n<n> okay\n"),
    "ok and an escape": Said(_PUT, b"\n<n> ok\x1b[2J\n"),
    "unknown error": Said(_PUT, b"\n<n> error \x1b]52;c;x\x07\n", b"\x1b[2J"),
    "nothing": Said(_PUT, b""),
    "2 MiB of noise": Said(_PUT, b"\x1b[2J" * 524288),
    "folder: okay": Said(_PUT_TREE, b"\n<n> okay\n"),
    "folder: nothing": Said(_PUT_TREE, b"", b"\x1b]52;c;x\x07"),
}
