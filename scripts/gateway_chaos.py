"""`make gateway-chaos`: seeded rounds that kill and cut what stands between ssh clients and their boxes, under load.

Each round kills or cuts one thing (a box's sshd, a gateway's worker, a gateway, a
control plane, a network, …) at a random moment, repairs it, and checks what must be
true afterwards: see tests/support/gateway_kills.py. Progress goes to stderr, the table
to stdout; exit 1 when anything was not as it must be.

    python scripts/gateway_chaos.py --seed 7 --rounds 100
    python scripts/gateway_chaos.py --seed 7 --only 42     # one round again
"""

from __future__ import annotations

import argparse
import secrets
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from support.cut_networks import find_obstacle  # noqa: E402
from support.gateway_kills import NEEDS_NETWORKS, VICTIMS, Campaign, Outcome  # noqa: E402

# Of one round: the first ones tell the cause.
_SHOWN = 8


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="chooses victims and moments (default: a random one, printed)")
    parser.add_argument("--rounds", type=int, default=100, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--only", type=int, metavar="K", help="play the K-th round of this seed alone")
    parser.add_argument("--victim", choices=sorted(VICTIMS), help="strike nothing else")
    return parser.parse_args()


def main() -> int:
    options = parse()
    seed = options.seed if options.seed is not None else secrets.randbelow(10**6)
    numbers = [options.only] if options.only is not None else list(range(1, options.rounds + 1))
    obstacle = find_obstacle()
    for victim in sorted(NEEDS_NETWORKS) if obstacle is not None else ():
        print(f"NOT RUN {victim} ({obstacle})")
    say(f"gateway chaos: seed {seed}, {len(numbers)} rounds")
    began = time.monotonic()
    campaign = Campaign(seed, apart=obstacle is None)
    faults: list[str] = []
    try:
        campaign.open()
        for number in numbers:
            outcome = campaign.play(number, victim=options.victim)
            say(render_round(outcome, len(numbers)))
            for fault in outcome.faults[:_SHOWN]:
                say(f"    FAULT: {fault}")
            faults += [f"round {number}: {fault}" for fault in outcome.faults]
        faults += campaign.verify_audit()
    except KeyboardInterrupt:
        say("gateway chaos: interrupted; cleaning up")
        faults.append("interrupted")
    finally:
        table = render_table(campaign, seed, time.monotonic() - began)
        faults += campaign.close()
    print(table)
    for fault in faults:
        print(f"FAULT {fault}")
    print("nothing hung, ran twice, leaked or went untold" if not faults else f"{len(faults)} faults")
    return 1 if faults else 0


def render_round(outcome: Outcome, count: int) -> str:
    return (
        f"[{outcome.number}/{count}] {outcome.victim}: {outcome.calls} calls, {len(outcome.failed_s)} failed, "
        f"back {outcome.back_s:.2f} s, quiet {outcome.quiet_s:.2f} s{', FAULTS' if outcome.faults else ''}"
    )


def render_table(campaign: Campaign, seed: int, seconds: float) -> str:
    """One row a victim: rounds, and medians and maxima in seconds."""
    lines = [
        f"{len(campaign.outcomes)} rounds, seed {seed}, {seconds:.0f} s",
        "",
        "| struck | rounds | calls | failed | streams that ended, after p50 / max s | calls failed after p50 / max s "
        "| gets in again p50 / max s | nothing left p50 / max s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for victim in [*VICTIMS, "all"]:
        rows = [outcome for outcome in campaign.outcomes if victim in ("all", outcome.victim)]
        if rows:
            cut_s = [second for outcome in rows for second in outcome.cut_s]
            failed_s = [second for outcome in rows for second in outcome.failed_s]
            cells = [victim, str(len(rows)), str(sum(outcome.calls for outcome in rows)), str(len(failed_s))]
            cells += [f"{len(cut_s)}: {_spread(cut_s)}", _spread(failed_s)]
            cells += [_spread([outcome.back_s for outcome in rows]), _spread([outcome.quiet_s for outcome in rows])]
            lines.append(f"| {' | '.join(cells)} |")
    ends = ", ".join(f"{name} ×{count}" for name, count in sorted(campaign.books.ends.items()))
    lines += ["", f"how calls ended: {ends}", *campaign.render_growth()]
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} / {max(values):.2f}" if values else "–"


if __name__ == "__main__":
    sys.exit(main())
