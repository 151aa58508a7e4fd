"""The box's side of a file transfer: POSIX sh, and how its answers are read.

The scripts run under `remote_command.render_script`; everything that varies is
an argument. Answers carry a nonce, since a person's rc files may print whatever
they like before the script runs.

Threat: the box is hostile or its files change under us. Sizes, modes and digests
are parsed by allowlist, and an error is one of the words below.
"""

from __future__ import annotations

import re
import zlib

from runcode.core.errors import RunCodeError
from runcode.core.remote_command import render_script
from runcode.core.values import Value

SIZE_MAX = 2**53
# What may stand before the first marker: a chatty rc file, not an endless one.
NOISE_MAX = 1024 * 1024
_HEADER = re.compile(rb"([0-9]{1,16}) ([0-7]{1,6}|-)", re.ASCII)
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
        "only plain files are copied: name one",
    ),
    "denied": ("io_error", "the workspace does not allow it", "check the file's and its folder's permissions there"),
    "io_error": ("io_error", "the workspace could not write the file", "is its disk full? `runcode exec -- df -h .`"),
    "mismatch": ("io_error", "the file arrived damaged or cut short, and was thrown away", "retry"),
    "no_digest": ("io_error", "the workspace has no program for this checksum", "install coreutils there"),
}
NO_DIGEST = _WORDS["no_digest"][1]
# SHA-256, or where the box has nothing for it the CRC that every POSIX system has.
ALGORITHMS = ("sha256", "cksum")
TRAILER_SIZE = 65

# PIPE is ignored: when the client is gone, dash would die of its own error message before the trap cleans up.
# One word on stdout: the digest of stdin, by the algorithm in $algorithm.
_DIGEST_SCRIPT = """trap '' PIPE
fail() { printf '\\n%s error %s\\n' "$n" "$1"; exit 1; }
if [ "$algorithm" = cksum ]; then digest() { set -- $(cksum); echo "$1-$2"; }
elif command -v sha256sum >/dev/null 2>&1; then digest() { set -- $(sha256sum); echo "$1"; }
elif command -v shasum >/dev/null 2>&1; then digest() { set -- $(shasum -a 256); echo "$1"; }
elif command -v openssl >/dev/null 2>&1; then digest() { set -- $(openssl dgst -sha256 -r); echo "$1"; }
else fail no_digest; fi
cd -- "$workdir" 2>/dev/null || case $path in /*) ;; *) fail no_folder ;; esac
case $path in /*) ;; *) path=./$path ;; esac
"""

# The digest is made beside the data, from a descriptor of its own, and goes to stderr.
_DOWNLOAD_SCRIPT = (
    "n=$1 algorithm=$2 workdir=$3 path=$4\n"
    + _DIGEST_SCRIPT
    + """[ -e "$path" ] || fail not_found
[ -f "$path" ] || fail unsafe_path
[ -r "$path" ] || fail denied
mode=$(stat -L -c %a -- "$path" 2>/dev/null || stat -L -f %Lp -- "$path" 2>/dev/null || echo -)
exec 4<"$path" 5<"$path" || fail denied
size=$(wc -c <"$path") || fail denied
printf '\\n%s %d %s\\n' "$n" "$((size))" "$mode"
{ d=$(digest <&4); printf '\\n%s %s\\n' "$n" "$d" >&2; } &
cat <&5
wait"""
)

