"""From packets to events: whose program, which status, which target; and peers' bytes as text."""

from __future__ import annotations

import datetime
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runcode.controlplane.masking import mask_detail
from runcode.core.remote_calls import measure_script
from runcode.core.remote_files import RemoteFile, render_upload
from runcode.gateway.admission import Offer, Route
from runcode.gateway.directory import SessionFacts, WorkspaceFacts
from runcode.gateway.events import COMMAND, CONNECTION, END, FORWARD, START, GatewayEvent
from runcode.gateway.journal import TEXT_HEAD, TEXT_TAIL, ConnectionJournal, render_text
from runcode.gateway.packets import render_string as s
from runcode.gateway.packets import render_uint32 as u
from runcode.gateway.relay import Leg, PacketRelay, RelayLimits, Violation

CLIENT, BOX = Leg.CLIENT, Leg.BOX
NOON = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.timezone.utc)


class Recorded:
    """Stands for the recorder: a list."""

    def __init__(self) -> None:
        self.events: list[GatewayEvent] = []

    def put(self, event: GatewayEvent) -> None:
        self.events.append(event)

    def whole(self, kind: str) -> list[dict[str, object]]:
        starts = {e.subject_id: e for e in self.events if (e.kind, e.phase) == (kind, START)}
        return [{**starts[e.subject_id].detail, **e.detail} for e in self.events if (e.kind, e.phase) == (kind, END)]

    def open(self, kind: str) -> int:
        return sum({START: 1, END: -1}[e.phase] for e in self.events if e.kind == kind)


class Talk:
    """A relay with a journal, and packets in short."""

    def __init__(self) -> None:
        self.recorded = Recorded()
        session = SessionFacts(5, 9, 3, "claude-code", NOON, False)
        route = Route(session, WorkspaceFacts(9, "royal-1", True, "ws-9", "ssh-ed25519 A", socket_path="/s"))
        offer = Offer("royal-1", "SHA256:x", "192.0.2.7")
        self.journal = ConnectionJournal(self.recorded, lambda: NOON, offer=offer, route=route)  # type: ignore[arg-type]
        self.journal.opened()
        self.relay = PacketRelay(RelayLimits(), observer=self.journal)

    def say(self, source: Leg, *payloads: bytes) -> None:
        for payload in payloads:
            if payload[0] in (94, 95):
                self.relay.count_data(source, payload)
            else:
                self.relay.receive(source, payload)

    def open(self, kind: bytes = b"session", client: int = 0, box: int = 7, rest: bytes = b"") -> None:
        self.say(CLIENT, b"\x5a" + s(kind) + u(client) + u(1 << 21) + u(1 << 15) + rest)
        self.say(BOX, b"\x5b" + u(client) + u(box) + u(1 << 21) + u(1 << 15))

    def ask(self, name: bytes, rest: bytes = b"", *, box: int = 7, reply: bool = True) -> None:
        self.say(CLIENT, b"\x62" + u(box) + s(name) + bytes([reply]) + rest)

    def report(self, name: bytes, rest: bytes, client: int = 0) -> None:
        self.say(BOX, b"\x62" + u(client) + s(name) + b"\0" + rest)

    def close(self, client: int = 0, box: int = 7) -> None:
        self.say(BOX, b"\x61" + u(client))
        self.say(CLIENT, b"\x61" + u(box))

    @property
    def commands(self) -> list[dict[str, object]]:
        return self.recorded.whole(COMMAND)

    @property
    def forwards(self) -> list[dict[str, object]]:
        return self.recorded.whole(FORWARD)


def test_a_command_from_start_to_end() -> None:
    talk = Talk()
    talk.open()
    talk.ask(b"env", s(b"A") + s(b"b"), reply=False)
    talk.ask(b"exec", s(b"make test"))
    talk.say(BOX, b"\x63" + u(0), b"\x5e" + u(0) + s(b"12345"), b"\x5f" + u(0) + u(1) + s(b"err"))
    talk.say(CLIENT, b"\x5e" + u(7) + s(b"in"))
    assert talk.recorded.open(COMMAND) == 1
    talk.report(b"exit-status", u(77))
    talk.close()
    (command,) = talk.commands
    assert command == {
        "form": "exec",
        "text": "make test",
        "text_bytes": 9,
        "text_sha256": hashlib.sha256(b"make test").hexdigest(),
        "outcome": "finished",
        "exit_status": 77,
        "exit_signal": None,
        "bytes_up": 2,
        "bytes_down": 8,
    }
    end = talk.recorded.events[-1]
    assert (end.workspace_id, end.session_id, end.user_id, end.started_at) == (9, 5, 3, NOON)


