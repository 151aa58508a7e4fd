"""`make chaos`: a hundred seeded rounds of kill -9 on the real service under load.

Each round kills one process (server, keeper, bwrap, the box's pid 1 and init, an
sshd, a CLI call, an ssh master, or everything at once) at a random moment, and
checks what must be true afterwards: see tests/support/kills.py. Progress goes to
stderr, the table to stdout; exit 1 when anything was not as it must be.

    python scripts/chaos.py --seed 7 --rounds 100
    python scripts/chaos.py --seed 7 --only 42        # one round again
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

from support.kills import DATABASE, VICTIMS, Campaign, Outcome  # noqa: E402

# Of one round: the first ones tell the cause.
_SHOWN = 8


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="chooses victims and moments (default: a random one, printed)")
    parser.add_argument("--rounds", type=int, default=100, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--only", type=int, metavar="K", help="play the K-th round of this seed alone")
    parser.add_argument("--victim", choices=sorted((*VICTIMS, DATABASE)), help="kill nothing else")
    parser.add_argument("--postgres", action="store_true", help="on a Postgres of its own, which is killed too")
    return parser.parse_args()


def main() -> int:
    options = parse()
    seed = options.seed if options.seed is not None else secrets.randbelow(10**6)
    numbers = [options.only] if options.only is not None else list(range(1, options.rounds + 1))
    say(f"chaos: seed {seed}, {len(numbers)} rounds")
    began = time.monotonic()
    campaign = Campaign(seed, postgres=options.postgres)
    faults: list[str] = []
    try:
        campaign.open()
        for number in numbers:
            outcome = campaign.play(number, victim=options.victim)
            say(render_round(outcome, len(numbers)))
            for fault in outcome.faults[:_SHOWN]:
                say(f"    FAULT: {fault}")
            if len(outcome.faults) > _SHOWN:
                say(f"    and {len(outcome.faults) - _SHOWN} more")
            faults += [f"round {number}: {fault}" for fault in outcome.faults]
    except KeyboardInterrupt:
        say("chaos: interrupted; cleaning up")
        faults.append("interrupted")
    finally:
        log = campaign.service.log.read_text() if campaign.service.log.exists() else ""
        faults += campaign.close()
    tracebacks = log.count("Traceback (most recent call last)")
    if tracebacks:
        faults.append(f"the server's log has {tracebacks} tracebacks")
        say(log[log.index("Traceback") - 400 :][:4000])
    print(render_table(campaign, seed, time.monotonic() - began))
    for fault in faults:
        print(f"FAULT {fault}")
    print("nothing was untrue, orphaned, lost or run twice" if not faults else f"{len(faults)} faults")
    return 1 if faults else 0


def render_round(outcome: Outcome, count: int) -> str:
    up = f" server up in {outcome.server_up_s:.1f} s," if outcome.server_up_s is not None else ""
    return (
        f"[{outcome.number}/{count}] kill -9 {outcome.victim} ({outcome.workspace}):{up} true {outcome.true_s:.2f} s, "
        f"back {outcome.back_s:.2f} s, quiet {outcome.quiet_s:.2f} s{', FAULTS' if outcome.faults else ''}"
    )


def render_table(campaign: Campaign, seed: int, seconds: float) -> str:
    """One row a victim: rounds, and medians and maxima in seconds."""
    lines = [
        f"{len(campaign.outcomes)} rounds, seed {seed}, {seconds:.0f} s",
        "",
        "| kill -9 of | rounds | longest untrue state p50 / max s | runs again p50 / max s | no orphan p50 / max s |",
        "|---|---:|---:|---:|---:|",
    ]

    def spread(values: list[float]) -> str:
        return f"{statistics.median(values):.2f} / {max(values):.2f}"

    for victim in [*VICTIMS, DATABASE, "all"]:
        rows = [o for o in campaign.outcomes if victim in ("all", o.victim)]
        if rows:
            times = (spread([getattr(o, name) for o in rows]) for name in ("true_s", "back_s", "quiet_s"))
            lines.append(f"| {victim} | {len(rows)} | " + " | ".join(times) + " |")
    late = sum(1 for outcome in campaign.outcomes if outcome.true_s > 5)
    ends = ", ".join(f"{name} ×{count}" for name, count in sorted(campaign.books.ends.items()))
    ran = sum(len(done) for done in campaign.books.done.values())
    lines += ["", f"states untrue for more than 5 s: {late} rounds", f"commands that exited 0: {ran}, each ran once"]
    lines += [f"how calls ended: {ends}"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
