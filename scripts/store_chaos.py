"""`make store-chaos`: seeded rounds of kill -9 on control planes that share a database, and on the database.

On SQLite with one server process and on Postgres with two, under a load that mints,
revokes, starts and stops; what must be true afterwards: see tests/support/store_kills.py.
Progress goes to stderr, the table to stdout; exit 1 when anything was not as it must be.

    python scripts/store_chaos.py --seed 7 --rounds 50 --on Postgres
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import secrets
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from support.store_kills import Campaign, Outcome  # noqa: E402


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def run(product: str, seed: int, rounds: int) -> bool:
    campaign = Campaign(seed, postgres=product == "Postgres")
    outcomes: list[Outcome] = []
    began = time.monotonic()
    try:
        await campaign.open()
        for number in range(1, rounds + 1):
            outcome = await campaign.play(number)
            outcomes.append(outcome)
            said = f"{product} {number:3} {outcome.victim:22} reconciled after {outcome.settled_s:5.2f} s"
            say(" ".join((said, *outcome.faults)))
    finally:
        campaign.close()
    print(f"\n{product}: {rounds} rounds, seed {seed}, {time.monotonic() - began:.0f} s\n")
    print("| kill -9 of | rounds | reconciled p50 / max s | faults |\n|---|---:|---:|---:|")
    for victim in [*sorted({outcome.victim for outcome in outcomes}), "all"]:
        rows = [outcome for outcome in outcomes if victim in ("all", outcome.victim)]
        times = [outcome.settled_s for outcome in rows]
        faults = sum(len(outcome.faults) for outcome in rows)
        print(f"| {victim} | {len(rows)} | {statistics.median(times):.2f} / {max(times):.2f} | {faults} |")
    answered = ", ".join(f"{kind} ×{count}" for kind, count in sorted(campaign.counts.items()) if kind != "refused")
    refused = ", ".join(f"{code} ×{count}" for code, count in sorted(campaign.refusals.items()))
    print(f"\nanswered: {answered}\nrefused: {refused or 'nothing'}")
    return not any(outcome.faults for outcome in outcomes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--on", choices=("SQLite", "Postgres", "both"), default="both")
    options = parser.parse_args()
    # What servers say while their database is down is expected.
    logging.disable(logging.WARNING)
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    products = ("SQLite", "Postgres") if options.on == "both" else (options.on,)
    sound = [asyncio.run(run(product, seed, options.rounds)) for product in products]
    return 0 if all(sound) else 1


if __name__ == "__main__":
    sys.exit(main())
