"""Panels as pictures: inline SVG for the HTML page, and SVG, PNG or PDF files.

Every panel is equally wide and its axes are at the same place in it, so that panels side by side
can be compared. The same panels give the same bytes. Text stays text in SVG.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stagecli.report.density_map import DensityMap
from stagecli.report.drawing import Drawing
from stagecli.report.heatmap import HeatMap
from stagecli.report.panel import Panel
from stagecli.report.pictures.curves import draw_curves, legend_columns
from stagecli.report.pictures.density_map import draw_density_map
from stagecli.report.pictures.heatmap import draw_heat_map
from stagecli.report.pictures.style import (
    ABOVE_AXES,
    AXES_HEIGHT,
    AXES_LEFT,
    AXES_WIDTH,
    BELOW_AXES,
    LEGEND_LINE,
    PAGE_COLOURS,
    PAPER,
    WIDTH,
    picture_settings,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_file", "draw_inline"]

DOTS_PER_INCH = 130
COLUMNS = 2  # of panels in a file
# Without the time of drawing, so that the same panels give the same file.
METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
    "png": {},
}


def draw_inline(panel: Drawing) -> str:
    """One panel as an <svg> element for an HTML page that defines the colours `PAGE_COLOURS`.

    Full texts of marks, traces and cells are <title> elements, which browsers show as tooltips.
    """
    with picture_settings():
        figure, tooltips = _sheet([panel], columns=1)
        svg = _save(figure, "svg").decode("utf-8")
    return _for_page(svg, tooltips)


def draw_file(panels: Sequence[Drawing], file_format: str) -> bytes:
    """Panels in two columns as one picture; file_format: svg, png or pdf."""
    with picture_settings():
        figure, _ = _sheet(panels, columns=COLUMNS)
        figure.set_facecolor(PAPER)
        return _save(figure, file_format)


def _save(figure: Figure, file_format: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(
        buffer,
        format=file_format,
        dpi=DOTS_PER_INCH,
        facecolor=figure.get_facecolor(),
        metadata=METADATA[file_format],
    )
    return buffer.getvalue()


def _for_page(svg: str, tooltips: dict[str, str]) -> str:
    """The <svg> element alone, with the page's colours, tooltips, and no names of groups.

    Names of groups repeat from picture to picture, and an HTML page may hold each name once.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    for colour, variable in PAGE_COLOURS.items():
        svg = svg.replace(colour, variable)

    def opened(match: re.Match[str]) -> str:
        text = tooltips.get(match[1])
        return "<g>" if text is None else f"<g><title>{html.escape(text)}</title>"

    return re.sub(r'<g id="([^"]*)">', opened, svg)


def _sheet(panels: Sequence[Drawing], columns: int) -> tuple[Figure, dict[str, str]]:
    """A figure with panels in columns, and the tooltips of its parts: group id -> text."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(facecolor="none")
    FigureCanvasAgg(figure)  # measures texts

    # How high each row is depends on the legends in it.
    rows = [panels[k : k + columns] for k in range(0, len(panels), columns)]
    heights = [max(_panel_height(figure, panel) for panel in row) for row in rows]
    width = WIDTH * min(columns, len(panels))
    height = sum(heights)
    figure.set_size_inches(width, height)

    tooltips: dict[str, str] = {}
    top = height
    for row, row_height in zip(rows, heights, strict=True):
        bottom = top - ABOVE_AXES - AXES_HEIGHT
        for column, panel in enumerate(row):
            left = WIDTH * column + AXES_LEFT
            place = (left / width, bottom / height, AXES_WIDTH / width, AXES_HEIGHT / height)
            axes = figure.add_axes(place)
            if isinstance(panel, HeatMap):
                draw_heat_map(axes, panel, tooltips)
            elif isinstance(panel, DensityMap):
                draw_density_map(axes, panel, tooltips)
            else:
                draw_curves(axes, panel, tooltips)
        top -= row_height
    return figure, tooltips


def _panel_height(figure: Figure, panel: Drawing) -> float:
    """Inches, with the lines of the legend."""
    lines = 0
    if isinstance(panel, Panel) and panel.legend:
        axes = figure.add_axes((0, 0, 1, 1))
        lines = -(-len(panel.legend) // legend_columns(axes, panel))
        axes.remove()
    return ABOVE_AXES + AXES_HEIGHT + BELOW_AXES + LEGEND_LINE * lines
