"""Command lines for the box: how a command, a shell and a signal are worded.

Owns: the POSIX sh that wraps what a person runs. Pure text; `client.openssh`
carries it. sshd hands the text to the login shell, which may be dash, bash, zsh
or fish, so all of it is `exec PROGRAM quoted words`.

Threat: a folder or an argument that reaches a shell unquoted is another command.

Guarantee: one string is a command line for the person's own shell, several
words reach the program as exactly those words, and stdin is not touched.

Why a wrapper at all: neither ssh's exit status nor its multiplexing protocol
tells a remote death by signal from a lost connection, and neither carries
signals. The wrapper stays alive as the command's parent, reports 128+N, and is
found again by its nonce, so that a second session can signal its process group
(sshd makes each session a group leader). It travels in the environment, not in
the arguments: `pgrep -f` and `pkill -f` on the box must not find the wrapper.
SHLVL is set because bash below sshd reads ~/.bashrc at level 1 (Debian's
SSH_SOURCE_BASHRC): the login shell did, and a chatty or slow one runs once only.
"""

from runcode.core.shellwords import join, quote

# "0" only asks whether the group is still there.
_SIGNALS = frozenset(("INT", "TERM", "HUP", "KILL", "0"))

# `trap :` keeps the wrapper alive through a signal to its group, and is reset in
# the child. `(exec …)` runs the program, never a builtin of that name. The
# wrapper's own stderr is shut, or dash would print "Killed" into the command's.
_EXEC_SCRIPT = """eval "$RUNCODE_EXEC"; unset RUNCODE_EXEC
trap : INT TERM HUP
exec 3>&2 2>/dev/null
cd -- "$d" || { printf 'runcode: not_found: the folder %s is not on the workspace \
(make it, or add --home)\\n' "$d" >&3; exit 255; }
unset OLDPWD
if [ "$m" = line ]; then set -- "${SHELL:-/bin/sh}" -c "$1"; fi
(exec "$@" 2>&3 3>&-)
exit $?"""

_SHELL_SCRIPT = """cd -- "$1" 2>/dev/null || { printf 'runcode: not_found: the folder %s is not on the workspace \
(make it, or add --home)\\n' "$1" >&2; exit 255; }
exec "${SHELL:-/bin/sh}" -l"""

# Without /proc (a BSD box) ps finds it. Status 1: nothing was found.
_SIGNAL_SCRIPT = """found=
if [ -r /proc/self/cmdline ]; then
    for f in $(grep -ls -e "$1" /proc/[0-9]*/cmdline); do
        f=${f#/proc/}; kill -s "$2" -- "-${f%/cmdline}" 2>/dev/null && found=1
    done
else
    for p in $(ps -A -o pid= -o args= | grep -e "$1" | while read -r p _; do echo "$p"; done); do
        kill -s "$2" -- "-$p" 2>/dev/null && found=1
    done
fi
[ "$found" ]"""


def render_exec(words: list[str], *, workdir: str | None, nonce: str) -> str:
    """The remote command that runs `words` in `workdir` (None: the home folder).

    `nonce` is lowercase hex, fresh for each call.
    """
    folder = '"$HOME"' if workdir is None else _inner_quote(workdir)
    mode = "line" if len(words) == 1 else "argv"
    request = f"d={folder} m={mode}; set -- " + " ".join(_inner_quote(word) for word in words)
    return "exec /usr/bin/env " + join(
        ["SHLVL=1", f"RUNCODE_EXEC={request}", "/bin/sh", "-c", _EXEC_SCRIPT, "runcode", nonce]
    )


def parse_exec(command: str) -> tuple[list[str], str | None] | None:
    """What `render_exec` was given: (words, workdir); None for any text that it did not make, to the letter.

    For whoever shows a recorded command. A client may send what merely looks like
    ours: only a text that comes out again the same is taken apart.
    """
    import shlex

    try:
        argv = shlex.split(command)
        request = shlex.split(argv[3].removeprefix("RUNCODE_EXEC="))
        at = request.index("--") + 1
        workdir = None if request[0] == "d=$HOME" else request[0].removeprefix("d=")
        words, nonce = request[at:], argv[-1]
        same = bool(words) and render_exec(words, workdir=workdir, nonce=nonce) == command
    except (ValueError, IndexError):
        return None
    return (words, workdir) if same else None


def render_signal(signal_name: str, nonce: str) -> str:
    """The remote command that signals the process group of the `render_exec` with this nonce.

    Exits 0 when a group got the signal. The nonce is written as a pattern that
    does not match itself, or the search would find the searcher.
    """
    if signal_name not in _SIGNALS:
        raise ValueError(f"no remote signal {signal_name!r}")
    pattern = f"[{nonce[0]}]{nonce[1:]}"
    return "exec " + join(["/bin/sh", "-c", _SIGNAL_SCRIPT, "runcode", pattern, signal_name])


def render_shell(*, workdir: str | None) -> str:
    """The remote command for an interactive login shell in `workdir` (None: the home folder)."""
    if workdir is None:
        return "exec " + join(["/bin/sh", "-c", 'cd && exec "${SHELL:-/bin/sh}" -l'])
    return "exec " + join(["/bin/sh", "-c", _SHELL_SCRIPT, "runcode", workdir])


def render_script(script: str, *arguments: str) -> str:
    """The remote command that runs our own POSIX sh text with these positional arguments."""
    return "exec /bin/sh -c " + quote(script) + " runcode " + join(arguments)


def _inner_quote(word: str) -> str:
    """A word for `eval` inside our own POSIX sh, where a backslash is plain within quotes."""
    return "'" + word.replace("'", "'\\''") + "'"
