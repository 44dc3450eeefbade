"""A document of scores as one table of texts, and the lines that explain its signs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stagecli.evaluate.figures import NoteMarks, figure_of_row, legend, memorisation_lines
from stagecli.files import JsonRow


@dataclass(frozen=True)
class ScoreTable:
    """heads: of the columns; body: the rows; notes: lines to print under it."""

    heads: list[str]
    body: list[list[str]]
    notes: list[str]


def score_table(document: JsonRow, titles: Mapping[str, str]) -> ScoreTable:
    """The scores of all systems; titles: metric -> how it is named in the table."""
    marks = NoteMarks()
    if any("cutoff" in row for row in document["rows"]):
        heads, body = _by_cutoff(document, titles, marks)
    else:
        heads, body = _by_metric(document, titles, marks)
    return ScoreTable(heads, body, [*legend(document, marks), *memorisation_lines(document)])


def _by_cutoff(
    document: JsonRow, titles: Mapping[str, str], marks: NoteMarks
) -> tuple[list[str], list[list[str]]]:
    """A row per cutoff, group and system."""
    rows = document["rows"]
    grouped = any("group" in row for row in rows)
    heads = ["cutoff Hz", *(["clips of"] if grouped else []), "system", "n", *titles.values()]
    body = []
    for row in rows:
        cells = [f"{row['cutoff']:g}"]
        if grouped:
            cells.append(row.get("group", "all"))
        cells += [row["system"], str(row["n"])]
        cells += [figure_of_row(name, row, marks) for name in titles]
        body.append(cells)
    return heads, body


def _by_metric(
    document: JsonRow, titles: Mapping[str, str], marks: NoteMarks
) -> tuple[list[str], list[list[str]]]:
    """A row per metric: without cutoffs there are many metrics and few systems."""
    rows = document["rows"]
    heads = ["metric", *(f"{row['system']} (n {row['n']})" for row in rows)]
    body = [
        [title, *(figure_of_row(name, row, marks) for row in rows)]
        for name, title in titles.items()
    ]
    return heads, body
