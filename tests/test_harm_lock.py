"""One writer per run: a lock of the operating system from opening the run to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import forked, run_cli, write_recipe

from stagecli.errors import EXIT_FAILED, StageError
from stagecli.recipe.load import load_recipe
from stagecli.runs.directory import Run
from stagecli.runs.opening import open_run


def opened(folder: Path, restart: bool = False) -> Run:
    recipe = load_recipe("quickstart")
    return open_run(recipe, folder, argv=[], overrides=[], restart=restart)


def wait_for(path: Path) -> None:
    for _ in range(1200):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def holder(folder: Path, ready: Path) -> object:
    """A process that opens the run and keeps it."""

    def work() -> None:
        run = opened(folder)
        ready.touch()
        time.sleep(600)
        run.close()

    process = forked(work)
    wait_for(ready)
    return process


@pytest.mark.parametrize("restart", [False, True])
def test_a_second_start_is_told_which_process_writes_the_run(tmp_path: Path, restart: bool) -> None:
    """Also --restart: the next checkpoint of the first would end up in the new run."""
    process = holder(tmp_path / "runs" / "r", tmp_path / "ready")
    try:
        with pytest.raises(StageError, match=f"is being written by process {process.pid}") as error:
            opened(tmp_path / "runs" / "r", restart=restart)
        assert error.value.exit_code == EXIT_FAILED
        assert os.listdir(tmp_path / "runs") == ["r"]
    finally:
        process.kill()
        process.join()
    opened(tmp_path / "runs" / "r", restart=restart).close()


def test_a_killed_process_leaves_no_lock_even_if_its_loader_workers_live(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    ready = tmp_path / "ready"
    orphan = tmp_path / "orphan"

    def work() -> None:
        opened(folder)
        if os.fork() == 0:  # as a loader worker
            orphan.write_text(str(os.getpid()))
            time.sleep(600)
        wait_for(orphan)
        ready.touch()
        time.sleep(600)

    process = forked(work)
    wait_for(ready)
    process.kill()
    process.join()
    try:
        opened(folder).close()
    finally:
        os.kill(int(orphan.read_text()), signal.SIGKILL)


def test_a_reused_process_number_does_not_block_a_resume(tmp_path: Path) -> None:
    """The number in run.json and in the lock file is that of a living process named stagecli."""
    run = opened(tmp_path / "r")
    run.begin_attempt(0, [])
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()", "stagecli"], stdin=subprocess.PIPE
    ) as other:
        run.info["attempts"][-1]["pid"] = other.pid
        run.save_info()
        run.close()
        (tmp_path / "r" / ".lock").write_text(f"{other.pid} host\n")
        assert opened(tmp_path / "r").attempt == 1


def test_of_two_starts_at_the_same_moment_one_trains(tmp_path: Path) -> None:
    """The lock is held while the data are prepared too, long before the first step."""
    recipe = load_recipe("quickstart")
    barrier = threading.Barrier(8)
    runs = []
    refused = []

    def start() -> None:
        barrier.wait()
        try:
            runs.append(open_run(recipe, tmp_path / "runs" / "r", argv=[], overrides=[]))
        except StageError as error:
            refused.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(runs), len(refused)) == (1, 7)
    assert {error.exit_code for error in refused} == {EXIT_FAILED}
    unnamed = [error.message for error in refused if f"process {os.getpid()}" not in error.message]
    assert unnamed == []


def test_the_command_holds_the_lock_while_it_prepares_and_lets_go_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stagecli.train import setup

    recipe = write_recipe(tmp_path / "t2a.toml", train__steps=2)
    prepare = setup.prepare
    seen = []

    def preparing(*args: object, **options: object) -> object:
        with pytest.raises(StageError, match="is being written by process"):
            opened(tmp_path / "runs" / "t2a")
        seen.append(True)
        return prepare(*args, **options)

    monkeypatch.setattr(setup, "prepare", preparing)
    assert run_cli("train", recipe, cwd=tmp_path).code == 0
    assert seen == [True]
    again = run_cli("train", recipe, "--set", "train.steps=3", cwd=tmp_path)
    assert again.code == 0, again.stderr


def test_a_file_system_without_locks_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import fcntl

    def none(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    run = opened(tmp_path / "r")
    assert [notice.after for notice in run.notices] == ["not locked"]


# --- what killed processes leave ------------------------------------------------------------------


def test_a_kill_inside_the_first_write_of_run_json_needs_no_manual_step(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / "checkpoints").mkdir()
    (folder / ".lock").write_text("1 host\n")
    (folder / ".run.json.4711.tmp").write_text('{"schema": 1, "id"')
    run = opened(folder)
    assert run.info["status"] == "created"
    assert not list(folder.glob(".*.tmp"))


def test_leftovers_are_swept_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    opened(folder).close()
    saved = folder / "checkpoints"
    for name in (".step_00000008.partial", ".step_00000004.removed", ".step_00000009.stale"):
        (saved / name).mkdir()
        (saved / name / "model.safetensors").write_bytes(b"x")
    for name in ("step_00000008", "my-copy"):
        (saved / name).mkdir()
    (saved / ".step_00000008.stale").mkdir()
    (saved / ".latest.4711.tmp").write_text("x")
    (folder / ".notes").write_text("mine")
    fresh = folder / "evals" / ".a.json.4711.tmp"  # perhaps of an `evaluate` that runs now
    old = folder / "evals" / ".b.json.4711.tmp"
    for path in (fresh, old):
        path.write_text("x")
    os.utime(old, (1, 1))
    opened(folder).close()
    assert {path.name for path in saved.iterdir()} == {
        *("step_00000008", "my-copy"),
        "step_00000009",  # was being replaced: the old one comes back
    }
    assert (saved / "step_00000009" / "model.safetensors").read_bytes() == b"x"
    assert (folder / ".notes").exists()
    assert fresh.exists() and not old.exists()
