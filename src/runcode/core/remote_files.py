"""The box's side of a file transfer: POSIX sh, and how its answers are read.

The scripts run under `remote_command.render_script`; everything that varies is
an argument. Answers carry a nonce, since a person's rc files may print whatever
they like before the script runs.

Threat: the box is hostile or its files change under us. Sizes, modes and digests
are parsed by allowlist, and an error is one of the words below.
"""

from __future__ import annotations

import re

from runcode.core import remote_python
from runcode.core.errors import RunCodeError
from runcode.core.remote_command import render_script
from runcode.core.values import Value

SIZE_MAX = 2**53
# What may stand before the first marker: a chatty rc file, not an endless one.
NOISE_MAX = 1024 * 1024
# A broken transfer goes on at a whole multiple of this, since POSIX dd skips whole blocks.
RESUME_BLOCK = 1024 * 1024
TRAILER_SIZE = 160
_HEADER = re.compile(rb"([0-9]{1,16}) ([0-7]{1,6}|-) ([0-9]{1,16})", re.ASCII)
_PARTIAL = re.compile(rb"partial ([0-9]{1,10}) ([0-9a-f-]{1,64})", re.ASCII)
_WORDS = {
    "not_found": ("not_found", "there is no such file on the workspace", "look with `runcode exec -- ls`"),
    "no_folder": (
        "not_found",
        "there is no such folder on the workspace",
        "make it first: `runcode exec -- mkdir -p FOLDER`",
    ),
    "unsafe_path": (
        "unsafe_path",
        "that is not a plain file on the workspace",
        "only plain files are copied: name one, or a folder with `-r`",
    ),
    "not_folder": ("unsafe_path", "that is not a folder on the workspace", "leave `-r` away for a file"),
    "clash": (
        "unsafe_path",
        "a link, or a file where a folder should be (or the reverse), is in the way on the workspace",
        "remove it there, or choose another name; nothing was changed",
    ),
    "denied": ("io_error", "the workspace does not allow it", "check the file's and its folder's permissions there"),
    "io_error": ("io_error", "the workspace could not write the file", "is its disk full? `runcode exec -- df -h .`"),
    "mismatch": ("io_error", "the file arrived damaged or cut short, and was thrown away", "retry"),
    "cut": ("io_error", "the file arrived cut short", "retry"),
    "no_digest": ("io_error", "the workspace has no program for this checksum", "install coreutils there"),
    "no_tar": ("io_error", "the workspace has no `tar`", "install it there, or copy the files one by one"),
}


class NoDigest(RunCodeError):
    """The box has no program for this algorithm: the next one may do."""

    def __init__(self) -> None:
        code, message, resolution = _WORDS["no_digest"]
        super().__init__(code, message, resolution=resolution)


# PIPE is ignored: when the client is gone, dash would die of its own error message before the trap cleans up.
# `digest` prints one word for its stdin, by the algorithm in $algorithm. openssl is four times as fast as
# coreutils' own SHA-256, but slower to start: it pays from $big bytes on.
DIGEST_SCRIPT = (
    """trap '' PIPE
set -f
fail() { printf '\\n%s error %s\\n' "$n" "$1"; exit 1; }
word() { set -- $("$@"); echo "$1"; }
if [ "$algorithm" = cksum ]; then digest() { set -- $(cksum); echo "$1-$2"; }
elif [ "$big" ] && command -v openssl >/dev/null 2>&1; then digest() { word openssl dgst -sha256 -r; }
elif command -v sha256sum >/dev/null 2>&1; then digest() { word sha256sum; }
elif command -v shasum >/dev/null 2>&1; then digest() { word shasum -a 256; }
elif command -v openssl >/dev/null 2>&1; then digest() { word openssl dgst -sha256 -r; }
else fail no_digest; fi
"""
    + remote_python.FIND_PYTHON
    + """cd -- "$workdir" 2>/dev/null || case $path in /*) ;; *) fail no_folder ;; esac
case $path in /*) ;; *) path=./$path ;; esac
mode_of() { stat -L -c %a -- "$1" 2>/dev/null || stat -L -f %Lp -- "$1" 2>/dev/null || echo -; }
"""
)

