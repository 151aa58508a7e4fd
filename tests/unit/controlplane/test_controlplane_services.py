"""The services' rules, on a clock that the test moves."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.records import Caller
from runcode.controlplane.services.tokens import TOKEN_PREFIX, TokenBounds
from runcode.core.errors import RunCodeError
from runcode.core.hostkeys import parse_public_key
from support.controlplane_fakes import (
    FakeRuntime,
    ManualClock,
    make_client_key,
    make_reconciler,
    mark_running,
    open_plane,
    set_endpoint,
    until,
)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def plane(tmp_path: Path, clock: ManualClock) -> AsyncIterator[ControlPlane]:
    async with open_plane(tmp_path, clock) as opened:
        await opened.users.create_user("ann@example.org", "correct horse battery", admin=True)
        await opened.users.create_user("bob@example.org")
        yield opened


async def caller_for(plane: ControlPlane, email: str, **options: datetime.datetime) -> Caller:
    return await plane.tokens.authenticate(
        (await plane.tokens.create_token(email, "test", bounds=TokenBounds(**options))).plaintext
    )


async def refused(code: str, call: object) -> RunCodeError:
    with pytest.raises(RunCodeError) as caught:
        await call  # type: ignore[misc]
    assert caught.value.code == code
    return caught.value


async def running_box(plane: ControlPlane, title: str = "box", owner: str = "ann@example.org") -> int:
    set_endpoint(plane)
    workspace = await plane.workspaces.create_workspace(title, owner, runtime="fake")
    await mark_running(plane, title)
    return workspace.id


async def test_email_is_one_user_in_any_case_and_hostile_ones_are_refused(plane: ControlPlane) -> None:
    assert [user.email for user in await plane.users.list_users()] == ["ann@example.org", "bob@example.org"]
    await refused("conflict", plane.users.create_user("  ANN@Example.org "))
    for raw in ("", "ann", "a@b\nc", "a b@c", "@c", "a@", "a@-b", "a@b..c", "é@b.org", "a@" + "b" * 300, "a\x1b@b"):
        await refused("bad_request", plane.users.create_user(raw))


async def test_password_is_checked_and_never_explained(plane: ControlPlane) -> None:
    assert (await plane.users.check_password("Ann@example.org", "correct horse battery")).user.is_admin
    wrong = await refused("unauthorized", plane.users.check_password("ann@example.org", "wrong horse battery"))
    absent = await refused("unauthorized", plane.users.check_password("zoe@example.org", "correct horse battery"))
    # Without a password of his own, not even the decoy's opens Bob's account.
    without = await refused("unauthorized", plane.users.check_password("bob@example.org", "nobody's password"))
    await plane.users.disable_user("ann@example.org")
    disabled = await refused("unauthorized", plane.users.check_password("ann@example.org", "correct horse battery"))
    assert len({wrong.message, absent.message, without.message, disabled.message}) == 1
    await refused("bad_request", plane.users.create_user("eve@example.org", "short"))


async def test_a_token_is_long_random_and_names_its_user(plane: ControlPlane) -> None:
    made = [await plane.tokens.create_token("bob@example.org", "laptop") for _ in range(3)]
    assert len({token.plaintext for token in made}) == 3
    assert all(t.plaintext.startswith(TOKEN_PREFIX) and len(t.plaintext) == 4 + 43 for t in made)
    caller = await plane.tokens.authenticate(made[0].plaintext)
    assert (caller.email, caller.is_admin, caller.token_id) == ("bob@example.org", False, made[0].record.id)
    assert "plaintext" not in repr(made[0])
    await refused("bad_request", plane.tokens.create_token("bob@example.org", "evil\x1b[2J"))
    await refused("not_found", plane.tokens.create_token("zoe@example.org", "x"))


async def test_a_token_ends_by_revocation_expiry_and_with_its_user(plane: ControlPlane, clock: ManualClock) -> None:
    expiring = await plane.tokens.create_token(
        "bob@example.org", "short", bounds=TokenBounds(expires_at=clock.now() + datetime.timedelta(hours=1))
    )
    revoked = await plane.tokens.create_token("bob@example.org", "gone")
    anns = await plane.tokens.create_token("ann@example.org", "ann")
    await plane.tokens.authenticate(expiring.plaintext)
    clock.advance(hours=1)
    await plane.tokens.revoke_token(revoked.record.id)
    first = (await plane.tokens.revoke_token(revoked.record.id)).revoked_at
    await plane.users.disable_user("ann@example.org")
    messages = set()
    for plaintext in (expiring.plaintext, revoked.plaintext, anns.plaintext, "rct_" + "A" * 43, "", None):
        messages.add((await refused("unauthorized", plane.tokens.authenticate(plaintext))).message)
    assert len(messages) == 1
    assert first == clock.now()
    await plane.users.enable_user("ann@example.org")
    assert (await plane.tokens.authenticate(anns.plaintext)).email == "ann@example.org"
    await refused(
        "bad_request", plane.tokens.create_token("bob@example.org", "past", bounds=TokenBounds(expires_at=clock.now()))
    )


async def test_who_holds_a_token_is_remembered_for_less_than_a_minute(plane: ControlPlane, clock: ManualClock) -> None:
    token = (await plane.tokens.create_token("bob@example.org", "laptop")).plaintext
    caller = await plane.tokens.authenticate(token, source="192.0.2.1")
    assert plane.tokens.recall(token, source="192.0.2.1") == caller
    recalled = plane.tokens.recall(token, source="192.0.2.2")
    assert recalled is not None
    assert (recalled.source, recalled.token_id) == ("192.0.2.2", caller.token_id)
    clock.advance(seconds=59)
    assert plane.tokens.recall(token) is not None
    for seconds in (1, -120):
        clock.advance(seconds=seconds)
        assert plane.tokens.recall(token) is None


async def test_last_use_is_noted_at_most_once_a_minute(plane: ControlPlane, clock: ManualClock) -> None:
    token = await plane.tokens.create_token("bob@example.org", "laptop")

    async def used_at() -> datetime.datetime | None:
        return (await plane.tokens.list_tokens("bob@example.org"))[0].last_used_at

    first = clock.now()
    await plane.tokens.authenticate(token.plaintext)
    await plane.tokens.close()
    assert await used_at() == first
    clock.advance(seconds=59)
    await plane.tokens.authenticate(token.plaintext)
    await plane.tokens.close()
    assert await used_at() == first
    clock.advance(seconds=1)
    await plane.tokens.authenticate(token.plaintext)
    await plane.tokens.close()
    assert await used_at() == clock.now()


async def test_a_read_does_not_wait_for_a_writer(plane: ControlPlane) -> None:
    token = await plane.tokens.create_token("bob@example.org", "laptop")
    async with plane.store.write():
        # The note of use queues behind this transaction; the call itself does not.
        assert (await plane.tokens.authenticate(token.plaintext)).email == "bob@example.org"
    await plane.tokens.close()
    assert (await plane.tokens.list_tokens("bob@example.org"))[0].last_used_at is not None


async def test_workspace_ids_and_titles(plane: ControlPlane) -> None:
    box = await plane.workspaces.create_workspace("box", "ann@example.org", custom_title="Billing API")
    assert (box.state, box.custom_title, box.runtime, box.running) == ("stopped", "Billing API", "local", False)
    parse_public_key(box.host_public_key)
    for taken in ("box", "BOX"):
        await refused("conflict", plane.workspaces.create_workspace(taken, "bob@example.org"))
    for title in ("", "-x", "a b", "42", "a/b", "x" * 65, "a\n", "ü", "$(id)"):
        await refused("bad_request", plane.workspaces.create_workspace(title, "ann@example.org"))
    for custom in ("a\x1b]0;x\x07", "a\nb", "\u202eevil", "x" * 121):
        await refused("bad_request", plane.workspaces.create_workspace("y", "ann@example.org", custom_title=custom))
    await refused("bad_request", plane.workspaces.create_workspace("y", "ann@example.org", runtime="../x"))
    await refused("not_found", plane.workspaces.create_workspace("y", "zoe@example.org"))
    assert (await plane.workspaces.load_workspace("box")).id == box.id
    assert (await plane.workspaces.load_workspace(str(box.id))).title == "box"
    assert [w.title for w in await plane.workspaces.list_all()] == ["box"]


async def test_start_and_stop_are_wishes_and_idempotent(plane: ControlPlane) -> None:
    await plane.workspaces.create_workspace("box", "ann@example.org")
    for _ in range(2):
        started = await plane.workspaces.request_start("box")
        assert (started.desired_state, started.current_state, started.interim_state) == (
            "running",
            "stopped",
            "starting",
        )
    for _ in range(2):
        assert (await plane.workspaces.request_stop("box")).state == "stopped"
    for _ in range(2):
        assert (await plane.workspaces.delete_workspace("box")).state == "deleting"
    await refused("start_failed", plane.workspaces.request_start("box"))
    await refused("stop_failed", plane.workspaces.request_stop("box"))


async def test_who_may_do_what_with_a_share(plane: ControlPlane) -> None:
    box = await plane.workspaces.create_workspace("box", "ann@example.org")
    bob = await caller_for(plane, "bob@example.org")
    for verb in (plane.workspaces.request_start, plane.workspaces.request_stop, plane.workspaces.load_workspace):
        stranger = await refused("not_found", verb(box.id, caller=bob))
        absent = await refused("not_found", verb(box.id + 1, caller=bob))
        assert stranger.message.replace(str(box.id), "N") == absent.message.replace(str(box.id + 1), "N")
    await plane.workspaces.share("box", "bob@example.org", "use")
    assert [(w.title, w.role) for w in await plane.workspaces.list_shared(bob)] == [("box", "use")]
    assert await plane.workspaces.list_owned(bob) == []
    assert (await plane.workspaces.request_start(box.id, caller=bob)).desired_state == "running"
    assert (
        "ann@example.org"
        in (await refused("stop_failed", plane.workspaces.request_stop(box.id, caller=bob))).resolution
    )
    await plane.workspaces.share("box", "bob@example.org", "manage")
    assert (await plane.workspaces.request_stop(box.id, caller=bob)).desired_state == "stopped"
    assert [(s.user_email, s.role) for s in await plane.workspaces.list_shares("box")] == [
        ("bob@example.org", "manage")
    ]
    await plane.workspaces.unshare("box", "bob@example.org")
    await plane.workspaces.unshare("box", "bob@example.org")
    await refused("not_found", plane.workspaces.request_start(box.id, caller=bob))
    await refused("bad_request", plane.workspaces.share("box", "ann@example.org"))
    await refused("bad_request", plane.workspaces.share("box", "bob@example.org", "owner"))


async def test_mint_needs_an_endpoint_then_a_running_box(plane: ControlPlane) -> None:
    box = await plane.workspaces.create_workspace("box", "ann@example.org", runtime="fake")
    ann = await caller_for(plane, "ann@example.org")
    error = await refused("unavailable", plane.sessions.register_session(ann, box.id, raw_public_key=make_client_key()))
    assert error.message == "SSH access is not configured"
    set_endpoint(plane)
    await refused("conflict", plane.sessions.register_session(ann, box.id, raw_public_key=make_client_key()))
    await mark_running(plane, "box")
    grant = await plane.sessions.register_session(ann, box.id, raw_public_key=make_client_key(), raw_client="codex")
    assert (grant.session.workspace_title, grant.session.client) == ("box", "codex")
    plane.ssh_endpoint.clear()
    await refused("unavailable", plane.sessions.register_session(ann, box.id, raw_public_key=make_client_key()))


async def test_ttl_is_a_wish_that_is_capped_also_by_the_tokens_own_end(plane: ControlPlane, clock: ManualClock) -> None:
    box = await running_box(plane)
    ann = await caller_for(plane, "ann@example.org")

    async def lasts(caller: Caller, ttl: object) -> float:
        grant = await plane.sessions.register_session(caller, box, raw_public_key=make_client_key(), raw_ttl=ttl)
        return (grant.session.expires_at - clock.now()).total_seconds()

    assert [await lasts(ann, ttl) for ttl in (None, 60, 10**30)] == [1800, 60, 1800]
    for ttl in (0, -1, True, "60", 60.0, [60], {}):
        await refused("bad_request", lasts(ann, ttl))
    short = await caller_for(plane, "ann@example.org", expires_at=clock.now() + datetime.timedelta(seconds=90))
    assert await lasts(short, None) == 90


async def test_a_key_belongs_to_one_session(plane: ControlPlane, clock: ManualClock) -> None:
    box, other = await running_box(plane), await running_box(plane, "other")
    ann, bob = await caller_for(plane, "ann@example.org"), await caller_for(plane, "bob@example.org")
    await plane.workspaces.share("other", "bob@example.org")
    key = make_client_key()

    async def mint(caller: Caller, workspace_id: int) -> tuple[int, datetime.datetime]:
        grant = await plane.sessions.register_session(caller, workspace_id, raw_public_key=key)
        return grant.session.id, grant.session.expires_at

    first, expires_at = await mint(ann, box)
    clock.advance(seconds=100)
    again, extended = await mint(ann, box)
    assert (again, extended - expires_at) == (first, datetime.timedelta(seconds=100))
    await refused("bad_request", mint(ann, other))
    await refused("bad_request", mint(bob, other))
    clock.advance(seconds=1800)
    moved, _ = await mint(bob, other)
    assert moved != first
    await refused("bad_request", mint(ann, box))


async def test_a_revoked_session_never_lives_again(plane: ControlPlane, clock: ManualClock) -> None:
    box = await running_box(plane)
    ann = await caller_for(plane, "ann@example.org")
    key = make_client_key()
    first = await plane.sessions.register_session(ann, box, raw_public_key=key)
    await plane.sessions.revoke_session(first.session.id)
    await plane.sessions.revoke_session(first.session.id)
    second = await plane.sessions.register_session(ann, box, raw_public_key=key)
    assert second.session.id != first.session.id
    assert [s.id for s in await plane.sessions.list_sessions()] == [second.session.id]
    everything = {s.id: s.revoked_at for s in await plane.sessions.list_sessions(include_ended=True)}
    assert everything[first.session.id] == clock.now()
    assert everything[second.session.id] is None
    await refused("not_found", plane.sessions.revoke_session(9999))


async def test_minting_by_a_token_that_was_revoked_after_the_check_is_refused(plane: ControlPlane) -> None:
    box = await running_box(plane)
    ann = await caller_for(plane, "ann@example.org")
    await plane.tokens.revoke_token(ann.token_id)
    await refused("unauthorized", plane.sessions.register_session(ann, box, raw_public_key=make_client_key()))


async def test_client_label_and_key_are_accepted_by_allowlist(plane: ControlPlane) -> None:
    box = await running_box(plane)
    ann = await caller_for(plane, "ann@example.org")
    for client in ("x" * 65, "a\nb", "\x1b[31m", 7, ["cli"], "\u202e"):
        await refused(
            "bad_request",
            plane.sessions.register_session(ann, box, raw_public_key=make_client_key(), raw_client=client),
        )
    good = make_client_key()
    for key in (
        None, 7, "", "ssh-ed25519", "ssh-dss AAAA", 'command="id" ' + good, good + "\nssh-ed25519 AAAA",
        good.replace("ssh-ed25519 ", "ssh-rsa "), good[:40], "ssh-ed25519 " + "A" * 70000,
    ):  # fmt: skip
        await refused("bad_request", plane.sessions.register_session(ann, box, raw_public_key=key))


async def test_first_start_makes_one_admin_and_one_token_once(tmp_path: Path) -> None:
    async with open_plane(tmp_path / "fresh") as plane:
        initial = await plane.initialise("root@example.org")
        assert initial is not None
        assert initial.user.is_admin
        assert (await plane.tokens.authenticate(initial.token.plaintext)).email == "root@example.org"
        assert await plane.initialise("root@example.org") is None
        assert len(await plane.users.list_users()) == 1
        await until(lambda: not plane.tokens._touches)


async def test_a_workspace_that_is_gone_is_gone_for_its_owner_and_guests_too(plane: ControlPlane) -> None:
    box = await plane.workspaces.create_workspace("box", "ann@example.org", runtime="fake")
    await plane.workspaces.share("box", "bob@example.org")
    ann, bob = await caller_for(plane, "ann@example.org"), await caller_for(plane, "bob@example.org")
    await plane.workspaces.delete_workspace("box")
    reconciler = make_reconciler(plane, FakeRuntime())
    await reconciler.start()

    async def gone() -> bool:
        return not await plane.workspaces.list_all()

    await until(gone)
    await reconciler.close()
    for caller in (ann, bob):
        await refused("not_found", plane.workspaces.request_start(box.id, caller=caller))
        assert await plane.workspaces.list_owned(caller) == []
        assert await plane.workspaces.list_shared(caller) == []
    await refused("not_found", plane.workspaces.load_workspace(box.id))
