"""What the client makes of a server's device codes: by allowlist, patient, and never for ever."""

from __future__ import annotations

from typing import Any

import pytest

from runcode.client import device_login
from runcode.client.api import DeviceAnswer
from runcode.client.device_login import DeviceAttempt
from runcode.core.errors import RunCodeError

GOOD: dict[str, Any] = {
    "device_code": "rcd_" + "a" * 43,
    "user_code": "BCDF-GHJK",
    "verification_uri": "https://runcode.example/auth/device",
    "verification_uri_complete": "https://runcode.example/auth/device?user_code=BCDF-GHJK",
    "expires_in": 600,
    "interval": 5,
}


def test_a_good_answer_is_taken_and_its_secret_not_shown() -> None:
    attempt = device_login.parse_attempt(GOOD)
    assert (attempt.user_code, attempt.interval_s, attempt.life_s) == ("BCDF-GHJK", 5, 600)
    assert "rcd_" not in repr(attempt)


@pytest.mark.parametrize(
    "change",
    [
        {"user_code": "\x1b[31mBCDF"},
        {"user_code": "BCDF GHJK"},
        {"user_code": 7},
        {"user_code": "A" * 21},
        {"device_code": ""},
        {"device_code": "a b c d e"},
        {"device_code": None},
        {"verification_uri": "http://evil.example/"},
        {"verification_uri": "javascript:alert(1)"},
        {"verification_uri": "https://x.example/\x1b"},
        {"verification_uri": "https://x.example/" + "a" * 300},
        {"verification_uri": "https://u:p@x.example/"},
        {"verification_uri": None},
    ],
)
def test_what_no_honest_server_sends_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(RunCodeError, match="unknown shape"):
        device_login.parse_attempt({**GOOD, **change})


@pytest.mark.parametrize("body", [None, [], "x", {}])
def test_what_is_no_answer_is_refused(body: object) -> None:
    with pytest.raises(RunCodeError, match="unknown shape"):
        device_login.parse_attempt(body)


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"interval": 0}, "interval_s", 5),
        ({"interval": True}, "interval_s", 5),
        ({"interval": 10**9}, "interval_s", 60),
        ({"expires_in": -1}, "life_s", 600),
        ({"expires_in": 10**12}, "life_s", 3600),
        ({"verification_uri_complete": "http://evil.example"}, "complete_address", None),
    ],
)
def test_odd_numbers_and_extras_fall_back(change: dict[str, Any], field: str, value: object) -> None:
    assert getattr(device_login.parse_attempt({**GOOD, **change}), field) == value


class Scripted:
    """The API's side of the polls, and the time that they take."""

    def __init__(self, *answers: DeviceAnswer | RunCodeError) -> None:
        self.answers = list(answers)
        self.pauses: list[float] = []
        self.now = 0.0

    def redeem_device_code(self, device_code: str) -> DeviceAnswer:
        assert device_code == GOOD["device_code"]
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, RunCodeError):
            raise answer
        return answer

    def sleep(self, pause_s: float) -> None:
        self.pauses.append(pause_s)
        self.now += pause_s

    def wait(self, timeout_s: float | None = None) -> tuple[str, str]:
        attempt: DeviceAttempt = device_login.parse_attempt(GOOD)
        return device_login.wait(
            self,  # type: ignore[arg-type]
            attempt,
            timeout_s,
            sleep=self.sleep,
            monotonic=lambda: self.now,
        )


def refusal(word: str) -> DeviceAnswer:
    return DeviceAnswer(token=None, untrusted_email="", refusal=word)


TOKEN = DeviceAnswer(token="rct_x", untrusted_email="ann@example.org", refusal=None)


def test_it_waits_as_it_is_told() -> None:
    script = Scripted(refusal("authorization_pending"), refusal("slow_down"), refusal("authorization_pending"), TOKEN)
    assert script.wait() == ("rct_x", "ann@example.org")
    assert script.pauses == [5, 5, 10, 10]


def test_a_network_that_comes_and_goes_is_waited_for_more_slowly() -> None:
    script = Scripted(RunCodeError("network", "x"), RunCodeError("unavailable", "x"), TOKEN)
    assert script.wait() == ("rct_x", "ann@example.org")
    assert script.pauses == [5, 10, 20]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (refusal("access_denied"), "forbidden"),
        (refusal("expired_token"), "timed_out"),
        (refusal("something_else"), "timed_out"),
        (RunCodeError("http_error", "x"), "http_error"),
    ],
)
def test_an_end_is_an_end(answer: DeviceAnswer | RunCodeError, code: str) -> None:
    script = Scripted(answer)
    with pytest.raises(RunCodeError) as caught:
        script.wait()
    assert caught.value.code == code
    assert len(script.pauses) == 1


@pytest.mark.parametrize("word", ["authorization_pending", "slow_down"])
def test_a_server_that_never_decides_does_not_hold_it_for_ever(word: str) -> None:
    for timeout_s, most_s in ((None, 600), (30, 30)):
        script = Scripted(refusal(word))
        with pytest.raises(RunCodeError) as caught:
            script.wait(timeout_s)
        assert caught.value.code == "timed_out"
        assert script.now <= most_s
