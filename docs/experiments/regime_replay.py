"""The rule of r against that of earlier versions, on the saved probes of runs, as Markdown.

    python docs/experiments/regime_replay.py runs/digits-0 runs/digits-1 runs/sr-0

Needs no training: Dn by noise level is read from probes.jsonl and passed to today's rule, with
optimiser time from the recipe of the run. The old r is that in the rows of a run of an earlier
version; a dash for other runs.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stagecli.flow.schedule import learning_rate
from stagecli.recipe.load import load_from_run
from stagecli.report.probe_rows import is_old, noise_levels
from stagecli.report.run_report import RunReport, read_run
from stagecli.schema import Train
from stagecli.stage.regime_variable import Regime, RegimeSettings

THRESHOLDS = (0.5, 0.9)
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the budget, at which r is printed


def train_options(run: Path) -> Train:
    """`[train]` of a run, with what earlier versions wrote in today's words."""
    return load_from_run(run / "recipe.toml").train


def replayed(report: RunReport, options: Train) -> list[tuple[int, float, float]]:
    """(step, tau / tau_end, r) of every probe, by today's rule."""
    times = [0.0]
    for step in range(options.steps):
        times.append(times[-1] + learning_rate(step, options) / options.lr)
    rows = report.probes
    every = rows[0]["step"]
    settings = RegimeSettings(probes=max(1, options.steps // every), tau_end=times[-1])
    regime = Regime(settings)
    levels = noise_levels(rows)
    points = []
    for row in rows:
        values = [row.get(f"Dn_t{t}") for t in levels]
        Dn_t = {
            float(t): math.nan if value is None else value
            for t, value in zip(levels, values, strict=True)
        }
        regime.observe(row["step"], times[row["step"]], Dn_t)
        points.append((row["step"], times[row["step"]] / times[-1], regime.r))
    return points


def reached(points: Sequence[tuple[int, float]], level: float) -> str:
    """The step at which r reached a level."""
    return next((str(step) for step, r in points if r >= level), "never")


def old_points(report: RunReport) -> list[tuple[int, float]]:
    """(step, r) of the rows of an earlier version; none for a run of this one."""
    return [(row["step"], row["r"]) for row in report.probes if is_old(row)]


def lifted_from(rows: Sequence[dict[str, Any]]) -> str:
    """The step from which the fail-safe of an earlier version moved r."""
    return next((str(row["step"]) for row in rows if row.get("failsafe") is True), "-")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    options = parser.parse_args()
    columns = [
        "run",
        "steps",
        *(f"r at {share:.0%} (tau / tau_E)" for share in SHARES),
        *(f"r >= {level}" for level in THRESHOLDS),
        *(f"old r >= {level}" for level in THRESHOLDS),
        "old: fail-safe from",
    ]
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    for path in options.runs:
        report = read_run(path)
        train = train_options(path)
        points = replayed(report, train)
        cells = [report.name, str(train.steps)]
        for share in SHARES:
            before = [point for point in points if point[0] <= share * train.steps]
            _, time, r = before[-1] if before else points[0]
            cells.append(f"{r:.2f} ({time:.2f})")
        new = [(step, r) for step, _, r in points]
        old = old_points(report)
        cells += [reached(new, level) for level in THRESHOLDS]
        cells += [reached(old, level) if old else "-" for level in THRESHOLDS]
        cells.append(lifted_from(report.probes))
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
