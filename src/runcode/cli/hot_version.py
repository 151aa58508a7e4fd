"""`runcode --version`, without argparse."""

import sys

from runcode import __version__


def run(argv: list[str]) -> int | None:
    if len(argv) != 2:
        return None
    try:
        sys.stdout.write(f"runcode {__version__}\n")
        sys.stdout.flush()
    except (OSError, AttributeError):  # a closed pipe, or no stdout at all
        return None
    return 0