def test_a_shell_a_subsystem_and_a_signal() -> None:
    talk = Talk()
    talk.open()
    talk.ask(b"shell")
    talk.open(client=1, box=8)
    talk.ask(b"subsystem", s(b"sftp"), box=8)
    talk.report(b"exit-signal", s(b"TERM") + b"\0" + s(b"") + s(b""))
    talk.close()
    talk.close(1, 8)
    assert [(c["form"], c["text"], c["exit_signal"]) for c in talk.commands] == [
        ("shell", "", "TERM"),
        ("subsystem", "sftp", None),
    ]


def test_a_program_that_the_box_refuses_did_not_run_and_the_next_one_did() -> None:
    talk = Talk()
    talk.open()
    talk.ask(b"pty-req", s(b"xterm"))
    talk.ask(b"subsystem", s(b"sftp"))
    talk.say(BOX, b"\x64" + u(0), b"\x64" + u(0))
    talk.ask(b"exec", s(b"sftp-server"))
    talk.say(BOX, b"\x63" + u(0))
    talk.report(b"exit-status", u(0))
    talk.close()
    assert [(c["text"], c["outcome"], c.get("exit_status")) for c in talk.commands] == [
        ("sftp", "refused", None),
        ("sftp-server", "finished", 0),
    ]


def test_answers_are_matched_in_order_also_when_there_are_too_many_to_follow() -> None:
    talk = Talk()
    talk.open()
    for _ in range(2000):
        talk.ask(b"window-change", u(1) * 4)
    talk.ask(b"exec", s(b"true"))
    talk.say(BOX, *[b"\x64" + u(0)] * 2001)
    talk.report(b"exit-status", u(3))
    talk.close()
    # Not known whether it was refused: then what the box reports counts.
    assert [(c["outcome"], c["exit_status"]) for c in talk.commands] == [("finished", 3)]


class TestABoxThatLies:
    def test_about_a_channel_that_is_not_there_or_has_no_program(self) -> None:
        talk = Talk()
        talk.open()
        talk.open(b"direct-tcpip", 1, 8, s(b"localhost") + u(80) + s(b"") + u(0))
        for number in (0, 1, 2, 0xFFFFFFFF):
            talk.report(b"exit-status", u(9), number)
            talk.say(BOX, b"\x64" + u(number), b"\x63" + u(number))
        talk.ask(b"exec", s(b"true"))
        talk.close()
        assert [(c["outcome"], c["exit_status"]) for c in talk.commands] == [("finished", None)]

    def test_about_another_channel_changes_that_one_only(self) -> None:
        talk = Talk()
        talk.open()
        talk.ask(b"exec", s(b"one"))
        talk.open(client=1, box=8)
        talk.ask(b"exec", s(b"two"), box=8)
        talk.report(b"exit-status", u(1), 1)
        talk.close(1, 8)
        talk.report(b"exit-status", u(2), 0)
        talk.close()
        assert [(c["text"], c["exit_status"]) for c in talk.commands] == [("two", 1), ("one", 2)]

    def test_after_it_closed_the_channel(self) -> None:
        talk = Talk()
        talk.open()
        talk.ask(b"exec", s(b"true"))
        talk.report(b"exit-status", u(1))
        talk.say(BOX, b"\x61" + u(0))
        talk.report(b"exit-status", u(0))
        talk.say(BOX, b"\x61" + u(0))
        talk.say(CLIENT, b"\x61" + u(7))
        assert [c["exit_status"] for c in talk.commands] == [1]

    @pytest.mark.parametrize("rest", [b"", b"\0\0", b"\xff\xff\xff\xff"])
    def test_with_a_report_that_does_not_parse(self, rest: bytes) -> None:
        talk = Talk()
        talk.open()
        talk.ask(b"exec", s(b"true"))
        for name in (b"exit-signal", b"exit-status"):
            talk.report(name, rest[:3] if name == b"exit-status" else rest)
        talk.close()
        (command,) = talk.commands
        assert command["exit_status"] is None

    def test_with_a_signal_that_is_no_name(self) -> None:
        talk = Talk()
        talk.open()
        talk.ask(b"exec", s(b"true"))
        talk.report(b"exit-signal", s(b"\x1b]52;c;AAAA\x07" * 1000 + b"\xff"))
        talk.close()
        signal = talk.commands[0]["exit_signal"]
        assert isinstance(signal, str)
        assert signal.isprintable()
        assert len(signal) < 100

    def test_it_cannot_give_one_number_to_two_channels(self) -> None:
        talk = Talk()
        talk.say(CLIENT, b"\x50" + s(b"tcpip-forward") + b"\x01" + s(b"") + u(80))
        talk.say(BOX, b"\x51")
        talk.say(BOX, b"\x5a" + s(b"forwarded-tcpip") + u(7) + u(1) + u(1) + s(b"") + u(80) + s(b"") + u(1))
        talk.say(CLIENT, b"\x5a" + s(b"session") + u(0) + u(1) + u(1))
        with pytest.raises(Violation):
            talk.say(BOX, b"\x5b" + u(0) + u(7) + u(1) + u(1))


