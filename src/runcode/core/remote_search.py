"""Looking for files and lines on the box: the scripts, and how their answers are read.

POSIX find, grep and xargs with `-0`, as GNU, busybox and the BSDs have them. Names
travel ended by NUL, since a name may hold a newline.

Threat: as in `box_answers`; a file's name is typed by strangers. A tree may have
millions of files, a line megabytes.

Guarantee: an answer is cut at `ANSWER_MAX` on the box and says so; a pattern and a name
are arguments of grep and find, never read by a shell.
"""

from __future__ import annotations

import re

from runcode.core import globs
from runcode.core.box_answers import PROLOGUE, cut_end, find_answer_head, parse_numbers, readable, unreadable
from runcode.core.errors import RunCodeError
from runcode.core.values import Value

ANSWER_MAX = 4 * 1024 * 1024
_LINE_MAX = 400
_KINDS = {"d": "folder", "f": "file", "l": "link", "o": "special"}
# A name that find may be given to leave most of a tree out; anything finer is matched here.
_FIND_NAME = re.compile(r"[A-Za-z0-9._*?@%+,=~ -]+", re.ASCII)

_START = """need_folder "$path"; path=$(plain_name "$path"; echo x); path=${path%x}
[ -e "$path" ] || fail not_found
"""

# `.git` holds nothing that a person wrote; whoever means it names it as the folder to search.
_GLOB_SCRIPT = (
    """n=$1 workdir=$2 path=$3 name=$4 most=$5
"""
    + PROLOGUE
    + _START
    + """[ -d "$path" ] || fail not_folder
cd -- "$path" 2>/dev/null || fail denied
printf '\\n%s found %d\\n' "$n" 0
find . -name .git -type d -prune -o ! -type d -name "$name" -print0 2>/dev/null | head -c "$most"
printf '\\n%s end\\n' "$n"
"""
)

_GREP_SCRIPT = (
    """n=$1 workdir=$2 path=$3 name=$4 pattern=$5 flags=$6 context=$7 most=$8
"""
    + PROLOGUE
    + _START
    + """grep -E -e "$pattern" /dev/null >/dev/null 2>&1
[ $? -le 1 ] || [ "$flags" != "${flags#*F}" ] || fail bad_pattern
null=; if grep -I --null -e x /dev/null >/dev/null 2>&1; [ $? -le 1 ]; then null=1; fi
set -- -n -H
case $flags in *F*) set -- "$@" -F ;; *) set -- "$@" -E ;; esac
case $flags in *i*) set -- "$@" -i ;; esac
[ "$context" = 0 ] || set -- "$@" -C "$context"
[ -z "$null" ] || set -- "$@" -I --null
if [ -d "$path" ]; then cd -- "$path" 2>/dev/null || fail denied; top=.; else top=$path; fi
printf '\\n%s found %d\\n' "$n" "$((null))"
find "$top" -name .git -type d -prune -o -type f -name "$name" -print0 2>/dev/null |
    xargs -0 grep "$@" -e "$pattern" /dev/null 2>/dev/null | head -c "$most"
printf '\\n%s end\\n' "$n"
"""
)

_LIST_SCRIPT = (
    """n=$1 workdir=$2 path=$3 most=$4
"""
    + PROLOGUE
    + _START
    + """[ -d "$path" ] || fail not_folder
cd -- "$path" 2>/dev/null || fail denied
printf '\\n%s found %d\\n' "$n" 0
for f in * .[!.]* ..?*; do
    if [ -L "$f" ]; then k=l; elif [ -d "$f" ]; then k=d; elif [ -f "$f" ]; then k=f
    elif [ -e "$f" ]; then k=o; else continue; fi
    printf '%s%s\\0' "$k" "$f"
done 2>/dev/null | head -c "$most"
printf '\\n%s sizes\\n' "$n"
for f in * .[!.]* ..?*; do
    if [ -f "$f" ] && [ ! -L "$f" ]; then printf './%s\\0' "$f"; fi
done 2>/dev/null | { xargs -0 stat -c %s 2>/dev/null || xargs -0 stat -f %z 2>/dev/null; } | head -c "$most"
printf '\\n%s end\\n' "$n"
"""
)


class Paths(Value):
    """Names below the folder that was searched, sorted; `is_cut`: there may be more."""

    paths: tuple[str, ...]
    is_cut: bool


class Match(Value):
    """One line. `is_match` is false for a line of context. The path is relative to what was searched."""

    path: str
    line: int
    text: str
    is_match: bool


class Matches(Value):
    matches: tuple[Match, ...]
    is_cut: bool


class Entry(Value):
    """`size` is of plain files, None where the box did not tell."""

    name: str
    kind: str
    size: int | None


