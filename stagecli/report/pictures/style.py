"""Sizes and colours of pictures, and what curves and heat maps share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Inches.
WIDTH = 5.8
AXES_LEFT = 0.72
AXES_WIDTH = 4.9
AXES_HEIGHT = 2.05
ABOVE_AXES = 0.38  # the title
BELOW_AXES = 0.5  # tick labels and the name of the axis
LEGEND_LINE = 0.19

POINTS_PER_INCH = 72

INK = "#222222"
SOFT = "#666666"
RULE = "#dddddd"
PAPER = "#ffffff"
PAGE_COLOURS = {INK: "var(--ink)", SOFT: "var(--soft)", RULE: "var(--rule)", PAPER: "var(--paper)"}
"""Colours of text, grid and background, and the CSS variables that replace them in a page."""

LEGEND_SIZE = 7.5
_SETTINGS: dict[str, Any] = {
    "svg.hashsalt": "stagecli",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 8,
    "text.color": INK,
    "text.parse_math": False,  # a run may have a `$` in its name
    "axes.labelcolor": SOFT,
    "axes.edgecolor": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "ytick.major.size": 0,
    "legend.fontsize": LEGEND_SIZE,
    "legend.frameon": False,
    "legend.labelcolor": SOFT,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0,
    "legend.columnspacing": 1.4,
    "legend.handlelength": 2.4,
}


@contextmanager
def picture_settings() -> Iterator[None]:
    """matplotlib's defaults with ours on top, whatever configuration the user has."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)  # type: ignore[arg-type]
        yield


def add_tooltip(artist: Any, text: str, tooltips: dict[str, str]) -> None:
    """Name an artist and remember the text that a page shows over it: name -> text."""
    name = f"tooltip-{len(tooltips)}"
    artist.set_gid(name)
    tooltips[name] = text


def text_width(axes: Axes, text: str, size: float) -> float:
    """Width of a text in points."""
    drawn = axes.text(0, 0, text, fontsize=size)
    width = drawn.get_window_extent().width * POINTS_PER_INCH / axes.figure.dpi
    drawn.remove()
    return float(width)
