"""Draws a similarity matrix of blocks with the borders of their groups: as SVG, or on axes of matplotlib."""

from __future__ import annotations

import html as escaping
from dataclasses import dataclass
from typing import Any

from stagecli.stage.probe_columns import GroupedMatrix

# of every panel, in SVG units
WIDTH = 560
HEIGHT = 270
LEFT = 62
RIGHT = 22
TOP = 34
BOTTOM = 34
# Light to dark in even steps of lightness, so that it also reads in grey.
SHADES = ((247, 251, 255), (198, 219, 239), (107, 174, 214), (33, 113, 181), (8, 48, 107))
SELF = "#bbbbbb"  # a block with itself
BORDER = "#d55e00"
BAR = 40  # steps of the colour bar


@dataclass(frozen=True)
class HeatMap:
    """A matrix of blocks to draw.

    matrix: [L][L]; low, high: values of the lightest and the darkest colour; boundaries: blocks,
    from 1, after which a group ends; names: of the groups, in order of depth, empty where none are
    known.
    """

    title: str
    matrix: list[list[float]]
    low: float
    high: float
    boundaries: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, matrix: GroupedMatrix, suffix: str = "") -> HeatMap:
        """The drawing of a mechanism's matrix; suffix: of the title."""
        low, high = matrix.bounds
        return cls(
            title=f"{matrix.title}, step {matrix.step:,}{suffix}",
            matrix=matrix.values,
            low=low,
            high=high,
            boundaries=matrix.boundaries,
            names=matrix.group_names,
        )

    @property
    def groups(self) -> list[tuple[int, int, str]]:
        """(first block from 0, end of the range, name) of every group."""
        edges = (0, *self.boundaries, len(self.matrix))
        return list(zip(edges, edges[1:], self.names, strict=False))

    @property
    def numbered(self) -> range:
        """Blocks, from 0, whose number is written beside the matrix."""
        L = len(self.matrix)
        return range(0, L, 1 if L <= 12 else -(-L // 9))


def colour(share: float) -> str:
    """`#rrggbb` of a share in [0, 1] of the way from low to high."""
    at = min(max(share, 0.0), 1.0) * (len(SHADES) - 1)
    k = min(int(at), len(SHADES) - 2)
    mixed = (round(a + (b - a) * (at - k)) for a, b in zip(SHADES[k], SHADES[k + 1], strict=True))
    return "#" + "".join(f"{v:02x}" for v in mixed)


def svg(drawn: HeatMap, x: float = 0, y: float = 0) -> str:
    """An <svg> element of WIDTH x HEIGHT; colours of text come from a style sheet."""
    L = len(drawn.matrix)
    span = (drawn.high - drawn.low) or 1.0
    side = (HEIGHT - TOP - BOTTOM) / L
    left = LEFT + 20
    out = [
        f'<svg x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    ]
    out.append(f'<text class="title" x="{LEFT}" y="18">{escaping.escape(drawn.title)}</text>')
    for i, row in enumerate(drawn.matrix):
        for j, value in enumerate(row):
            fill = SELF if i == j else colour((value - drawn.low) / span)
            place = f'x="{left + side * j:.2f}" y="{TOP + side * i:.2f}" width="{side + 0.3:.2f}"'
            out.append(
                f'<rect {place} height="{side + 0.3:.2f}" fill="{fill}">'
                f"<title>blocks {i + 1} and {j + 1}: {value:.3f}</title></rect>"
            )
    for k in drawn.numbered:
        middle = side * (k + 0.5)
        out.append(
            f'<text class="tick" x="{left - 5}" y="{TOP + middle + 4:.1f}" text-anchor="end">{k + 1}</text>'
        )
        out.append(
            f'<text class="tick" x="{left + middle:.1f}" y="{HEIGHT - 20}" text-anchor="middle">{k + 1}</text>'
        )
    out.append(
        f'<text class="tick" x="{left + side * L / 2:.1f}" y="{HEIGHT - 5}" text-anchor="middle">block</text>'
    )
    for first, end, name in drawn.groups:
        place = f'x="{left + side * first:.2f}" y="{TOP + side * first:.2f}"'
        frame = f"{side * (end - first):.2f}"
        out.append(
            f'<rect {place} width="{frame}" height="{frame}" fill="none" stroke="{BORDER}" stroke-width="2.2"/>'
        )
        at = f'x="{left + side * L + 7:.1f}" y="{TOP + side * (first + end) / 2 + 4:.1f}"'
        out.append(f"<text {at}>{escaping.escape(name)}</text>")
    return "\n".join([*out, *_bar(drawn, left + side * L + 60), "</svg>"])


def _bar(drawn: HeatMap, x: float) -> list[str]:
    """The colours and what they stand for."""
    height = HEIGHT - TOP - BOTTOM
    step = height / BAR
    out = []
    for k in range(BAR):
        place = f'x="{x:.1f}" y="{TOP + step * k:.2f}" width="14" height="{step + 0.3:.2f}"'
        out.append(f'<rect {place} fill="{colour(1 - (k + 0.5) / BAR)}"/>')
    for share, what in ((0.0, ""), (0.5, " similarity"), (1.0, "")):
        value = drawn.low + share * (drawn.high - drawn.low)
        middle = TOP + height * (1 - share)
        out.append(
            f'<text class="tick" x="{x + 20:.1f}" y="{middle + 4:.1f}">{value:.2f}{what}</text>'
        )
    keys = [("a block with itself", f'fill="{SELF}"')]
    if drawn.names:
        keys.append(("a group of blocks", f'fill="none" stroke="{BORDER}" stroke-width="2"'))
    for k, (what, paint) in enumerate(keys):
        at = x + 20, TOP + 24 + 18 * k
        out.append(f'<rect x="{at[0]:.1f}" y="{at[1]}" width="12" height="12" {paint}/>')
        out.append(f'<text class="tick" x="{at[0] + 19:.1f}" y="{at[1] + 10}">{what}</text>')
    return out


def matplotlib(drawn: HeatMap, axis: Any) -> None:
    """The same on axes of matplotlib."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    L = len(drawn.matrix)
    blues = LinearSegmentedColormap.from_list("blocks", [colour(k / 20) for k in range(21)])
    colours = blues.with_extremes(bad=SELF)
    cells = [
        [float("nan") if i == j else v for j, v in enumerate(row)]
        for i, row in enumerate(drawn.matrix)
    ]
    image = axis.imshow(cells, cmap=colours, vmin=drawn.low, vmax=max(drawn.high, drawn.low + 1e-9))
    for first, end, name in drawn.groups:
        size = end - first
        axis.add_patch(
            Rectangle(
                (first - 0.5, first - 0.5), size, size, fill=False, edgecolor=BORDER, linewidth=1.8
            )
        )
        axis.annotate(
            name,
            (L - 0.5, (first + end - 1) / 2),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            annotation_clip=False,
        )
    axis.set_xticks(list(drawn.numbered), [str(k + 1) for k in drawn.numbered], fontsize=8)
    axis.set_yticks(list(drawn.numbered), [str(k + 1) for k in drawn.numbered], fontsize=8)
    axis.set_xlabel("block")
    axis.set_title(drawn.title, fontsize=10, loc="left")
    axis.set_anchor("W")
    bar = axis.inset_axes(
        (1.16, 0, 0.06, 1)
    )  # its room would be taken from every panel of the column
    bar.figure.colorbar(
        image, cax=bar, label="similarity" + ("; frames: groups" if drawn.names else "")
    )