class TestAClientThatHides:
    def test_a_program_ahead_of_the_confirmation_ends_the_connection(self) -> None:
        talk = Talk()
        talk.say(CLIENT, b"\x5a" + s(b"session") + u(0) + u(1 << 21) + u(1 << 15))
        with pytest.raises(Violation, match="not open"):
            talk.ask(b"exec", s(b"unseen"), box=0)

    def test_a_program_on_a_forward_or_after_its_own_close_does_too(self) -> None:
        talk = Talk()
        talk.open(b"direct-tcpip", 1, 8, s(b"localhost") + u(80) + s(b"") + u(0))
        with pytest.raises(Violation, match="not open"):
            talk.ask(b"exec", s(b"unseen"), box=8)
        talk.open()
        talk.say(CLIENT, b"\x61" + u(7))
        with pytest.raises(Violation, match="not open"):
            talk.ask(b"shell")

    def test_programs_without_end_do_too(self) -> None:
        talk = Talk()
        talk.open()
        for _ in range(16):
            talk.ask(b"exec", s(b"x"), reply=False)
        with pytest.raises(Violation, match="too many programs"):
            talk.ask(b"exec", s(b"x"), reply=False)

    def test_a_forward_without_a_target_does_too(self) -> None:
        talk = Talk()
        with pytest.raises(Violation, match="malformed"):
            talk.open(b"direct-tcpip", rest=b"")


def test_forwards_of_every_kind() -> None:
    talk = Talk()
    talk.open(b"direct-tcpip", 1, 8, s(b"db.internal") + u(5432) + s(b"127.0.0.1") + u(9))
    talk.open(b"direct-streamlocal@openssh.com", 2, 9, s(b"/run/docker.sock") + s(b"") + u(0))
    talk.say(CLIENT, b"\x5e" + u(8) + s(b"abc"))
    talk.close(1, 8)
    talk.close(2, 9)
    talk.say(CLIENT, b"\x50" + s(b"tcpip-forward") + b"\x01" + s(b"localhost") + u(0))
    talk.say(BOX, b"\x51" + u(4711))
    origin = s(b"10.0.0.1") + u(5)
    talk.say(BOX, b"\x5a" + s(b"forwarded-tcpip") + u(3) + u(9) + u(9) + s(b"localhost") + u(4711) + origin)
    talk.say(CLIENT, b"\x5b" + u(3) + u(4) + u(9) + u(9))
    talk.say(CLIENT, b"\x61" + u(3))
    talk.say(BOX, b"\x61" + u(4))
    talk.say(CLIENT, b"\x50" + s(b"cancel-tcpip-forward") + b"\x01" + s(b"localhost") + u(4711))
    found = [(f["form"], f["target"], f["opened_by"], f["outcome"], f.get("bytes_up")) for f in talk.forwards]
    assert found == [
        ("direct-tcpip", "db.internal:5432", "client", "closed", 3),
        ("direct-streamlocal", "/run/docker.sock", "client", "closed", 0),
        ("forwarded-tcpip", "localhost:4711", "workspace", "closed", 0),
        ("tcpip-forward", "localhost:4711", "client", "closed", None),
    ]