# stdin carries the data and then its digest, blank-padded to TRAILER_SIZE; so it is
# read once on either side. A stream cut anywhere fails the size check.
_UPLOAD_SCRIPT = (
    "n=$1 algorithm=$2 workdir=$3 path=$4 name=$5 size=$6 mode=$7\n"
    + _DIGEST_SCRIPT
    + """case $path in */) [ -d "$path" ] || fail no_folder ;; esac
if [ -d "$path" ]; then path=${path%/}/$name; fi
if [ -L "$path" ]; then path=$(readlink -f -- "$path" && echo x) || fail unsafe_path; path=${path%?x}; fi
if [ -e "$path" ] && [ ! -f "$path" ]; then fail unsafe_path; fi
[ -d "${path%/*}/" ] || fail no_folder
part=${path%/*}/.runcode-$n.part
umask 077
set -C; : 2>/dev/null >"$part" || fail denied; set +C
trap 'rm -f -- "$part"' EXIT
trap 'exit 1' HUP INT TERM
dd of="$part" bs=131072 2>/dev/null || fail io_error
[ $(($(wc -c <"$part"))) -eq $((size + 65)) ] || fail mismatch
sent=$(tail -c 65 "$part")
dd if=/dev/null of="$part" bs=1 seek="$size" conv=fsync 2>/dev/null \\
    || dd if=/dev/null of="$part" bs=1 seek="$size" 2>/dev/null || fail io_error
[ "$(digest <"$part")" = "${sent%% *}" ] || fail mismatch
chmod "$mode" "$part" && mv -f -- "$part" "$path" || fail denied
trap - EXIT
printf '\\n%s ok\\n' "$n"
"""
)


class DownloadHeader(Value):
    """`mode` is permission bits only: never setuid, setgid or sticky."""

    size: int
    mode: int


def render_download(nonce: str, *, algorithm: str, workdir: str, path: str) -> str:
    """The remote command that sends a file: `\\n<nonce> SIZE MODE\\n`, the data; on stderr `<nonce> DIGEST`."""
    return render_script(_DOWNLOAD_SCRIPT, nonce, algorithm, workdir, path)


def render_upload(nonce: str, *, algorithm: str, workdir: str, path: str, local_name: str, size: int, mode: int) -> str:
    """The remote command that takes a file on stdin and answers `\\n<nonce> ok\\n` once it has its final name.

    A `path` that is a folder takes the file under `local_name`.
    """
    return render_script(_UPLOAD_SCRIPT, nonce, algorithm, workdir, path, local_name, f"{size:d}", f"{mode & 0o777:o}")


def parse_download_header(line: bytes) -> DownloadHeader:
    """What follows the nonce. Raises what the box reported."""
    match = _HEADER.fullmatch(line)
    if match is None:
        raise parse_failure(line)
    size = int(match[1])
    if size > SIZE_MAX:
        raise RunCodeError("http_error", "the workspace names an impossible size")
    return DownloadHeader(size=size, mode=0o644 if match[2] == b"-" else int(match[2], 8) & 0o777)


def parse_failure(line: bytes) -> RunCodeError:
    """`error WORD` → the error it means; anything else is an answer that we cannot read."""
    word = line[6:].decode("ascii", "replace") if line.startswith(b"error ") else ""
    if word not in _WORDS:
        return RunCodeError("io_error", "the workspace's answer cannot be understood", resolution="retry")
    code, message, resolution = _WORDS[word]
    return RunCodeError(code, message, resolution=resolution)


class Checksum:
    """The digest of what passed by, worded as the scripts word it."""

    def __init__(self, algorithm: str) -> None:
        import hashlib

        self._sha256 = hashlib.sha256() if algorithm == "sha256" else None
        self._crc = 0
        self._size = 0

    def update(self, chunk: bytes) -> None:
        if self._sha256 is not None:
            self._sha256.update(chunk)
        else:
            self._size += len(chunk)
            self._crc = _feed_cksum(self._crc, chunk)

    def word(self) -> str:
        if self._sha256 is not None:
            return self._sha256.hexdigest()
        length = self._size.to_bytes((self._size.bit_length() + 7) // 8, "little")
        crc = _feed_cksum(self._crc, length)
        return f"{int(f'{crc:032b}'[::-1], 2) ^ 0xFFFFFFFF}-{self._size}"

    def trailer(self) -> bytes:
        return self.word().ljust(TRAILER_SIZE - 1).encode() + b"\n"


# POSIX cksum has zlib's polynomial with the bits of every byte the other way round.
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _feed_cksum(crc: int, chunk: bytes) -> int:
    return zlib.crc32(chunk.translate(_REVERSED_BITS), crc ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
