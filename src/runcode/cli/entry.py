"""Where the interpreter starts: the shortest way to a hot command, else to `cli.main`.

A hot module's `run(argv)` returns an exit status, or None for anything unusual;
then the full command line takes over. It may import built-in modules only, and a
test pins what it loads (tests/architecture/test_client_imports.py). Its process
ends at once: taking the interpreter down costs 1.5 ms of 8.
"""

import sys

# First word → module with `run(argv)`. They need POSIX; elsewhere the full command line does it all.
HOT = {
    "connect": "runcode.cli.hot_connect",
    "exec": "runcode.cli.hot_exec",
    "hook": "runcode.cli.hot_hook",
    "statusline": "runcode.cli.hot_statusline",
    "--version": "runcode.cli.hot_version",
}
EXIT_INTERRUPTED = 130
# What an agent's client takes for "do not run it"; any other failure of a hook it passes over.
EXIT_REFUSED = 2


def start(argv: list[str]) -> int:
    name = HOT.get(argv[1]) if len(argv) > 1 and "posix" in sys.builtin_module_names else None
    try:
        if name is not None:
            __import__(name)
            status: int | None = sys.modules[name].run(argv)
            if status is not None:
                _leave(status)
        from runcode.cli.main import main
    except KeyboardInterrupt:
        return EXIT_REFUSED if argv[1] == "hook" else EXIT_INTERRUPTED
    return main(argv)


def _leave(status: int) -> None:
    """End without the interpreter's own teardown. Hot modules write past its buffers or flush them."""
    import posix

    posix._exit(status)


if __name__ == "__main__":
    # `-I -S` leaves neither this folder nor site-packages on the path.
    sys.path.insert(0, __file__.replace("\\", "/").rsplit("/", 3)[0])
    sys.exit(start(sys.argv))
