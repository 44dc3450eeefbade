"""What the mechanisms of runs report, as panels: groups of blocks, and figures over time."""

from __future__ import annotations

from collections.abc import Sequence

from stagecli.report import mechanisms as report_mechanisms
from stagecli.report import structure as report_structure
from stagecli.report.curves import series, thin
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


def structure_panels(reports: Sequence[RunReport]) -> list[Panel | HeatMap]:
    """Of each run with groups of blocks: the newest similarities, and their z against the null."""
    several = len(reports) > 1
    panels: list[Panel | HeatMap] = []
    for index, report in enumerate(reports):
        structure = report_structure.summary(report.probes, report.events)
        plot = report_structure.plot(structure)
        if not plot or not structure:
            continue
        suffix = f", {report.name}" if several else ""
        first_blocks = [0, *plot["boundaries"]] if plot["labels"] else []
        panels.append(
            HeatMap(
                title=f"Similarity of the blocks' updates, step {structure['step']:,}{suffix}",
                matrix=plot["matrix"],
                low=plot["low"],
                high=plot["high"],
                boundaries=tuple(plot["boundaries"]),
                names=tuple(
                    report_structure.letter(plot["labels"][block]) for block in first_blocks
                ),
            )
        )
        trace = run_trace(report.name, report.probes, "structure_z", index)
        if trace:
            marks = [Mark(mark["step"], mark["text"]) for mark in plot["marks"]]
            title = f"Groups of blocks: z against the null{suffix}"
            panels.append(Panel(title=title, traces=[trace], marks=marks))
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
