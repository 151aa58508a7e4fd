"""The box's /etc: made by us, from an allowlist, never the host's own.

Threat: the host's /etc holds password hashes, tokens in pip.conf, npmrc and
gitconfig, private TLS keys, and files that one day will hold a secret.

Guarantee: what is not named here is not in the box. Copied files are regular,
world-readable and of sane size; links are copied as links, so they lead to the
box's own files; no mode of the host's is kept.

Called by the runtime before a start. One tree serves all boxes of a root folder;
it is named by the state of the host's files, so a changed certificate store makes
a new one at the next start.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from runcode.runtimes.local.layout import write_new_file
from runcode.runtimes.local.storage import remove_abandoned, remove_tree

_FORMAT = 1
_FILE_MAX = 4 * 1024 * 1024
HOST_ETC = Path("/etc")

# Patterns below the host's /etc. Think of secrets before adding one.
ALLOWED = (
    "alternatives",
    "debian_version",
    "fonts",
    "gai.conf",
    "host.conf",
    "inputrc",
    "java-*-openjdk",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "localtime",
    "magic",
    "magic.mime",
    "mime.types",
    "networks",
    "os-release",
    "perl",
    "protocols",
    "python3.*",
    "rpc",
    "services",
    "shells",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
    "timezone",
    "vim",
)

_PASSWD = """\
root:x:0:0:root:/root:/usr/sbin/nologin
ubuntu:x:1000:1000:ubuntu:/home/ubuntu:{shell}
sshd:x:102:65534::/run/sshd:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
# No group `tty`: sshd would try to give the pty to it, which only root can.
_GROUP = "root:x:0:\nubuntu:x:1000:\nnogroup:x:65534:\n"
_NSSWITCH = """\
passwd: files
group: files
shadow: files
hosts: files dns
networks: files
protocols: files
services: files
ethers: files
rpc: files
"""
_PATH = "/home/ubuntu/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/runcode/bin"
_PROFILE = """\
# Made by RunCode. Read by login shells.
export PATH=__PATH__
export LANG="${LANG:-C.UTF-8}"
if [ -n "$BASH_VERSION" ] && [ -f /etc/bash.bashrc ]; then
    . /etc/bash.bashrc
fi
# A person who logs in stands in the project folder; a command runs where ssh puts it.
case $- in
    *i*)
        if [ "$PWD" = "$HOME" ] && [ -d "$HOME/workspace" ]; then
            cd "$HOME/workspace" || :
        fi
        ;;
esac
""".replace("__PATH__", _PATH)
_BASHRC = """\
# Made by RunCode. Read by bash, also for commands over ssh.
export LANG="${LANG:-C.UTF-8}"
case $- in *i*) ;; *) return ;; esac
PS1='\\u@\\h:\\w\\$ '
shopt -s checkwinsize
"""

DEFAULT_PATH = _PATH


def render_own_files(shell: str, resolver: str | None = None) -> dict[str, str]:
    """The files that we write ourselves. `hosts` and `hostname` are per workspace and bound over these."""
    return {
        "passwd": _PASSWD.format(shell=shell),
        "group": _GROUP,
        "nsswitch.conf": _NSSWITCH,
        "resolv.conf": f"nameserver {resolver}\n" if resolver else "# No network beyond this box.\n",
        "profile": _PROFILE,
        "bash.bashrc": _BASHRC,
        "hosts": "",
        "hostname": "",
        "environment": "",
    }


def render_hosts(title: str) -> str:
    return f"127.0.0.1 localhost\n127.0.1.1 {title}\n::1 localhost ip6-localhost ip6-loopback\n"


def build_etc(folder: Path, host_etc: Path = HOST_ETC, resolver: str | None = None) -> Path:
    """The tree for the host's present state below `folder`, made if it is not there.

    `resolver`: the address of the box's name server; None for a box without a network.
    """
    own = render_own_files(choose_shell(), resolver)
    tree = folder / compute_fingerprint(own, host_etc)
    if tree.is_dir():
        return tree
    new = folder / f".new-{os.getpid()}-{os.urandom(6).hex()}"
    try:
        make_folder(new)
        for source in find_allowed(host_etc):
            copy_entry(source, new / source.relative_to(host_etc))
        for name, text in own.items():
            remove_tree(new / name)
            write_new_file(new / name, text, 0o644)
        try:
            new.rename(tree)
        except OSError:
            # Another start was quicker with the same tree.
            if not tree.is_dir():
                raise
    finally:
        remove_tree(new)
    return tree


def remove_stale_trees(folder: Path, in_use: set[str]) -> None:
    """Remove trees that no plan names. `in_use` must hold those of all running boxes, and the newest."""
    remove_abandoned(folder.glob(".new-*"))
    for tree in folder.iterdir():
        if tree.name not in in_use and not tree.name.startswith(".new-"):
            remove_tree(tree)


def choose_shell() -> str:
    return "/bin/bash" if Path("/usr/bin/bash").exists() else "/bin/sh"


def find_allowed(host_etc: Path) -> list[Path]:
    return sorted(path for pattern in ALLOWED for path in host_etc.glob(pattern))


def compute_fingerprint(own: dict[str, str], host_etc: Path) -> str:
    digest = hashlib.sha256(repr((_FORMAT, ALLOWED, sorted(own.items()))).encode())
    for path in find_allowed(host_etc):
        facts = os.lstat(path)
        digest.update(repr((str(path), facts.st_mode, facts.st_size, facts.st_mtime_ns)).encode())
    return digest.hexdigest()[:24]


def copy_entry(source: Path, target: Path) -> None:
    """One allowed file, link or folder. What is not world-readable stays out."""
    for at, destination in _walk(source, target):
        facts = os.lstat(at)
        make_parents(destination)
        if stat.S_ISLNK(facts.st_mode):
            # Nothing under /etc/alternatives is read as a man page in the box; they are four fifths of it.
            if not at.name.endswith(".gz"):
                destination.symlink_to(os.readlink(at))
        elif stat.S_ISDIR(facts.st_mode):
            make_folder(destination)
        elif stat.S_ISREG(facts.st_mode) and facts.st_mode & 0o004 and facts.st_size <= _FILE_MAX:
            write_new_file(destination, at.read_bytes(), 0o755 if facts.st_mode & 0o001 else 0o644)


def _walk(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    yield source, target
    if source.is_symlink() or not source.is_dir():
        return
    for parent, folders, files in os.walk(source):
        for name in [*folders, *files]:
            at = Path(parent, name)
            yield at, target / at.relative_to(source)


def make_parents(path: Path) -> None:
    missing = []
    parent = path.parent
    while not parent.is_dir():
        missing.append(parent)
        parent = parent.parent
    for folder in reversed(missing):
        make_folder(folder)


def make_folder(path: Path) -> None:
    path.mkdir(exist_ok=True)
    path.chmod(0o755)
