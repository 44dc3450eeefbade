"""What the mechanisms say in the rows of metrics: `stage/NAME/FIGURE`, whichever mechanisms there are.

The regime is left out: it has sections of its own, from the probes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stagecli.report.curves import number

PREFIX = "stage/"
APART = "regime"


def names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns `stage/NAME/FIGURE` that a run has, mechanism by mechanism in the order written."""
    found = dict.fromkeys(key for row in rows for key in row if key.startswith(PREFIX))
    kept = [key for key in found if parts(key)[0] != APART]
    order = list(dict.fromkeys(parts(key)[0] for key in kept))
    return sorted(kept, key=lambda key: order.index(parts(key)[0]))


def parts(key: str) -> tuple[str, str]:
    """`stage/guidance/cosine_block1` -> (guidance, cosine_block1)."""
    mechanism, _, figure = key.removeprefix(PREFIX).partition("/")
    return mechanism, figure


def label(key: str) -> str:
    """`stage/guidance/cosine_block1` -> `guidance cosine_block1`."""
    return " ".join(parts(key))


def together(keys: Iterable[str]) -> dict[tuple[str, str], list[str]]:
    """(mechanism, first word of the figure) -> columns drawn in one panel, such as the cosines of all blocks."""
    groups: dict[tuple[str, str], list[str]] = {}
    for key in keys:
        mechanism, figure = parts(key)
        groups.setdefault((mechanism, re.split(r"[_\d]", figure)[0] or figure), []).append(key)
    return groups


def figures(row: Mapping[str, Any]) -> dict[str, str]:
    """mechanism -> its figures of one row as text: `lambda 0.5  cosine_block1 0.33`."""
    found: dict[str, str] = {}
    for key in names([row]):
        mechanism, figure = parts(key)
        value = number(row[key])
        if value is not None:
            found[mechanism] = f"{found[mechanism]}   " if mechanism in found else ""
            found[mechanism] += f"{figure} {value:.3g}"
    return found
