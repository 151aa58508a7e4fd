"""Was the audit changed? Reads all of it once, in constant memory, and says what is wrong, and where.

Owns: the checks. Reads only. Called by `runcode-server audit verify`.

Found are: a column that was edited; records that were swapped, inserted, doubled, or removed in the middle, or at the
front without a signed statement; a tail that was cut off after a checkpoint; a database that was set back to an
older copy; and checkpoints that this server's key did not sign, or that were left out, moved or changed.

Not found: what happened since the last checkpoint, by whoever writes the database and computes the chain anew; and
anything by who has the audit key and the file of checkpoints (docs/operations.md says what to keep where).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from runcode.controlplane.audit_format import COLUMNS, hash_of_nothing, hash_record
from runcode.controlplane.services.audit_chain import ChainHead, load_head
from runcode.controlplane.services.audit_statements import (
    CHECKPOINT,
    LINE_MAX,
    NO_LINE,
    PRUNED,
    AuditVerifier,
    Statement,
    digest_line,
    parse_line,
)
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import EventRow
from runcode.core.errors import RunCodeError

_AT_ONCE: Final = 1000
_FINDINGS_MAX: Final = 100
_PROGRESS_EVERY: Final = 50_000


@dataclass(frozen=True)
class Finding:
    """`record` is the number of the audit record where it shows, `line` that of the checkpoints' file."""

    code: str
    message: str
    record: int | None = None
    line: int | None = None


@dataclass
class Report:
    """`records` were read, from `first` to `last`; `checkpoints` were believed, the last of them at `anchored`."""

    chain_id: str = ""
    first: int = 0
    last: int = 0
    records: int = 0
    pruned: int = 0
    checkpoints: int = 0
    anchored: int = 0
    anchored_at: str | None = None
    findings: list[Finding] = field(default_factory=list)
    findings_left_out: int = 0

    @property
    def ok(self) -> bool:
        return not self.findings

    def add(self, code: str, message: str, *, record: int | None = None, line: int | None = None) -> None:
        if len(self.findings) < _FINDINGS_MAX:
            self.findings.append(Finding(code, message, record, line))
        else:
            self.findings_left_out += 1


async def verify(
    store: Store,
    verifier: AuditVerifier,
    checkpoints: Path | None,
    tell_progress: Callable[[int, int], None] = lambda done, of: None,
) -> Report:
    """Check all of it. `checkpoints` None: the chain alone. Raises RunCodeError when it cannot be read at all."""
    report = Report()
    # Before the snapshot: what a running server signs from now on may speak of records that come after it.
    size = _find_size(checkpoints) if checkpoints else 0
    async with store.read() as session:
        head = await load_head(session)
        report.chain_id, report.pruned = head.chain_id, head.pruned_to
        _check_pruning(head, verifier, report)
        expected = _Anchors(_read_checkpoints(checkpoints, size, verifier, head, report) if checkpoints else iter(()))
        expected.pass_over(head, report)
        await _check_records(session, head, expected, report, tell_progress)
        expected.end(report)
    return report


def _check_pruning(head: ChainHead, verifier: AuditVerifier, report: Report) -> None:
    if head.pruned_to == 0:
        if head.pruned_hash != hash_of_nothing(head.chain_id):
            report.add("head_edited", "the chain's beginning was changed")
        return
    statement = parse_line((head.pruned_statement or "").encode("utf-8", "replace"))
    if statement is None or not verifier.believes(statement) or statement.kind != PRUNED:
        report.add(
            "pruned_without_statement",
            f"records up to {head.pruned_to} are gone, and this server did not sign that it removed them",
            record=head.pruned_to,
        )
    elif (statement.chain_id, statement.count, statement.hash) != (head.chain_id, head.pruned_to, head.pruned_hash):
        report.add(
            "pruned_without_statement",
            f"the server removed records up to {statement.count}, but those up to {head.pruned_to} are gone",
            record=head.pruned_to,
        )


class _Anchors:
    """The checkpoints in the order of their counts, held against the records as these come by."""

    def __init__(self, statements: Iterator[tuple[int, Statement]]) -> None:
        self._statements = statements
        self._next = next(statements, None)

    def pass_over(self, head: ChainHead, report: Report) -> None:
        """Those of what is pruned: of the last of that, the hash is known."""
        while self._next is not None and self._next[1].count <= head.pruned_to:
            if self._next[1].count == head.pruned_to:
                self.meet(head.pruned_to, head.pruned_hash, report)
            else:
                self._accept(report)

    def meet(self, number: int, found: str, report: Report) -> None:
        while self._next is not None and self._next[1].count <= number:
            line, statement = self._next
            if statement.count == number and statement.hash != found:
                report.add(
                    "history_rewritten",
                    f"record {number} is not the one that was signed at {statement.at}",
                    record=number,
                    line=line,
                )
            self._accept(report)

    def end(self, report: Report) -> None:
        """Whatever is left was signed, and is not there."""
        if self._next is None:
            return
        line, statement = self._next
        newest = statement
        for _, later in self._statements:
            newest = later
        report.add(
            "truncated",
            f"the database ends at record {report.last}, but {newest.count} had been signed by {newest.at}: its end was"
            " cut off, or an older copy was put in its place",
            record=report.last,
            line=line,
        )

    def _accept(self, report: Report) -> None:
        assert self._next is not None
        report.checkpoints += 1
        report.anchored, report.anchored_at = self._next[1].count, self._next[1].at
        self._next = next(self._statements, None)


