"""Part of a file on the box, by lines or by bytes: the script, and how its answer is read.

Threat: as in `box_answers`. The file may be huge, binary, or a device that never ends.

Guarantee: at most the bytes that were asked for come back, of a plain file only.
"""

from __future__ import annotations

import re

from runcode.core.box_answers import PROLOGUE, cut_end, find_answer_head, parse_numbers
from runcode.core.values import Value

_LOG_NAME = re.compile(r"[0-9a-f]{8,32}\.(?:out|err)", re.ASCII)

# Counting the lines of what is larger than 64 MiB would cost more than it tells.
_SCRIPT = (
    """n=$1 workdir=$2 path=$3 log=$4 unit=$5 start=$6 count=$7 most=$8
"""
    + PROLOGUE
    + """if [ "$log" ]; then path=$logs/$log; [ -f "$path" ] || fail log_gone; fi
need_folder "$path"; path=$(plain_name "$path"; echo x); path=${path%x}
[ -e "$path" ] || fail not_found
[ ! -d "$path" ] || fail is_folder
[ -f "$path" ] || fail unsafe_path
[ -r "$path" ] || fail denied
exec 2>/dev/null
size=$(size_of "$path") lines=0 known=0
if [ "$size" -le 67108864 ]; then lines=$(($(wc -l <"$path"))) known=1; fi
printf '\\n%s read %d %d %d\\n' "$n" "$size" "$lines" "$known"
if [ "$unit" = lines ]; then tail -n "+$start" <"$path" | head -n "$count" | head -c "$most"
else tail -c "+$((start + 1))" <"$path" | head -c "$count"; fi
printf '\\n%s end\\n' "$n"
"""
)


class Reading(Value):
    """`lines` counts newlines, None for a file too large to count. `content` is what was asked for, as bytes."""

    size: int
    lines: int | None
    content: bytes

    @property
    def is_binary(self) -> bool:
        return b"\0" in self.content


def is_log_name(text: str) -> bool:
    return _LOG_NAME.fullmatch(text) is not None


def read_words(
    nonce: str, *, workdir: str, path: str, log: str, by_lines: bool, start: int, count: int, most: int
) -> list[str]:
    """Lines count from 1, bytes from 0. `log` (a name in the log folder) is read instead of `path` when it is given."""
    unit = "lines" if by_lines else "bytes"
    numbers = [f"{start:d}", f"{count:d}", f"{most:d}"]
    return ["/bin/sh", "-c", _SCRIPT, "runcode", nonce, workdir, path, log, unit, *numbers]


def parse_reading(answer: bytes, nonce: str) -> Reading:
    line, body = find_answer_head(answer, nonce)
    size, lines, known = parse_numbers(line, "read", 3)
    return Reading(size=size, lines=lines if known else None, content=cut_end(body, nonce))
