"""Runs as one self-contained HTML page: what a newcomer asks first, then everything else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from stagecli.errors import StageError
from stagecli.files import JsonRow, number
from stagecli.report.formats import duration, signed_percent, significant, step_of
from stagecli.report.headline import headline
from stagecli.report.page import Section, bullets, figures, page, sections_html, table
from stagecli.report.panel import event_text
from stagecli.report.panels import detail_panels, main_panels
from stagecli.report.recipes import recipes
from stagecli.report.regime_text import (
    LEVEL_COLUMNS,
    evidence_text,
    legend,
    level_rows,
    regime_facts,
    regime_timeline,
)
from stagecli.report.run_report import RunReport, with_distinct_names
from stagecli.report.sentences import best_checkpoint_text
from stagecli.report.summary import summarize_run

__all__ = ["html_page"]

CURVES_NOTE = (
    "Curves show means over equal stretches of steps, and the band from their lowest to their"
    " highest value. Dashed vertical lines are events; point at one to read it."
)
NO_SCORES = "No scores yet: stagecli evaluate RUN measures them."


def html_page(reports: Sequence[RunReport], scores: str = "") -> str:
    """The page: no scripts, nothing loaded from anywhere.

    scores: the runs' evaluations as HTML. Raises StageError without a run, and where samples cannot
    be read.
    """
    from stagecli.report.players import players  # with NumPy, which nobody else here needs

    if not reports:
        raise StageError("there is no run to draw", hint="name at least one run directory")
    reports = with_distinct_names(reports)
    summaries = [summarize_run(report) for report in reports]
    title = ", ".join(report.name for report in reports)
    facts = _facts_table(summaries, [_run_facts(summary) for summary in summaries])
    sections = [
        Section("curves", "Curves", _curves(reports)),
        Section("samples", "Samples", players(reports)),
        Section("scores", "Scores", scores or f'<p class="note">{NO_SCORES}</p>'),
        Section("reading", "Reading", _sentences(summaries, "reading")),
        Section("damage", "Not readable", _sentences(summaries, "damage")),
        *_regime_sections(summaries),
        Section("events", "Events", _events(summaries)),
        Section("noise", "Loss by noise level", _bins(summaries)),
        Section("facts", "Facts", facts),
        Section("recipes", "Recipe" if len(reports) == 1 else "Recipes", recipes(reports)),
    ]
    return page(title, [f"<h1>{escape(title)}</h1>", _answers(summaries), sections_html(sections)])


def _answers(summaries: Sequence[JsonRow]) -> str:
    """The headline of each run, under its name if there are several."""
    several = len(summaries) > 1
    answers = ""
    for summary in summaries:
        answers += f"<h2>{escape(summary['name'])}</h2>" if several else ""
        pairs = (
            f"<dt>{escape(question)}</dt><dd>{escape(answer)}</dd>"
            for question, answer in headline(summary)
        )
        answers += f"<dl>{''.join(pairs)}</dl>"
    return answers


def _curves(reports: Sequence[RunReport]) -> str:
    """How well the runs learn; how they are trained, to be opened."""
    main = figures(main_panels(reports))
    details = figures(detail_panels(reports))
    if details:
        more = "More curves: mechanisms, learning rate, speed, noise levels"
        details = f"<details><summary>{more}</summary>{details}</details>"
    return f'{main}<p class="note">{CURVES_NOTE}</p>{details}' if main or details else ""


def _run_facts(summary: JsonRow) -> dict[str, str]:
    validation = summary["validation"]
    best = "-"
    if validation:
        best = f"{significant(validation['best'])} at step {validation['best_step']:,}"
    parameters = number(summary["parameters"])
    return {
        "task": str(summary["task"] or "-"),
        "status": str(summary["status"]),
        "step": step_of(summary["step"], summary["steps"]),
        "parameters": "-" if parameters is None else f"{significant(parameters / 1e6, 3)} M",
        "training loss, last 5 %": significant(summary["loss"]["smoothed"]),
        "best validation loss": best,
        "best checkpoint": best_checkpoint_text(summary["best_checkpoint"]),
        "samples per second": significant(summary["speed"]["samples_per_s"]),
        "trained for": duration(summary["time"]["spent_s"]),
        "attempts": str(max(1, len(summary["attempts"]))),
        "version": str(summary["version"] or "-"),
        "directory": str(summary["path"]),
    }


def _regime_sections(summaries: Sequence[JsonRow]) -> list[Section]:
    """The regime, one column per run, and how to enable it where there is none."""
    regime = ""
    measured = [summary["regime"] for summary in summaries if summary["regime"]]
    if measured:
        references = dict.fromkeys(document["reference"] for document in measured)
        lines = legend(" or ".join(references))
        regime += f'<p class="note">{"<br>".join(escape(line) for line in lines)}</p>'
        regime += _facts_table(summaries, [regime_facts(one["regime"]) for one in summaries])
    for summary in summaries:
        if summary["regime_note"]:
            regime += f"<p>{escape(summary['name'])}: {escape(summary['regime_note'])}</p>"
    levels = [
        [summary["name"], *row] for summary in summaries for row in level_rows(summary["regime"])
    ]
    progress = _run_table(summaries, LEVEL_COLUMNS, levels, "progress by noise level")
    return [
        Section("regime", "Regime", regime),
        Section("progress", "Progress by noise level", progress),
    ]


def _sentences(summaries: Sequence[JsonRow], key: str) -> str:
    """A list of sentences per run that has any."""
    several = len(summaries) > 1
    lists = ""
    for summary in summaries:
        if summary[key]:
            lists += f"<h3>{escape(summary['name'])}</h3>" if several else ""
            lists += bullets(summary[key])
    return lists


def _events(summaries: Sequence[JsonRow]) -> str:
    rows = [row for summary in summaries for row in _event_rows(summary)]
    return _run_table(summaries, ["step", "event", "evidence"], rows, "events")


def _event_rows(summary: JsonRow) -> list[list[str]]:
    """Every event in order; repeats of the regime's that change nothing are one row."""
    entries = []
    regime_events = []
    for event in summary["events"]:
        if event.get("mechanism") == "regime":
            regime_events.append(event)
        else:
            entries.append((event["step"], event_text(event), evidence_text(event.get("evidence"))))
    for entry in regime_timeline(regime_events):
        reason = f" ({entry['reason']})" if entry["reason"] else ""
        entries.append((entry["step"], f"regime: {entry['change']}{reason}", entry["evidence"]))
    return [
        [summary["name"], f"{step:,}", event, evidence]
        for step, event, evidence in sorted(entries, key=lambda entry: entry[0])
    ]


