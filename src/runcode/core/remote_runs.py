"""A command whose output stays on the box: the script that runs it, and what it reports.

The command writes into two private files there. What comes back is its status, the
sizes, the head and the tail of each, and lines that look like errors when something
was left out: a build's 40 MB cross no wire, and none of it is lost.

Threat: the command prints without end, or a background child goes on writing; the
answer may be forged by the command itself, which owns the box.

Guarantee: the log folder is 0700 and its files 0600; an answer is bounded by the
budget; a command that writes more than `LOG_MAX` is ended; nothing in the output can
shift the frame, since every part comes with its length.
"""

from __future__ import annotations

from runcode.core.box_answers import PROLOGUE, cut_end, find_answer_head, parse_numbers, readable, unreadable
from runcode.core.values import Value

LOG_MAX = 256 * 1024 * 1024
_WINDOW = "error|fail(ed|ure|ing)|exception|traceback|panic|fatal|undefined reference|no such file|cannot |denied"

# The command runs in the foreground, so that signals mean to it what they mean anywhere; the trap
# lets this shell outlive a signal to the group and tell what there is. The watcher has no
# descriptor of the session, so that it cannot hold it open.
_RUN_SCRIPT = (
    """n=$1 workdir=$2 cwd=$3 command=$4 id=$5 head=$6 tail=$7 window=$8 most=$9; shift 9; errors=$1
"""
    + PROLOGUE
    + """need_folder "$cwd"
cd -- "$(plain_name "$cwd")" 2>/dev/null || fail no_cwd
[ ! -L "$logs" ] && (umask 077; mkdir -p -- "$logs" && chmod 700 "$logs") 2>/dev/null || fail no_log
out=$logs/$id.out err=$logs/$id.err
(umask 077; set -C; : >"$out" && : >"$err") 2>/dev/null || fail no_log
ls -t "$logs" 2>/dev/null | tail -n +400 | while read -r old; do rm -f -- "$logs/$old"; done
(
    trap '' TERM; harder=TERM
    while sleep 1; do
        [ $(($(size_of "$out") + $(size_of "$err"))) -le "$most" ] || { kill -s "$harder" 0; harder=KILL; }
    done
) </dev/null >/dev/null 2>&1 &
watcher=$!
trap : HUP INT TERM
("${SHELL:-/bin/sh}" -c "$command") </dev/null >"$out" 2>"$err"
status=$?
kill -s KILL "$watcher" 2>/dev/null
exec 2>/dev/null
"""
)

# Also on its own: what a command left that was killed before it could tell.
_REPORT_SCRIPT = """shares() {
    size=$(size_of "$1") first=$size last=0
    if [ "$size" -gt $((head + tail)) ]; then first=$head last=$tail; fi
}
shares "$out"; os=$size of=$first ol=$last
shares "$err"; es=$size ef=$first el=$last
at=$(pwd -P; echo x); at=${at%x}
printf '\\n%s ran %d %d %d %d %d %d %d\\n' "$n" "$status" "$os" "$of" "$ol" "$es" "$ef" "$el"
part() { head -c "$2" <"$1"; [ "$3" = 0 ] || tail -c "+$(($4 - $3 + 1))" <"$1" | head -c "$3"; }
part "$out" "$of" "$ol" "$os"
part "$err" "$ef" "$el" "$es"
printf '\\n%s at\\n%s' "$n" "$at"
if [ "$ol$el" != 00 ]; then
    for f in "$err" "$out"; do
        printf '\\n%s window\\n' "$n"
        head -c 67108864 <"$f" | LC_ALL=C tr -d '\\000' | LC_ALL=C grep -n -i -E -A 2 -m 60 -e "$errors" |
            head -c "$window"
    done
fi
printf '\\n%s end\\n' "$n"
"""

_LEFT_SCRIPT = (
    """n=$1 workdir=$2 id=$3 head=$4 tail=$5 window=$6 errors=$7 status=255
"""
    + PROLOGUE
    + """out=$logs/$id.out err=$logs/$id.err
[ -f "$out" ] && [ -f "$err" ] || fail log_gone
exec 2>/dev/null
"""
)


class Stream(Value):
    """One of the two: its size on the box, and what came of it. `tail` is empty when all of it is in `head`."""

    size: int
    head: str
    tail: str

    @property
    def is_cut(self) -> bool:
        return bool(self.tail)


class Run(Value):
    """What a command did. Texts are untrusted but readable; `errors` is `stderr` first, as `LINE:text`."""

    status: int
    cwd: str
    stdout: Stream
    stderr: Stream
    errors: tuple[str, ...]


class Budget(Value):
    """How much of each stream comes back, in bytes."""

    head: int
    tail: int
    window: int

    @staticmethod
    def of(total: int) -> Budget:
        """Most of it for the end, where a build or a test says what failed."""
        return Budget(head=total // 3, tail=total - total // 3, window=total // 4)


def run_words(nonce: str, *, workdir: str, cwd: str, command: str, log_id: str, budget: Budget) -> list[str]:
    """The words to run on the box. `log_id` is hex and names the log from now on."""
    numbers = [f"{number:d}" for number in (budget.head, budget.tail, budget.window, LOG_MAX)]
    script = _RUN_SCRIPT + _REPORT_SCRIPT
    return ["/bin/sh", "-c", script, "runcode", nonce, workdir, cwd or ".", command, log_id, *numbers, _WINDOW]


def left_words(nonce: str, *, workdir: str, log_id: str, budget: Budget) -> list[str]:
    """The words that tell what a command left which was ended the hard way."""
    numbers = [f"{number:d}" for number in (budget.head, budget.tail, budget.window)]
    return ["/bin/sh", "-c", _LEFT_SCRIPT + _REPORT_SCRIPT, "runcode", nonce, workdir, log_id, *numbers, _WINDOW]


def parse_run(answer: bytes, nonce: str) -> Run:
    """Raises what the box reported, or `io_error` for an answer that is not whole."""
    line, body = find_answer_head(answer, nonce)
    status, out_size, out_head, out_tail, err_size, err_head, err_tail = parse_numbers(line, "ran", 7)
    parts = []
    for length in (out_head, out_tail, err_head, err_tail):
        if length > len(body):
            raise unreadable()
        parts.append(readable(body[:length]))
        body = body[length:]
    place, *windows = cut_end(body, nonce).split(f"\n{nonce} window\n".encode())
    _, marked, cwd = place.partition(f"\n{nonce} at\n".encode())
    if not marked or status > 255:
        raise unreadable()
    return Run(
        status=status,
        cwd=readable(cwd).rstrip("\n"),
        stdout=Stream(size=out_size, head=parts[0], tail=parts[1]),
        stderr=Stream(size=err_size, head=parts[2], tail=parts[3]),
        errors=tuple(readable(window).strip("\n") for window in windows),
    )
