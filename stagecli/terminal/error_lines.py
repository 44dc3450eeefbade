"""One problem of an error as lines: its place, what is wrong, and the source line."""

from __future__ import annotations

import re

from stagecli.errors import Problem, printable

__all__ = ["problem_lines"]


def problem_lines(problem: Problem, width: int) -> list[str]:
    """The place and the problem, then the source line with a marker under the column.

    Without control characters, which the place and the source line may have.
    """
    lines = [printable(f"  {problem.where.ljust(width)}  {problem.what}")]
    if problem.excerpt is None:
        return lines
    place = re.search(r":(\d+)(?::(\d+))?$", problem.where)
    line_number = place.group(1) if place else ""
    excerpt = printable(problem.excerpt.expandtabs(4).rstrip())
    lines.append(f"  {line_number:>5} | {excerpt}")
    if place and place.group(2):
        column = int(place.group(2)) - 1
        if column < len(excerpt):
            word = re.match(r"[\w.\-]+", excerpt[column:])
            length = len(word.group()) if word else 1
            lines.append(f"  {'':>5} | {' ' * column}{'^' * length}")
    return lines
