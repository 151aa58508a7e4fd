"""The spool: what is on disk until it is delivered, what a killed gateway left, and files that are not ours."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from runcode.core.errors import RunCodeError
from runcode.gateway.events import END, START, GatewayEvent
from runcode.gateway.recorder import EventRecorder, RecorderLimits
from runcode.gateway.spool import EventSpool
from runcode.server.event_lines import parse_event, render_event, render_masked
from support.gateway_event_contract import make_event
from support.gateway_fakes import FakeSink, utc_now

QUICK = RecorderLimits(beat_s=0.001, retry_max_s=0.01)


def make_spool(folder: Path, **options: object) -> EventSpool:
    spool = EventSpool(folder, render=render_masked, parse=parse_event, **options)  # type: ignore[arg-type]
    spool.open()
    return spool


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.events"))


def leftovers(spool: EventSpool) -> list[GatewayEvent]:
    found = []
    while (left := spool.load_leftovers()) is not None:
        found += left[1]
        spool.forget_leftovers(left[0])
    return found


def test_events_come_back_as_they_were_and_a_half_line_does_not(tmp_path: Path) -> None:
    events = [make_event(START, text="a"), make_event(END, exit_status=0, text=None), make_event(START, text="b\nc")]
    first = make_spool(tmp_path / "s")
    numbers = [first.append(event) for event in events]
    first.close()
    (name,) = files(tmp_path / "s")
    with (tmp_path / "s" / name).open("ab") as file:
        file.write(b"not json\n" + b"[1]\n" + b'{"kind":"command"}\n' + b"[" * 100_000 + b"\n" + b'{"kind":"comm')
    again = make_spool(tmp_path / "s")
    assert again.append(make_event(START)) > max(numbers), "a number is not used again"
    assert leftovers(again) == events
    assert len(files(tmp_path / "s")) == 1
    again.close()


def test_what_is_delivered_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runcode.gateway.spool.SEGMENT_BYTES", 1000)
    spool = make_spool(tmp_path / "s")
    numbers = [spool.append(make_event(START, text="x" * 300)) for _ in range(20)]
    assert len(files(tmp_path / "s")) == len(set(numbers)) > 5
    for number in numbers:
        spool.delivered(number)
    assert files(tmp_path / "s") == []
    assert spool.append(make_event(START)) > numbers[-1]
    spool.close()


def test_at_its_limit_and_on_a_full_disk_serving_goes_on_and_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    spool = make_spool(tmp_path / "s", limit_bytes=2000, monotonic=lambda: now[0])
    numbers = [spool.append(make_event(START, text="x" * 500)) for _ in range(5)]
    assert numbers[0] > 0
    assert numbers[-1] == 0
    assert spool.obstacle == "the spool is at its limit"
    for number in numbers:
        spool.delivered(number)
    now[0] = 2.0
    kept = make_event(START, text="kept")
    assert spool.append(kept) > 0
    assert spool.obstacle is None
    write = os.write

    def write_half(descriptor: int, raw: bytes) -> int:
        return write(descriptor, raw[: len(raw) // 2])

    def refuse(descriptor: int, raw: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for fault in (write_half, refuse):
        now[0] += 2.0
        monkeypatch.setattr(os, "write", fault)
        assert spool.append(make_event(START, text="lost to the disk")) == 0
        assert spool.obstacle == "No space left on device"
    monkeypatch.setattr(os, "write", write)
    now[0] += 2.0
    last = make_event(START, text="last")
    assert spool.append(last) > 0
    spool.close()
    assert leftovers(make_spool(tmp_path / "s")) == [kept, last], "half a line does not stand before whole ones"


@pytest.mark.parametrize("plant", ["link", "second name", "pipe", "folder", "huge"])
def test_planted_files_are_neither_read_nor_deleted_nor_waited_for(tmp_path: Path, plant: str) -> None:
    folder, secret = tmp_path / "s", tmp_path / "secret"
    make_spool(folder).close()
    event = make_event(START)
    other = make_spool(tmp_path / "other")
    other.append(event)
    other.close()
    (tmp_path / "other" / files(tmp_path / "other")[0]).rename(secret)
    planted = folder / "000000000001.events"
    {
        "link": lambda: planted.symlink_to(secret),
        "second name": lambda: os.link(secret, planted),
        "pipe": lambda: os.mkfifo(planted),
        "folder": planted.mkdir,
        "huge": lambda: (planted.touch(), os.truncate(planted, 1 << 30)),
    }[plant]()
    spool = make_spool(folder)
    assert leftovers(spool) == []
    assert planted.is_symlink() or planted.exists()
    assert secret.exists()
    assert spool.append(event) > 1
    spool.close()


def test_the_folder_is_private_and_one_process_has_it(tmp_path: Path) -> None:
    first = make_spool(tmp_path / "s")
    with pytest.raises(RunCodeError) as busy:
        make_spool(tmp_path / "s")
    assert busy.value.code == "busy"
    first.close()
    (tmp_path / "s").chmod(0o755)
    (tmp_path / "link").symlink_to(tmp_path / "s")
    for folder in (tmp_path / "s", tmp_path / "link"):
        with pytest.raises(RunCodeError) as unsafe:
            make_spool(folder)
        assert unsafe.value.code == "unsafe_path"


def test_no_secret_of_a_command_stands_on_the_disk(tmp_path: Path) -> None:
    spool = make_spool(tmp_path / "s")
    spool.append(make_event(START, text="mysql --password=hunter2hunter2 db"))
    raw = (tmp_path / "s" / files(tmp_path / "s")[0]).read_text()
    assert "mysql" in raw
    assert "hunter2" not in raw
    spool.close()


async def run_until(recorder: EventRecorder, done: Callable[[], bool]) -> None:
    import asyncio

    recorder.start()
    async with asyncio.timeout(10):
        while not done():
            await asyncio.sleep(0)
    await recorder.close()


async def test_what_a_killed_gateway_left_is_told_first_then_what_is_missing_ends(tmp_path: Path) -> None:
    before = make_spool(tmp_path / "s")
    killed = EventRecorder(FakeSink(), gateway="gw", clock=utc_now, spool=before)
    left = [make_event(START, text=f"n{number}") for number in range(5)]
    for event in left:
        killed.put(event)
    before.close()
    sink = FakeSink()
    sink.rows[left[0].event_id] = left[0]  # Delivered already, and not deleted any more.
    spool = make_spool(tmp_path / "s")
    recorder = EventRecorder(sink, gateway="gw", clock=utc_now, spool=spool, limits=QUICK)
    newer = make_event(START, text="newer")
    recorder.put(newer)
    await run_until(recorder, lambda: newer.event_id in sink.rows)
    assert sink.deliveries[0] == [event.event_id for event in left]
    assert sink.syncs[0] == (frozenset(), "the server ended")
    assert all(f"{event.subject_id}.end" in sink.rows for event in left)
    assert f"{newer.subject_id}.end" not in sink.rows
    assert files(tmp_path / "s") == []
    spool.close()


async def test_a_damaged_event_of_an_earlier_run_does_not_hold_up_the_others(tmp_path: Path) -> None:
    class Picky(FakeSink):
        async def record(self, gateway: str, events: object) -> None:
            if any(event.kind == "nonsense" for event in events):  # type: ignore[attr-defined]
                raise RunCodeError("bad_request", "that is not an event")
            await super().record(gateway, events)  # type: ignore[arg-type]

    before = make_spool(tmp_path / "s")
    good = [make_event(START), make_event(START)]
    for event in (good[0], make_event(START, kind="nonsense"), good[1]):
        before.append(event)
    before.close()
    sink, spool = Picky(), make_spool(tmp_path / "s")
    recorder = EventRecorder(sink, gateway="gw", clock=utc_now, spool=spool, limits=QUICK)
    await run_until(recorder, lambda: bool(sink.syncs))
    assert {event.event_id for event in good} <= set(sink.rows)
    assert files(tmp_path / "s") == []
    spool.close()


@pytest.mark.parametrize(
    "change",
    [
        {"at": "now"},
        {"at": "2026-01-01T00:00:00"},
        {"detail": {"a": [1]}},
        {"kind": 1},
        {"user_id": True},
        {"detail": 1},
    ],
)
def test_what_is_no_event_is_not_read_as_one(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        parse_event(render_event(make_event(START)) | change)
