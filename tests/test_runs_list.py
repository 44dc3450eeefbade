"""`stagecli runs`, and runs that are given by name."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from cli_results import Cli, document

from stagecli.errors import StageError
from stagecli.runs.listing import list_runs
from stagecli.runs.lock import is_locked, lock_run
from stagecli.runs.names import find_run


def write_run(folder: Path, age: float = 0.0, **info: Any) -> Path:
    """A run directory with nothing in it but run.json and a row of metrics."""
    folder.mkdir(parents=True)
    values = {"task": "t2a", "status": "finished", "steps": 10, **info}
    (folder / "run.json").write_text(json.dumps(values))
    (folder / "metrics.jsonl").write_text('{"step": 4, "attempt": 1}\n{"step": 8, "att')
    for file in folder.iterdir():
        changed = file.stat().st_mtime - age
        os.utime(file, (changed, changed))
    return folder


def test_the_list_of_runs(cli: Cli, runs: Path, tmp_path: Path) -> None:
    write_run(runs / "group" / "old", age=7200, status="failed", message="no space", best=None)
    listed = document(cli("runs", "--json"))
    assert {row["name"] for row in listed[:2]} == {"t2a", "sr"} and listed[2]["name"] == "group/old"
    row = next(row for row in listed if row["name"] == "sr")
    assert (row["task"], row["status"], row["step"], row["steps"]) == ("sr", "finished", 10, 10)
    assert row["best"] is None or row["best"]["metric"] == "valid/loss"
    assert (listed[2]["step"], listed[2]["message"]) == (4, "no space")
    assert listed[2]["age_s"] == pytest.approx(7200, abs=60)
    text = cli("runs").stdout
    assert "10 of 10" in text and "2h 0" in text and "failed" in text


def test_the_status_is_that_of_the_process(tmp_path: Path) -> None:
    """A run says it is running until its end, also when its process was killed."""
    host = socket.gethostname()
    for name, status, lock in (
        ("killed", "running", f"{2**22 + 1} {host}\n"),
        ("number-of-another", "running", f"{os.getpid()} {host}\n"),
        ("stopped", "interrupted", ""),
        ("failed", "failed", ""),
        ("elsewhere", "finished", ""),
    ):
        (write_run(tmp_path / name, status=status) / ".lock").write_text(lock)
    (write_run(tmp_path / "damaged") / "run.json").write_text("{")
    live = write_run(tmp_path / "live", status="running")
    lock = lock_run(live)
    statuses = {row["name"]: row["status"] for row in list_runs(tmp_path)}
    assert is_locked(live)
    lock.release()
    assert statuses == {
        "killed": "stopped",
        "number-of-another": "stopped",
        "stopped": "stopped",
        "failed": "failed",
        "elsewhere": "finished",
        "damaged": "damaged",
        "live": "running",
    }
    assert {row["name"]: row["status"] for row in list_runs(tmp_path)}["live"] == "stopped"


def test_no_runs_are_no_error(cli: Cli) -> None:
    result = cli("runs", "--json")
    assert document(result) == [] and "stagecli train quickstart" in result.stderr
    assert cli("runs").stdout == ""


def test_a_run_is_found_by_its_name(
    cli: Cli, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert document(cli("inspect-regime", "t2a", "--json"))["name"] == "t2a"
    assert document(cli("evaluate", "t2a", "--quick", "--json"))
    runs.rename(tmp_path / "kept")
    assert document(cli("evaluate", "t2a", "--quick", "--runs-dir", "kept", "--json"))
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/both"))
    assert find_run(Path("both")) == Path("runs/both")
    Path("both").mkdir()
    assert find_run(Path("both")) == Path("both"), "a path wins"


@pytest.mark.parametrize(
    ("typed", "suggested"),
    [
        ("quick", "`quickstart`"),
        ("quikstart", "`quickstart`"),
        ("runs/quick", "`runs/quickstart`"),
        ("gro", "`group/one`"),
        ("something-else", "stagecli runs"),
    ],
)
def test_a_name_that_is_not_there_is_suggested_not_guessed(
    typed: str, suggested: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/quickstart"))
    write_run(Path("runs/group/one"))
    with pytest.raises(StageError) as caught:
        find_run(Path(typed))
    assert suggested in str(caught.value.hint) and caught.value.exit_code == 2
