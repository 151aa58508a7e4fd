"""The error tree, and the table that gives every code its meaning.

Owns: which codes exist, and what each one means to a program (exit status, HTTP
status, retryable) and to a person (resolution). Codes are API: add freely, never
rename. Only the outermost layers (the CLI's main, the HTTP app, the gateway's
callbacks) turn an error into output.

    RunCodeError            has a code from the table, a message and a resolution
    ├── UnsafeInput         something hostile or malformed was refused; nothing was done with it
    └── ConnectionLost      a remote command may have started; it must never be run again
"""

from __future__ import annotations

from runcode.core.values import Value

EXIT_USAGE = 2
EXIT_FAILURE = 1
# What ssh itself exits with when it, not the remote command, failed.
EXIT_TRANSPORT = 255


class ErrorKind(Value):
    """One row of the table. `resolution` is what the person types or does next."""

    http_status: int
    retryable: bool
    resolution: str
    exit_status: int = EXIT_FAILURE


ERRORS: dict[str, ErrorKind] = {
    "no_token": ErrorKind(http_status=401, retryable=False, resolution="run `runcode login`"),
    "unauthorized": ErrorKind(http_status=401, retryable=False, resolution="run `runcode login`"),
    "forbidden": ErrorKind(
        http_status=403, retryable=False, resolution="ask the workspace's owner or your operator for access"
    ),
    "not_found": ErrorKind(
        http_status=404,
        retryable=False,
        resolution="check the name or id with `runcode list`; you may have no access to it",
    ),
    "conflict": ErrorKind(
        http_status=409,
        retryable=False,
        resolution="the workspace must be running: `runcode connect WS --start`",
    ),
    "quota_exceeded": ErrorKind(
        http_status=403,
        retryable=False,
        resolution="free some of what you have, or ask your operator to raise the limit",
    ),
    "start_failed": ErrorKind(
        http_status=200, retryable=False, resolution="the server refused to start the workspace; see its reason"
    ),
    "stop_failed": ErrorKind(
        http_status=200, retryable=False, resolution="the server refused to stop the workspace; see its reason"
    ),
    "not_ready": ErrorKind(http_status=503, retryable=True, resolution="retry, or raise `--timeout`"),
    "unavailable": ErrorKind(
        http_status=503, retryable=True, resolution="the SSH endpoint is not enabled on this server: ask its operator"
    ),
    "rate_limited": ErrorKind(http_status=429, retryable=True, resolution="wait a moment, then retry"),
    "network": ErrorKind(
        http_status=502,
        retryable=True,
        resolution="check the connection and the server's address, then retry",
    ),
    "http_error": ErrorKind(
        http_status=502, retryable=True, resolution="the server answered unexpectedly: retry, or tell its operator"
    ),
    "bad_request": ErrorKind(http_status=400, retryable=False, resolution="correct the request"),
    "insecure_base": ErrorKind(
        http_status=400,
        retryable=False,
        resolution="use an https:// address (plain http is allowed on loopback only)",
    ),
    "unsafe_bundle": ErrorKind(
        http_status=502,
        retryable=False,
        resolution="the server sent something that no honest server sends: stop, and report it to the operator",
    ),
    "unsafe_path": ErrorKind(
        http_status=400,
        retryable=False,
        resolution="make the path a plain file or folder of your own, then retry",
    ),
    "connection_lost": ErrorKind(
        http_status=502,
        retryable=False,
        resolution="the command may have run: look at its effects before you run it again",
        exit_status=EXIT_TRANSPORT,
    ),
    "no_exit_status": ErrorKind(
        http_status=502,
        retryable=False,
        resolution="it has run at least in part: look at its effects (was the box out of memory?)",
        exit_status=EXIT_TRANSPORT,
    ),
    "ambiguous": ErrorKind(http_status=409, retryable=False, resolution="name one by its id: `--workspace ID`"),
    "not_attached": ErrorKind(http_status=409, retryable=False, resolution="attach first: `runcode connect WS`"),
    "usage": ErrorKind(http_status=400, retryable=False, resolution="see `runcode help`", exit_status=EXIT_USAGE),
    "missing_program": ErrorKind(http_status=500, retryable=False, resolution="install the OpenSSH client"),
    "busy": ErrorKind(http_status=409, retryable=True, resolution="another process holds it: stop that one first"),
    "io_error": ErrorKind(
        http_status=500, retryable=True, resolution="free the cause that the message names, then retry"
    ),
    "database_down": ErrorKind(
        http_status=503, retryable=True, resolution="wait until the database server is back; RunCode goes on by itself"
    ),
    # These two are the launcher's (plugin/bin/runcode).
    "unsupported_platform": ErrorKind(
        http_status=400, retryable=False, resolution="install it with pipx, or build it and set RUNCODE_BIN"
    ),
    "unverified_download": ErrorKind(
        http_status=502,
        retryable=False,
        resolution="what was downloaded is not what was published: do not use it, and report it",
    ),
    "timed_out": ErrorKind(http_status=504, retryable=True, resolution="retry, or raise `--timeout`"),
    "internal": ErrorKind(
        http_status=500, retryable=False, resolution="this is a bug of ours: please report it with the reference"
    ),
}


class RunCodeError(Exception):
    """A failure with a stable code.

    `message` says what happened, in one line, without secrets. It may quote
    untrusted text: whoever shows it sends it through `core.terminal`.
    """

    def __init__(self, code: str, message: str, *, resolution: str | None = None) -> None:
        kind = ERRORS[code]
        super().__init__(message)
        self.code = code
        self.message = message
        self.resolution = resolution if resolution is not None else kind.resolution
        self.kind = kind


class UnsafeInput(RunCodeError):
    """Something from the other side was refused as malformed or hostile; nothing was done with it."""

    def __init__(self, message: str, *, code: str = "unsafe_bundle", resolution: str | None = None) -> None:
        super().__init__(code, message, resolution=resolution)


class ConnectionLost(RunCodeError):
    """The connection went away after a remote command may have started. Never retry."""

    def __init__(self, message: str) -> None:
        super().__init__("connection_lost", message)
