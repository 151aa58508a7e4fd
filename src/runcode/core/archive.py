"""Folders as a stream of tar entries: rendering ours, and reading a stranger's.

Pure: bytes in, entries out. `client.transfers` does the I/O.

Threat: a download's entries are written by a hostile box. A name with `..`, an
absolute one, a link that a later entry writes through, a device, a forged size,
endless extension headers.

Guarantee: what `ArchiveReader` yields is a plain file, a folder, a link, or a
second name of a file, under a relative name without `..`, within the limits
below; everything else raises `unsafe_path`. A link's target is checked by
`is_inner_link`, which nobody may skip before making one.

Source: POSIX ustar and pax; GNU tar's manual, "Basic Tar Format" (long names,
base-256 numbers).
"""

from __future__ import annotations

from runcode.core.errors import RunCodeError, UnsafeInput
from runcode.core.values import Value

BLOCK = 512
END = bytes(2 * BLOCK)
FILE, HARD_LINK, LINK, FOLDER = b"0", b"1", b"2", b"5"
SPECIAL = b"?"
NAME_MAX = 4096
PART_MAX = 255
DEPTH_MAX = 200
ENTRIES_MAX = 1_000_000
_EXTENSION_MAX = 64 * 1024
_SIZE_MAX = 2**53
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"x", b"g"
# Character and block devices, pipes. Sockets have no entry at all.
_SPECIAL_KINDS = (b"3", b"4", b"6")
_NUL = b"\0"


class Entry(Value):
    """One entry. `parts` is empty for the folder itself; `untrusted_link` is a link's text, or a hard link's name."""

    kind: bytes
    parts: tuple[bytes, ...]
    size: int
    mode: int
    mtime: int
    untrusted_link: bytes


def render_header(
    name: bytes, *, kind: bytes = FILE, size: int = 0, mode: int = 0o644, mtime: int = 0, link: bytes = b""
) -> bytes:
    """The blocks before an entry's content, in GNU's dialect, which every tar of today reads."""
    blocks = b""
    if len(link) > 100:
        blocks += _render_long(_LONG_LINK, link)
    if len(name) > 100:
        blocks += _render_long(_LONG_NAME, name)
    return blocks + _render_block(name[:100], kind, size, mode & 0o777, mtime, link[:100])


def _render_long(kind: bytes, text: bytes) -> bytes:
    text += _NUL
    return _render_block(b"././@LongLink", kind, len(text), 0o644, 0, b"") + text + padding(len(text))


def _render_block(name: bytes, kind: bytes, size: int, mode: int, mtime: int, link: bytes) -> bytes:
    length = b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    block = b"%s%07o\x000000000\x000000000\0%s%011o\0        %s%s" % (
        name.ljust(100, _NUL),
        mode,
        length,
        min(max(mtime, 0), 8**11 - 1),
        kind,
        link.ljust(100, _NUL),
    )
    block = block.ljust(257, _NUL) + b"ustar  \0"
    return (block[:148] + b"%06o\0 " % sum(block) + block[156:]).ljust(BLOCK, _NUL)


def padding(size: int) -> bytes:
    """What follows a content of this size."""
    return bytes(-size % BLOCK)


