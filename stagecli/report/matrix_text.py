"""Draws a similarity matrix of blocks with characters."""

from __future__ import annotations

from stagecli.stage.probe_columns import GroupedMatrix, group_letter

ASCII_SHADES = " .:-=+*#%@"
SHADES = " ░▒▓█"


def matrix_lines(matrix: GroupedMatrix | None, width: int, ascii_only: bool) -> list[str]:
    """A heading and a line per block, in at most `width` columns; no lines without a matrix.

    Shaded from the lowest to the highest similarity of different blocks; a blank between columns,
    and a line between rows, where a group ends.
    """
    if matrix is None:
        return []
    depth = len(matrix.values)
    gaps = len(matrix.boundaries)
    cell = 2 if 10 + 2 * depth + gaps <= width else 1
    if 10 + cell * depth + gaps > width:
        return [f"similarity of {depth} blocks: too wide for {width} columns"]
    low, high = matrix.bounds
    lines = [f"{matrix.title} at step {matrix.step:,}, {low:.2f} to {high:.2f}"]
    for block in range(depth):
        if block in matrix.boundaries:
            lines.append("")
        letter = group_letter(matrix.labels[block]) if matrix.labels else " "
        cells = _cells(matrix, block, cell, ascii_only)
        lines.append(f"  {block + 1:>3} {letter}  {cells}".rstrip())
    return lines


def _cells(matrix: GroupedMatrix, block: int, cell: int, ascii_only: bool) -> str:
    """One row of the matrix, `cell` characters per block."""
    shades = ASCII_SHADES if ascii_only else SHADES
    low, high = matrix.bounds
    text = ""
    for other, value in enumerate(matrix.values[block]):
        if other in matrix.boundaries:
            text += " "
        if other == block:
            text += ("\\" if ascii_only else "╲") * cell
            continue
        level = int(len(shades) * (value - low) / (high - low)) if high - low > 1e-9 else 0
        text += shades[max(0, min(len(shades) - 1, level))] * cell
    return text
