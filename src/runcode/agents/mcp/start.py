"""Where `runcode mcp` goes on with site-packages: the server, or one line that says what is missing.

The SDK is an extra of the package (`runcode[mcp]`): whoever does not use it does not
have it.
"""

import sys


def main() -> int:
    # Started by path, since an unpacked release does not lie in site-packages.
    sys.path.insert(0, __file__.replace("\\", "/").rsplit("/", 4)[0])
    try:
        import jsonschema  # noqa: F401
        import mcp  # noqa: F401
    except ImportError:
        from runcode.cli.output import Output
        from runcode.core.errors import RunCodeError

        error = RunCodeError(
            "missing_program",
            "the MCP SDK is not installed beside this runcode",
            resolution="install the package with its extra: `python3 -m pip install 'runcode[mcp]'`",
        )
        Output.standard().failure(error, as_json=False)
        return error.kind.exit_status
    from runcode.agents.mcp.server import main as serve

    return serve()


if __name__ == "__main__":
    sys.exit(main())
