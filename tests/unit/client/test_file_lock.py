"""The lock between processes, whose file may be removed by whoever holds it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from runcode.client.private_files import FileLock


def test_nobody_else_is_inside_also_when_the_file_is_removed_under_those_who_wait(tmp_path: Path) -> None:
    path = str(tmp_path / "a.lock")
    inside, seen, rounds = [0], [], 40

    def work(number: int) -> None:
        for turn in range(rounds):
            with FileLock(path) as lock:
                inside[0] += 1
                seen.append(inside[0])
                time.sleep(0.0005)
                if (turn + number) % 3 == 0:
                    lock.remove()
                inside[0] -= 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(seen) == 6 * rounds
    assert set(seen) == {1}


def test_a_removed_lock_leaves_nothing(tmp_path: Path) -> None:
    with FileLock(str(tmp_path / "a.lock")) as lock:
        assert os.listdir(tmp_path) == ["a.lock"]
        lock.remove()
    assert os.listdir(tmp_path) == []
