"""D, Dn by noise level and r over several runs of one recipe, as Markdown.

    for s in 0 1 2; do
      stagecli train fsdd-t2a --name digits-$s --set train.seed=$s --set stage.regime.clips=16
    done
    python docs/experiments/regime_runs.py runs/digits-*

Prints mean and spread over the runs, which differ in their seed. Only the run directories are
read. All runs need the same number of steps between probes.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stagecli.report import RunReport, read_run
from stagecli.report.regime import levels
from stagecli.stage.regime_progress import OFFSET
from stagecli.stage.regime_slope import fit_line

SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def spread(values: Sequence[float | None]) -> str:
    """`mean ± standard deviation over runs`; a dash where a run has no number."""
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return "-"
    if len(known) == 1:
        return f"{known[0]:.3f}"
    return f"{statistics.mean(known):.3f} ± {statistics.stdev(known):.3f}"


def probe_at(report: RunReport, step: float) -> dict[str, Any]:
    """The last probe up to a step."""
    before = [row for row in report.probes if row["step"] <= step]
    return before[-1] if before else report.probes[0]


def first_step(report: RunReport, level: float) -> int | None:
    """First step at which r has reached a level."""
    return next((row["step"] for row in report.probes if row["r"] >= level), None)


def noise(report: RunReport, window: int = 20) -> tuple[float, float]:
    """Deviation and lag-1 correlation of ln(Dn + 0.01) around its line: medians over windows."""
    good = [row for row in report.probes if row["Dn"] is not None]
    logs = [math.log(max(row["Dn"], 0) + OFFSET) for row in good]
    taus = [row["tau"] for row in good]
    lines = [
        fit_line(taus[i : i + window], logs[i : i + window]) for i in range(len(good) - window)
    ]
    deviation = statistics.median(line.noise for line in lines)
    return deviation, statistics.median(line.phi for line in lines)


def lifted_at(report: RunReport) -> int | None:
    """First step at which the fail-safe lifts r."""
    return next((row["step"] for row in report.probes if row["failsafe"]), None)


def plot(reports: Sequence[RunReport], path: Path) -> None:
    """Dn by noise level and r: the mean over runs, and the range between them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), sharex=True)
    by_level = {f"Dn_t{t}": f"t = {float(t):g}" for t in levels(reports[0].probes)}
    for axis, curves in ((axes[0], by_level | {"Dn": "mean over t"}), (axes[1], {"r": "r"})):
        for name, label in curves.items():
            draw_curve(axis, reports, name, label)
        axis.set(xlabel="step", ylim=(0, None))
        axis.grid(alpha=0.3)
    for step in {lifted_at(report) for report in reports} - {None}:
        axes[1].axvline(step, color="gray", ls=":", lw=1)
    axes[0].set_title("discrepancy Dn")
    axes[1].set_title("r (dotted: lifted by the fail-safe from there)")
    axes[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def draw_curve(axis: Any, reports: Sequence[RunReport], name: str, label: str) -> None:
    """Mean and range over runs of one column of the probes."""
    rows = list(zip(*(report.probes for report in reports), strict=True))
    steps = [row[0]["step"] for row in rows]
    values = [[probe[name] for probe in row] for row in rows]
    means = [statistics.mean(v) for v in values]
    (line,) = axis.plot(steps, means, label=label, lw=2 if name == "Dn" else 1.2)
    lowest = [min(v) for v in values]
    highest = [max(v) for v in values]
    axis.fill_between(steps, lowest, highest, color=line.get_color(), alpha=0.2, lw=0)


def print_course(reports: Sequence[RunReport]) -> None:
    """D, Dn and r at shares of the budget, as mean and spread over runs."""
    steps = reports[0].probes[-1]["step"]
    names = ["D", *(f"Dn_t{t}" for t in levels(reports[0].probes)), "Dn", "r"]
    print(f"| step | {' | '.join(names)} |")
    print("|---" * (len(names) + 1) + "|")
    for share in SHARES:
        rows = [probe_at(report, share * steps) for report in reports]
        cells = [spread([row.get(name) for row in rows]) for name in names]
        print(f"| {rows[0]['step']} | {' | '.join(cells)} |")


def print_runs(reports: Sequence[RunReport]) -> None:
    """One row per run: scale of D, clock, r and noise."""
    names = (
        "run",
        "ceiling",
        "reference",
        "clock",
        "r >= 0.5 at",
        "lifted by the fail-safe from",
        "noise of ln Dn",
        "lag-1",
        "cost",
    )
    print(f"| {' | '.join(names)} |")
    print("|---" * len(names) + "|")
    for report in reports:
        last = report.probes[-1]
        deviation, phi = noise(report)
        cells = (
            report.name,
            f"{last['d_ceiling']:.4f}",
            f"{last['d_ref']:.4f}",
            str(last["clock_step"] or "-"),
            str(first_step(report, 0.5) or "-"),
            str(lifted_at(report) or "-"),
            f"{100 * deviation:.1f} %",
            f"{phi:.2f}",
            f"{100 * last['share']:.1f} %",
        )
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    parser.add_argument("--plot", type=Path, help="also draw to FILE.svg or FILE.png")
    options = parser.parse_args()
    reports = [read_run(path) for path in options.runs]
    if options.plot:
        plot(reports, options.plot)
    print_course(reports)
    print()
    print_runs(reports)


if __name__ == "__main__":
    main()
