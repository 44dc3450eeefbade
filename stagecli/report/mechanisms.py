"""Reports of the mechanisms of a run, whichever there are.

Figures of the metrics are columns `stage/NAME/FIGURE`. The mechanism that measures the regime is
left out of those: it has sections of its own, from the probes. Other columns of the probes are read
by their mechanism.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stagecli.errors import significant
from stagecli.files import JsonRow, number
from stagecli.report.curves import series, thin
from stagecli.stage import registry
from stagecli.stage.probe_columns import ProbeColumns
from stagecli.stage.words import figure_meaning

PREFIX = "stage/"
FIGURE_GAP = "   "  # between the figures of a mechanism in a line


def names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns `stage/NAME/FIGURE` that a run has, mechanism by mechanism in the order written."""
    columns = dict.fromkeys(key for row in rows for key in row if key.startswith(PREFIX))
    shown = [key for key in columns if parts(key)[0] != registry.REGIME]
    order = list(dict.fromkeys(parts(key)[0] for key in shown))
    return sorted(shown, key=lambda key: order.index(parts(key)[0]))


def parts(key: str) -> tuple[str, str]:
    """`stage/NAME/cosine_block1` -> (NAME, cosine_block1)."""
    mechanism, _, figure = key.removeprefix(PREFIX).partition("/")
    return mechanism, figure


def label(key: str) -> str:
    """`stage/NAME/cosine_block1` -> `NAME cosine_block1`."""
    return " ".join(parts(key))


def figure_words(keys: Iterable[str]) -> list[str]:
    """`NAME lambda: weight of ...`, a line for each kind of figure among these columns."""
    lines: dict[str, None] = {}
    for key in keys:
        mechanism, figure = parts(key)
        known = figure_meaning(mechanism, figure)
        if known is not None:
            lines[f"{mechanism} {known[0]}: {known[1]}"] = None
    return list(lines)


def together(keys: Iterable[str]) -> dict[tuple[str, str], list[str]]:
    """(mechanism, first word of the figure) -> columns that share a panel, such as all blocks'
    cosines.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for key in keys:
        mechanism, figure = parts(key)
        word = re.split(r"[_\d]", figure)[0] or figure
        groups.setdefault((mechanism, word), []).append(key)
    return groups


def figures(row: Mapping[str, Any]) -> dict[str, str]:
    """Mechanism -> its figures of one row as text: `lambda 0.5   cosine_block1 0.33`."""
    texts: dict[str, list[str]] = {}
    for key in names([row]):
        mechanism, figure = parts(key)
        value = number(row[key])
        if value is not None:
            texts.setdefault(mechanism, []).append(f"{figure} {significant(value, 3)}")
    return {mechanism: FIGURE_GAP.join(pieces) for mechanism, pieces in texts.items()}


# -- columns of the probes -------------------------------------------------------------------------


def probe_summaries(
    rows: Sequence[JsonRow], events: Sequence[JsonRow], *, points: int = 60
) -> dict[str, JsonRow | None]:
    """Mechanism -> what its columns of the probes show, ready for JSON; None where a run has none.

    rows: of probes.jsonl, in order; events: all of the run; points: per curve in "series".
    """
    return {
        name: probe_summary(name, columns, rows, events, points=points)
        for name, columns in registry.probe_columns().items()
    }


def probe_summary(
    name: str,
    columns: ProbeColumns,
    rows: Sequence[JsonRow],
    events: Sequence[JsonRow],
    *,
    points: int = 60,
) -> JsonRow | None:
    """The summary of one mechanism, with its curves, events and conclusions; None where there is
    none.
    """
    summary = columns.summary(rows)
    if summary is None:
        return None
    curves = {}
    for curve in columns.curves:
        thinned = thin(*series(rows, curve.column), points)
        if thinned:
            steps = [round(point[0]) for point in thinned]
            curves[curve.name] = {"step": steps, "value": [point[1] for point in thinned]}
    own = [dict(event) for event in events if event.get("mechanism") == name]
    return {
        **summary,
        "series": curves,
        "events": own,
        "reading": columns.sentences(summary, own),
    }


def transitions(events: Iterable[JsonRow]) -> list[JsonRow]:
    """The events that changed a mechanism's state."""
    return [event for event in events if event.get("from") != event.get("to")]