async def _check_records(
    session: AsyncSession,
    head: ChainHead,
    anchors: _Anchors,
    report: Report,
    tell_progress: Callable[[int, int], None],
) -> None:
    last, number = head.pruned_hash, head.pruned_to
    total = max(0, head.count - head.pruned_to)
    is_broken = False
    async for row in _read_records(session, report):
        report.records += 1
        if report.records == 1:
            report.first = row["id"]
        if row["id"] != number + 1:
            _tell_gap(number + 1, row["id"], report)
            is_broken = True
        number = row["id"]
        computed = _try_hash(last, row)
        if computed != row["hash"] and not is_broken:
            report.add("edited", f"record {number} was changed after it was written", record=number)
        # Go on from what stands there: one edit is one finding.
        last, is_broken = str(row["hash"]), False
        anchors.meet(number, last, report)
        if report.records % _PROGRESS_EVERY == 0:
            tell_progress(report.records, total)
    report.last = number
    if number != head.count:
        what = "are missing at the end" if number < head.count else "were put behind its head"
        report.add("truncated", f"the chain's head says {head.count} records, the last is {number}: some {what}")
    elif last != head.hash and not report.findings:
        report.add("head_edited", "the chain's head is not the last record's hash", record=number)


def _tell_gap(expected: int, found: int, report: Report) -> None:
    if found >= expected:
        missing = str(expected) if found == expected + 1 else f"{expected} to {found - 1}"
        report.add("missing", f"audit records are missing: {missing}", record=expected)
    else:
        report.add("inserted", f"record {found} stands where {expected} should: doubled, or put in", record=found)


def _try_hash(previous: str, row: dict[str, Any]) -> str | None:
    try:
        return hash_record(previous, row)
    except (ValueError, TypeError):
        return None


async def _read_records(session: AsyncSession, report: Report) -> Any:
    """Every row in the order of its number. One query, not one a page: a doubled number must not hide between two."""
    columns = [getattr(EventRow, name) for name in (*COLUMNS, "hash")]
    query = select(*columns).order_by(EventRow.id).execution_options(yield_per=_AT_ONCE)
    done = 0
    try:
        result = await session.stream(query)
        async for row in result.mappings():
            done = row["id"]
            yield dict(row)
    except RunCodeError:
        raise
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        report.add(
            "unreadable",
            f"a record after {done} (at most {_AT_ONCE} further) holds what no server writes ({type(error).__name__})",
            record=done + 1,
        )


def _find_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> RunCodeError:
    return RunCodeError(
        "io_error",
        f"the checkpoints {path} cannot be read: {error.strerror}",
        resolution="name the file with --checkpoints FILE; without it, nothing outside the database vouches",
    )


def _read_checkpoints(
    path: Path, size: int, verifier: AuditVerifier, head: ChainHead, report: Report
) -> Iterator[tuple[int, Statement]]:
    """(line, statement) of those that count, counts never falling. Each line's digest must be in the next.

    Of the first `size` bytes.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from error
    previous, count, last_hash = NO_LINE, -1, ""
    torn: int | None = None
    with file:
        for number, line in enumerate(iter(lambda: file.readline(min(LINE_MAX, size - file.tell())), b""), 1):
            statement = parse_line(line)
            if statement is None:
                # Of a crash or a full disk: the next line's digest covers it, or it is the last.
                torn = number
                previous = digest_line(line)
                continue
            if statement.previous != previous:
                where = f" (line {torn} is none)" if torn == number - 1 else ""
                report.add("checkpoints_edited", f"line {number} does not follow the one before it{where}", line=number)
            previous, torn = digest_line(line), None
            if not verifier.believes(statement):
                report.add("checkpoint_forged", f"line {number} was not signed by this server's audit key", line=number)
                continue
            if statement.chain_id != head.chain_id:
                report.add("checkpoint_foreign", f"line {number} speaks of another database", line=number)
                continue
            if statement.kind != CHECKPOINT:
                continue
            if statement.count < count or (statement.count == count and statement.hash != last_hash):
                report.add("set_back", f"line {number} signs fewer records than the line before it", line=number)
                continue
            count, last_hash = statement.count, statement.hash
            yield number, statement
    if torn is not None and torn > 1 and line.endswith(b"\n"):
        report.add("checkpoints_edited", f"line {torn}, the last, is no statement", line=torn)