def glob_words(nonce: str, *, workdir: str, path: str, pattern: str) -> list[str]:
    """The words that list what `parse_paths` then matches with `pattern` (relative to `path`)."""
    return [
        "/bin/sh",
        "-c",
        _GLOB_SCRIPT,
        "runcode",
        nonce,
        workdir,
        path or ".",
        _name_for_find(pattern),
        f"{ANSWER_MAX:d}",
    ]


def grep_words(
    nonce: str, *, workdir: str, path: str, pattern: str, glob: str, fixed: bool, ignore_case: bool, context: int
) -> list[str]:
    """`pattern` is POSIX extended, or plain text when `fixed`; `glob` leaves files out."""
    flags = "-" + "F" * fixed + "i" * ignore_case
    words = [path or ".", _name_for_find(glob), pattern, flags, f"{context:d}", f"{ANSWER_MAX:d}"]
    return ["/bin/sh", "-c", _GREP_SCRIPT, "runcode", nonce, workdir, *words]


def list_words(nonce: str, *, workdir: str, path: str) -> list[str]:
    return ["/bin/sh", "-c", _LIST_SCRIPT, "runcode", nonce, workdir, path or ".", f"{ANSWER_MAX:d}"]


def parse_paths(answer: bytes, nonce: str, pattern: str) -> Paths:
    names, is_cut = _parse_names(answer, nonce)
    matcher = _compile(pattern)
    return Paths(paths=tuple(sorted(name for name in names if matcher.match(name))), is_cut=is_cut)


def parse_matches(answer: bytes, nonce: str, glob: str) -> Matches:
    line, body = find_answer_head(answer, nonce)
    (has_null,) = parse_numbers(line, "found", 1)
    raw = cut_end(body, nonce)
    matcher = _compile(glob)
    # With NUL behind the name the line is exact; without, the first `:N:` ends the name.
    form = rb"([^\0]*)\0([0-9]{1,12})([:-])(.*)" if has_null else rb"(.*?)[:-]([0-9]{1,12})([:-])(.*)"
    found = []
    for record in raw.split(b"\n"):
        match = re.fullmatch(form, record, re.DOTALL)
        if match is None:
            continue
        path = _shown(match[1])
        if matcher.match(path) or matcher.match(path.rpartition("/")[2]):
            text = readable(match[4][: 4 * _LINE_MAX])
            text = text if len(text) <= _LINE_MAX else text[:_LINE_MAX] + "…"
            found.append(Match(path=path, line=int(match[2]), text=text, is_match=match[3] == b":"))
    return Matches(matches=tuple(found), is_cut=len(raw) >= ANSWER_MAX)


def parse_entries(answer: bytes, nonce: str) -> tuple[list[Entry], bool]:
    """(what is in the folder by name, whether there may be more)."""
    line, body = find_answer_head(answer, nonce)
    parse_numbers(line, "found", 1)
    names, divided, raw_sizes = cut_end(body, nonce).partition(f"\n{nonce} sizes\n".encode())
    if not divided:
        raise unreadable()
    records = [record for record in _records(names) if record[:1] in (b"d", b"f", b"l", b"o")]
    sizes: list[int | None] = [int(text) for text in raw_sizes.split() if re.fullmatch(rb"[0-9]{1,16}", text)]
    files = sum(record.startswith(b"f") for record in records)
    if len(sizes) != files:
        # Something came or went between the two looks: better none than the wrong one's.
        sizes = [None] * files
    left = iter(sizes)
    entries = [
        Entry(name=_shown(record[1:]), kind=_KINDS[chr(record[0])], size=next(left) if record[:1] == b"f" else None)
        for record in records
    ]
    return sorted(entries, key=lambda entry: entry.name), len(names) >= ANSWER_MAX


def _parse_names(answer: bytes, nonce: str) -> tuple[list[str], bool]:
    line, body = find_answer_head(answer, nonce)
    parse_numbers(line, "found", 1)
    raw = cut_end(body, nonce)
    return [_shown(record) for record in _records(raw)], len(raw) >= ANSWER_MAX


def _records(raw: bytes) -> list[bytes]:
    """What NUL ended; a record that was cut is left out."""
    return raw.split(b"\0")[:-1]


def _shown(raw_name: bytes) -> str:
    """One line, whatever a stranger called the file."""
    return readable(raw_name.removeprefix(b"./")).replace("\n", "\ufffd").replace("\t", "\ufffd")


def _name_for_find(pattern: str) -> str:
    last = pattern.rpartition("/")[2]
    return last if last and last != "**" and _FIND_NAME.fullmatch(last) else "*"


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return globs.compile_glob(pattern)
    except re.error as error:
        raise RunCodeError("bad_request", "that is not a file pattern", resolution="e.g. `src/**/*.py`") from error
