"""Draw the live view of a run as it was at one step.

python docs/experiments/live_picture.py RUN STEP OUT.svg
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

from rich.console import Console as RichConsole

from stagecli.recipe.load import load_from_run
from stagecli.report import read_run
from stagecli.terminal.console import LiveView


def draw(run: Path, step: int, path: Path) -> None:
    report = read_run(run)
    recipe = load_from_run(run / "recipe.toml")
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
        "run_dir": f"runs/{report.name}",  # hides the path on this machine
    }
    rows = [row for row in report.metrics if row["step"] <= step]
    now = time.monotonic()
    for row in rows:
        view.step(row["step"])
        view.row(row)
    # The picture shows the run's own clock.
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
    path.write_text(
        view._console.export_svg(title="stagecli train " + report.name), encoding="utf-8"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("step", type=int)
    parser.add_argument("out", type=Path, help="FILE.svg")
    args = parser.parse_args()
    draw(args.run, args.step, args.out)


if __name__ == "__main__":
    main()
