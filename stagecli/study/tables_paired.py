"""Tables of pairs of arms: steps to the baseline's final score, and differences. No torch."""

from __future__ import annotations

from stagecli.errors import significant
from stagecli.files import JsonRow
from stagecli.study.report_table import ReportTable
from stagecli.study.results import StudyPlan
from stagecli.study.words import NONE, interval, p_text, percent, percents, signed

FEW_SEEDS = (
    "Use the t interval: with 3 to 5 seeds a bootstrap over seeds is too narrow (of normal"
    " differences it covers the truth in about 75 % of studies with 3 seeds and 83 % with 5)."
)


ARRIVAL_COLUMNS = (
    "arm",
    "mean",
    "bootstrap 95 %",
    "t 95 %",
    "median",
    "reached",
    "time",
    "bootstrap 95 %",
)
DIFFERENCE_COLUMNS = (
    "arm",
    "minus",
    "mean",
    "t 95 %",
    "bootstrap 95 %",
    "p (t)",
    "p (Holm)",
    "p (signs)",
    "seeds",
    "verdict",
    "smallest effect",
)


def arrival_table(plan: StudyPlan, summary: JsonRow) -> ReportTable:
    """Share of the budget until the baseline's final score."""
    title = plan.metrics[plan.primary].title
    several = len(plan.strengths) > 1
    rows = []
    for arm in plan.arms:
        entry = summary["arms"][arm]
        if entry and entry["n"]:
            each = summary["arms_best_at_each_step"][arm] if several else None
            rows.append([arm, *_arrival_cells(entry), *([_share(each)] if several else [])])
    variant = ["mean, best cfg_scale of each step"] if several else []
    return ReportTable(
        title=f"Steps to the final {title} of {plan.baseline}, as a share of the budget",
        columns=[*ARRIVAL_COLUMNS, *variant],
        rows=rows if len(rows) > 1 else [],
        notes=_arrival_notes(plan, summary),
        brief=True,
    )


def _arrival_cells(entry: JsonRow) -> list[str]:
    """The cells of an arm after its name."""
    share = entry["share"]
    times = entry["seconds_share"]
    exact = entry["reached"] == entry["n"] and not entry["by_first"]
    return [
        _share(entry),
        percents(share["bootstrap"]) if entry["reached"] else NONE,
        percents(share["t"]) if exact else NONE,
        NONE if entry["median"] is None else percent(entry["median"]),
        f"{entry['reached']} of {entry['n']}",
        _bounded(entry, times["mean"]) if times else NONE,
        percents(times["bootstrap"]) if times and entry["reached"] else NONE,
    ]


def _share(entry: JsonRow | None) -> str:
    """The mean share of the budget; `-` without a seed."""
    return _bounded(entry, entry["share"]["mean"]) if entry and entry["n"] else NONE


def _arrival_notes(plan: StudyPlan, summary: JsonRow) -> list[str]:
    between = "logarithm of the best score so far" if summary["log"] else "best score so far"
    notes = [
        f"Paired by seed: the first step at which an arm has the"
        f" {plan.metrics[plan.primary].title} that {plan.baseline} ends with in the same seed; the"
        f" {between} is linear between scored steps.",
        "A seed that never gets there counts as the whole budget (>=), one that was there at the"
        " first scored step as that step (<=); the t interval is left out with such seeds."
        " Median: - if half of the seeds or more never get there. Time: training seconds, probes"
        " included, over the baseline's whole.",
        FEW_SEEDS,
    ]
    unfinished = [
        f"{arm} ({', '.join(map(str, entry['unfinished']))})"
        for arm, entry in summary["arms"].items()
        if entry and entry["unfinished"]
    ]
    if unfinished:
        notes.append(f"Not counted, as they are still on the way (seeds): {', '.join(unfinished)}.")
    return notes


def _bounded(entry: JsonRow, share: float) -> str:
    """`48 %`, `>= 90 %` if seeds never arrive, `<= 25 %` if seeds were there first."""
    mean = percent(share)
    never = entry["reached"] < entry["n"]
    if never and entry["by_first"]:
        return f"about {mean}"
    if never:
        return f">= {mean}"
    return f"<= {mean}" if entry["by_first"] else mean


def difference_table(plan: StudyPlan, summary: JsonRow, name: str) -> ReportTable:
    """Paired differences at the last step."""
    metric = plan.metrics[name]
    better = "negative" if metric.lower else "positive"
    rows = [
        [
            row["arm"],
            row["reference"],
            signed(row["mean"]),
            interval(row["t"]),
            interval(row["bootstrap"]),
            p_text(row["p_t"]),
            p_text(row["p_holm"]),
            p_text(row["p_flip"]),
            str(row["n"]),
            row["verdict"],
            NONE if row["smallest_effect"] is None else significant(row["smallest_effect"], 2),
        ]
        for row in summary[name]["rows"]
    ]
    notes = []
    if name == plan.primary:
        notes = _difference_notes(summary[name])
    return ReportTable(
        title=f"{metric.title}, differences at step {plan.score_steps[-1]:,} ({better}: the first"
        " arm is better)",
        columns=DIFFERENCE_COLUMNS,
        rows=rows,
        notes=notes,
        brief=name == plan.primary,
    )


def _difference_notes(summary: JsonRow) -> list[str]:
    rows = summary["rows"]
    notes = [
        "Over the seeds that both arms have. Verdict: by the t interval, and by the paired t test"
        " with Holm's correction over the comparisons of its table. Smallest effect: what so many"
        " seeds with this scatter show in 80 % of studies (two-sided t test at 5 %, uncorrected).",
        FEW_SEEDS,
    ]
    floors = {row["n"]: row["p_flip_least"] for row in rows if row["p_flip_least"]}
    if floors:
        texts = [f"{p:.2g} with {n} seeds" for n, p in sorted(floors.items())]
        notes.append(
            "p (signs) tries every choice of signs and cannot fall below 2 / 2^n:"
            f" {', '.join(texts)}."
        )
    return notes
