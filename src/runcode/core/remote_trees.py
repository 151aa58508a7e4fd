"""The box's side of a folder transfer: POSIX sh around `tar`.

As in `core.remote_files`, answers carry a nonce and everything that varies is an
argument.

An upload is unpacked into a folder of its own beside the target, checked there
(as it is written where the box has Python, else by reading it all back), and then
moved: as a whole where the target is new, else file by file; where a link, or a
file for a folder, is in the way, nothing is moved.
"""

from __future__ import annotations

import re

from runcode.core import remote_python
from runcode.core.errors import RunCodeError
from runcode.core.remote_command import render_script
from runcode.core.remote_files import DIGEST_SCRIPT, parse_failure

# What an upload's stream holds, relative to the folder in which it is unpacked.
TREE, LIST, SUM = b"tree", b"list", b"sum"
_ENDING = re.compile(rb"([0-9a-f-]{1,64}) ([0-9]{1,3})", re.ASCII)

# `"{""}"`: find would put a name for the plain form into the inner script's text, as code.
# `cat` gets the names from `list`, each ended by NUL, in the order in which the client read the files.
_UPLOAD_SCRIPT = (
    "n=$1 algorithm=$2 workdir=$3 path=$4 name=$5 program=$6 big= python=\n"
    + DIGEST_SCRIPT
    + """unset TAR_OPTIONS
find_python
while case $path in ?*/) ;; *) false ;; esac; do path=${path%/}; done
if [ -d "$path" ] && [ "$name" ]; then path=$path/$name; fi
if [ "$name" ] && [ -L "$path" ]; then fail clash; fi
if [ -e "$path" ] && [ ! -d "$path" ]; then fail clash; fi
[ -d "${path%/*}/" ] || fail no_folder
if [ -d "$path" ]; then stage=$path/.runcode-$n.part; else stage=${path%/*}/.runcode-$n.part; fi
trap 'rm -rf -- "$stage"' EXIT
trap 'exit 1' HUP INT TERM
mkdir -m 700 -- "$stage" 2>/dev/null || fail denied
stage=$(cd -- "$stage" && pwd -P && echo x) || fail denied
stage=${stage%?x}
status=9
if [ "$python" ]; then made=$(cd -- "$stage" && python3 -I -S -c "$program" 2>log); status=$?; fi
if [ "$status" -eq 9 ]; then
    python=
    command -v tar >/dev/null 2>&1 || fail no_tar
    tar -C "$stage" -xpof - 2>"$stage/log"
    status=$?
fi
cat >/dev/null
[ -f "$stage/sum" ] || { [ "$status" -eq 0 ] && fail cut; fail io_error; }
[ "$status" -eq 0 ] || fail io_error
[ "$python" ] || made=$(cd "$stage/tree" && { xargs -0 cat -- <../list 2>/dev/null || echo missing; } | digest)
[ "$made" = "$(cat "$stage/sum")" ] || fail mismatch
if [ ! -d "$path" ]; then
    mv -- "$stage/tree" "$path" 2>/dev/null || fail denied
else
    target=$(cd -- "$path" && pwd -P && echo x) || fail denied
    target=${target%?x}
    cd -- "$stage/tree" || fail io_error
    find . -type d -exec sh -c 'for d do
        t=$0/$d; [ "$d" = . ] || [ ! -L "$t" ] || exit 1; [ ! -e "$t" ] || [ -d "$t" ] || exit 1
    done' "$target" {} + || fail clash
    find . ! -type d -exec sh -c 'for f do
        t=$0/$f; [ -L "$t" ] || [ ! -e "$t" ] || [ -f "$t" ] || exit 1
    done' "$target" {} + || fail clash
    find . -type d \\( -exec sh -c '[ -e "$0/$1" ]' "$target" {} \\; -exec sh -c '
            cd -- "$1" && find . ! -name . -prune ! -type d -exec sh -c '\\''mv -f -- "$@" "$0"'\\'' "$0/$1" "{""}" + \\
                || : >"$2"' "$target" {} "$stage/failed" \\; \\
        -o -exec sh -c 'mv -- "$1" "$0/$1" || : >"$2"' "$target" {} "$stage/failed" \\; -prune \\) 2>/dev/null
    [ ! -e "$stage/failed" ] || fail denied
fi
printf '\\n%s ok\\n' "$n"
"""
)

_DOWNLOAD_SCRIPT = (
    "n=$1 algorithm=$2 workdir=$3 path=$4 big=1\n"
    + DIGEST_SCRIPT
    + """unset TAR_OPTIONS
command -v tar >/dev/null 2>&1 || fail no_tar
[ -e "$path" ] || fail not_found
[ -d "$path" ] || fail not_folder
cd -- "$path" 2>/dev/null || fail denied
printf '\\n%s tree\\n' "$n"
exec 3>&1
d=$({ { tar -cf - . 4>&- 5>&-; echo $? >&4; } | { tee /dev/fd/5 >&3 4>&-; } 5>&1 | digest; } 4>&1)
set +f; set -- $d
printf '\\n%s %s %d\\n' "$n" "${2:-$1}" "$1" >&2
"""
)


def render_tree_upload(nonce: str, *, algorithm: str, workdir: str, path: str, name: str) -> str:
    """The remote command that takes a folder on stdin and answers `\\n<nonce> ok\\n` once it is in place.

    A `path` that is a folder takes it under `name`, or, when that is empty, takes what is in it.
    """
    return render_script(_UPLOAD_SCRIPT, nonce, algorithm, workdir, path, name, remote_python.RECEIVE_TREE)


def render_tree_download(nonce: str, *, algorithm: str, workdir: str, path: str) -> str:
    """The remote command that sends `\\n<nonce> tree\\n` and a tar stream; on stderr `<nonce> DIGEST STATUS`."""
    return render_script(_DOWNLOAD_SCRIPT, nonce, algorithm, workdir, path)


def parse_tree_header(line: bytes) -> None:
    """Raises what the box reported, unless it begins to send."""
    if line != b"tree":
        raise parse_failure(line)


def parse_tree_ending(line: bytes) -> tuple[str, int]:
    """(the stream's digest, tar's exit status)."""
    match = _ENDING.fullmatch(line)
    if match is None:
        raise RunCodeError("io_error", "the folder arrived cut short", resolution="retry")
    return match[1].decode(), int(match[2])
