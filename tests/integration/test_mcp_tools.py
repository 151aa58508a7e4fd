"""Every MCP tool, by the SDK's own client, against the real service and a real box."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from runcode.agents.mcp import tools as tool_table
from support.mcp_session import Tools, in_a_task, serving
from support.service import Laptop, Service, running_service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("service")) as running:
        running.operator("workspace", "create", "box")
        yield running


@pytest.fixture(scope="module")
def laptop(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    one = Laptop(tmp_path_factory.mktemp("laptop"))
    one.login(service)
    one.runcode("connect", "box", "--start", "--wait")
    # The folder stays free: each server attaches for itself.
    one.runcode("disconnect", "--keep")
    yield one
    one.runcode("clean", "--all")


@pytest.fixture
async def box(laptop: Laptop) -> AsyncIterator[Tools]:
    async with in_a_task(serving(laptop.environment, laptop.project)) as session:
        await session.call("connect", workspace="box")
        yield session


async def test_the_tools_say_what_they_may_do(laptop: Laptop) -> None:
    async with serving(laptop.environment, laptop.project) as session:
        listed = (await session.client.list_tools()).tools
    assert [tool.name for tool in listed] == [tool.name for tool in tool_table.TOOLS]
    hints = {tool.name: tool.annotations for tool in listed}
    reading = {name for name, hint in hints.items() if hint is not None and hint.read_only_hint}
    assert reading == {"log", "read", "glob", "grep", "list", "context", "workspaces", "status"}
    destroying = {name for name, hint in hints.items() if hint is not None and hint.destructive_hint}
    assert destroying == {"exec", "write", "edit", "put", "get"}
    for tool in listed:
        assert tool.input_schema["additionalProperties"] is False
        assert tool.description
    # What a client that lists all tools pays for them, at four bytes a token.
    whole = json.dumps([tool.model_dump(mode="json", exclude_none=True) for tool in listed])
    assert len(whole) < 16_000


async def test_connect_status_and_disconnect_are_this_servers_own(laptop: Laptop) -> None:
    async with serving(laptop.environment, laptop.project) as one, serving(laptop.environment, laptop.project) as two:
        failed = await one.fail("exec", command="true")
        assert failed["error"] == "not_attached"
        assert "connect" in failed["resolution"]
        made = await one.call("connect", workspace="box")
        assert made["machine"].startswith("box (workspace ")
        assert "this MCP server only" in made["attached_for"]
        attached = (await one.call("status"))["attached"]
        assert (attached["workspace_id"], attached["attached_by"]) == (made["workspace_id"], "session")
        # Another server is another session: it is not attached by that.
        assert (await two.call("status"))["attached"] is None
        assert (await two.fail("read", path="x"))["error"] == "not_attached"
        # Named for one call, it is reached all the same.
        assert (await two.call("exec", command="echo named", workspace="box"))["stdout"] == "named\n"
        assert (await one.call("disconnect", keep=True))["detached"] is True
        assert (await one.fail("exec", command="true"))["error"] == "not_attached"
    laptop.runcode("current", expect=1)


async def test_workspaces_are_listed(box: Tools) -> None:
    listed = (await box.call("workspaces"))["workspaces"]
    assert [(one["title"], one["state"]) for one in listed] == [("box", "running")]


async def test_exec_tells_status_streams_machine_and_folder(box: Tools) -> None:
    done = await box.call("exec", command="pwd; echo 'two  blanks'; echo problem >&2; exit 7")
    assert done["exit_code"] == 7
    assert done["stdout"] == "/home/ubuntu/workspace\ntwo  blanks\n"
    assert done["stderr"] == "problem\n"
    assert done["cwd"] == "/home/ubuntu/workspace"
    assert done["machine"].startswith("box (workspace ")
    await box.call("exec", command="mkdir -p 'deep er'")
    assert (await box.call("exec", command="pwd", cwd="deep er"))["cwd"] == "/home/ubuntu/workspace/deep er"
    assert (await box.call("exec", command="pwd", cwd="/tmp"))["stdout"] == "/tmp\n"
    assert (await box.fail("exec", command="pwd", cwd="nowhere"))["error"] == "not_found"
    # Its stdin is empty: a command that asks gets an end, and nobody hangs.
    assert (await box.call("exec", command="cat; read x || echo no input"))["stdout"] == "no input\n"


async def test_long_output_comes_as_head_tail_and_errors_and_is_whole_on_the_box(box: Tools) -> None:
    command = "seq 1 50000; echo 'error: the one that matters'; seq 50001 100000; echo last >&2"
    done = await box.call("exec", command=command, max_output=3000)
    assert done["stdout"].startswith("1\n2\n3\n")
    assert done["stdout"].endswith("99999\n100000\n")
    assert len(done["stdout"]) < 3200
    assert done["stderr"] == "last\n"
    assert done["stdout_bytes"] == len("".join(f"{n}\n" for n in range(1, 100_001))) + len(
        "error: the one that matters\n"
    )
    assert any("50001:error: the one that matters" in window for window in done["error_lines"])
    part = await box.call("log", log=done["log"], start_line=49_999, line_count=4)
    assert part["text"] == "49999\n50000\nerror: the one that matters\n50001\n"
    assert part["more"] is True
    assert (await box.call("log", log=done["log"], stream="stderr"))["text"] == "last\n"
    modes = await box.call("exec", command="stat -c %a ~/.cache/runcode/logs ~/.cache/runcode/logs/*.out | sort -u")
    assert modes["stdout"] == "600\n700\n"
    assert (await box.fail("log", log="0123456789abcdef"))["error"] == "not_found"


async def test_a_time_limit_ends_the_whole_group_and_keeps_what_was_written(box: Tools) -> None:
    done = await box.call("exec", command="echo begun; sleep 4321 & sleep 4322; wait", timeout_s=1)
    assert (done["timed_out"], done["exit_code"], done["stdout"]) == (True, 124, "begun\n")
    stubborn = await box.call("exec", command="trap '' TERM INT; echo stays; sleep 4323; sleep 4324", timeout_s=1)
    assert (stubborn["timed_out"], stubborn["stdout"]) == (True, "stays\n")
    assert (await box.call("exec", command="pgrep -f '[s]leep 432' || echo none"))["stdout"] == "none\n"


async def test_a_command_left_in_the_background_holds_up_nothing(box: Tools) -> None:
    done = await box.call("exec", command="(sleep 3; echo later) & echo now", timeout_s=60)
    assert (done["stdout"], done["timed_out"]) == ("now\n", False)
    await box.call("exec", command="sleep 4")
    assert (await box.call("log", log=done["log"]))["text"] == "now\nlater\n"


async def test_a_command_that_kills_everything_around_it_is_told_as_ended(box: Tools) -> None:
    failed = await box.fail("exec", command="echo before; kill -9 0")
    assert failed["error"] == "no_exit_status"
    log_id = failed["message"].rpartition(" ")[2]
    assert (await box.call("log", log=log_id))["text"] == "before\n"


async def test_write_read_and_ranges(box: Tools) -> None:
    text = "".join(f"line {n}\n" for n in range(1, 101))
    assert (await box.call("write", path="new/folder/file.txt", content=text))["bytes"] == len(text)
    whole = await box.call("read", path="new/folder/file.txt")
    assert (whole["text"], whole["lines"], whole["more"]) == (text, 100, False)
    part = await box.call("read", path="new/folder/file.txt", start_line=99, line_count=1)
    assert (part["text"], part["line_count"], part["more"]) == ("line 99\n", 1, True)
    # A budget of bytes cuts between two lines.
    short = await box.call("read", path="new/folder/file.txt", max_bytes=20)
    assert (short["text"], short["line_count"], short["more"]) == ("line 1\nline 2\n", 2, True)
    some = await box.call("read", path="new/folder/file.txt", offset=5, max_bytes=4)
    assert (some["text"], some["bytes"], some["more"]) == ("1\nli", 4, True)
    past = await box.call("read", path="new/folder/file.txt", start_line=5000)
    assert (past["text"], past["line_count"], past["more"]) == ("", 0, False)
    both = await box.fail("read", path="new/folder/file.txt", offset=1, start_line=1)
    assert both["error"] == "usage"


async def test_binary_content_is_said_to_be_and_goes_as_base64(box: Tools) -> None:
    content = bytes(range(256)) * 3
    await box.call("write", path="blob", content=base64.b64encode(content).decode(), encoding="base64")
    seen = await box.call("read", path="blob")
    assert seen["binary"] is True
    assert "text" not in seen
    exact = await box.call("read", path="blob", encoding="base64")
    assert base64.b64decode(exact["base64"]) == content
    assert (await box.fail("write", path="blob", content="not base64!", encoding="base64"))["error"] == "usage"


async def test_what_cannot_be_read_says_why(box: Tools) -> None:
    await box.call("exec", command="mkdir -p d; mkfifo p; touch locked; chmod 0 locked; ln -s nowhere dangling")
    for path, code in (("none", "not_found"), ("d", "unsafe_path"), ("p", "unsafe_path"), ("dangling", "not_found")):
        assert (await box.fail("read", path=path))["error"] == code, path
    assert (await box.fail("read", path="locked"))["error"] == "io_error"
    assert (await box.fail("read", path="/dev/zero"))["error"] == "unsafe_path"


async def test_edit_is_exact_and_keeps_mode_link_and_line_ends(box: Tools) -> None:
    await box.call("write", path="e.sh", content="#!/bin/sh\necho one\n\techo two\n")
    await box.call("exec", command="chmod 755 e.sh; ln -sf e.sh e.link; printf 'a\\r\\nb\\r\\n' > crlf")
    done = await box.call(
        "edit",
        edits=[
            {"path": "e.link", "old": "\techo two\n", "new": "\techo 2\n\techo 'it'\\''s'\n"},
            {"path": "crlf", "old": "a\nb", "new": "x\ny"},
        ],
    )
    assert done["files"] == [{"path": "e.link", "replaced": 1}, {"path": "crlf", "replaced": 1}]
    looked = await box.call("exec", command="stat -c %a e.sh; test -L e.link && echo link; cat e.sh; od -c crlf")
    assert looked["stdout"].startswith("755\nlink\n#!/bin/sh\necho one\n\techo 2\n\techo 'it'\\''s'\n")
    assert "x  \\r  \\n   y  \\r  \\n" in looked["stdout"]
    assert (await box.call("exec", command="ls -A | grep '^[.]runcode' || echo clean"))["stdout"] == "clean\n"


async def test_edit_changes_all_files_or_none(box: Tools) -> None:
    for name in ("one", "two", "three"):
        await box.call("write", path=f"all/{name}", content=f"{name} old old\n")
    edits = [{"path": "all/one", "old": "one", "new": "ONE"}, {"path": "all/two", "old": "gone", "new": "x"}]
    assert (await box.fail("edit", edits=edits))["error"] == "bad_request"
    assert (await box.fail("edit", edits=[edits[0], {"path": "all/none", "old": "a", "new": "b"}]))[
        "error"
    ] == "not_found"
    assert (await box.fail("edit", edits=[{"path": "all/one", "old": "old", "new": "new"}]))["error"] == "bad_request"
    twice = [edits[0], {"path": "all/../all/one", "old": "one", "new": "x"}]
    assert "one file" in (await box.fail("edit", edits=twice))["message"]
    assert (await box.call("exec", command="cat all/*"))["stdout"] == "one old old\nthree old old\ntwo old old\n"
    # One after the other within a file, and every place where that was asked for.
    await box.call(
        "edit",
        edits=[
            {"path": "all/one", "old": "old", "new": "new", "all": True},
            {"path": "all/one", "old": "one new", "new": "first"},
            {"path": "all/three", "old": "three", "new": ""},
        ],
    )
    assert (await box.call("exec", command="cat all/*"))["stdout"] == "first new\n old old\ntwo old old\n"


async def test_a_folder_that_may_not_be_written_leaves_every_file_as_it_was(box: Tools) -> None:
    await box.call("write", path="may/file", content="same\n")
    await box.call("write", path="maynot/file", content="same\n")
    await box.call("exec", command="chmod 555 maynot")
    edits = [{"path": f"{folder}/file", "old": "same", "new": "other"} for folder in ("may", "maynot")]
    assert (await box.fail("edit", edits=edits))["error"] == "io_error"
    looked = await box.call("exec", command="cat may/file maynot/file; chmod 755 maynot; ls -A may maynot")
    assert looked["stdout"] == "same\nsame\nmay:\nfile\n\nmaynot:\nfile\n"


async def test_glob_grep_and_list(box: Tools) -> None:
    for path in ("g/a.py", "g/sub/b.py", "g/sub/c.txt", "g/.hidden/d.py", "g/.git/e.py"):
        await box.call("write", path=path, content=f"# {path}\nNeedle = 1\nother\n")
    assert (await box.call("glob", pattern="g/**/*.py"))["paths"] == ["g/.hidden/d.py", "g/a.py", "g/sub/b.py"]
    assert (await box.call("glob", pattern="*.{py,txt}", path="g/sub"))["paths"] == ["g/sub/b.py", "g/sub/c.txt"]
    assert (await box.call("glob", pattern="/home/ubuntu/workspace/g/*.py"))["paths"] == [
        "/home/ubuntu/workspace/g/a.py"
    ]
    limited = await box.call("glob", pattern="g/**", limit=1)
    assert (len(limited["paths"]), limited["total"], limited["more"]) == (1, 4, True)
    found = await box.call("grep", pattern="^needle *=", path="g", ignore_case=True, glob="*.py")
    assert {match["path"] for match in found["matches"]} == {"a.py", "sub/b.py", ".hidden/d.py"}
    assert found["matches"][0] | {"path": ""} == {"path": "", "line": 2, "text": "Needle = 1"}
    around = await box.call("grep", pattern="Needle", path="g/a.py", context=1)
    assert [(match["line"], match.get("context", False)) for match in around["matches"]] == [
        (1, True),
        (2, False),
        (3, True),
    ]
    assert (await box.fail("grep", pattern="("))["error"] == "bad_request"
    assert (await box.call("grep", pattern="(", fixed=True, path="g"))["matches"] == []
    assert (await box.call("grep", pattern="-e", path="g"))["matches"] == []
    entries = (await box.call("list", path="g"))["entries"]
    assert [(one["name"], one["kind"]) for one in entries] == [
        (".git", "folder"),
        (".hidden", "folder"),
        ("a.py", "file"),
        ("sub", "folder"),
    ]
    assert entries[2]["size"] == len("# g/a.py\nNeedle = 1\nother\n")
    assert (await box.fail("list", path="g/a.py"))["error"] == "unsafe_path"
    assert (await box.fail("glob", pattern="nowhere/*"))["error"] == "not_found"


async def test_put_and_get_stay_within_the_working_folder(box: Tools, laptop: Laptop) -> None:
    (laptop.project / "up.bin").write_bytes(b"\0\1" * 5000)
    put = await box.call("put", local="up.bin", path="up.bin")
    assert put["bytes"] == 10_000
    got = await box.call("get", path="up.bin", local="down.bin")
    assert got["bytes"] == 10_000
    assert (laptop.project / "down.bin").read_bytes() == b"\0\1" * 5000
    (laptop.project / "tree" / "in").mkdir(parents=True, exist_ok=True)
    (laptop.project / "tree" / "in" / "leaf").write_text("leaf")
    assert (await box.call("put", local="tree", path="tree-there", recursive=True))["files"] == 1
    assert (await box.call("get", path="tree-there", local="tree-back", recursive=True))["files"] == 1
    assert (laptop.project / "tree-back" / "in" / "leaf").read_text() == "leaf"
    secret = laptop.home / "secret"
    secret.write_text("mine")
    (laptop.project / "link").symlink_to(secret)
    for local in ("../secret", str(secret), "link", "tree/../../secret"):
        assert (await box.fail("put", local=local, path="stolen"))["error"] == "unsafe_path", local
        assert (await box.fail("get", path="up.bin", local=local))["error"] == "unsafe_path", local
    assert secret.read_text() == "mine"
    assert (await box.call("exec", command="ls stolen 2>/dev/null || echo none"))["stdout"] == "none\n"


async def test_context_and_forward(box: Tools) -> None:
    seen = await box.call("context")
    assert (seen["os"], seen["cwd"]) == ("Linux", "/home/ubuntu/workspace")
    await box.call("exec", command="python3 -m http.server 8765 --bind 127.0.0.1 & sleep 1")
    made = await box.call("forward", port=8765, local_port=_free_port())
    _, writer = await asyncio.open_connection("127.0.0.1", made["local_port"])
    writer.close()
    await writer.wait_closed()
    assert [one["port"] for one in (await box.call("forward", action="list"))["forwards"]] == [8765]
    assert len((await box.call("forward", action="cancel", port=8765))["cancelled"]) == 1
    assert (await box.fail("forward"))["error"] == "usage"
    assert (await box.fail("forward", action="cancel", port=1))["error"] == "not_found"


def _free_port() -> int:
    from runcode.client.forwards import find_free_port

    return find_free_port()


async def test_calls_run_side_by_side(box: Tools) -> None:
    """None waits for another: together they take about as long as one, and a quick one is not held up."""
    slow = [asyncio.create_task(box.call("exec", command=f"sleep 5; echo {n}")) for n in range(6)]
    quick = await box.call("exec", command="echo quick")
    assert quick["stdout"] == "quick\n"
    assert not any(task.done() for task in slow)
    assert [(await task)["stdout"] for task in slow] == [f"{n}\n" for n in range(6)]


async def test_the_text_for_other_clients_holds_the_same(box: Tools) -> None:
    text = await box.text("exec", command="echo there")
    lines = text.split("\n")
    assert lines[0].startswith("machine: box (workspace ")
    assert lines[1] == "cwd: /home/ubuntu/workspace"
    nonce = lines[3].removeprefix("<remote-data ").removesuffix(">")
    assert lines[-1] == f"</remote-data {nonce}>"
    assert json.loads("\n".join(lines[4:-1]))["stdout"] == "there\n"
    assert (await box.text("exec", command="echo there")).split("\n")[3] != lines[3]


def test_the_project_folder_is_the_only_local_place(laptop: Laptop) -> None:
    """What the tests above wrote here: nothing but what `get` was asked for."""
    names = {path.name for path in Path(laptop.project).iterdir()}
    assert names <= {"up.bin", "down.bin", "tree", "tree-back", "link"}
