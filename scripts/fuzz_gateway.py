"""`make fuzz-ssh`: mutated SSH sessions to a real gateway process, before and after authentication.

Owns: the options and the report. What is said and judged: tests/support/ssh_plans.py and
tests/support/ssh_fuzz.py. A plan that finds something is kept in tests/adversarial/corpus/ssh
under `found-…`; `make test` says all of those again.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.ssh_fuzz import CORPUS, fuzz, open_target
from support.ssh_plans import Plan, load_findings, load_transcripts, make_plan


def keep(plan: Plan, findings: list[str]) -> Path:
    text = plan.render()
    path = CORPUS / f"found-{hashlib.sha256(text.encode()).hexdigest()[:10]}.txt"
    path.write_text(f"# {findings[0].splitlines()[0][:200]}\n{text}")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=1, help="all plans follow from it and from their index")
    parser.add_argument("--plans", type=int, default=2000, help="how many")
    parser.add_argument("--only", type=int, help="this plan of the seed alone")
    parser.add_argument("--show", action="store_true", help="print the plan instead of carrying it out (with --only)")
    parser.add_argument("--replay", type=Path, help="a plan's file")
    parser.add_argument("--no-keep", action="store_true", help="write no plan with a finding into the corpus")
    options = parser.parse_args()
    transcripts = load_transcripts(CORPUS)
    if options.replay is not None:
        plans = [(0, load_findings(options.replay.parent)[options.replay.stem])]
    elif options.only is not None:
        plans = [(options.only, make_plan(transcripts, options.seed, options.only))]
        if options.show:
            print(plans[0][1].render(), end="")
            return 0
    else:
        plans = [(index, make_plan(transcripts, options.seed, index)) for index in range(options.plans)]
    with open_target() as target:
        report = fuzz(target, plans, options.seed)
    print(report.render(options.seed))
    for plan, findings in report.failed.values():
        if not options.no_keep and options.replay is None:
            print(f"kept: {keep(plan, findings)}")
    return 0 if report.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
