"""Runs as one self-contained HTML page: facts, sentences, pictures and tables."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from stagecli.errors import StageError
from stagecli.files import JsonRow, number
from stagecli.report.formats import duration, signed_percent, significant, step_of
from stagecli.report.page import page, table
from stagecli.report.panel import event_text
from stagecli.report.panels import run_panels
from stagecli.report.pictures.sheet import draw_inline
from stagecli.report.regime_text import (
    LEVEL_COLUMNS,
    evidence_text,
    legend,
    level_rows,
    regime_facts,
    regime_timeline,
)
from stagecli.report.run_report import RunReport
from stagecli.report.sentences import best_checkpoint_text
from stagecli.report.summary import summarize_run

__all__ = ["html_page"]

FOOTER = """<footer>Curves show means over equal stretches of steps, and the band from their lowest
to their highest value. Dashed vertical lines are events; point at one to read it.</footer>"""


def html_page(reports: Sequence[RunReport]) -> str:
    """The page: no scripts, nothing loaded from anywhere. Raises StageError without a run."""
    if not reports:
        raise StageError("there is no run to draw", hint="name at least one run directory")
    summaries = [summarize_run(report) for report in reports]
    title = ", ".join(report.name for report in reports)
    names = [summary["name"] for summary in summaries]
    body = [
        f"<h1>{escape(title)}</h1>",
        _facts_table(names, [_run_facts(summary) for summary in summaries]),
        *_regime_section(summaries),
        *_sentence_lists(summaries),
        *_curves_section(reports),
        *_events_section(summaries),
        *_bins_section(summaries),
        FOOTER,
    ]
    return page(title, body)


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


def _regime_section(summaries: Sequence[JsonRow]) -> list[str]:
    """The regime, one column per run, and how to enable it where there is none."""
    section = []
    measured = [summary["regime"] for summary in summaries if summary["regime"]]
    if measured:
        references = dict.fromkeys(regime["reference"] for regime in measured)
        lines = legend(" or ".join(references))
        section.append("<h2>Regime</h2>")
        section.append(f'<p class="note">{"<br>".join(escape(line) for line in lines)}</p>')
        names = [summary["name"] for summary in summaries]
        section.append(
            _facts_table(names, [regime_facts(summary["regime"]) for summary in summaries])
        )
    rows = [
        [summary["name"], *row] for summary in summaries for row in level_rows(summary["regime"])
    ]
    if rows:
        section.append("<h2>Progress by noise level</h2>")
        section.append(table(["run", *LEVEL_COLUMNS], rows))
    for summary in summaries:
        if summary["regime_note"]:
            section.append(f"<p>{escape(summary['name'])}: {escape(summary['regime_note'])}</p>")
    return section


def _sentence_lists(summaries: Sequence[JsonRow]) -> list[str]:
    lists = []
    for summary in summaries:
        suffix = f", {escape(summary['name'])}" if len(summaries) > 1 else ""
        for title, sentences in (
            ("Reading", summary["reading"]),
            ("Not readable", summary["damage"]),
        ):
            if sentences:
                items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
                lists.append(f"<h2>{title}{suffix}</h2><ul>{items}</ul>")
    return lists


def _curves_section(reports: Sequence[RunReport]) -> list[str]:
    figures = [
        f'<figure aria-label="{escape(panel.title)}">{draw_inline(panel)}</figure>'
        for panel in run_panels(reports)
    ]
    return [f'<h2>Curves</h2><div class="panels">{"".join(figures)}</div>'] if figures else []


def _events_section(summaries: Sequence[JsonRow]) -> list[str]:
    rows = [row for summary in summaries for row in _event_rows(summary)]
    if not rows:
        return []
    return ["<h2>Events</h2>" + table(["run", "step", "event", "evidence"], rows)]


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


def _bins_section(summaries: Sequence[JsonRow]) -> list[str]:
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
    if not rows:
        return []
    columns = ["run", "noise level t", "first tenth", "last tenth", "change", "share of the loss"]
    return ["<h2>Loss by noise level</h2>" + table(columns, rows)]


def _facts_table(names: Sequence[str], facts: Sequence[dict[str, str]]) -> str:
    """A column per run, a row per fact."""
    rows = [[label, *(column[label] for column in facts)] for label in facts[0]]
    return table(["", *names], rows)
