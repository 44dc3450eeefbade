"""What is drawn of runs: panels of curves and of the marks in them. How they are drawn: html.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stagecli.metrics.in_training import described
from stagecli.report import RunReport
from stagecli.report import evaluation as report_evaluation
from stagecli.report import mechanisms as report_mechanisms
from stagecli.report.curves import number, series, thin
from stagecli.report.heatmap import HeatMap
from stagecli.report.regime import levels, reference
from stagecli.report.summary import bin_rows
from stagecli.stage import registry

LOSSES = (("train/loss", "Training loss", True), ("valid/loss", "Validation loss", True))
PACES = (
    ("optim/lr", "Learning rate", False),
    ("speed/samples_per_s", "Throughput, samples per second", False),
)
POINTS = 180  # per curve; the band behind it keeps what the means hide
MARKS = 200  # drawn per panel
RUN_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#8c6d1f",
    "#56b4e9",
    "#7a4fbf",
    "#999999",
)
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 4", "1 2", "8 2 2 2")


@dataclass
class Line:
    """One curve: points are (step, mean, lowest, highest) of a thinned stretch."""

    label: str
    points: list[tuple[float, float, float, float]]
    colour: str
    dash: str = ""
    band: bool = True


@dataclass(frozen=True)
class Mark:
    """Something happened at a step; text: in full, label: the word beside the mark, if any."""

    step: int
    text: str
    label: str = ""


@dataclass
class Panel:
    """One drawing: curves over the step, and marks where something happened; bounds: of the upright axis."""

    title: str
    lines: list[Line]
    log: bool = False
    marks: list[Mark] = field(default_factory=list)
    bounds: tuple[float, float] | None = None


def panels(reports: Sequence[RunReport]) -> list[Panel | HeatMap]:
    """What is drawn: losses, the regime, rates with all runs in each, then the loss by noise bin of each run."""
    several = len(reports) > 1
    marks = [mark for report in reports for mark in _marks(report, several)][:MARKS]
    out: list[Panel | HeatMap] = [
        panel for metric in LOSSES if (panel := _metric(reports, *metric, marks))
    ]
    out += _evaluation(reports, marks)
    out += _regime(reports)
    out += _probe_columns(reports)
    out += [panel for report in reports for panel in _mechanisms(report, several)]
    out += [panel for metric in PACES if (panel := _metric(reports, *metric, marks))]
    for report in reports:
        lines = _bin_lines(report)
        if lines:
            title = "Loss by noise level t (1 is noise)" + (f", {report.name}" if several else "")
            out.append(Panel(title, lines, True, _marks(report, several)[:MARKS]))
    return out


def _metric(
    reports: Sequence[RunReport], key: str, title: str, log: bool, marks: list[Mark]
) -> Panel | None:
    lines = [_line(report.name, report.metrics, key, k) for k, report in enumerate(reports)]
    found = [line for line in lines if line]
    return Panel(title, found, log, marks) if found else None


def _line(label: str, rows: Sequence[dict[str, Any]], key: str, k: int) -> Line | None:
    points = thin(*series(rows, key), POINTS)
    return (
        Line(label, points, RUN_COLOURS[k % len(RUN_COLOURS)], DASHES[k % len(DASHES)])
        if points
        else None
    )


def _evaluation(reports: Sequence[RunReport], marks: list[Mark]) -> list[Panel]:
    """Each metric evaluated while training: one line per run; of a single run also those of the cutoffs."""
    found = dict.fromkeys(
        name for report in reports for name in report_evaluation.names(report.metrics)
    )
    out = []
    for name in found:
        metric, cutoff = described(name) or (None, "")
        if metric is None or cutoff:
            continue
        unit = f", {metric.unit}" if metric.unit else ""
        panel = _metric(
            reports, name, f"{metric.name} on valid{unit} ({metric.better} is better)", False, marks
        )
        parts = [
            row
            for row in found
            if row.startswith(f"{name}_") and (described(row) or (None,))[0] is metric
        ]
        if panel and len(reports) == 1 and len(parts) > 1:
            lines = [
                _line(report_evaluation.label(row), reports[0].metrics, row, 1 + k)
                for k, row in enumerate(parts)
            ]
            panel.lines[0].label = "mean over cutoffs"
            panel.lines += [line for line in lines if line]
        out += [panel] if panel else []
    return out


def _probe_columns(reports: Sequence[RunReport]) -> list[Panel | HeatMap]:
    """The newest matrix that a mechanism added to a run's probes, and the curves that belong to it."""
    out: list[Panel | HeatMap] = []
    for mechanism, columns in registry.probe_columns().items():
        for k, report in enumerate(reports):
            matrix = columns.matrix(columns.summary(report.probes))
            if matrix is None:
                continue
            name = f", {report.name}" if len(reports) > 1 else ""
            out.append(HeatMap.of(matrix, name))
            own = [event for event in report.events if event.get("mechanism") == mechanism]
            marks = [
                Mark(event["step"], f"{event.get('from')} -> {event.get('to')}")
                for event in report_mechanisms.transitions(own)
            ]
            for curve in columns.curves:
                line = _line(report.name, report.probes, curve.column, k) if curve.panel else None
                if line:
                    out.append(Panel(f"{curve.panel}{name}", [line], False, marks))
    return out


