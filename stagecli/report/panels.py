"""What is drawn of runs, in the order drawn. How it is drawn: drawing.py."""

from __future__ import annotations

from collections.abc import Sequence

from stagecli.files import number
from stagecli.metrics.in_training import described
from stagecli.report.curves import thin
from stagecli.report.drawing import Drawing
from stagecli.report.evaluation import evaluation_label, evaluation_names
from stagecli.report.mechanism_panels import mechanism_panels, probe_panels
from stagecli.report.noise_bins import bin_rows
from stagecli.report.panel import (
    MARKS,
    POINTS,
    Mark,
    Panel,
    Trace,
    event_marks,
    run_trace,
    scale_colour,
)
from stagecli.report.regime_panels import regime_panels
from stagecli.report.run_report import RunReport

__all__ = ["detail_panels", "main_panels", "run_panels"]


def run_panels(reports: Sequence[RunReport]) -> list[Drawing]:
    """All panels, with all runs in each; mechanisms and noise bins get panels per run."""
    return [*main_panels(reports), *detail_panels(reports)]


def main_panels(reports: Sequence[RunReport]) -> list[Drawing]:
    """How well a run learns: losses, evaluations, the regime."""
    marks = _marks(reports)
    return [
        *_metric_panels(reports, "train/loss", "Training loss", marks, log=True),
        *_metric_panels(reports, "valid/loss", "Validation loss", marks, log=True),
        *_evaluation_panels(reports, marks),
        *regime_panels(reports),
    ]


def detail_panels(reports: Sequence[RunReport]) -> list[Drawing]:
    """How it is trained: mechanisms, pace, noise bins."""
    several = len(reports) > 1
    marks = _marks(reports)
    panels: list[Drawing] = [*probe_panels(reports)]
    for report in reports:
        panels += mechanism_panels(report, several)
    panels += _metric_panels(reports, "optim/lr", "Learning rate", marks)
    throughput = "Throughput, samples per second"
    panels += _metric_panels(reports, "speed/samples_per_s", throughput, marks)
    for report in reports:
        panels += _bin_panels(report, several)
    return panels


def _marks(reports: Sequence[RunReport]) -> list[Mark]:
    several = len(reports) > 1
    return [mark for report in reports for mark in event_marks(report, several)][:MARKS]


def _metric_panels(
    reports: Sequence[RunReport], key: str, title: str, marks: list[Mark], log: bool = False
) -> list[Panel]:
    """The panel of a metric, if any run has it."""
    panel = _metric_panel(reports, key, title, marks)
    if panel is None:
        return []
    panel.log = log
    return [panel]


def _metric_panel(
    reports: Sequence[RunReport], key: str, title: str, marks: list[Mark]
) -> Panel | None:
    candidates = [
        run_trace(report.name, report.metrics, key, k) for k, report in enumerate(reports)
    ]
    traces = [trace for trace in candidates if trace]
    return Panel(title=title, traces=traces, marks=marks) if traces else None


def _evaluation_panels(reports: Sequence[RunReport], marks: list[Mark]) -> list[Panel]:
    """A panel per metric with one trace per run; a single run's also shows its cutoffs."""
    names = dict.fromkeys(name for report in reports for name in evaluation_names(report.metrics))
    panels = []
    for name in names:
        description = described(name)
        if description is None or description[1]:  # a metric at one cutoff
            continue
        metric = description[0]
        unit = f", {metric.unit}" if metric.unit else ""
        title = f"{metric.name} on valid{unit} ({metric.better} is better)"
        panel = _metric_panel(reports, name, title, marks)
        if panel is None:
            continue
        cutoffs = [
            other
            for other in names
            if other.startswith(f"{name}_") and (described(other) or (None,))[0] is metric
        ]
        if len(reports) == 1 and len(cutoffs) > 1:
            panel.traces[0].label = "mean over cutoffs"
            panel.traces += _cutoff_traces(reports[0], cutoffs)
        panels.append(panel)
    return panels


def _cutoff_traces(report: RunReport, names: Sequence[str]) -> list[Trace]:
    candidates = [
        run_trace(evaluation_label(name), report.metrics, name, index)
        for index, name in enumerate(names, 1)
    ]
    return [trace for trace in candidates if trace]


def _bin_panels(report: RunReport, several: bool) -> list[Panel]:
    """Training loss of every noise bin of a run; none if it has no bins."""
    edges, rows = bin_rows(report.bins)
    count = len(edges) - 1
    traces = []
    for k in range(count):
        pairs = [(row.step, loss) for row in rows if (loss := number(row.losses[k])) is not None]
        points = thin([step for step, _ in pairs], [loss for _, loss in pairs], POINTS // 2)
        if points:
            label = f"{edges[k]:.2f}-{edges[k + 1]:.2f}"
            colour = scale_colour(k, count)
            traces.append(Trace(label=label, points=points, colour=colour, band=False))
    if not traces:
        return []
    title = "Loss by noise level t (1 is noise)" + (f", {report.name}" if several else "")
    return [Panel(title=title, traces=traces, log=True, marks=event_marks(report, several))]