# The digest is made in the same pass where there is Python, else beside the data from a descriptor of its own.
# It goes to stderr.
_DOWNLOAD_SCRIPT = (
    """n=$1 algorithm=$2 workdir=$3 path=$4 blocks=$5 prefix=$6 program=$7 big= python=
case $path in /*) f=$path ;; *) f=$workdir/$path ;; esac
if [ -f "$f" ] && [ "$(wc -c <"$f")" -gt 8388608 ]; then big=1; fi 2>/dev/null
"""
    + DIGEST_SCRIPT
    + """[ -e "$path" ] || fail not_found
[ -f "$path" ] || fail unsafe_path
[ -r "$path" ] || fail denied
exec 4<"$path" 5<"$path" || fail denied
size=$(wc -c <"$path") || fail denied
if [ "$blocks" -gt 0 ]; then
    [ "$(dd bs=1048576 count="$blocks" <"$path" 2>/dev/null | digest)" = "$prefix" ] || blocks=0
fi
[ -z "$big" ] || find_python
printf '\\n%s %d %s %d\\n' "$n" "$((size))" "$(mode_of "$path")" "$((blocks * 1048576))"
if [ "$python" ]; then
    python3 -I -S -c "$program" "$n" "$((blocks * 1048576))" 2>&3
    [ $? -eq 9 ] || exit 0
fi 3>&2 2>/dev/null
{ d=$(digest <&4); printf '\\n%s %s\\n' "$n" "$d" >&2; } &
if [ "$blocks" -gt 0 ]; then dd bs=1048576 skip="$blocks" <&5 2>/dev/null; else cat <&5; fi
wait"""
)

# $path becomes the plain file that is meant; $kept is what a broken transfer left.
_TARGET_SCRIPT = (
    DIGEST_SCRIPT
    + """if [ "$parents" ]; then mkdir -p -- "${path%/*}" 2>/dev/null || fail denied; fi
case $path in */) [ -d "$path" ] || fail no_folder ;; esac
if [ -d "$path" ]; then [ "$name" ] || fail unsafe_path; path=${path%/}/$name; fi
if [ -L "$path" ]; then path=$(readlink -f -- "$path" && echo x) || fail unsafe_path; path=${path%?x}; fi
if [ -e "$path" ] && [ ! -f "$path" ]; then fail unsafe_path; fi
[ -d "${path%/*}/" ] || fail no_folder
kept=${path%/*}/.runcode-$key.resume
"""
)

# stdin carries the data and then a trailer, blank-padded to TRAILER_SIZE, that a stream which
# was cut anywhere cannot end in. Where the size is known, and the box has Python or a `head`
# that takes exactly what it is told to, the digest is made while the data arrives; else from
# the file, afterwards.
_UPLOAD_SCRIPT = (
    "n=$1 algorithm=$2 workdir=$3 path=$4 name=$5 size=$6 mode=$7 parents=$8 key=$9\n"
    + """shift 9; blocks=$1 program=$2 big= python=
[ "$size" = - ] || [ "$size" -lt 8388608 ] || big=1
"""
    + _TARGET_SCRIPT
    + """if [ "$mode" = keep ]; then
    mode=-; [ ! -e "$path" ] || mode=$(mode_of "$path")
    if [ "$mode" = - ]; then mode=$(printf %o $((0666 & ~$(umask)))); else mode=$(printf %o $((0$mode & 0777))); fi
fi
part=${path%/*}/.runcode-$n.part
leave() { if [ "$key" ] && [ -s "$part" ]; then mv -f -- "$part" "$kept"; else rm -f -- "$part"; fi; }
throw_away() { key=; fail "$1"; }
umask 077
if [ "$blocks" -gt 0 ]; then
    [ -f "$kept" ] && [ ! -L "$kept" ] && mv -f -- "$kept" "$part" || fail mismatch
    trap leave EXIT; trap 'exit 1' HUP INT TERM
    dd if=/dev/null of="$part" bs=1048576 seek="$blocks" 2>/dev/null || fail io_error
else
    (set -C; : >"$part") 2>/dev/null || fail denied
    trap leave EXIT; trap 'exit 1' HUP INT TERM
fi
size_of() { echo "$(($(wc -c <"$part")))"; }
[ -z "$big" ] || find_python
status=9
if [ "$python" ]; then
    made=$(python3 -I -S -c "$program" "$part" "$((blocks * 1048576))" "$((size - blocks * 1048576))")
    status=$?
fi
if [ "$status" -ne 9 ]; then
    [ "$status" -eq 0 ] || throw_away io_error
    trailer=$(cat)
elif [ "$big" ] && [ "$(printf ab | { head -c 1 >/dev/null 2>&1; cat; })" = b ]; then
    made=$({ cat <"$part"; head -c "$((size - blocks * 1048576))" | tee -a -- "$part"; } 2>/dev/null | digest)
    trailer=$(cat)
else
    cat >>"$part" 2>/dev/null || throw_away io_error
    trailer=$(tail -c 160 <"$part" 2>/dev/null)
    made=
fi 2>/dev/null
set -- $trailer
[ "$1" = "$n" ] && [ $# -eq 3 ] || fail cut
if [ ! "$made" ]; then
    [ "$(size_of)" -eq $(($2 + 160)) ] || throw_away mismatch
    dd if=/dev/null of="$part" bs=1 seek="$2" 2>/dev/null || throw_away io_error
    made=$(digest <"$part")
fi
[ "$(size_of)" -eq "$2" ] || throw_away io_error
[ "$made" = "$3" ] || throw_away mismatch
dd if=/dev/null of="$part" bs=1 seek="$2" conv=fsync 2>/dev/null
chmod "$mode" "$part" && mv -f -- "$part" "$path" || throw_away denied
trap - EXIT
[ ! "$key" ] || rm -f -- "$kept"
printf '\\n%s ok\\n' "$n"
"""
)

