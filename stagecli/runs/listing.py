"""Every run of a folder in a few figures each, from the ends of its files. No torch."""

from __future__ import annotations

import os
import time
from pathlib import Path

from stagecli.files import JsonRow, parse_json
from stagecli.report.run_info import read_info_file
from stagecli.runs.integrity import folders
from stagecli.runs.lock import is_locked
from stagecli.runs.names import run_names

TAIL = 1 << 16  # bytes at the end of a file of rows that are read
STATUSES = {"finished": "finished", "failed": "failed", "interrupted": "stopped"}


def list_runs(runs_dir: Path) -> list[JsonRow]:
    """A row for each run of a folder, the one written last first. Raises OSError.

    status: running, finished, stopped, failed, or damaged; a run whose process was killed is
    stopped. step, steps: reached and to be made; best: metric, value and step, or None; age_s:
    seconds since the run was last written. What is not known is None.
    """
    now = time.time()
    rows = [_row(name, runs_dir / name, now) for name in run_names(runs_dir)]
    return sorted(rows, key=lambda row: (row["age_s"], row["name"]))


def _row(name: str, run: Path, now: float) -> JsonRow:
    info, _ = read_info_file(run / "run.json")
    status = "running" if is_locked(run) else STATUSES.get(info.get("status", ""), "stopped")
    written = [
        path.stat().st_mtime for path in (run / "run.json", run / "metrics.jsonl") if path.exists()
    ]
    return {
        "name": name,
        "path": str(run),
        "task": info.get("task"),
        "status": status if "status" in info else "damaged",
        "step": _newest_step(run),
        "steps": info.get("steps"),
        "best": info.get("best"),
        "age_s": round(max(0.0, now - max(written)), 1),
        "message": info.get("message"),
    }


def _newest_step(run: Path) -> int | None:
    """Step of the last row of metrics, else of the newest checkpoint."""
    rows = run / "metrics.jsonl"
    for line in reversed(_tail(rows).split(b"\n")) if rows.is_file() else ():
        try:
            row = parse_json(line)
        except ValueError:  # empty, or cut off
            continue
        if isinstance(row, dict) and type(row.get("step")) is int:
            return int(row["step"])
    return next(iter(folders(run / "checkpoints")), None)


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
        return file.read()