def _mechanisms(report: RunReport, several: bool) -> list[Panel]:
    """What each mechanism reports, figures of one kind together."""
    out = []
    for (mechanism, kind), keys in report_mechanisms.together(
        report_mechanisms.names(report.metrics)
    ).items():
        lines = []
        for k, key in enumerate(keys):
            points = thin(*series(report.metrics, key), POINTS)
            colour = _hue(k, len(keys)) if len(keys) > 2 else RUN_COLOURS[k]
            lines += (
                [Line(report_mechanisms.parts(key)[1], points, colour, DASHES[k % 8], False)]
                if points
                else []
            )
        if any(len(line.points) > 1 for line in lines):
            title = f"{mechanism}: {kind}" + (f", {report.name}" if several else "")
            out.append(Panel(title, lines, False, _marks(report, several)[:MARKS]))
    return out


# -- the regime ------------------------------------------------------------------------------------


def _regime(reports: Sequence[RunReport]) -> list[Panel]:
    """Dn by t of each run, with the clock and the stages marked; then r: of all runs, or r with its target."""
    out = []
    several = len(reports) > 1
    measured = [report for report in reports if report.probes]
    for report in measured:
        lines = _level_lines(report)
        if lines:
            one = reference(report.info.get("task"))
            title = f"Discrepancy Dn (1: {one}, 0: the codec)" + (
                f", {report.name}" if several else ""
            )
            low, high = (f(point[1] for line in lines for point in line.points) for f in (min, max))
            bounds = (
                min(0.0, 1.1 * low),
                1.15 * max(high, 0.1),
            )  # from 0, with room for the marks' labels
            out.append(Panel(title, lines, False, stage_marks(report, several), bounds))
    if several:
        found = [_line(report.name, report.probes, "r", k) for k, report in enumerate(reports)]
    else:
        found = [_line("r", report.probes, "r", 0) for report in measured]
        found += [_line("target", report.probes, "target", 7) for report in measured]
    lines = [line for line in found if line]
    if lines:
        marks = stage_marks(measured[0], False) if not several else []
        out.append(
            Panel(
                "Regime variable r (0: acquisition, 1: refinement)",
                lines,
                False,
                marks,
                (0.0, 1.15),
            )
        )
    return out


def _level_lines(report: RunReport) -> list[Line]:
    """Dn at each t, then their mean on top of them."""
    found = levels(report.probes)
    lines = []
    for k, t in enumerate(found):
        points = thin(*series(report.probes, f"Dn_t{t}"), POINTS)
        if points:
            lines.append(Line(f"t {t}", points, _hue(k, len(found)), DASHES[1 + k % 7], band=False))
    points = thin(*series(report.probes, "Dn"), POINTS)
    return [*lines, Line("mean", points, RUN_COLOURS[0])] if points else lines


def stage_marks(report: RunReport, several: bool) -> list[Mark]:
    """Where the clock started and the stage changed: by the events, and by the probes where those are lost."""
    name = f"{report.name}: " if several else ""
    out = []
    clock = next(
        (row["clock_step"] for row in reversed(report.probes) if row.get("clock_step") is not None),
        None,
    )
    seen = set()
    for event in report.events:
        if event.get("mechanism") == "regime" and event.get("from") != event.get("to"):
            to = str(event.get("to"))
            label = f"clock: {to}" if event["step"] == clock else to
            seen.add(to)
            out.append(
                Mark(event["step"], f"{name}step {event['step']:,}, {event_text(event)}", label)
            )
    before = None
    for row in report.probes:
        stage = row.get("stage")
        if before is not None and stage and stage != before and stage not in seen:
            out.append(Mark(row["step"], f"{name}step {row['step']:,}, {stage}", stage))
        before = stage or before
    if clock is not None and all(mark.step != clock for mark in out):
        out.append(Mark(clock, f"{name}step {clock:,}, the clock starts", "clock"))
    return sorted(out, key=lambda mark: mark.step)[:MARKS]


# -- marks and noise bins --------------------------------------------------------------------------


def _marks(report: RunReport, several: bool) -> list[Mark]:
    name = f"{report.name}: " if several else ""
    return [
        Mark(e["step"], f"{name}step {e['step']:,}, {event_text(e)}")
        for e in report.events
        if e.get("mechanism") != "regime" or e.get("from") != e.get("to")
    ]


def event_text(event: dict[str, Any]) -> str:
    """`mechanism: from -> to (reason)`."""
    change = f"{event.get('mechanism')}: {event.get('from') or '-'} -> {event.get('to')}"
    return change + (f" ({event['reason']})" if event.get("reason") else "")


def lanes(
    labels: Sequence[tuple[float, str]], right: float, letter: float
) -> list[tuple[float, bool, int, str]]:
    """Places of labels beside upright lines as (x, whether left of its line, lane, label); none over another.

    labels: x and text, left to right; right: the panel's edge; letter: width of a character.
    """
    ends: list[float] = []  # of each lane
    out = []
    for x, label in labels:
        if not label:
            continue
        size = letter * len(label) + 8
        flip = x + size > right
        start = x - size if flip else x
        lane = next((k for k, end in enumerate(ends) if end <= start), len(ends))
        ends[lane : lane + 1] = [start + size]
        out.append((x, flip, lane, label))
    return out


def _hue(k: int, count: int) -> str:
    share = k / max(1, count - 1)
    return f"hsl({250 - 225 * share:.0f}, 62%, {50 + 4 * math.sin(math.pi * share):.0f}%)"


def _bin_lines(report: RunReport) -> list[Line]:
    edges, rows = bin_rows(report.bins)
    lines = []
    for k in range(len(edges) - 1):
        pairs = [(step, v) for step, loss, _ in rows if (v := number(loss[k])) is not None]
        points = thin([s for s, _ in pairs], [v for _, v in pairs], POINTS // 2)
        if points:
            lines.append(
                Line(
                    f"{edges[k]:.2f}-{edges[k + 1]:.2f}",
                    points,
                    _hue(k, len(edges) - 1),
                    band=False,
                )
            )
    return lines