class ArchiveReader:
    """Turns chunks into entries and their content: `feed`, then take `events` until there are none.

    An event is an Entry, or a piece of the last file's content. `ended` once the
    end mark has passed; behind it only zeros are accepted.
    """

    def __init__(self) -> None:
        self.ended = False
        self._buffer = b""
        self._content_left = 0
        self._padding_left = 0
        self._extension: bytes | None = None
        self._extension_left = 0
        self._long_name: bytes | None = None
        self._long_link: bytes | None = None
        self._long_size: int | None = None
        self._zero_blocks = 0
        self._entries = 0

    @property
    def is_between_entries(self) -> bool:
        """Has everything that began also ended?"""
        return not (self._content_left or self._padding_left or self._extension or self._buffer)

    def feed(self, chunk: bytes | memoryview) -> list[Entry | memoryview]:
        """The events of this chunk. Pieces of content are views of it: use them before the next call."""
        events: list[Entry | memoryview] = []
        view = memoryview(self._buffer + chunk) if self._buffer else memoryview(chunk)
        self._buffer = b""
        at, end = 0, len(view)
        while at < end:
            if self._content_left:
                size = min(self._content_left, end - at)
                events.append(view[at : at + size])
                self._content_left -= size
                at += size
            elif self._padding_left:
                size = min(self._padding_left, end - at)
                self._padding_left -= size
                at += size
            elif end - at < BLOCK:
                self._buffer = bytes(view[at:])
                break
            else:
                entry = self._take_block(bytes(view[at : at + BLOCK]))
                at += BLOCK
                if entry is not None:
                    events.append(entry)
        return events

    def _take_block(self, block: bytes) -> Entry | None:
        if self._extension is not None and self._extension_left:
            self._extension += block[: self._extension_left]
            self._extension_left -= min(BLOCK, self._extension_left)
            if not self._extension_left:
                self._end_extension()
            return None
        if block.count(0) == BLOCK:
            self._zero_blocks += 1
            self.ended = self.ended or self._zero_blocks == 2
            return None
        if self._zero_blocks:
            raise _refused("something follows the end of the folder's data")
        return self._parse_header(block)

    def _parse_header(self, block: bytes) -> Entry | None:
        if _parse_number(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * 32:
            raise RunCodeError("io_error", "the folder's data arrived damaged", resolution="retry")
        kind, size = block[156:157], _parse_number(block[124:136])
        if kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL):
            if not 0 < size <= _EXTENSION_MAX:
                raise _refused("a header of an impossible size")
            self._extension, self._extension_left, self._extension_kind = b"", size, kind
            return None
        self._entries += 1
        if self._entries > ENTRIES_MAX:
            raise _refused(f"more than {ENTRIES_MAX} entries")
        name = block[:100].partition(_NUL)[0]
        if block[257:263] == b"ustar\0" and block[345] != 0:
            name = block[345:500].partition(_NUL)[0] + b"/" + name
        link = block[157:257].partition(_NUL)[0]
        name = name if self._long_name is None else self._long_name
        link = link if self._long_link is None else self._long_link
        size = size if self._long_size is None else self._long_size
        self._long_name = self._long_link = self._long_size = None
        if kind in (_NUL, b"7"):
            kind = FILE
        elif kind in _SPECIAL_KINDS:
            kind = SPECIAL
        elif kind not in (FILE, HARD_LINK, LINK, FOLDER):
            raise _refused(f"an entry of an unknown kind, {kind!r}")
        if size > _SIZE_MAX or (size and kind != FILE):
            # pax lets a hard link carry content; neither tar that we know writes such.
            raise _refused("an entry of an impossible size")
        self._content_left, self._padding_left = size, -size % BLOCK
        mode, mtime = _parse_number(block[100:108]) & 0o777, _parse_number(block[136:148])
        parts = parse_member_name(name)
        if not parts and kind != FOLDER:
            raise _refused("a file without a name")
        return Entry(kind=kind, parts=parts, size=size, mode=mode, mtime=mtime, untrusted_link=link)

    def _end_extension(self) -> None:
        text, self._extension = self._extension or b"", None
        if self._extension_kind == _LONG_NAME:
            self._long_name = text.partition(_NUL)[0]
        elif self._extension_kind == _LONG_LINK:
            self._long_link = text.partition(_NUL)[0]
        elif self._extension_kind == _PAX:
            for key, value in _parse_pax(text):
                if key == b"path":
                    self._long_name = value
                elif key == b"linkpath":
                    self._long_link = value
                elif key == b"size":
                    self._long_size = _parse_decimal(value)
                elif key.startswith(b"GNU.sparse."):
                    raise _refused("a sparse file")
        self._padding_left = 0


def parse_member_name(raw_name: bytes) -> tuple[bytes, ...]:
    """The parts of a relative name, or `unsafe_path`. `.` is the folder itself: no parts."""
    if raw_name.startswith(b"/") or len(raw_name) > NAME_MAX or _NUL in raw_name or not raw_name:
        raise _refused(f"the name {raw_name[:100]!r}")
    parts = tuple(part for part in raw_name.split(b"/") if part not in (b"", b"."))
    if b".." in parts or len(parts) > DEPTH_MAX or any(len(part) > PART_MAX for part in parts):
        raise _refused(f"the name {raw_name[:100]!r}")
    return parts


def is_windows_name(part: bytes) -> bool:
    """May Windows have a file of this name, and mean this one by it (no device, no stream, no other folder)?"""
    try:
        text = part.decode()
    except UnicodeDecodeError:
        return False
    stem = text.partition(".")[0].rstrip(" ").upper()
    devices = ("CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$")
    is_port = len(stem) == 4 and stem[:3] in ("COM", "LPT") and (stem[3].isdigit() or stem[3] in "¹²³")
    return not (
        any(c in '<>:"/\\|?*' or c < " " for c in text) or text[-1:] in (".", " ") or stem in devices or is_port
    )


def is_inner_link(target: bytes, folder_depth: int) -> bool:
    """Does a link in a folder this deep stay inside, whatever other such links there are?

    `..` may stand at the start only, and no more often than the folder is deep.
    Behind a name it could leave through that name, which may be a link itself:
    `up/../x` is outside when `up` is a link to the top, though it reads as inside.
    """
    if not target or target.startswith(b"/") or len(target) > NAME_MAX or _NUL in target:
        return False
    parts = [part for part in target.split(b"/") if part not in (b"", b".")]
    ups = 0
    while ups < len(parts) and parts[ups] == b"..":
        ups += 1
    return ups <= folder_depth and b".." not in parts[ups:]


def _parse_number(field: bytes) -> int:
    if field[0] & 0x80:
        return int.from_bytes(bytes((field[0] & 0x7F,)) + field[1:], "big") if field[0] == 0x80 else 0
    text = field.strip(b" \0")
    if not text:
        return 0
    if text.strip(b"01234567"):
        raise RunCodeError("io_error", "the folder's data arrived damaged", resolution="retry")
    return int(text, 8)


def _parse_decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise _refused("an impossible size")
    return int(text)


def _parse_pax(text: bytes) -> list[tuple[bytes, bytes]]:
    """`LENGTH KEY=VALUE\\n` records."""
    records = []
    while text:
        digits, blank, _ = text.partition(b" ")
        length = _parse_decimal(digits) if blank else 0
        record = text[len(digits) + 1 : length]
        key, equals, value = record[:-1].partition(b"=")
        if not equals or record[-1:] != b"\n" or length > len(text):
            raise _refused("a malformed header")
        records.append((key, value))
        text = text[length:]
    return records


def _refused(what: str) -> UnsafeInput:
    return UnsafeInput(
        f"the workspace sent {what}",
        code="unsafe_path",
        resolution="nothing was written: look at the folder there before you copy it",
    )
