"""What an agent does with files on a box: run with a kept log, read a part, search, list, edit.

Each is one round trip (an edit two), under a time limit. Called by front ends from
their main thread; `core` words the scripts and reads their answers.
"""

from __future__ import annotations

from runcode.client.box_calls import ask, call, flooded, new_nonce
from runcode.core import remote_edits, remote_reads, remote_runs, remote_search
from runcode.core.errors import RunCodeError
from runcode.core.remote_files import NOISE_MAX
from runcode.core.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runcode.client.remote import Remote
    from runcode.core.remote_reads import Reading
    from runcode.core.remote_runs import Budget, Run
    from runcode.core.remote_search import Entry, Matches, Paths

_ANSWER_TIMEOUT_S = 60.0
# The command may have run, and nobody knows how it ended.
_ENDS_UNKNOWN = ("connection_lost", "no_exit_status")


class Edit(Value):
    """Replace `old` by `new` in `path`: it has to stand there once, or as often as it likes with `every`."""

    path: str
    old: str
    new: str
    every: bool = False


class Outcome(Value):
    """`status` is the exit status, 124 when the time ran out, 128+N for a death by signal.

    `run` is None when the command was ended before it could tell, and left no log that can be read.
    """

    status: int
    run: Run | None
    log_id: str
    timed_out: bool


def run_logged(remote: Remote, command: str, *, cwd: str, timeout_s: float, budget: Budget) -> Outcome:
    """Run a shell command line at most once; its output stays on the box under `log_id`.

    Raises `connection_lost` or `no_exit_status` when it may have run and its end is unknown; the log is named.
    """
    nonce, log_id = new_nonce(), new_nonce()[:16]
    workdir = remote.session.workdir
    words = remote_runs.run_words(nonce, workdir=workdir, cwd=cwd, command=command, log_id=log_id, budget=budget)
    limit = NOISE_MAX + 4 * (budget.head + budget.tail + budget.window)
    try:
        answer = call(remote, words, timeout_s=timeout_s, limit=limit)
    except RunCodeError as error:
        if error.code not in _ENDS_UNKNOWN:
            raise
        raise RunCodeError(
            error.code,
            f"{error.message}; what it had written is in the log {log_id}",
            resolution=error.resolution,
        ) from error
    if answer.is_flooded:
        raise flooded()
    run: Run | None
    try:
        run = remote_runs.parse_run(answer.stdout, nonce)
        status = answer.status if answer.timed_out else run.status
    except RunCodeError:
        if not answer.timed_out and answer.status <= 128:
            raise
        run, status = _find_left(remote, log_id, budget), answer.status
    return Outcome(status=status, run=run, log_id=log_id, timed_out=answer.timed_out)


def _find_left(remote: Remote, log_id: str, budget: Budget) -> Run | None:
    """What a command wrote that was ended the hard way, with everything around it."""
    nonce = new_nonce()
    words = remote_runs.left_words(nonce, workdir=remote.session.workdir, log_id=log_id, budget=budget)
    try:
        return remote_runs.parse_run(_ask(remote, words, budget.head * 4 + budget.tail * 4 + budget.window * 2), nonce)
    except RunCodeError:
        return None


def read_part(
    remote: Remote, path: str, *, log: str = "", by_lines: bool = True, start: int, count: int, most: int
) -> Reading:
    """Lines from `start` (from 1), or bytes from `start` (from 0), and never more than `most` bytes."""
    nonce = new_nonce()
    words = remote_reads.read_words(
        nonce,
        workdir=remote.session.workdir,
        path=path,
        log=log,
        by_lines=by_lines,
        start=start,
        count=count,
        most=most,
    )
    return remote_reads.parse_reading(_ask(remote, words, most), nonce)


def glob(remote: Remote, path: str, pattern: str) -> Paths:
    """Every file below `path` whose relative path matches."""
    nonce = new_nonce()
    words = remote_search.glob_words(nonce, workdir=remote.session.workdir, path=path, pattern=pattern)
    return remote_search.parse_paths(_ask(remote, words, remote_search.ANSWER_MAX), nonce, pattern)


def grep(
    remote: Remote, path: str, pattern: str, *, glob: str, fixed: bool, ignore_case: bool, context: int
) -> Matches:
    nonce = new_nonce()
    words = remote_search.grep_words(
        nonce,
        workdir=remote.session.workdir,
        path=path,
        pattern=pattern,
        glob=glob,
        fixed=fixed,
        ignore_case=ignore_case,
        context=context,
    )
    return remote_search.parse_matches(_ask(remote, words, remote_search.ANSWER_MAX), nonce, glob)


def list_folder(remote: Remote, path: str) -> tuple[list[Entry], bool]:
    nonce = new_nonce()
    words = remote_search.list_words(nonce, workdir=remote.session.workdir, path=path)
    return remote_search.parse_entries(_ask(remote, words, 2 * remote_search.ANSWER_MAX), nonce)


def edit_files(remote: Remote, edits: list[Edit]) -> dict[str, int]:
    """Make all the edits, or none; returns how many places changed in each path.

    Raises `conflict` when a file was changed by somebody else in between, and
    `bad_request` when a text does not stand where it should.
    """
    paths = list(dict.fromkeys(edit.path for edit in edits))
    nonce = new_nonce()
    workdir = remote.session.workdir
    answer = _ask(
        remote, remote_edits.fetch_words(nonce, workdir=workdir, paths=paths), remote_edits.TOTAL_MAX + 64 * len(paths)
    )
    old = dict(zip(paths, remote_edits.parse_fetched(answer, nonce, len(paths)), strict=True))
    new, counts = dict(old), dict.fromkeys(paths, 0)
    for edit in edits:
        new[edit.path], count = remote_edits.replace_exactly(
            new[edit.path], edit.old, edit.new, every=edit.every, path=edit.path
        )
        counts[edit.path] += count
    nonce = new_nonce()
    words, content = remote_edits.commit_words(
        nonce, workdir=workdir, changes=[(path, old[path], new[path]) for path in paths]
    )
    answer = ask(remote, words, timeout_s=_ANSWER_TIMEOUT_S, limit=NOISE_MAX, stdin=content)
    remote_edits.parse_committed(answer, nonce, len(paths))
    return counts


def _ask(remote: Remote, words: list[str], most: int) -> bytes:
    return ask(remote, words, timeout_s=_ANSWER_TIMEOUT_S, limit=NOISE_MAX + most)