def _bins(summaries: Sequence[JsonRow]) -> str:
    rows = [
        [
            summary["name"],
            f"{entry['t_low']:.2f}-{entry['t_high']:.2f}",
            significant(entry["first"]),
            significant(entry["last"]),
            signed_percent(entry["change"]),
            "-" if entry["share"] is None else f"{100 * entry['share']:.0f} %",
        ]
        for summary in summaries
        for entry in summary["bins"]
    ]
    columns = ["noise level t", "first tenth", "last tenth", "change", "share of the loss"]
    return _run_table(summaries, columns, rows, "loss by noise level")


def _run_table(
    summaries: Sequence[JsonRow], columns: Sequence[str], rows: Sequence[list[str]], name: str
) -> str:
    """Rows that begin with the name of their run, which is left out if there is one run only;
    nothing without rows.
    """
    if not rows:
        return ""
    if len(summaries) == 1:
        return table(columns, [row[1:] for row in rows], name)
    return table(["run", *columns], rows, name)


def _facts_table(summaries: Sequence[JsonRow], facts: Sequence[dict[str, str]]) -> str:
    """A column per run, a row per fact."""
    rows = [[label, *(column[label] for column in facts)] for label in facts[0]]
    return table(["", *(summary["name"] for summary in summaries)], rows, "facts")
