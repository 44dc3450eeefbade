"""What the mechanisms of runs report, as panels: groups of blocks, and figures over time."""

from __future__ import annotations

from collections.abc import Sequence

from stagecli.report import mechanisms as report_mechanisms
from stagecli.report.curves import series, thin
from stagecli.report.density_map import DensityMap
from stagecli.report.drawing import Drawing
from stagecli.report.heatmap import HeatMap
from stagecli.report.panel import (
    DASHES,
    POINTS,
    RUN_COLOURS,
    Mark,
    Panel,
    Trace,
    event_marks,
    run_trace,
    scale_colour,
)
from stagecli.report.run_report import RunReport
from stagecli.stage import registry
from stagecli.stage.probe_columns import ProbeColumns


def probe_panels(reports: Sequence[RunReport]) -> list[Drawing]:
    """The newest matrix that a mechanism added to a run's probes, and the curves with it."""
    panels: list[Drawing] = []
    for mechanism, columns in registry.probe_columns().items():
        for index, report in enumerate(reports):
            summary = columns.summary(report.probes)
            if summary is None:
                continue
            suffix = f", {report.name}" if len(reports) > 1 else ""
            matrix = columns.matrix(summary)
            if matrix is not None:
                panels.append(HeatMap.of(matrix, suffix))
            course = columns.density(report.probes)
            if course is not None:
                panels.append(DensityMap.of(course, suffix))
            panels += _column_panels(mechanism, columns, report, index, suffix)
    return panels


def _column_panels(
    mechanism: str, columns: ProbeColumns, report: RunReport, index: int, suffix: str
) -> list[Panel]:
    """The columns that a mechanism wants drawn; those with the same title share a panel."""
    own = [event for event in report.events if event.get("mechanism") == mechanism]
    marks = [
        Mark(event["step"], f"{event.get('from')} -> {event.get('to')}")
        for event in report_mechanisms.transitions(own)
    ]
    panels = []
    for title in dict.fromkeys(curve.panel for curve in columns.curves if curve.panel):
        together = [curve for curve in columns.curves if curve.panel == title]
        labels = [curve.label if len(together) > 1 else report.name for curve in together]
        candidates = [
            run_trace(label, report.probes, curve.column, index + k)
            for k, (label, curve) in enumerate(zip(labels, together, strict=True))
        ]
        traces = [trace for trace in candidates if trace]
        if traces:
            panels.append(Panel(title=f"{title}{suffix}", traces=traces, marks=marks))
    return panels


def mechanism_panels(report: RunReport, several: bool) -> list[Panel]:
    """What each mechanism reports, figures of one kind in one panel."""
    names = report_mechanisms.names(report.metrics)
    panels = []
    for (mechanism, kind), keys in report_mechanisms.together(names).items():
        traces = _figure_traces(report, keys)
        if any(len(trace.points) > 1 for trace in traces):
            title = f"{mechanism}: {kind}" + (f", {report.name}" if several else "")
            panels.append(Panel(title=title, traces=traces, marks=event_marks(report, several)))
    return panels


def _figure_traces(report: RunReport, keys: Sequence[str]) -> list[Trace]:
    traces = []
    for k, key in enumerate(keys):
        points = thin(*series(report.metrics, key), POINTS)
        if points:
            traces.append(
                Trace(
                    label=report_mechanisms.parts(key)[1],
                    points=points,
                    colour=scale_colour(k, len(keys)) if len(keys) > 2 else RUN_COLOURS[k],
                    dash=DASHES[k % len(DASHES)],
                    band=False,
                )
            )
    return traces
