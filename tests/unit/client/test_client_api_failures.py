"""What a person reads when the server's certificate is not one that this machine accepts."""

from __future__ import annotations

import http.client
import ssl
from typing import NoReturn

import pytest

from runcode.client.api import Api
from runcode.core.errors import RunCodeError


class Refusing(http.client.HTTPConnection):
    """A connection that ends as the handshake does."""

    def __init__(self, error: OSError) -> None:
        super().__init__("runcode.example")
        self._error = error

    def connect(self) -> NoReturn:
        raise self._error


def fail_with(error: OSError, monkeypatch: pytest.MonkeyPatch) -> RunCodeError:
    api = Api("https://runcode.example", "rct_" + "s" * 43)
    monkeypatch.setattr(api, "_connect", lambda: Refusing(error))
    with pytest.raises(RunCodeError) as caught:
        api.list_workspaces()
    assert caught.value.code == "network"
    assert "sss" not in caught.value.message + caught.value.resolution
    return caught.value


def test_a_certificate_of_an_unknown_ca_names_the_way_to_accept_it(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"
    told = fail_with(error, monkeypatch)
    assert "its certificate is not accepted (self-signed certificate)" in told.message
    assert "SSL_CERT_FILE=FILE" in told.resolution


def test_another_failure_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (ConnectionRefusedError(111, "Connection refused"), ssl.SSLError(1, "wrong version number")):
        assert "SSL_CERT_FILE" not in fail_with(error, monkeypatch).resolution