_PARTIAL_SCRIPT = (
    "n=$1 algorithm=$2 workdir=$3 path=$4 name=$5 parents=$6 key=$7 big=1\n"
    + _TARGET_SCRIPT
    + """blocks=0
if [ -f "$kept" ] && [ ! -L "$kept" ]; then blocks=$(($(wc -c <"$kept") / 1048576)); fi
printf '\\n%s partial %d %s\\n' "$n" "$blocks" "$(dd bs=1048576 count="$blocks" 2>/dev/null <"$kept" | digest)"
"""
)


class DownloadHeader(Value):
    """`mode` is permission bits only: never setuid, setgid or sticky. `offset` is where the data begins."""

    size: int
    mode: int
    offset: int


class RemoteFile(Value):
    """Where an upload goes. A `path` that is a folder takes the file under `name`; empty: it may not be one.

    `make_parents` makes missing folders; `resume_key` (32 hex digits, or empty)
    names the partial file that a broken transfer leaves and a later one goes on with.
    """

    workdir: str
    path: str
    name: str = ""
    make_parents: bool = False
    resume_key: str = ""


def render_download(
    nonce: str, *, algorithm: str, workdir: str, path: str, blocks: int = 0, prefix_digest: str = "-"
) -> str:
    """The remote command that sends a file: `\\n<nonce> SIZE MODE OFFSET\\n`, the data; on stderr `<nonce> DIGEST`.

    The data begins behind `blocks` blocks when those have this digest, else at 0;
    the digest is always of the whole file.
    """
    return render_script(
        _DOWNLOAD_SCRIPT, nonce, algorithm, workdir, path, f"{blocks:d}", prefix_digest, remote_python.SEND_FILE
    )


def render_upload(
    nonce: str, target: RemoteFile, *, algorithm: str, size: int | None, mode: int | None, blocks: int = 0
) -> str:
    """The remote command that takes a file on stdin and answers `\\n<nonce> ok\\n` once it has its final name.

    `size` None: not known yet. `mode` None: the old file's, or what the box's
    umask gives. stdin goes on behind `blocks` blocks of the partial file.
    """
    return render_script(
        _UPLOAD_SCRIPT,
        nonce,
        algorithm,
        target.workdir,
        target.path,
        target.name,
        "-" if size is None else f"{size:d}",
        "keep" if mode is None else f"{mode & 0o777:o}",
        "1" if target.make_parents else "",
        target.resume_key,
        f"{blocks:d}",
        remote_python.RECEIVE_FILE,
    )


def render_partial(nonce: str, target: RemoteFile, *, algorithm: str) -> str:
    """The remote command that answers `\\n<nonce> partial BLOCKS DIGEST\\n`: what a broken upload left."""
    return render_script(
        _PARTIAL_SCRIPT,
        nonce,
        algorithm,
        target.workdir,
        target.path,
        target.name,
        "1" if target.make_parents else "",
        target.resume_key,
    )


def render_trailer(nonce: str, size: int, digest: str) -> bytes:
    """What ends an upload's stdin; nobody who lacks the nonce can have written it into the file."""
    return f"\n{nonce} {size:d} {digest}".ljust(TRAILER_SIZE - 1).encode() + b"\n"


def parse_download_header(line: bytes) -> DownloadHeader:
    """What follows the nonce. Raises what the box reported."""
    match = _HEADER.fullmatch(line)
    if match is None:
        raise parse_failure(line)
    size, offset = int(match[1]), int(match[3])
    if size > SIZE_MAX or offset > size:
        raise RunCodeError("http_error", "the workspace names an impossible size")
    return DownloadHeader(size=size, mode=0o644 if match[2] == b"-" else int(match[2], 8) & 0o777, offset=offset)


def parse_partial(line: bytes) -> tuple[int, str]:
    """(how many whole blocks are there, their digest)."""
    match = _PARTIAL.fullmatch(line)
    if match is None:
        raise parse_failure(line)
    return int(match[1]), match[2].decode()


def parse_failure(line: bytes) -> RunCodeError:
    """`error WORD` → the error it means; anything else is an answer that we cannot read."""
    word = line[6:].decode("ascii", "replace") if line.startswith(b"error ") else ""
    if word == "no_digest":
        return NoDigest()
    if word not in _WORDS:
        return RunCodeError("io_error", "the workspace's answer cannot be understood", resolution="retry")
    code, message, resolution = _WORDS[word]
    return RunCodeError(code, message, resolution=resolution)
