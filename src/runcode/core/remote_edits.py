"""Replacing text in several files on the box, all or none: the scripts, and how their answers are read.

First the files come here whole; the new contents go back with the old ones beside
them. The box puts every new file beside its old one, compares each old file with
what was read, and only then renames. A rename that fails takes the others back.

Threat: somebody else writes to a file between reading and writing; the connection is
cut at any byte; the disk fills up half-way; a path is a link or a device.

Guarantee: nothing is replaced unless all that was sent has arrived, every new file
is on disk beside its old one, and every old one is still byte for byte what was
read. Mode and owner stay, a link stays a link. What remains: between the last
comparison and the renames lie milliseconds, and kill -9 or a power cut there can
leave some files new and some old, each of them whole.
"""

from __future__ import annotations

from runcode.core.box_answers import PROLOGUE, cut_end, find_answer_head, parse_numbers, unreadable
from runcode.core.errors import RunCodeError

FILE_MAX = 4 * 1024 * 1024
TOTAL_MAX = 16 * 1024 * 1024
FILES_MAX = 50

_FETCH_SCRIPT = (
    """n=$1 workdir=$2 most=$3; shift 3
"""
    + PROLOGUE
    + """for path; do
    need_folder "$path"
    case $path in /*) ;; *) path=./$path ;; esac
    [ -e "$path" ] || fail not_found
    [ ! -d "$path" ] || fail is_folder
    [ -f "$path" ] || fail unsafe_path
    [ -r "$path" ] || fail denied
    [ "$(size_of "$path")" -le "$most" ] || fail too_large
done
printf '\\n%s files %d\\n' "$n" "$#"
for path; do
    case $path in /*) ;; *) path=./$path ;; esac
    size=$(size_of "$path")
    printf '%016d' "$size"
    head -c "$size" <"$path"
done 2>/dev/null
printf '\\n%s end\\n' "$n"
"""
)

# Arguments: three for each file: path, length of the old content, length of the new one.
# stdin: old and new of each. $spool/tN is where a file really is, behind its links.
_COMMIT_SCRIPT = (
    """n=$1 workdir=$2 total=$3; shift 3
"""
    + PROLOGUE
    + """umask 077
spool=$(mktemp -d "${TMPDIR:-/tmp}/runcode-XXXXXXXX") || fail no_temporary
target_of() { target=$(cat "$spool/t$1"; echo x); target=${target%x}; part=${target%/*}/.runcode-$n.$1; }
clean() {
    i=0
    while [ -f "$spool/t$i" ]; do target_of "$i"; rm -f -- "$part.new" "$part.old"; i=$((i + 1)); done
    rm -rf -- "$spool"
}
trap clean EXIT; trap 'exit 1' HUP INT TERM; trap '' PIPE
cat >"$spool/in" 2>/dev/null || fail io_error
[ "$(size_of "$spool/in")" = "$total" ] || fail cut
cut_out() { tail -c "+$(($1 + 1))" <"$spool/in" | head -c "$2"; }
i=0 at=0
while [ $# -gt 0 ]; do
    path=$1 old=$2 new=$3; shift 3
    need_folder "$path"
    case $path in /*) ;; *) path=./$path ;; esac
    [ -e "$path" ] || fail changed
    if [ -L "$path" ]; then path=$(readlink -f -- "$path" && echo x) || fail unsafe_path; path=${path%?x}; fi
    [ -f "$path" ] || fail unsafe_path
    j=0
    while [ "$j" -lt "$i" ]; do
        target_of "$j"; [ ! "$path" -ef "$target" ] || fail twice; j=$((j + 1))
    done
    printf %s "$path" >"$spool/t$i" || fail io_error
    target_of "$i"
    cut_out "$at" "$old" >"$spool/o$i" 2>/dev/null || fail io_error
    (set -C; : >"$part.new") 2>/dev/null || fail denied
    cp -p -- "$target" "$part.new" 2>/dev/null || fail denied
    cut_out "$((at + old))" "$new" 2>/dev/null >"$part.new" || fail io_error
    [ "$(size_of "$part.new")" = "$new" ] || fail io_error
    ln -- "$target" "$part.old" 2>/dev/null || cp -p -- "$target" "$part.old" 2>/dev/null || fail denied
    at=$((at + old + new)) i=$((i + 1))
done
trap '' HUP INT TERM
count=$i i=0
while [ "$i" -lt "$count" ]; do
    target_of "$i"; cmp -s -- "$target" "$spool/o$i" || fail changed; i=$((i + 1))
done
i=0
while [ "$i" -lt "$count" ]; do
    target_of "$i"
    if ! mv -f -- "$part.new" "$target" 2>/dev/null; then
        while [ "$i" -gt 0 ]; do i=$((i - 1)); target_of "$i"; mv -f -- "$part.old" "$target"; done
        fail denied
    fi
    i=$((i + 1))
done
printf '\\n%s edited %d\\n' "$n" "$count"
"""
)


def fetch_words(nonce: str, *, workdir: str, paths: list[str]) -> list[str]:
    return ["/bin/sh", "-c", _FETCH_SCRIPT, "runcode", nonce, workdir, f"{FILE_MAX:d}", *paths]


def parse_fetched(answer: bytes, nonce: str, count: int) -> list[bytes]:
    """The files' contents, in the order of the paths."""
    line, body = find_answer_head(answer, nonce)
    if parse_numbers(line, "files", 1) != [count]:
        raise unreadable()
    left = cut_end(body, nonce)
    contents = []
    for _ in range(count):
        digits, left = left[:16], left[16:]
        if len(digits) != 16 or not digits.isdigit() or int(digits) > len(left):
            raise unreadable()
        contents.append(left[: int(digits)])
        left = left[int(digits) :]
    if left:
        raise unreadable()
    return contents


def commit_words(nonce: str, *, workdir: str, changes: list[tuple[str, bytes, bytes]]) -> tuple[list[str], bytes]:
    """(the words to run, their stdin) for (path, old content, new content) of each file."""
    words: list[str] = []
    parts: list[bytes] = []
    for path, old, new in changes:
        words += [path, f"{len(old):d}", f"{len(new):d}"]
        parts += [old, new]
    content = b"".join(parts)
    return ["/bin/sh", "-c", _COMMIT_SCRIPT, "runcode", nonce, workdir, f"{len(content):d}", *words], content


def parse_committed(answer: bytes, nonce: str, count: int) -> None:
    """Raises unless every file was replaced."""
    line, _ = find_answer_head(answer, nonce)
    if parse_numbers(line, "edited", 1) != [count]:
        raise unreadable()


def replace_exactly(content: bytes, old: str, new: str, *, every: bool, path: str) -> tuple[bytes, int]:
    """(the content with `old` replaced, how often). Raises `bad_request` unless it stands there once, or `every`.

    In a file with `\\r\\n` lines, a text that was written with plain newlines means those.
    """
    wanted, instead = old.encode(), new.encode()
    count = content.count(wanted)
    if not count and b"\r\n" in content and b"\n" in wanted:
        wanted, instead = (text.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n") for text in (wanted, instead))
        count = content.count(wanted)
    if not count:
        raise RunCodeError(
            "bad_request",
            f"the text to replace is not in {path!r}; nothing was changed",
            resolution="read the file again: the text has to match to the letter, blanks too",
        )
    if count > 1 and not every:
        raise RunCodeError(
            "bad_request",
            f"the text to replace stands {count} times in {path!r}; nothing was changed",
            resolution="add lines around it until it is the only one, or set `all`",
        )
    return content.replace(wanted, instead), count
