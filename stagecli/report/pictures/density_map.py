"""Draws the density of t over the steps, with its quantiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagecli.report.density_map import DensityMap
from stagecli.report.pictures.style import AXES_WIDTH, PAPER, add_tooltip

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_density_map"]

# Even steps of lightness, the first one near the page's own in light and in dark.
COLOURS = ("#eef4fb", "#c6dbef", "#6baed6", "#2171b5", "#08306b")
LINE_COLOUR = "#d55e00"
BAR_WIDTH = 0.1  # inches
BAR_GAP = 0.45  # inches beside the map, with the labels of the quantiles in them
BAR_LABELS = 0.3
MIDDLE = "50 %"
LABEL_DISTANCE = 0.07  # of t, between labels


def draw_density_map(axes: Axes, panel: DensityMap, tooltips: dict[str, str]) -> None:
    """The map at the left, its quantiles as lines labelled at their ends, and the colour bar."""
    from matplotlib.colors import LinearSegmentedColormap

    # The map: one rectangle per stretch and bin, with its edges in its colour, so that no seams
    # show.
    colours = LinearSegmentedColormap.from_list("density", COLOURS)
    bins = len(panel.heights[0])
    highest = max(max(column) for column in panel.heights)
    rows = list(zip(*panel.heights, strict=True))
    t_edges = [k / bins for k in range(bins + 1)]
    cells = axes.pcolormesh(
        panel.edges,
        t_edges,
        rows,
        cmap=colours,
        vmin=0,
        vmax=highest,
        edgecolors="face",
        linewidth=0.4,
    )
    add_tooltip(cells, panel.title, tooltips)

    # Quantiles: constant over each stretch, as the density is.
    for label, values in panel.quantiles.items():
        (line,) = axes.plot(
            panel.edges,
            [values[0], *values],
            drawstyle="steps-pre",
            color=LINE_COLOUR,
            linewidth=1.4 if label == MIDDLE else 0.9,
            linestyle="-" if label == MIDDLE else (0, (3, 2)),
        )
        add_tooltip(line, f"{label} of t below", tooltips)
    _label_quantiles(axes, panel)

    axes.set(xlim=(panel.edges[0], panel.edges[-1]), ylim=(0, 1))
    axes.grid(False)
    axes.set_title(panel.title)
    axes.set_xlabel("step; lines: shares of t below", loc="right")

    # The colour bar, in the space that the map leaves.
    left, bottom, width, height = axes.get_position().bounds
    inch = width / AXES_WIDTH
    map_width = width - (BAR_GAP + BAR_WIDTH + BAR_LABELS) * inch
    axes.set_position((left, bottom, map_width, height))
    place = (left + map_width + BAR_GAP * inch, bottom, BAR_WIDTH * inch, height)
    bar = axes.figure.add_axes(place)
    bar.grid(False)
    axes.figure.colorbar(cells, cax=bar)
    bar.set_facecolor(PAPER)


def _label_quantiles(axes: Axes, panel: DensityMap) -> None:
    """At the right end of each line, moved apart where lines are close."""
    height = -LABEL_DISTANCE
    for t, label in sorted((values[-1], label) for label, values in panel.quantiles.items()):
        height = max(t, height + LABEL_DISTANCE)
        axes.annotate(
            label,
            (1, height),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            color=LINE_COLOUR,
            annotation_clip=False,
        )
