"""Draws a panel of curves: traces, marks with labels in lanes, axes, and the legend under them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from stagecli.report.panel import Panel, Trace
from stagecli.report.pictures.style import (
    AXES_HEIGHT,
    AXES_WIDTH,
    BELOW_AXES,
    LEGEND_SIZE,
    PAPER,
    POINTS_PER_INCH,
    SOFT,
    add_tooltip,
    text_width,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_curves", "label_places", "legend_columns"]

FEW_POINTS = 25  # traces with fewer points show each one
LONGEST_LABEL = 40  # characters of a trace's label
LABEL_SIZE = 7.0
LABEL_GAP = 4.0  # points between a mark and its label, and between labels
LANE_HEIGHT = 11.0  # points


def draw_curves(axes: Axes, panel: Panel, tooltips: dict[str, str]) -> None:
    """Draw `panel` on axes of the size that `style` gives; adds to `tooltips`."""
    log = panel.log and all(point.low > 0 for trace in panel.traces for point in trace.points)
    axes.set_title(f"{panel.title} (log scale)" if log else panel.title)
    axes.set_xlabel(panel.x_label, loc="right")
    for trace in panel.traces:
        _draw_trace(axes, trace, tooltips)
    _set_limits(axes, panel, log)
    _set_ticks(axes, log)
    for mark in panel.marks:
        line = axes.axvline(mark.step, color=SOFT, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        add_tooltip(line, mark.text, tooltips)
    _label_marks(axes, panel)
    if panel.legend:  # inside the axes a legend would cover curves and labels
        axes.legend(
            loc="upper left",
            bbox_to_anchor=(0, -(BELOW_AXES - 0.06) / AXES_HEIGHT),
            ncols=legend_columns(axes, panel),
        )


def legend_columns(axes: Axes, panel: Panel) -> int:
    """As many columns of the legend as fit under the axes."""
    longest = max(
        text_width(axes, _short_label(trace.label), LEGEND_SIZE) for trace in panel.legend
    )
    around = 5 * LEGEND_SIZE  # the line, its gap to the text, and the gap between columns
    fitting = int(AXES_WIDTH * POINTS_PER_INCH // (longest + around))
    return max(1, min(len(panel.legend), fitting))


def _short_label(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "~"


def _draw_trace(axes: Axes, trace: Trace, tooltips: dict[str, str]) -> None:
    """The means, over the band of their lowest to highest values."""
    steps = [point.step for point in trace.points]
    if trace.band and len(steps) > 2:
        lows = [point.low for point in trace.points]
        highs = [point.high for point in trace.points]
        axes.fill_between(steps, lows, highs, color=trace.colour, alpha=0.18, linewidth=0)
    (line,) = axes.plot(
        steps,
        [point.mean for point in trace.points],
        color=trace.colour,
        linestyle=(0, trace.dash) if trace.dash else "-",
        linewidth=0.6 if trace.faint else 1.3,
        alpha=0.4 if trace.faint else 1.0,
        marker="o" if len(steps) < FEW_POINTS and not trace.faint else None,
        markersize=2.6,
        label="_" if trace.faint else _short_label(trace.label),
    )
    add_tooltip(line, trace.label, tooltips)


def _set_limits(axes: Axes, panel: Panel, log: bool) -> None:
    """From step 0 to the last point or mark; by the means, as single outliers may be far away."""
    points = [point for trace in panel.traces for point in trace.points]
    last = max([*(point.step for point in points), *(mark.step for mark in panel.marks)])
    axes.set_xlim(0, max(1, 1.01 * last))
    if log:
        axes.set_yscale("log")
    if panel.bounds:
        axes.set_ylim(*panel.bounds)
        return
    low = min(point.mean for point in points)
    high = max(point.mean for point in points)
    if high - low <= 1e-9 * abs(high):  # a constant
        margin = 0.1 * abs(high) or 1.0
        axes.set_ylim(low - margin, high + margin)
    elif log:
        margin = math.exp(0.06 * (math.log(high) - math.log(low)))
        axes.set_ylim(low / margin, high * margin)
    else:  # from zero where zero is near, so that heights can be compared
        margin = 0.06 * (high - low)
        from_zero = 0 <= low < 0.5 * high
        axes.set_ylim(0 if from_zero else low - margin, high + margin)


def _set_ticks(axes: Axes, log: bool) -> None:
    """About five round values per axis; 1-2-5 or powers of ten if a log axis spans enough."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = axes.get_ylim()
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick_text(value)))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    decades = math.log10(high) - math.log10(low) if log else 0.0
    if decades >= 4:
        axes.yaxis.set_major_locator(LogLocator(10))
    elif decades >= 1:
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    digits = _tick_digits(low, high)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick_text(value, digits)))


def _tick_digits(low: float, high: float) -> int:
    """Significant digits that tell the ticks of a linear axis apart."""
    steps = max(abs(low), abs(high)) / (high - low) * 10
    return max(4, math.ceil(math.log10(steps)) + 1)


def _tick_text(value: float, digits: int = 4) -> str:
    """`0.05`, `20k`, `3e-5`."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.{digits}g}k"
    return f"{value:.{digits}g}"


def _label_marks(axes: Axes, panel: Panel) -> None:
    """Words beside the marks, in lanes under the top of the axes."""
    left, right = axes.get_xlim()
    width = AXES_WIDTH * POINTS_PER_INCH
    points_per_step = width / (right - left)
    labels = [
        (
            (mark.step - left) * points_per_step,
            text_width(axes, mark.label, LABEL_SIZE) + 2 * LABEL_GAP,
            mark.label,
        )
        for mark in panel.marks
        if mark.label
    ]
    for place in label_places(labels, width):
        axes.annotate(
            place.label,
            (left + place.x / points_per_step, 1),
            xycoords=("data", "axes fraction"),
            fontsize=LABEL_SIZE,
            xytext=(-LABEL_GAP if place.flipped else LABEL_GAP, -2 - LANE_HEIGHT * place.lane),
            textcoords="offset points",
            va="top",
            ha="right" if place.flipped else "left",
            bbox={"facecolor": PAPER, "alpha": 0.8, "linewidth": 0, "pad": 0.8},
        )


class LabelPlace(NamedTuple):
    """Where a label goes: beside `x` (left of it if flipped), so many lanes below the top."""

    x: float
    flipped: bool
    lane: int
    label: str


def label_places(labels: Sequence[tuple[float, float, str]], right: float) -> list[LabelPlace]:
    """Places of labels beside vertical lines, none over another.

    labels: x, width and text, from left to right; right: the edge that none may cross.
    """
    lane_ends: list[float] = []
    places = []
    for x, width, label in labels:
        flipped = x + width > right
        start = x - width if flipped else x
        lane = next((k for k, end in enumerate(lane_ends) if end <= start), len(lane_ends))
        lane_ends[lane : lane + 1] = [start + width]
        places.append(LabelPlace(x, flipped, lane, label))
    return places
