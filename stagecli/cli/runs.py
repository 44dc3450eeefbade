"""`stagecli runs`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stagecli.cli.help import examples
from stagecli.cli.options import AsJson, RunsDir
from stagecli.terminal.console import Console

EXAMPLES = examples("stagecli runs", "stagecli runs --runs-dir elsewhere/ --json")
COLUMNS = ("name", "task", "status", "step", "best", "last written")


def runs(runs_dir: RunsDir = Path("runs"), as_json: AsJson = False) -> None:
    """List the runs: how far each is, how it stands, its best score and its age.

    The names can be given wherever a run is wanted.
    """
    from stagecli.runs.listing import list_runs

    console = Console(as_json)
    rows = list_runs(runs_dir)
    if not rows:
        console.note(f"no runs in {runs_dir}/;  train one:  stagecli train quickstart")
    if rows or as_json:
        console.result(rows, lambda: console.table("", COLUMNS, [_cells(row) for row in rows]))


def _cells(row: dict[str, Any]) -> list[object]:
    from stagecli.report.formats import duration, significant, step_of

    best = row["best"]
    score = f"{best.get('metric', 'valid/loss')} {significant(best['value'])}" if best else None
    return [
        row["name"],
        row["task"],
        row["status"],
        None if row["step"] is None else step_of(row["step"], row["steps"]),
        f"{score} at {best['step']:,}" if best else None,
        f"{duration(row['age_s'])} ago",
    ]
