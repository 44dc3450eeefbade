"""The run directory: whole writes, rows, who may write, resuming, the newest run."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest

from stagecli.errors import EXIT_USAGE, StageError
from stagecli.files import write_atomic
from stagecli.recipe.load import load_recipe
from stagecli.recipe.signature import signature
from stagecli.runs.directory import Run, newest, read_info
from stagecli.runs.opening import open_run
from stagecli.schema import Recipe


def recipe(*sets: str) -> Recipe:
    return load_recipe("quickstart", sets)


OPEN: dict[Path, Run] = {}


def opened(folder: Path, *sets: str, restart: bool = False) -> Run:
    """Open the run as a new process would, after the one that opened it before has ended."""
    if folder in OPEN:
        OPEN.pop(folder).close()
    run = open_run(
        recipe(*sets), folder, argv=["stagecli", "train"], overrides=list(sets), restart=restart
    )
    OPEN[folder] = run
    return run


def rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- writing --------------------------------------------------------------------------------------


def test_atomic_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, "one")
    write_atomic(path, "zwei ü")
    assert path.read_text(encoding="utf-8") == "zwei ü"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, "old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space"):
            write_atomic(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_rows_carry_step_time_and_attempt_and_no_nan(tmp_path: Path) -> None:
    run = opened(tmp_path / "r")
    run.begin_attempt(0, [])
    nested = {"list": [1.0, float("inf")], "pair": (float("-inf"), 2)}
    row = run.append("metrics", {"step": 3, "train/loss": float("nan"), "n": 2, "evidence": nested})
    (read,) = rows(run.path / "metrics.jsonl")  # readable before the run ends
    assert read == {**row, "evidence": {"list": [1.0, None], "pair": [None, 2]}}
    assert list(read)[:3] == ["step", "time", "attempt"]
    assert (read["step"], read["attempt"], read["train/loss"], read["n"]) == (3, 1, None, 2)
    assert "NaN" not in (run.path / "metrics.jsonl").read_text(encoding="utf-8")


def test_half_a_line_left_by_a_kill_is_ended(tmp_path: Path) -> None:
    run = opened(tmp_path / "r")
    run.begin_attempt(0, [])
    run.append("metrics", {"step": 1})
    run.end_attempt("interrupted")
    with (run.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "ti')
    again = opened(tmp_path / "r")
    again.begin_attempt(1, [])
    again.append("metrics", {"step": 2})
    again.append("metrics", {"step": 3})
    again.append("events", {"step": 3})
    again.end_attempt("finished")
    lines = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in (lines[0], *lines[2:])] == [1, 2, 3]
    assert [json.loads(line)["attempt"] for line in (lines[0], *lines[2:])] == [1, 2, 2]
    assert len(rows(run.path / "events.jsonl")) == 1


def test_attempts_are_recorded(tmp_path: Path) -> None:
    run = opened(tmp_path / "r", "train.steps=7")
    assert read_info(run.path)["status"] == "created"
    run.begin_attempt(0, ["stagecli", "train", "x"])
    info = read_info(run.path)
    assert (info["status"], info["steps"], info["task"], info["name"]) == ("running", 7, "t2a", "r")
    assert info["attempts"][0]["pid"] == os.getpid()
    assert info["attempts"][0]["argv"] == ["stagecli", "train", "x"]
    assert json.loads((run.path / "environment.json").read_text())["packages"]["torch"]
    run.end_attempt("failed", "no luck")
    info = read_info(run.path)
    assert (info["status"], info["message"], info["attempts"][0]["status"]) == (
        "failed",
        "no luck",
        "failed",
    )
    assert info["attempts"][0]["ended"]
    again = opened(tmp_path / "r", "train.steps=7")
    again.begin_attempt(5, [])
    info = read_info(run.path)
    assert [a["from_step"] for a in info["attempts"]] == [0, 5]
    assert info["message"] is None
    assert info["id"] == run.info["id"]


# --- opening --------------------------------------------------------------------------------------


def test_the_saved_recipe_is_the_resolved_one(tmp_path: Path) -> None:
    run = opened(tmp_path / "r", "train.lr=1e-4")
    saved = load_recipe(run.path / "recipe.toml")
    assert saved == recipe("train.lr=1e-4")
    assert read_info(run.path)["signature"] == signature(saved)
    assert {p.name for p in run.path.iterdir() if p.is_dir()} == {
        "checkpoints",
        "samples",
        "evals",
    }


def test_an_unsigned_change_resumes_with_the_new_value(tmp_path: Path) -> None:
    opened(tmp_path / "r", "train.steps=7")
    run = opened(tmp_path / "r", "train.steps=9", "train.log_every=3")
    assert run.info["steps"] == 9
    table = tomllib.loads((run.path / "recipe.toml").read_text(encoding="utf-8"))["train"]
    assert (table["steps"], table["log_every"]) == (9, 3)


def test_another_recipe_under_the_same_name_is_refused_with_the_difference(tmp_path: Path) -> None:
    run = opened(tmp_path / "r", "train.lr=0.5")
    before = (run.path / "recipe.toml").read_text(encoding="utf-8")
    with pytest.raises(StageError) as caught:
        opened(tmp_path / "r", "train.lr=0.25", "train.steps=3", "model.patch=2")
    error = caught.value
    assert error.exit_code == EXIT_USAGE
    assert {p.where: p.what for p in error.problems} == {
        "train.lr": "0.5 in the run, 0.25 now",
        "model.patch": "1 in the run, 2 now",
    }
    assert "--name" in (error.hint or "")
    assert "--restart" in (error.hint or "")
    assert (run.path / "recipe.toml").read_text(encoding="utf-8") == before


def test_restart_moves_the_old_run_aside(tmp_path: Path) -> None:
    first = opened(tmp_path / "r", "train.lr=0.5")
    second = opened(tmp_path / "r", "train.lr=0.25", restart=True)
    third = opened(tmp_path / "r", "train.lr=0.25", restart=True)
    assert sorted(os.listdir(tmp_path)) == ["r", "r.old-1", "r.old-2"]
    assert read_info(tmp_path / "r.old-1")["id"] == first.info["id"]
    assert read_info(tmp_path / "r.old-2")["id"] == second.info["id"]
    assert read_info(tmp_path / "r")["id"] == third.info["id"]
    assert opened(tmp_path / "new", restart=True).info["attempts"] == []


def test_a_directory_that_is_not_a_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "song.wav").write_bytes(b"la")
    for restart in (False, True):
        with pytest.raises(StageError, match="exists but is not a run directory") as caught:
            opened(tmp_path / "music", restart=restart)
        assert "--name" in (caught.value.hint or "")
    assert os.listdir(tmp_path / "music") == ["song.wav"]
    (tmp_path / "empty").mkdir()
    assert opened(tmp_path / "empty").info["status"] == "created"


def test_a_place_that_cannot_be_written_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    """A file in its place fails for root too, unlike missing permissions."""
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file" / "run", tmp_path / "file"):
        with pytest.raises(StageError) as caught:
            opened(folder)
        assert str(folder) in str(caught.value)
        assert "--runs-dir" in (caught.value.hint or "")


@pytest.mark.parametrize("resume", [False, True])
def test_a_full_disk_is_an_error_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    if resume:
        opened(tmp_path / "r")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StageError, match="cannot write the run directory") as caught:
        opened(tmp_path / "r")
    assert [p.what for p in caught.value.problems] == ["No space left on device"]


def test_a_kill_while_the_run_is_made_does_not_block_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command continues from whatever part of the new directory exists already."""
    replace = os.replace
    files_left = 0

    def killed(source: Path, target: Path) -> None:
        nonlocal files_left
        if files_left == 0:
            raise KeyboardInterrupt
        files_left -= 1
        replace(source, target)

    for number in (0, 1):
        folder = tmp_path / f"r{number}"
        files_left = number
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                opened(folder)
        opened(folder)
        assert load_recipe(folder / "recipe.toml") == recipe()


