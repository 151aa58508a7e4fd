"""The box's side of a transfer in Python, where it has one: one process that copies and digests in one pass.

Owns: three programs that `core.remote_files` and `core.remote_trees` run in the
place of a pipeline of coreutils. They take bytes and tell a digest; what is asked,
checked and moved into place stays with the POSIX sh around them, which does it
all by itself on a box without Python. Measured on two cores, 256 MB: the pipeline
`head | tee | openssl` costs 0.9 s of processor time, this 0.3.

A program ends with status 0 and a digest; with 9 when it is no use here and has touched
nothing, so that the shell's own way is still open; with another status when the
transfer has failed, since bytes may be gone.
For Python 3.6 and later, with `-I -S`: nothing of the current folder is imported.
"""

from __future__ import annotations

# Sets $python where one of the system's stands. A shim in somebody's home (pyenv, asdf) costs more than it saves.
FIND_PYTHON = """find_python() {
    [ "$algorithm" = sha256 ] || return 0
    case $(command -v python3) in
    /usr/bin/python3 | /bin/python3 | /usr/local/bin/python3) python=1 ;;
    esac
}
"""

# PIPE is ignored by the shell that starts them: a write to nobody is an OSError.
_COMMON = """import os, sys
try:
    from hashlib import sha256
    os.readv
except Exception:
    os._exit(9)
room = memoryview(bytearray(262144))
def write_all(descriptor, piece):
    while piece:
        piece = piece[os.write(descriptor, piece):]
"""

# stdin → behind what the partial file holds. Writing back begins at once: the sync at the end then finds little to do.
RECEIVE_FILE = (
    _COMMON
    + """def receive(path, kept, left):
    file = os.open(path, os.O_RDWR)
    digest = sha256()
    while kept:
        size = os.readv(file, [room[:kept]])
        if not size:
            return 1
        digest.update(room[:size])
        kept -= size
    at = since = os.lseek(file, 0, os.SEEK_CUR)
    while left:
        size = os.readv(0, [room[:left]])
        if not size:
            break
        digest.update(room[:size])
        write_all(file, room[:size])
        at += size
        left -= size
        if at - since >= 8388608 and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file, since, at - since, os.POSIX_FADV_DONTNEED)
            since = at
    print(digest.hexdigest())
    return 0
try:
    sys.exit(receive(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
except OSError:
    sys.exit(1)
"""
)

# Descriptor 5 → stdout, behind the part that the client has; the digest of all of it goes to stderr.
SEND_FILE = (
    _COMMON
    + """def send(nonce, skipped):
    digest = sha256()
    while True:
        size = os.readv(5, [room[:skipped] if skipped else room])
        if not size:
            break
        digest.update(room[:size])
        if skipped:
            skipped -= size
        else:
            write_all(1, room[:size])
    os.write(2, ("\\n%s %s\\n" % (nonce, digest.hexdigest())).encode())
try:
    send(sys.argv[1], int(sys.argv[2]))
except OSError:
    sys.exit(1)
"""
)

# The tar stream that `client.transfers.tree_upload` writes → the current folder. Prints the digest of the contents
# below `tree`, once the files are those that `list` names. Folders get their times last: what is made in them
# changes those.
RECEIVE_TREE = (
    _COMMON
    + """def receive():
    stream = os.fdopen(0, "rb", 262144)
    digest, names, folders, long = sha256(), [], [], {}
    def content(size):
        left = size
        while left:
            piece = stream.read(min(left, 262144))
            if not piece:
                raise OSError
            left -= len(piece)
            yield piece
        stream.read(-size % 512)
    while True:
        block = stream.read(512)
        if len(block) < 512:
            raise OSError
        if not block.strip(b"\\0"):
            break
        if int(block[148:154], 8) != sum(block) - sum(block[148:156]) + 256:
            raise ValueError
        kind = block[156:157]
        if block[124:125] == b"\\x80":
            size = int.from_bytes(block[125:136], "big")
        else:
            size = int(block[124:135], 8)
        if kind in (b"L", b"K"):
            long[kind] = b"".join(content(size))[:-1]
            continue
        name = long.pop(b"L", None) or block[:100].rstrip(b"\\0")
        link = long.pop(b"K", None) or block[157:257].rstrip(b"\\0")
        mode, time = int(block[100:107], 8) & 0o777, int(block[136:147], 8)
        if kind == b"5":
            os.mkdir(name, 0o700)
            folders.append((name, mode, time))
        elif kind == b"2":
            os.symlink(link, name)
        elif kind == b"0":
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            counts = name.startswith(b"tree/")
            if counts:
                names.append(name[5:] + b"\\0")
            for piece in content(size):
                if counts:
                    digest.update(piece)
                write_all(file, memoryview(piece))
            os.utime(file, (time, time))
            os.close(file)
        else:
            raise ValueError
    while stream.read(262144):
        pass
    with open("list", "rb") as listed:
        if listed.read() != b"".join(names):
            raise ValueError
    for name, mode, time in reversed(folders):
        os.chmod(name, mode)
        os.utime(name, (time, time))
    print(digest.hexdigest())
try:
    os.umask(0)
    receive()
except (OSError, ValueError):
    sys.exit(1)
"""
)
