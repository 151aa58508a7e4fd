"""ssh's messages for one call, while other calls sweep what killed ones left."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace

from runcode.client import openssh


def test_a_log_is_never_swept_from_under_its_call(tmp_path: Path) -> None:
    ended = threading.Event()

    def sweep() -> None:
        while not ended.is_set():
            openssh.sweep(str(tmp_path), "x-")

    sweepers = [threading.Thread(target=sweep) for _ in range(2)]
    for thread in sweepers:
        thread.start()
    session = SimpleNamespace(control_path=str(tmp_path / "x-1"))
    try:
        for _ in range(500):
            with openssh._Log(session) as log:  # type: ignore[arg-type]
                # As ssh does: by name, and made when it is missing.
                with open(log.path, "a") as written:
                    written.write("why\r\n")
                assert log.read() == "why\n"
    finally:
        ended.set()
        for thread in sweepers:
            thread.join(60)
    assert os.listdir(tmp_path) == []