def test_what_the_box_refuses_is_told_as_refused() -> None:
    talk = Talk()
    talk.say(CLIENT, b"\x5a" + s(b"direct-tcpip") + u(1) + u(9) + u(9) + s(b"10.0.0.1") + u(22) + s(b"") + u(0))
    talk.say(BOX, b"\x5c" + u(1) + u(2) + s(b"no") + s(b""))
    for answer in (b"\x52", b"\x51", b"\x52"):
        talk.say(CLIENT, b"\x50" + s(b"streamlocal-forward@openssh.com") + b"\x01" + s(b"/run/a"))
        talk.say(BOX, answer)
    assert [(f["form"], f["outcome"]) for f in talk.forwards] == [
        ("direct-tcpip", "refused"),
        ("streamlocal-forward", "refused"),
        ("streamlocal-forward", "refused"),
    ]
    assert talk.recorded.open(FORWARD) == 1


def test_the_end_of_the_connection_ends_everything_once() -> None:
    talk = Talk()
    talk.open()
    talk.ask(b"exec", s(b"sleep 1000"))
    talk.open(b"direct-tcpip", 1, 8, s(b"h") + u(1) + s(b"") + u(0))
    talk.say(CLIENT, b"\x50" + s(b"tcpip-forward") + b"\0" + s(b"") + u(8080))
    for reason in ("access ended: revoked\x1b[31m", "again"):
        talk.journal.ended(reason, carried=(1, 2))
    assert [talk.recorded.open(kind) for kind in (CONNECTION, COMMAND, FORWARD)] == [0, 0, 0]
    (connection,) = talk.recorded.whole(CONNECTION)
    assert connection == {
        "workspace": "royal-1",
        "client": "claude-code",
        "source": "192.0.2.7",
        "reason": "access ended: revoked\ufffd[31m",
        "bytes_up": 1,
        "bytes_down": 2,
    }
    assert [c["outcome"] for c in talk.commands] == ["lost"]
    assert len({e.event_id for e in talk.recorded.events}) == len(talk.recorded.events)


def test_our_own_clients_scripts_are_kept_whole_and_nothing_else_grows_by_them() -> None:
    """An upload's script alone is longer than what is kept of a command: cut, nobody could tell what it was."""
    target = RemoteFile(workdir="/w", path="a b/" + "c" * 900, name="n")
    put = render_upload("0a" * 16, target, algorithm="sha256", size=7 << 30, mode=None)
    hostile = put.encode() + b" x" * 100_000
    for command in (put.encode(), hostile):
        talk = Talk()
        talk.open()
        talk.ask(b"exec", s(command))
        (start,) = [event for event in talk.recorded.events if (event.kind, event.phase) == (COMMAND, START)]
        kept = mask_detail(COMMAND, start.detail)
        if command is hostile:
            assert len(str(start.detail["text"])) < measure_script(hostile) + TEXT_HEAD + TEXT_TAIL + 60
            assert len(str(kept["text"])) < TEXT_HEAD + TEXT_TAIL + 60
            assert f"[cut: {len(hostile)} bytes in all]" in str(kept["text"])
            assert "ours" not in kept
        else:
            assert start.detail["text"] == put
            assert (kept["text"], kept["ours"]) == (f"runcode put 'a b/{'c' * 900}'", 1)


class TestText:
    def test_plain_text_is_itself(self) -> None:
        for text in ("ls -l", "printf 'a\n\tb'", "größe – 日本", ""):
            assert render_text(text.encode(), 100) == text

    def test_what_is_not_text_is_escaped(self) -> None:
        assert render_text(b"a\x00\x1b[2J\xff\x7f\r", 100) == "a\\x00\\x1b[2J\\xff\\x7f\\r"
        assert render_text("\u202egnp.exe".encode(), 100) == "\\u202egnp.exe"
        assert render_text(b"\xed\xa0\x80", 100) == "\\xed\\xa0\\x80"

    def test_a_long_one_keeps_both_ends_and_says_how_long_it_was(self) -> None:
        text = render_text(b"BEGIN" + b"x" * 262_144 + b"END", TEXT_HEAD, TEXT_TAIL)
        assert text.startswith("BEGINxxx")
        assert text.endswith("xxxEND")
        assert "262152 bytes" in text
        assert len(text) < TEXT_HEAD + TEXT_TAIL + 60

    @given(st.binary(max_size=600))
    def test_whatever_comes_in_is_bounded_text(self, raw: bytes) -> None:
        text = render_text(raw, 100, 50)
        assert len(text) <= 150 + 60
        assert all(c.isprintable() or c in "\t\n" for c in text)
        text.encode()
