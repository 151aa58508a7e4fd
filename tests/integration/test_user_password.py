"""The operator gives somebody another password while the server runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.server_with_orders import OrderedService


def test_another_password_counts_at_once_and_the_old_one_no_more(tmp_path: Path) -> None:
    service = OrderedService(tmp_path, ssh="off")
    service.start()
    try:
        email, old = service.first_facts["admin_email"], service.first_facts["admin_password"]
        assert service.order("users", "check_password", email, old)[0]["user"].count(f"email={email!r}") == 1
        new = service.operator_json("user", "password", email)["password"]
        assert new not in ("", old)
        assert service.order("users", "check_password", email, new)[0]["user"].count(f"email={email!r}") == 1
        with pytest.raises(AssertionError, match="the e-mail address or the password is wrong"):
            service.order("users", "check_password", email, old)
        missing = service.operator("user", "password", "nobody@example.net", check=False)
        assert missing.returncode != 0
        assert "not_found" in missing.stderr
    finally:
        service.stop()
