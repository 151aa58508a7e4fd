"""Workspaces by their people: made, named, sized, bounded by quotas, stopped with a reason, deleted on purpose."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.records import Caller
from runcode.controlplane.services.offers import RuntimeOffer
from runcode.controlplane.services.quotas import QuotaPolicy
from runcode.controlplane.services.titles import make_title
from runcode.controlplane.services.tokens import TokenBounds
from runcode.controlplane.services.workspaces import WorkspacePolicy
from runcode.core.errors import RunCodeError
from runcode.core.names import is_title
from runcode.runtimes.base import Capabilities, SizeLimits
from support.controlplane_fakes import FakeRuntime, ManualClock, make_reconciler, open_plane, until

ANN, BOB = "ann@example.org", "bob@example.org"
SIZES = {"standard": SizeLimits(), "tiny": SizeLimits(memory_bytes=64 * 2**20, processes=64, cpus=0.5)}


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    policy = WorkspacePolicy(sizes=SIZES, quotas=QuotaPolicy(workspaces_max=3, running_max=2))
    async with open_plane(tmp_path, ManualClock(), workspaces=policy) as opened:
        for email in (ANN, BOB):
            await opened.users.create_user(email)
        yield opened


async def caller_of(plane: ControlPlane, email: str, bounds: TokenBounds | None = None) -> Caller:
    made = await plane.tokens.create_token(email, "laptop", bounds=bounds or TokenBounds())
    return await plane.tokens.authenticate(made.plaintext)


class TestTitles:
    def test_a_made_up_title_reads_well_and_passes_everywhere(self) -> None:
        made = {make_title() for _ in range(500)}
        assert len(made) == 500
        assert all(re.fullmatch(r"[a-z]{3,9}-[a-z]{3,9}-[0-9]{8}", title) and is_title(title) for title in made)

    async def test_without_a_title_each_workspace_gets_its_own(self, plane: ControlPlane) -> None:
        ann = await caller_of(plane, ANN)
        first, second = [await plane.workspaces.create_workspace(None, caller=ann) for _ in range(2)]
        assert first.title != second.title
        assert (first.owner_email, first.role, first.state) == (ANN, "owner", "stopped")

    async def test_a_taken_title_is_said_so_also_in_other_letters(self, plane: ControlPlane) -> None:
        ann, bob = await caller_of(plane, ANN), await caller_of(plane, BOB)
        await plane.workspaces.create_workspace("Billing", caller=ann)
        with pytest.raises(RunCodeError, match="already") as caught:
            await plane.workspaces.create_workspace("billing", caller=bob)
        assert caught.value.code == "conflict"


class TestChanges:
    async def test_what_is_given_changes_and_the_rest_stays(self, plane: ControlPlane) -> None:
        ann = await caller_of(plane, ANN)
        box = await plane.workspaces.create_workspace("box", caller=ann, custom_title="Before", idle_stop_after_s=600)
        changed = await plane.workspaces.update_workspace(box.id, custom_title="<b>After</b>", caller=ann)
        assert (changed.custom_title, changed.size, changed.idle_stop_after_s) == ("<b>After</b>", "standard", 600)
        changed = await plane.workspaces.update_workspace(box.id, size="tiny", idle_stop_after_s=None, caller=ann)
        assert (changed.custom_title, changed.size, changed.idle_stop_after_s) == ("<b>After</b>", "tiny", None)

    @pytest.mark.parametrize("change", [{"size": "huge"}, {"idle_stop_after_s": 5}, {"custom_title": "a\x1b[2Jb"}])
    async def test_nonsense_changes_nothing(self, plane: ControlPlane, change: dict[str, object]) -> None:
        ann = await caller_of(plane, ANN)
        box = await plane.workspaces.create_workspace("box", caller=ann)
        with pytest.raises(RunCodeError) as caught:
            await plane.workspaces.update_workspace(box.id, **change, caller=ann)  # type: ignore[arg-type]
        assert caught.value.code == "bad_request"
        assert await plane.workspaces.load_workspace(box.id, caller=ann) == box

    async def test_a_size_reaches_the_box_at_its_next_start(self, plane: ControlPlane) -> None:
        ann, runtime = await caller_of(plane, ANN), FakeRuntime()
        box = await plane.workspaces.create_workspace("box", runtime="fake", caller=ann)
        reconciler = make_reconciler(plane, runtime)
        reconciler._sizes = SIZES
        await reconciler.start()

        async def reached(state: str) -> bool:
            return (await plane.workspaces.load_workspace(box.id)).state == state

        await plane.workspaces.request_start(box.id, caller=ann)
        await until(lambda: reached("running"))
        changed = await plane.workspaces.update_workspace(box.id, size="tiny", caller=ann)
        assert changed.size_pending
        assert runtime.specs[box.id].limits == SIZES["standard"]
        for ask, state in ((plane.workspaces.request_stop, "stopped"), (plane.workspaces.request_start, "running")):
            await ask(box.id, caller=ann)
            await until(lambda state=state: reached(state))
        assert runtime.specs[box.id].limits == SIZES["tiny"]
        assert not (await plane.workspaces.load_workspace(box.id)).size_pending
        await reconciler.close()

    async def test_a_size_that_the_operator_took_away_is_explained(self, plane: ControlPlane) -> None:
        ann = await caller_of(plane, ANN)
        box = await plane.workspaces.create_workspace("box", runtime="fake", size="tiny", caller=ann)
        reconciler = make_reconciler(plane, FakeRuntime())
        await reconciler.start()
        await plane.workspaces.request_start(box.id, caller=ann)

        async def failed() -> bool:
            found = await plane.workspaces.load_workspace(box.id)
            return "no size `tiny` any more (give the workspace another one" in (found.explanation or "")

        await until(failed)
        await reconciler.close()

    async def test_a_runtime_that_is_not_offered_is_refused(self, plane: ControlPlane) -> None:
        ann = await caller_of(plane, ANN)
        capabilities = Capabilities(sudo=False, outbound_network=False, limits=False)
        plane.offers.set([RuntimeOffer("local", capabilities), RuntimeOffer("docker", capabilities)])
        with pytest.raises(RunCodeError) as caught:
            await plane.workspaces.create_workspace("box", runtime="fake", caller=ann)
        assert (caught.value.code, caught.value.resolution) == (
            "bad_request",
            "use one of these runtimes: docker, local",
        )


class TestEnds:
    async def test_who_stopped_it_is_said_until_it_is_started(self, plane: ControlPlane) -> None:
        ann, bob = await caller_of(plane, ANN), await caller_of(plane, BOB)
        box = await plane.workspaces.create_workspace("box", caller=ann)
        await plane.workspaces.share(box.id, BOB, "manage", caller=ann)
        await plane.workspaces.request_start(box.id, caller=ann)
        stopped = await plane.workspaces.request_stop(box.id, caller=bob)
        assert (stopped.stop_cause, stopped.explanation) == ("person", f"stopped by {BOB}")
        # Asking again is no other stop.
        assert (await plane.workspaces.request_stop(box.id, caller=ann)).explanation == f"stopped by {BOB}"
        assert (await plane.workspaces.request_start(box.id, caller=ann)).explanation is None
        assert (await plane.workspaces.request_stop("box")).explanation == "stopped by the operator"

    @pytest.mark.parametrize("confirm", [None, "", "Box", "box ", "ox", 7, True])
    async def test_a_deletion_needs_the_title(self, plane: ControlPlane, confirm: object) -> None:
        ann = await caller_of(plane, ANN)
        box = await plane.workspaces.create_workspace("box", caller=ann)
        with pytest.raises(RunCodeError) as caught:
            await plane.workspaces.delete_workspace(box.id, confirm=confirm, caller=ann)
        assert caught.value.code == "bad_request"
        assert (await plane.workspaces.load_workspace(box.id, caller=ann)).desired_state == "stopped"

    async def test_with_the_title_it_goes(self, plane: ControlPlane) -> None:
        ann = await caller_of(plane, ANN)
        box = await plane.workspaces.create_workspace("box", caller=ann)
        gone = await plane.workspaces.delete_workspace(box.id, confirm="box", caller=ann)
        assert gone.state == "deleting"


class TestQuotas:
    async def test_of_many_creates_at_once_only_as_many_as_there_is_room_for_pass(self, plane: ControlPlane) -> None:
        ann = await caller_of(plane, ANN)
        tries = [plane.workspaces.create_workspace(None, caller=ann) for _ in range(8)]
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, RunCodeError)]
        assert len(refused) == 5
        assert {error.code for error in refused} == {"quota_exceeded"}
        assert refused[0].message == "you own 3 workspaces, and your limit is 3"
        assert len(await plane.workspaces.list_owned(ann)) == 3

    async def test_of_many_starts_at_once_only_as_many_as_may_run_pass(self, plane: ControlPlane) -> None:
        ann = await caller_of(plane, ANN)
        boxes = [await plane.workspaces.create_workspace(None, caller=ann) for _ in range(3)]
        starts = [plane.workspaces.request_start(box.id, caller=ann) for box in boxes * 2]
        outcomes = await asyncio.gather(*starts, return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, RunCodeError)]
        assert {error.code for error in refused} == {"start_failed"}
        assert sum(box.desired_state == "running" for box in await plane.workspaces.list_owned(ann)) == 2

    async def test_what_a_guest_starts_counts_on_the_owner(self, plane: ControlPlane) -> None:
        ann, bob = await caller_of(plane, ANN), await caller_of(plane, BOB)
        boxes = [await plane.workspaces.create_workspace(f"box-{n}", caller=ann) for n in range(3)]
        for box in boxes:
            await plane.workspaces.share(box.id, BOB, caller=ann)
        for box in boxes[:2]:
            await plane.workspaces.request_start(box.id, caller=bob)
        with pytest.raises(RunCodeError, match=f"its owner, {ANN}, has 2 workspaces running"):
            await plane.workspaces.request_start(boxes[2].id, caller=bob)
        # Bob's own are his.
        own = await plane.workspaces.create_workspace("bobs", caller=bob)
        await plane.workspaces.request_start(own.id, caller=bob)
        assert (await plane.quotas.load_quota(BOB, caller=bob)).running == 1
        # One that runs is started again without a word.
        await plane.workspaces.request_start(boxes[0].id, caller=bob)

    async def test_a_limit_of_ones_own_goes_before_the_servers(self, plane: ControlPlane) -> None:
        ann = await caller_of(plane, ANN)
        await plane.quotas.set_quota(ANN, workspaces_max=1)
        await plane.workspaces.create_workspace("one", caller=ann)
        with pytest.raises(RunCodeError, match="your limit is 1"):
            await plane.workspaces.create_workspace("two", caller=ann)
        await plane.quotas.set_quota(ANN, workspaces_max=None)
        await plane.workspaces.create_workspace("two", caller=ann)
        # The operator is held by none.
        for title in ("three", "four"):
            await plane.workspaces.create_workspace(title, ANN)
        quota = await plane.quotas.load_quota(ANN, caller=ann)
        assert (quota.workspaces, quota.workspaces_max) == (4, 3)

    async def test_nobody_but_an_admin_sets_or_sees_anothers(self, plane: ControlPlane) -> None:
        ann = await caller_of(plane, ANN)
        for attempt in (
            plane.quotas.set_quota(ANN, workspaces_max=99, caller=ann),
            plane.quotas.load_quota(BOB, caller=ann),
        ):
            with pytest.raises(RunCodeError) as caught:
                await attempt
            assert caught.value.code == "forbidden"
