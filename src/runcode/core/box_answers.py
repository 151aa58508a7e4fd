"""How our own scripts on a box answer: the words for a failure, framed numbers and texts.

Owns: the prologue that the scripts of `remote_runs`, `remote_reads`, `remote_search`
and `remote_edits` share, and reading what they say. Pure text and bytes.

Threat: the box writes every answer, and its rc files may print before it. A number
may be huge, a text may hold anything, an answer may end anywhere.

Guarantee: an answer is found behind the call's own nonce, its head is matched as a
whole against digits and words, and one that is not whole is an error, never half a
result. `readable` is what of it may be shown: printable characters, tabs, newlines.
"""

from __future__ import annotations

import re

from runcode.core.errors import RunCodeError
from runcode.core.remote_files import SIZE_MAX, parse_failure
from runcode.core.terminal import printable_text

_WORDS = {
    "no_cwd": ("not_found", "there is no such folder on the workspace", "name one that is there: `list` shows them"),
    "is_folder": ("unsafe_path", "that is a folder on the workspace, not a file", "use `list` or `glob` for a folder"),
    "too_large": ("bad_request", "that file is too large to be edited here", "edit it with a command on the workspace"),
    "changed": (
        "conflict",
        "a file was changed by somebody else meanwhile; nothing was written",
        "read it again, then repeat the edit",
    ),
    "twice": ("bad_request", "two of the paths are one file; nothing was changed", "name each file by one path"),
    "no_log": ("io_error", "the workspace cannot keep the output", "is its home folder's disk full or read-only?"),
    "log_gone": ("not_found", "there is no such log on the workspace", "logs are kept for the last 200 commands"),
    "bad_pattern": (
        "bad_request",
        "the pattern is not a regular expression that the workspace's grep takes",
        "POSIX extended syntax is meant; `fixed` searches for plain text",
    ),
    "no_temporary": ("io_error", "the workspace gives no temporary folder", "is its disk full?"),
}

# $n is the nonce, $workdir the project folder. A relative path never looks like an option.
PROLOGUE = """fail() { printf '\\n%s error %s\\n' "$n" "$1"; exit 1; }
size_of() { set -- $(wc -c <"$1"); echo "$(($1))"; }
whole=; cd -- "$workdir" 2>/dev/null && whole=1
need_folder() { case $1 in /*) ;; *) [ "$whole" ] || fail no_folder ;; esac; }
plain_name() { case $1 in /*) printf %s "$1" ;; *) printf './%s' "$1" ;; esac; }
logs=${XDG_CACHE_HOME:-$HOME/.cache}/runcode/logs
"""


def find_answer_head(answer: bytes, nonce: str) -> tuple[bytes, bytes]:
    """(the line behind the nonce, all that follows it). Raises what the box reported."""
    marker = f"\n{nonce} ".encode()
    _, found, rest = answer.partition(marker)
    line, ended, body = rest.partition(b"\n")
    if not found or not ended:
        raise unreadable()
    if line.startswith(b"error "):
        raise parse_word(line)
    return line, body


def cut_end(body: bytes, nonce: str) -> bytes:
    """What stands before the answer's end. Raises when it is not whole."""
    text, ended, _ = body.rpartition(f"\n{nonce} end\n".encode())
    if not ended:
        raise unreadable()
    return text


def parse_word(line: bytes) -> RunCodeError:
    """`error WORD` → the error it means."""
    word = line[6:].decode("ascii", "replace")
    if word in _WORDS:
        code, message, resolution = _WORDS[word]
        return RunCodeError(code, message, resolution=resolution)
    return parse_failure(line)


def parse_numbers(line: bytes, word: str, count: int) -> list[int]:
    """`WORD N N …` → exactly `count` numbers."""
    pattern = re.escape(word.encode()) + rb"((?: [0-9]{1,16}){%d})" % count
    match = re.fullmatch(pattern, line)
    numbers = [int(part) for part in match[1].split()] if match is not None else []
    if len(numbers) != count or any(number > SIZE_MAX for number in numbers):
        raise unreadable()
    return numbers


def unreadable() -> RunCodeError:
    return RunCodeError("io_error", "the workspace's answer is not whole", resolution="retry")


def readable(untrusted_bytes: bytes) -> str:
    """Text from the box as it may be shown: see `core.terminal`."""
    return printable_text(untrusted_bytes.decode("utf-8", "replace"))
