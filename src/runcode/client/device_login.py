"""Signing in on a machine without a browser, the client's half: two codes, an address for people, patience.

Owns: asking the server for the codes, and polling until a person has decided. The
token itself is verified and kept by the command.

Threat: a server, or whoever answers for it, that sends an address which is none of
its own kind, a code with escapes in it, or a wait without end.

Guarantee: an address is https (or http on loopback), a code is plain letters; polling
ends when the code does, keeps the pause that was asked for, and the device code goes
to the API base alone.

Source: RFC 8628.
"""

from __future__ import annotations

import re
import time

from runcode.core.errors import RunCodeError
from runcode.core.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runcode.client.api import Api
    from runcode.client.settings import Settings

_USER_CODE = re.compile(r"[A-Z0-9-]{4,20}", re.ASCII)
_DEVICE_CODE = re.compile(r"[\x21-\x7e]{8,512}", re.ASCII)
_ADDRESS = re.compile(r"(https?://[A-Za-z0-9.:\[\]-]+)(/[\x21-\x7e]*)?", re.ASCII)
_ADDRESS_MAX = 300
_INTERVAL_S = 5
_INTERVAL_MAX_S = 60
_LIFE_S = 600
_LIFE_MAX_S = 3600
# RFC 8628 §3.5.
_SLOWER_S = 5
_OTHER_WAY = "run `runcode login --no-browser` and open the address on this machine, or `runcode login --paste`"


class DeviceAttempt(Value):
    """One sign-in. `address` is where `user_code` is typed; `complete_address` has it filled in, or is None."""

    user_code: str
    address: str
    complete_address: str | None
    life_s: int
    interval_s: int
    device_code: str

    def __repr__(self) -> str:
        return f"DeviceAttempt({self.user_code})"


def start(api: Api, settings: Settings, machine: str) -> DeviceAttempt:
    """Raises `unavailable` for a server that has no such sign-in."""
    try:
        body = api.start_device_login(client=settings.client, machine=machine)
    except RunCodeError as error:
        if error.code not in ("not_found", "http_error", "bad_request"):
            raise
        raise RunCodeError(
            "unavailable", "this server has no sign-in for devices without a browser", resolution=_OTHER_WAY
        ) from error
    return parse_attempt(body)


def parse_attempt(raw_body: object) -> DeviceAttempt:
    """The server's answer by allowlist. Raises `http_error`."""
    body = raw_body if isinstance(raw_body, dict) else {}
    user_code, device_code = body.get("user_code"), body.get("device_code")
    address = _parse_address(body.get("verification_uri"))
    if (
        address is None
        or not isinstance(user_code, str)
        or _USER_CODE.fullmatch(user_code) is None
        or not isinstance(device_code, str)
        or _DEVICE_CODE.fullmatch(device_code) is None
    ):
        raise RunCodeError("http_error", "the server's codes for this device have an unknown shape")
    return DeviceAttempt(
        user_code=user_code,
        address=address,
        complete_address=_parse_address(body.get("verification_uri_complete")),
        life_s=_parse_seconds(body.get("expires_in"), _LIFE_S, _LIFE_MAX_S),
        interval_s=_parse_seconds(body.get("interval"), _INTERVAL_S, _INTERVAL_MAX_S),
        device_code=device_code,
    )


def wait(
    api: Api,
    attempt: DeviceAttempt,
    timeout_s: float | None,
    *,
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> tuple[str, str]:
    """(raw token, the e-mail address that the server names). Raises `timed_out`, or `forbidden` for a no."""
    life_s = attempt.life_s if timeout_s is None else min(attempt.life_s, timeout_s)
    deadline = monotonic() + life_s
    interval_s = float(attempt.interval_s)
    while monotonic() + interval_s < deadline:
        sleep(interval_s)
        try:
            answer = api.redeem_device_code(attempt.device_code)
        except RunCodeError as error:
            if error.code not in ("network", "rate_limited", "unavailable"):
                raise
            # The person may be at it: a network that comes and goes is waited for, more slowly each time.
            interval_s = min(interval_s * 2, _INTERVAL_MAX_S)
            continue
        if answer.token is not None:
            return answer.token, answer.untrusted_email
        if answer.refusal == "slow_down":
            interval_s = min(interval_s + _SLOWER_S, _INTERVAL_MAX_S)
        elif answer.refusal == "access_denied":
            raise RunCodeError("forbidden", "the sign-in was denied", resolution="retry, or " + _OTHER_WAY)
        elif answer.refusal != "authorization_pending":
            break
    raise RunCodeError(
        "timed_out", "nobody authorized this device in time", resolution="run `runcode login --device` again"
    )


def _parse_address(raw: object) -> str | None:
    from runcode.client.settings import parse_base

    if not isinstance(raw, str) or len(raw) > _ADDRESS_MAX:
        return None
    found = _ADDRESS.fullmatch(raw)
    if found is None:
        return None
    try:
        parse_base(found[1])
    except RunCodeError:
        return None
    return raw


def _parse_seconds(raw: object, default_s: int, most_s: int) -> int:
    return min(raw, most_s) if type(raw) is int and raw > 0 else default_s
