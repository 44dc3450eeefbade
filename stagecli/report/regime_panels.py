"""The regime of runs as panels: Dn by noise level, and r."""

from __future__ import annotations

from collections.abc import Sequence

from stagecli.report.curves import series, thin
from stagecli.report.panel import (
    DASHES,
    MARKS,
    POINTS,
    RUN_COLOURS,
    Mark,
    Panel,
    Trace,
    event_text,
    run_trace,
    scale_colour,
)
from stagecli.report.probe_rows import noise_levels
from stagecli.report.regime import reference_name
from stagecli.report.run_report import RunReport

ESTIMATE_COLOUR = 7  # grey: the estimate that r follows is a guide, not a result


def regime_panels(reports: Sequence[RunReport]) -> list[Panel]:
    """Dn by noise level of each run with its stages; then r of all, or of one with the estimate
    that it follows.
    """
    several = len(reports) > 1
    measured = [report for report in reports if report.probes]
    panels = [
        panel for report in measured if (panel := _discrepancy_panel(report, several)) is not None
    ]
    if several:
        candidates = [
            run_trace(report.name, report.probes, "r", k) for k, report in enumerate(reports)
        ]
    else:
        candidates = [run_trace("r", report.probes, "r", 0) for report in measured]
        candidates += [
            run_trace("present estimate", report.probes, "r_now", ESTIMATE_COLOUR)
            for report in measured
        ]
    traces = [trace for trace in candidates if trace]
    if traces:
        panels.append(
            Panel(
                title="Regime variable r (share of the semantic progress made)",
                traces=traces,
                marks=[] if several else stage_marks(measured[0], several),
                bounds=(0.0, 1.15),  # room above 1 for the labels of the marks
            )
        )
    return panels


def _discrepancy_panel(report: RunReport, several: bool) -> Panel | None:
    traces = _level_traces(report)
    if not traces:
        return None
    means = [point.mean for trace in traces for point in trace.points]
    title = f"Discrepancy Dn (0: the codec, 1: {reference_name(report.info.get('task'))})"
    return Panel(
        title=f"{title}, {report.name}" if several else title,
        traces=traces,
        marks=stage_marks(report, several),
        # From 0, with room at the top for the labels of the marks.
        bounds=(min(0.0, 1.1 * min(means)), 1.15 * max(max(means), 0.1)),
    )


def _level_traces(report: RunReport) -> list[Trace]:
    """Dn at each noise level, then the mean over them on top."""
    levels = noise_levels(report.probes)
    traces = []
    for k, t in enumerate(levels):
        points = thin(*series(report.probes, f"Dn_t{t}"), POINTS)
        if points:
            colour = scale_colour(k, len(levels))
            dash = DASHES[1 + k % (len(DASHES) - 1)]
            traces.append(
                Trace(label=f"t = {t}", points=points, colour=colour, dash=dash, band=False)
            )
    points = thin(*series(report.probes, "Dn"), POINTS)
    if points:
        traces.append(Trace(label="mean", points=points, colour=RUN_COLOURS[0]))
    return traces


def stage_marks(report: RunReport, several: bool) -> list[Mark]:
    """Where the stage changed: by the events, else by the probes."""
    prefix = f"{report.name}: " if several else ""

    # Changes that have an event.
    marks = []
    marked = set()
    for event in report.events:
        if event.get("mechanism") == "regime" and event.get("from") != event.get("to"):
            stage = str(event.get("to"))
            text = f"{prefix}step {event['step']:,}, {event_text(event)}"
            marks.append(Mark(event["step"], text, stage))
            marked.add(stage)

    # Changes that only the probes show: events.jsonl may be lost or older.
    before: str | None = None
    for row in report.probes:
        current: str | None = row.get("stage")
        if before is not None and current and current != before and current not in marked:
            marks.append(Mark(row["step"], f"{prefix}step {row['step']:,}, {current}", current))
        before = current or before
    return sorted(marks, key=lambda mark: mark.step)[:MARKS]
