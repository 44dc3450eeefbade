"""Tables of r and of the densities of adaptive arms. No torch."""

from __future__ import annotations

from stagecli.files import JsonRow
from stagecli.report.formats import significant
from stagecli.study.arrivals import NEVER
from stagecli.study.movement import SHARES
from stagecli.study.report_table import ReportTable
from stagecli.study.results import StudyPlan
from stagecli.study.words import NONE, figure, percent, percents


def r_table(plan: StudyPlan, regimes: JsonRow) -> ReportTable:
    rows = []
    for arm, summary in regimes.items():
        seeds = len(plan.arms[arm].seeds)
        half = summary["half"]
        if half is None:
            reached = NONE
        else:
            shares = half["by_seed"].values()
            reached = f"{percent(half['mean'])} ({percents((min(shares), max(shares)))})"
        if summary["never"]:
            reached += f"; {NEVER}: seeds {', '.join(map(str, summary['never']))}"
        cells = [figure(summary["r"][f"{share:g}"], seeds) for share in SHARES]
        rows.append([arm, *cells, reached])
    return ReportTable(
        title="r over the budget: mean ± standard deviation over seeds",
        columns=["arm", *(f"at {share:.0%}".replace("%", " %") for share in SHARES), "r = 0.5 at"],
        rows=rows,
        notes=["In brackets: lowest and highest over seeds."],
        brief=True,
    )


def density_table(densities: JsonRow) -> ReportTable:
    rows = []
    for arm, summary in densities.items():
        if summary is None:
            continue
        ends = [
            " / ".join(f"{summary[end][name]:.2f}" for name in summary[end])
            for end in ("first", "last")
        ]
        rows.append(
            [
                arm,
                figure(summary["distance"], summary["n"]),
                significant(summary["farthest"]["mean"], 3),
                *ends,
                str(summary["n"]),
            ]
        )
    return ReportTable(
        title="How far the density of t went: total variation, and quantiles 10 / 50 / 90 %",
        columns=["arm", "first to last probe", "farthest", "t at first", "t at last", "seeds"],
        rows=rows,
        notes=["0: nowhere; 1: no t of the end was drawn at the start. Means over seeds."],
        brief=True,
    )
