"""Draws a similarity matrix of blocks with frames around their groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stagecli.report.heatmap import HeatMap
from stagecli.report.pictures.style import SOFT, add_tooltip

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_heat_map"]

HEAT_COLOURS = ("#f7fbff", "#c6dbef", "#6baed6", "#2171b5", "#08306b")  # even steps of lightness
SELF_COLOUR = "#bbbbbb"  # a block compared with itself
BORDER_COLOUR = "#d55e00"


def draw_heat_map(axes: Axes, panel: HeatMap, tooltips: dict[str, str]) -> None:
    """The matrix at the left; the names of its groups and the colour bar beside it."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    colours = LinearSegmentedColormap.from_list("similarity", HEAT_COLOURS)
    scale = Normalize(panel.low, max(panel.high, panel.low + 1e-9))
    _draw_cells(axes, panel, lambda value: colours(scale(value)), tooltips)
    _draw_groups(axes, panel, tooltips)

    # A square at the left edge, blocks numbered from 1.
    depth = len(panel.matrix)
    axes.set(xlim=(-0.5, depth - 0.5), ylim=(depth - 0.5, -0.5))
    axes.set_aspect("equal", anchor="W")
    axes.grid(False)
    numbers = [str(block + 1) for block in panel.numbered]
    axes.set_xticks(list(panel.numbered), numbers)
    axes.set_yticks(list(panel.numbered), numbers)
    axes.set_xlabel("block")
    axes.set_title(panel.title)

    # The colour bar, in the room to the right of the square.
    bar = axes.inset_axes((1.3, 0, 0.07, 1))
    bar.grid(False)
    axes.figure.colorbar(ScalarMappable(scale, colours), cax=bar)
    notes = ["similarity of two blocks", "grey: a block with itself"]
    if panel.names:
        notes.append("framed: a group of blocks")
    axes.text(1.68, 1, "\n".join(notes), transform=axes.transAxes, va="top", color=SOFT)


def _draw_cells(
    axes: Axes, panel: HeatMap, colour_of: Callable[[float], Any], tooltips: dict[str, str]
) -> None:
    """One rectangle per pair of blocks, so that each has a tooltip."""
    from matplotlib.patches import Rectangle

    for i, row in enumerate(panel.matrix):
        for j, value in enumerate(row):
            colour: Any = SELF_COLOUR if i == j else colour_of(value)
            cell = Rectangle(
                (j - 0.5, i - 0.5), 1, 1, facecolor=colour, edgecolor=colour, linewidth=0.3
            )
            axes.add_patch(cell)
            add_tooltip(cell, f"blocks {i + 1} and {j + 1}: {value:.3f}", tooltips)


def _draw_groups(axes: Axes, panel: HeatMap, tooltips: dict[str, str]) -> None:
    """Frames around the groups, and their names beside the matrix."""
    from matplotlib.patches import Rectangle

    depth = len(panel.matrix)
    for first, end, name in panel.groups:
        size = end - first
        corner = (first - 0.5, first - 0.5)
        frame = Rectangle(
            corner,
            size,
            size,
            fill=False,
            edgecolor=BORDER_COLOUR,
            linewidth=1.8,
            clip_on=False,  # the outer frames lie on the edge of the axes
        )
        axes.add_patch(frame)
        add_tooltip(frame, f"group {name}", tooltips)
        axes.annotate(
            name,
            (depth - 0.5, (first + end - 1) / 2),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            annotation_clip=False,
        )
