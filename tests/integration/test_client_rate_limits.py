"""What the client does when a server says "later" (429): waits a little and as told, or says so; never for ever."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator

import pytest

from runcode.client import api
from runcode.client.api import Api
from runcode.core.errors import RunCodeError

REFUSAL = json.dumps({"error": True, "message": "too many calls from here", "code": "rate_limited"}).encode()
LIST = json.dumps({"error": False, "data": {"workspaces": []}}).encode()


class Crowded:
    """Answers 429 with these `Retry-After` (None: without), one after the other, and then as it should."""

    def __init__(self) -> None:
        self.said: list[str | None] = []
        self.asked: list[tuple[str, str]] = []
        crowded = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                crowded.asked.append((self.command, self.path))
                later = bool(crowded.said)
                raw = REFUSAL if later else LIST
                self.send_response(429 if later else 200)
                retry_after = crowded.said.pop(0) if later else None
                if retry_after is not None:
                    self.send_header("Retry-After", retry_after)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                return

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def crowded() -> Iterator[Crowded]:
    running = Crowded()
    yield running
    running.server.shutdown()
    running.server.server_close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the client would have waited, in seconds."""
    waited: list[float] = []
    monkeypatch.setattr(api.time, "sleep", waited.append)
    return waited


def test_it_waits_as_long_as_it_is_told_and_goes_on(crowded: Crowded, waits: list[float]) -> None:
    crowded.said = ["2", "1"]
    Api(crowded.base, "rct_x").verify_token()
    assert waits == [2, 1]
    assert len(crowded.asked) == 3


def test_a_call_that_changes_something_is_made_again_too_since_nothing_was_done(
    crowded: Crowded, waits: list[float]
) -> None:
    crowded.said = ["1"]
    Api(crowded.base, "rct_x").revoke_token()
    assert crowded.asked == [("POST", "/api/rc/auth/revoke")] * 2


@pytest.mark.parametrize("said", ["11", "86400", "999999"])
def test_a_long_wait_is_the_persons_to_decide(crowded: Crowded, waits: list[float], said: str) -> None:
    crowded.said = [said]
    with pytest.raises(RunCodeError) as caught:
        Api(crowded.base, "rct_x").verify_token()
    assert (caught.value.code, caught.value.kind.retryable) == ("rate_limited", True)
    assert caught.value.message == "too many calls from here"
    assert caught.value.resolution == f"wait {said} s, then retry"
    assert waits == []


@pytest.mark.parametrize("said", [None, "", "soon", "-1", "1.5", "9" * 30, "٣", "Wed, 25 Nov 2026 12:00:00 GMT"])
def test_an_odd_or_missing_wait_is_no_wait(crowded: Crowded, waits: list[float], said: str | None) -> None:
    crowded.said = [said.encode().decode("latin-1") if said is not None else None]
    with pytest.raises(RunCodeError) as caught:
        Api(crowded.base, "rct_x").verify_token()
    assert caught.value.code == "rate_limited"
    assert waits == []


def test_a_server_that_says_later_for_ever_is_left(crowded: Crowded, waits: list[float]) -> None:
    crowded.said = ["0"] * 100
    with pytest.raises(RunCodeError) as caught:
        Api(crowded.base, "rct_x").verify_token()
    assert caught.value.code == "rate_limited"
    assert sum(waits) <= api.PATIENCE_S
    assert len(crowded.asked) <= api.PATIENCE_S + 1
