"""The tables of a study's report: arms, scores by step, training time. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from stagecli.files import JsonRow
from stagecli.report.formats import duration
from stagecli.study.report_table import ReportTable
from stagecli.study.results import StudyPlan
from stagecli.study.tables_movement import density_table, r_table
from stagecli.study.tables_paired import arrival_table, difference_table
from stagecli.study.words import NONE, figure, strength_text


def report_tables(plan: StudyPlan, document: JsonRow) -> list[ReportTable]:
    """All tables, in the order of the report; those without rows are left out."""
    primary = plan.primary
    metrics = [primary, *(name for name in plan.metrics if name != primary)]
    tables = [
        _arms(plan),
        arrival_table(plan, document["steps_to_baseline"]),
        *(_scores(plan, document, name) for name in metrics),
        *(difference_table(plan, document["differences"], name) for name in metrics),
        _seconds(plan, document["arms"]),
        r_table(plan, document["r"]),
        density_table(document["density"]),
    ]
    return [table for table in tables if table.rows]


def _arms(plan: StudyPlan) -> ReportTable:
    rows = [
        [
            arm.name,
            arm.summary or NONE,
            ", ".join(arm.settings) or NONE,
            ", ".join(map(str, arm.seeds)),
            "yes" if arm.adaptive else "no",
        ]
        for arm in plan.arms.values()
    ]
    return ReportTable(
        title="Arms",
        columns=["arm", "summary", "settings", "seeds", "measured density"],
        rows=rows,
        notes=[f"Baseline: {plan.baseline}. Recipe: {plan.recipe}, {plan.steps:,} steps."],
    )


def _scores(plan: StudyPlan, document: JsonRow, name: str) -> ReportTable:
    """One score by step: at the arm's cfg_scale and, where it differs, at the best of each step."""
    metric = plan.metrics[name]
    strength_column = [] if plan.strengths == (None,) else ["cfg_scale"]
    rows = []
    for arm in plan.arms.values():
        entry = document["arms"][arm.name]
        for label, key in (("scores", "scores"), ("best", "scores_best_at_each_step")):
            by_step = entry[key][name]
            if label == "best" and by_step == entry["scores"][name]:
                continue
            strengths = strength_text(entry["strength"])
            if label == "best":
                strengths = ", ".join(
                    strength_text(strength) for strength in entry["strength_by_step"].values()
                )
            cells = [figure(by_step[str(step)], len(arm.seeds)) for step in plan.score_steps]
            if any(cell != NONE for cell in cells):
                rows.append([arm.name, *([strengths] if strength_column else []), *cells])
    better = "lower" if metric.lower else "higher"
    return ReportTable(
        title=f"{metric.title} ({better} is better): mean ± standard deviation over seeds",
        columns=["arm", *strength_column, *(f"step {step:,}" for step in plan.score_steps)],
        rows=rows,
        notes=list(_score_notes(plan, document["arms"])) if name == plan.primary else [],
        brief=name == plan.primary,
    )


def _score_notes(plan: StudyPlan, arms: JsonRow) -> Iterator[str]:
    """How cfg_scale was chosen, and for which arms at an earlier step than the last."""
    title = plan.metrics[plan.primary].title
    if plan.strengths == (None,):
        return
    yield (
        f"Each arm at the one cfg_scale whose mean {title} over seeds is best at its last scored"
        " step; rows with several: the best cfg_scale of each step, where that is another one."
        " The choice is made on the scored clips, equally for all arms."
    )
    early = [
        f"{arm} (step {entry['chosen_at']:,})"
        for arm, entry in arms.items()
        if entry["chosen_at"] not in (None, plan.score_steps[-1])
    ]
    if early:
        yield f"Chosen before the last step, which is not scored yet: {', '.join(early)}."


def _seconds(plan: StudyPlan, arms: JsonRow) -> ReportTable:
    """Training time up to each scored step."""
    rows = []
    for arm in plan.arms:
        by_step = arms[arm]["seconds"]
        cells = [
            NONE if entry is None else duration(entry["mean"])
            for entry in (by_step[str(step)] for step in plan.score_steps)
        ]
        if any(cell != NONE for cell in cells):
            rows.append([arm, *cells])
    return ReportTable(
        title="Training time, mean over seeds",
        columns=["arm", *(f"step {step:,}" for step in plan.score_steps)],
        rows=rows,
        notes=["Probes included, scoring not. Runs that share a machine slow each other down."],
    )
