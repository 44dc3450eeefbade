"""D, Dn by noise level and r of several runs of one recipe, as Markdown: mean and spread.

    for s in 0 1 2; do
      stagecli train fsdd-t2a --name digits-$s --set train.seed=$s --set stage.regime.clips=16
    done
    python docs/experiments/regime_runs.py runs/digits-*

Reads the run directories only. The runs must have the same steps between probes.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stagecli.report.probe_rows import noise_levels
from stagecli.report.run_report import RunReport, read_run
from stagecli.stage.regime_slope import fit_line

OFFSET = 0.01  # keeps the logarithm of Dn finite at the codec's ceiling
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def spread(values: Sequence[float | None]) -> str:
    """`mean ± standard deviation over runs`; a dash where a run has no number."""
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return "-"
    return (
        f"{statistics.mean(known):.3f} ± {statistics.stdev(known):.3f}"
        if len(known) > 1
        else f"{known[0]:.3f}"
    )


def at(report: RunReport, step: float) -> dict[str, Any]:
    """The last probe up to a step."""
    before = [row for row in report.probes if row["step"] <= step]
    return before[-1] if before else report.probes[0]


def first_step(report: RunReport, level: float) -> int | None:
    return next((row["step"] for row in report.probes if row["r"] >= level), None)


def noise(report: RunReport, window: int = 20) -> tuple[float, float]:
    """Deviation of ln(Dn + 0.01) from its line, and lag-1 correlation: medians over windows."""
    good = [row for row in report.probes if row["Dn"] is not None]
    logs = [math.log(max(row["Dn"], 0) + OFFSET) for row in good]
    taus = [row["tau"] for row in good]
    lines = [
        fit_line(taus[i : i + window], logs[i : i + window]) for i in range(len(good) - window)
    ]
    return statistics.median(line.noise for line in lines), statistics.median(
        line.phi for line in lines
    )


def plot(reports: Sequence[RunReport], path: Path) -> None:
    """Dn by noise level and r: the mean over runs, and the range between them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), sharex=True)
    rows = list(zip(*(report.probes for report in reports), strict=True))
    steps = [row[0]["step"] for row in rows]
    names = {f"Dn_t{t}": f"t = {float(t):g}" for t in noise_levels(reports[0].probes)} | {
        "Dn": "mean over t"
    }
    for axis, curves in ((axes[0], names), (axes[1], {"r": "r"})):
        for name, label in curves.items():
            values = [[run[name] for run in row] for row in rows]
            (line,) = axis.plot(
                steps,
                [statistics.mean(v) for v in values],
                label=label,
                lw=2 if name == "Dn" else 1.2,
            )
            axis.fill_between(
                steps,
                [min(v) for v in values],
                [max(v) for v in values],
                color=line.get_color(),
                alpha=0.2,
                lw=0,
            )
        axis.set(xlabel="step", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].set_title("discrepancy Dn")
    axes[1].set_title("r")
    axes[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--plot", type=Path, help="also draw to FILE.svg or FILE.png")
    options = parser.parse_args()
    reports = [read_run(path) for path in options.runs]
    if options.plot:
        plot(reports, options.plot)
    steps = reports[0].probes[-1]["step"]
    names = ["D", *(f"Dn_t{t}" for t in noise_levels(reports[0].probes)), "Dn", "r"]
    print(f"| step | {' | '.join(names)} |")
    print("|---" * (len(names) + 1) + "|")
    for share in SHARES:
        rows = [at(report, share * steps) for report in reports]
        print(
            f"| {rows[0]['step']} | "
            + " | ".join(spread([row.get(name) for row in rows]) for name in names)
            + " |"
        )
    print()
    print(
        "| run | ceiling | reference | r >= 0.5 at | r >= 0.9 at | noise of ln Dn | lag-1 | cost |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for report in reports:
        last = report.probes[-1]
        deviation, phi = noise(report)
        print(
            f"| {report.name} | {last['d_ceiling']:.4f} | {last['d_ref']:.4f} "
            f"| {first_step(report, 0.5) or '-'} | {first_step(report, 0.9) or '-'} "
            f"| {100 * deviation:.1f} % | {phi:.2f} | {100 * last['share']:.1f} % |"
        )


if __name__ == "__main__":
    main()
