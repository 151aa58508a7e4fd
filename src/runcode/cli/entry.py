"""Where the interpreter starts: the shortest way to a hot command, else to `cli.main`.

A hot module's `run(argv)` returns an exit status, or None for anything unusual;
then the full command line takes over. It may import built-in modules only, and a
test pins what it loads (tests/architecture/test_client_imports.py).
"""

import sys

# First word → module with `run(argv)`.
HOT = {"--version": "runcode.cli.hot_version"}


def start(argv: list[str]) -> int:
    name = HOT.get(argv[1]) if len(argv) > 1 else None
    if name is not None:
        __import__(name)
        status: int | None = sys.modules[name].run(argv)
        if status is not None:
            return status
    from runcode.cli.main import main

    return main(argv)


if __name__ == "__main__":
    # `-I -S` leaves neither this folder nor site-packages on the path.
    sys.path.insert(0, __file__.replace("\\", "/").rsplit("/", 3)[0])
    sys.exit(start(sys.argv))