def test_read_info_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="not a run directory") as caught:
        read_info(tmp_path)
    assert caught.value.problems[0].where == str(tmp_path / "run.json")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(StageError, match="is damaged"):
        read_info(tmp_path)


# --- the newest run -------------------------------------------------------------------------------


def make_run(folder: Path, task: str, status: str, age: int) -> None:
    folder.mkdir()
    path = folder / "run.json"
    path.write_text(json.dumps({"task": task, "status": status}))
    os.utime(path, (1_700_000_000 - age, 1_700_000_000 - age))


def test_newest(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "sr", "finished", 5)
    make_run(tmp_path / "b", "sr", "finished", 3)
    make_run(tmp_path / "c", "t2a", "finished", 2)
    make_run(tmp_path / "d", "sr", "interrupted", 1)
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "run.json").write_text("{half")
    assert newest(tmp_path).name == "c"
    assert newest(tmp_path, "sr").name == "b"
    assert newest(tmp_path, "sr", finished=False).name == "d"
    assert newest(tmp_path, finished=False).name == "d"


def test_newest_where_there_is_none(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "sr", "failed", 0)
    with pytest.raises(StageError, match="no finished sr run under") as caught:
        newest(tmp_path, "sr")
    assert "train quickstart" in (caught.value.hint or "")
    with pytest.raises(StageError, match="no t2a run under"):
        newest(tmp_path, "t2a", finished=False)
    with pytest.raises(StageError, match="no finished run under"):
        newest(tmp_path / "nowhere")
