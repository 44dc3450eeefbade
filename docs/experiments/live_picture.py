"""Draw the live view of a run as it stood at one step: `python docs/experiments/live_picture.py RUN STEP OUT.svg`."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

from rich.console import Console as RichConsole

from stagecli.recipe.load import load_recipe
from stagecli.report import read_run
from stagecli.terminal.console import LiveView


def main(run: str, step: int, out: str) -> None:
    report = read_run(run)
    recipe = load_recipe(Path(run) / "recipe.toml")
    view = LiveView()
    view._plain = False
    view._console = RichConsole(record=True, width=100, height=30, file=io.StringIO())
    board = view._board
    board.info = {
        "name": report.name,
        "task": recipe.task.kind,
        "steps": recipe.train.steps,
        "step": 0,
        "parameters": report.info["parameters"],
        "device": "cpu",
        "precision": recipe.train.precision,
        "batch_size": recipe.train.batch_size,
        "run_dir": f"runs/{report.name}",  # not where this machine has it
    }
    rows = [row for row in report.metrics if row["step"] <= step]
    now = time.monotonic()
    for row in rows:
        view.step(row["step"])
        view.row(row)
    # The clock of the picture is that of the run.
    board.began = now - (rows[-1]["time"] - rows[0]["time"])
    board.marks = [(now - (rows[-1]["time"] - row["time"]), row["step"]) for row in rows[-20:]]
    for row in report.bins:
        if row["step"] <= step:
            view.bins(row)
    for row in report.probes:
        if row["step"] <= step:
            view.probe(row)
    for event in report.events:
        if event["step"] <= step:
            view.event(event)
    view._console.print(view._frame())
    Path(out).write_text(
        view._console.export_svg(title="stagecli train " + report.name), encoding="utf-8"
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
