"""Draw the live view of a run as of one step: `live_picture.py RUN STEP OUT.svg`."""

from __future__ import annotations

import io
import re
import sys
import time
from pathlib import Path

from rich.console import Console as RichConsole

from stagecli.recipe.load import load_from_run
from stagecli.report.run_report import RunReport, read_run
from stagecli.terminal.live import LiveView

WIDTH = 100
HEIGHT = 30


def view_at(report: RunReport, step: int) -> LiveView:
    """The live view after the rows up to `step`, with the clock of the run."""
    recipe = load_from_run(report.path / "recipe.toml")
    view = LiveView()
    board = view.board
    board.info = {
        "name": report.name,
        "task": recipe.task.kind,
        "steps": recipe.train.steps,
        "step": 0,
        "parameters": report.info["parameters"],
        "device": "cpu",
        "precision": recipe.train.precision,
        "batch_size": recipe.train.batch_size,
        "run_dir": f"runs/{report.name}",  # wherever the run is now
    }
    rows = [row for row in report.metrics if row["step"] <= step]
    for row in rows:
        view.step(row["step"])
        view.row(row)

    # Times as if the last row had come just now.
    now = time.monotonic()
    end = rows[-1]["time"]
    board.clock.started = now - (end - rows[0]["time"])
    board.clock.recent = [(now - (end - row["time"]), row["step"]) for row in rows[-20:]]

    for row in report.bins:
        if row["step"] <= step:
            view.bins(row)
    for row in report.probes:
        if row["step"] <= step:
            view.probe(row)
    for event in report.events:
        if event["step"] <= step:
            view.event(event)
    return view


def main(run: str, step: int, path: str) -> None:
    report = read_run(run)
    view = view_at(report, step)
    console = RichConsole(record=True, width=WIDTH, height=HEIGHT, file=io.StringIO())
    console.print(view.panel.render(WIDTH, HEIGHT, plain=False))
    svg = console.export_svg(title=f"stagecli train {report.name}")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # fonts of another host
    Path(path).write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
