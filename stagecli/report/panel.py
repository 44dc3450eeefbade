"""What a panel of curves consists of: traces over the step, and marks where something happened."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, field

from stagecli.files import JsonRow
from stagecli.report.curves import Point, series, thin
from stagecli.report.regime_text import change_text
from stagecli.report.run_report import RunReport

POINTS = 180  # per trace; the band behind it keeps what the means hide
MARKS = 200  # per panel
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
# Lengths of dashes and gaps, in points; traces are told apart without colour too.
DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (5, 2),
    (1.5, 2),
    (6, 2, 1.5, 2),
    (8, 3),
    (3, 3),
    (1, 1.5),
    (6, 1.5, 1.5, 1.5),
)


@dataclass(kw_only=True)
class Trace:
    """One curve; band: shade the range of the values behind the means; faint: a thin pale line
    without an entry in the legend, beside the curve that it belongs to.
    """

    label: str
    points: list[Point]
    colour: str
    dash: tuple[float, ...] = ()
    band: bool = True
    faint: bool = False


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step; text: in full, label: the word beside the mark, if any."""

    step: int
    text: str
    label: str = ""


@dataclass(kw_only=True)
class Panel:
    """One drawing; log: logarithmic if all values are positive; bounds: of the vertical axis;
    x_label: of the horizontal one.
    """

    title: str
    traces: list[Trace]
    log: bool = False
    marks: list[Mark] = field(default_factory=list)
    bounds: tuple[float, float] | None = None
    x_label: str = "step"

    @property
    def legend(self) -> list[Trace]:
        """The traces that the legend lists; none if there is nothing to tell apart."""
        listed = [trace for trace in self.traces if not trace.faint]
        return listed if len(listed) > 1 else []


def run_trace(label: str, rows: Sequence[JsonRow], key: str, index: int) -> Trace | None:
    """The curve of `key`, in the colour and dash of run number `index`; None without a value."""
    points = thin(*series(rows, key), POINTS)
    if not points:
        return None
    return Trace(
        label=label,
        points=points,
        colour=RUN_COLOURS[index % len(RUN_COLOURS)],
        dash=DASHES[index % len(DASHES)],
    )


def scale_colour(index: int, count: int) -> str:
    """`#rrggbb` of one of `count` ordered traces, from blue over green to orange."""
    share = index / max(1, count - 1)
    hue = (250 - 225 * share) / 360
    lightness = 0.62 - 0.12 * share  # blue looks darker than orange, on dark pages above all
    channels = colorsys.hls_to_rgb(hue, lightness, 0.62)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in channels)


def event_marks(report: RunReport, several: bool) -> list[Mark]:
    """The events of a run, without those that leave the regime as it was."""
    prefix = f"{report.name}: " if several else ""
    return [
        Mark(event["step"], f"{prefix}step {event['step']:,}, {event_text(event)}")
        for event in report.events
        if event.get("mechanism") != "regime" or event.get("from") != event.get("to")
    ][:MARKS]


def event_text(event: JsonRow) -> str:
    """`mechanism: from -> to (reason)`."""
    text = f"{event.get('mechanism')}: {change_text(event)}"
    return f"{text} ({event['reason']})" if event.get("reason") else text
