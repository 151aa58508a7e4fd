"""The operator's verbs for the audit: `audit verify`, `audit export`.

Owns: what they answer. The checks are `services.audit_verification`'s.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from sqlalchemy import select

from runcode.controlplane.audit_format import COLUMNS, TIMES
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.services.audit_statements import load_verifier
from runcode.controlplane.services.audit_verification import Report, verify
from runcode.controlplane.store.models import EventRow
from runcode.core.errors import RunCodeError
from runcode.core.terminal import printable
from runcode.server.data_folder import DataFolder
from runcode.server.rendering import Answer

_EXPORTED_AT_ONCE = 1000


async def verify_audit(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    """Exit status 1 when anything was found."""
    key = Path(options.public_key) if options.public_key else folder.audit_key.with_name("audit_ed25519.pub")
    checkpoints = Path(options.checkpoints) if options.checkpoints else folder.checkpoints
    if not options.checkpoints and not checkpoints.exists():
        raise RunCodeError(
            "not_found",
            f"no checkpoint vouches yet: there is no {checkpoints}",
            resolution="`up` writes the first; before that, or when they lie elsewhere: --checkpoints FILE",
        )
    found = await verify(plane.store, load_verifier(key), checkpoints, _tell_progress)
    value = {"ok": found.ok, **asdict(found)}
    return Answer(value=value, text=_render(found), exit_status=0 if found.ok else 1)


async def export_audit(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    """JSON lines on stdout, as they are read: there may be more than memory holds."""
    columns = [getattr(EventRow, name) for name in (*COLUMNS, "hash")]
    query = select(*columns).where(EventRow.id > options.after).order_by(EventRow.id)
    async with plane.store.read() as session:
        result = await session.stream(query.execution_options(yield_per=_EXPORTED_AT_ONCE))
        async for row in result.mappings():
            shown = {
                name: value.isoformat(timespec="microseconds") if name in TIMES and value is not None else value
                for name, value in row.items()
            }
            sys.stdout.write(json.dumps(shown, ensure_ascii=True) + "\n")
    sys.stdout.flush()
    return Answer(value=None, text="")


def _tell_progress(done: int, of: int) -> None:
    print(f"runcode-server: {done} of {of} records read", file=sys.stderr, flush=True)


def _render(found: Report) -> str:
    lines = [f"{printable(finding.code)}: {printable(finding.message, limit=600)}" for finding in found.findings]
    if found.findings_left_out:
        lines.append(f"… and {found.findings_left_out} more")
    read = f"records {found.first} to {found.last}" if found.records else "no records"
    if found.pruned:
        read += f" (those up to {found.pruned} were removed by age, and signed for)" if found.ok else ""
    if not found.ok:
        lines.append(f"the audit was changed: read {read}")
        lines.append("keep this database and the checkpoints as they are, and compare them with your backups")
    elif not found.checkpoints:
        lines.append(f"no fault in {read}; but no checkpoint vouches for them: is this the right --checkpoints file?")
    else:
        later = found.last - found.anchored
        lines.append(
            f"no fault in {read}; {found.checkpoints} checkpoints agree, the last of them of {found.anchored_at}"
            + (f" ({later} records since)" if later > 0 else "")
        )
    return "\n".join(lines)
