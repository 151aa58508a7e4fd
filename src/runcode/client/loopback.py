"""A listener on 127.0.0.1 that takes one browser's answer, and turns everybody else away.

Owns: the socket, the few lines of HTTP that it speaks, and the rule for which
request is the answer. Called by `client.browser_login`.

Threat: every program on this machine, and every page in the person's browser, can
send requests here. They may guess the state, come by another name for this
address (DNS rebinding), be another user's process that has seen the address in
`ps`, send without end, or hold many connections open.

Guarantee: the answer has our exact path, Host and state, each once, and comes
from a process of this user where the system tells (Linux). Whatever else comes
is refused within bounds of size, time and number, and the wait goes on.

Source: RFC 8252 §7.3 and §8.3, RFC 9112; proc(5) for /proc/net/tcp.
"""

from __future__ import annotations

import hmac
import os
import re
import selectors
import socket
import time
from urllib.parse import parse_qsl

from runcode.core.errors import RunCodeError
from runcode.core.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

HEAD_MAX = 16 * 1024
CONNECTIONS_MAX = 32
REQUEST_TIMEOUT_S = 10.0
CALLBACK_PATH = "/callback"
DONE_PATH = "/done"
_REQUEST = re.compile(rb"GET (/[\x21-\x7e]*) HTTP/1\.[01]", re.ASCII)
_CODE = re.compile(r"[\x21-\x7e]{1,4096}", re.ASCII)
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<title>RunCode</title></head><body><h1>RunCode</h1><p>{words}</p></body></html>
"""
_REASONS = {
    200: "OK",
    303: "See Other",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
}


class Answer(Value):
    """What the server let the browser bring back: a code, or a token, or neither when the person said no."""

    code: str | None
    token: str | None
    untrusted_email: str


class Refusal(Value):
    """Why a request is not the answer."""

    status: int
    words: str


def parse_answer(head: bytes, *, port: int, state: str) -> Answer | Refusal:
    """A whole request head → the answer that we wait for, or why it is not that."""
    lines = head.split(b"\r\n")
    request = _REQUEST.fullmatch(lines[0])
    if request is None:
        return Refusal(status=405, words="This address takes one answer of a browser and nothing else.")
    headers = [(name.strip().lower(), text.strip()) for name, _, text in (line.partition(b":") for line in lines[1:])]
    # A page of another origin can reach us by a name of its own that resolves to 127.0.0.1.
    if [text for name, text in headers if name == b"host"] != [f"127.0.0.1:{port}".encode()]:
        return Refusal(status=403, words="This address goes by one name only.")
    # Browsers say what a request is for: an image or a script of some page is no answer.
    if any(name == b"sec-fetch-dest" and text != b"document" for name, text in headers):
        return Refusal(status=403, words="Only a page that a person sees may answer.")
    path, _, query = request[1].decode("ascii").partition("?")
    if path != CALLBACK_PATH:
        return Refusal(status=404, words="There is nothing here.")
    return _parse_query(query, state)


def _parse_query(query: str, state: str) -> Answer | Refusal:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=20)
    except ValueError:
        pairs = []
    given = dict(pairs)
    if len(given) != len(pairs) or not hmac.compare_digest(given.get("state", "").encode(), state.encode()):
        return Refusal(status=403, words="This answer belongs to another sign-in. Go back to your terminal.")
    code, token = given.get("code"), given.get("token")
    email = given.get("email", "")[:300]
    if given.get("error") and code is None and token is None:
        return Answer(code=None, token=None, untrusted_email=email)
    if (code is None) == (token is None) or _CODE.fullmatch(code or token or "") is None:
        return Refusal(status=400, words="This answer is incomplete. Go back to your terminal.")
    return Answer(code=code, token=token, untrusted_email=email)


class Listener:
    """Listens on 127.0.0.1 from the moment it is made, on a port of the system's choice."""

    def __init__(self, state: str, environ: Mapping[str, str]) -> None:
        self._state = state
        self._environ = environ
        self._selector = selectors.DefaultSelector()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            self._socket.bind(("127.0.0.1", 0))
            self._socket.listen(CONNECTIONS_MAX)
        except OSError as error:
            self._socket.close()
            raise RunCodeError(
                "io_error",
                f"cannot listen on 127.0.0.1: {error.strerror}",
                resolution="sign in with `runcode login --paste`",
            ) from error
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]
        self._selector.register(self._socket, selectors.EVENT_READ)
        self._open: dict[socket.socket, _Request] = {}

    def wait(self, timeout_s: float) -> Answer | None:
        """The answer, whose browser is sent on to a page that holds no secret; None when the time ran out."""

        def look(head: bytes) -> Answer | Refusal:
            return parse_answer(head, port=self.port, state=self._state)

        return self._serve(time.monotonic() + timeout_s, look)

    def finish(self, words: str, *, timeout_s: float = 2.0) -> None:
        """Show the browser how it ended, if it comes for that, and stop listening. `words` is text of ours."""
        own_request = re.compile(rb"GET " + DONE_PATH.encode() + rb" HTTP/1\.[01]")

        def look(head: bytes) -> Answer | Refusal:
            found = own_request.fullmatch(head.split(b"\r\n")[0])
            return Refusal(status=200 if found else 404, words=words if found else "There is nothing here.")

        self._serve(time.monotonic() + timeout_s, look)
        self.close()

    def close(self) -> None:
        for connection in list(self._open):
            self._drop(connection)
        self._selector.close()
        self._socket.close()

    def _serve(self, deadline: float, look: _Look) -> Answer | None:
        while (remaining_s := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(min(remaining_s, 0.5)):
                if key.fileobj is self._socket:
                    self._accept()
                    continue
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                head = self._read_head(connection)
                if head is None:
                    continue
                verdict = self._judge(connection, head, look)
                self._answer(connection, verdict)
                if isinstance(verdict, Answer):
                    return verdict
                if verdict.status == 200:
                    return None
            self._drop_slow_ones()
        return None

    def _accept(self) -> None:
        try:
            connection, peer = self._socket.accept()
        except OSError:
            return
        connection.setblocking(False)
        if len(self._open) >= CONNECTIONS_MAX:
            # The oldest goes: a browser's request is whole at once, one that is still incomplete is none.
            self._drop(next(iter(self._open)))
        self._open[connection] = _Request(peer)
        self._selector.register(connection, selectors.EVENT_READ)

    def _read_head(self, connection: socket.socket) -> bytes | None:
        """The head when it is whole. A connection that ended or sends too much is dropped."""
        request = self._open[connection]
        try:
            chunk = connection.recv(HEAD_MAX)
        except BlockingIOError:
            return None
        except OSError:
            chunk = b""
        request.received += chunk
        end = request.received.find(b"\r\n\r\n")
        if 0 <= end <= HEAD_MAX:
            return bytes(request.received[:end])
        if len(request.received) > HEAD_MAX:
            self._answer(connection, Refusal(status=431, words="Too much."))
        elif not chunk:
            self._drop(connection)
        return None

    def _judge(self, connection: socket.socket, head: bytes, look: _Look) -> Answer | Refusal:
        if not is_own_process(self._open[connection].peer, connection.getsockname(), self._environ):
            return Refusal(status=403, words="This address belongs to another user of this machine.")
        return look(head)

    def _answer(self, connection: socket.socket, verdict: Answer | Refusal) -> None:
        status, words = (303, "") if isinstance(verdict, Answer) else (verdict.status, verdict.words)
        body = _PAGE.format(words=words).encode()
        head = [f"HTTP/1.1 {status} {_REASONS[status]}", "Content-Type: text/html; charset=utf-8"]
        # The address with the answer in it must not stay in the browser's history.
        head += [f"Location: {DONE_PATH}"] if status == 303 else []
        head += [f"Content-Length: {len(body)}", "Cache-Control: no-store", "Referrer-Policy: no-referrer"]
        head += ["Content-Security-Policy: default-src 'none'; frame-ancestors 'none'"]
        head += ["X-Content-Type-Options: nosniff", "Connection: close"]
        try:
            # It fits into any send buffer, so a peer that does not read cannot hold us.
            connection.send("\r\n".join([*head, "", ""]).encode() + body)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        if self._open.pop(connection, None) is not None:
            self._selector.unregister(connection)
        connection.close()

    def _drop_slow_ones(self) -> None:
        now = time.monotonic()
        for connection in [one for one, request in self._open.items() if now > request.deadline]:
            self._drop(connection)


class _Request:
    def __init__(self, peer: tuple[str, int]) -> None:
        self.peer = peer
        self.received = bytearray()
        self.deadline = time.monotonic() + REQUEST_TIMEOUT_S


if TYPE_CHECKING:
    from collections.abc import Callable

    _Look = Callable[[bytes], Answer | Refusal]


def is_own_process(peer: tuple[str, int], own: tuple[str, int], environ: Mapping[str, str]) -> bool:
    """Does the other end of this loopback connection belong to this user, or to root? True where no system tells.

    A socket that its process has closed already has no owner any more; a browser waits for its answer.
    """
    try:
        with open("/proc/net/tcp", "rb") as file:
            table = file.read(16 * 1024 * 1024)
    except OSError:
        return True
    wanted = (_hex_address(peer), _hex_address(own))
    for line in table.split(b"\n")[1:]:
        fields = line.split()
        if len(fields) > 9 and (fields[1], fields[2]) == wanted:
            allowed = {0, os.geteuid()} | {int(n) for n in [environ.get("SUDO_UID", "")] if n.isdigit()}
            return fields[9] != b"0" and int(fields[7]) in allowed
    # Windows' own browser reaches a WSL machine without any socket in it.
    return "WSL_DISTRO_NAME" in environ


def _hex_address(address: tuple[str, int]) -> bytes:
    # The kernel prints the address as a native integer.
    import sys

    number = int.from_bytes(socket.inet_aton(address[0]), sys.byteorder)
    return b"%08X:%04X" % (number, address[1])
