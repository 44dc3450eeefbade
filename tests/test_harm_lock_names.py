"""Which process a refused start names, in the instant after the lock has changed hands."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stagecli.errors import StageError
from stagecli.runs import lock
from stagecli.runs.lock import LOCK, lock_run


def number_of_an_ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_number_of_a_killed_holder_is_not_that_of_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / LOCK
    path.write_text(f"{number_of_an_ended_process()} {socket.gethostname()}\n")
    with path.open("r+b", buffering=0) as taken:
        fcntl.flock(taken, fcntl.LOCK_EX)

        def write_late() -> None:
            time.sleep(0.2)
            taken.truncate(0)
            taken.write(f"{os.getppid()} {socket.gethostname()}\n".encode())

        writing = threading.Thread(target=write_late)
        writing.start()
        with pytest.raises(StageError, match=rf"by process {os.getppid()}\b"):
            lock_run(tmp_path)
        writing.join()


def test_a_holder_that_let_go_leaves_no_number(tmp_path: Path) -> None:
    held = lock_run(tmp_path)
    assert (tmp_path / LOCK).read_text().startswith(f"{os.getpid()} ")
    held.release()
    assert (tmp_path / LOCK).read_text() == ""


def test_a_number_that_never_comes_is_not_waited_for_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.05)
    with (tmp_path / LOCK).open("w+b", buffering=0) as taken:
        fcntl.flock(taken, fcntl.LOCK_EX)
        with pytest.raises(StageError, match="by another process"):
            lock_run(tmp_path)
