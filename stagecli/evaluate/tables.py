"""Documents of scores as tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stagecli.errors import counted, significant
from stagecli.evaluate.figures import (
    NoteMarks,
    base_metric,
    figure_of_row,
    head_text,
    legend,
    memorisation_lines,
    metric_names,
    signed_interval,
    verdict,
)
from stagecli.evaluate.file_table import SIGNS, show_files
from stagecli.evaluate.titles import document_title
from stagecli.files import JsonRow
from stagecli.metrics.registry import METRICS
from stagecli.terminal.console import Console


def show(documents: Sequence[JsonRow], differences: Sequence[JsonRow], console: Console) -> None:
    """Tables with a row per metric and a column per system, then conventions, then differences."""
    for document, following in zip(documents, [*documents[1:], None], strict=True):
        _show_document(document, console)
        # Documents with the same conventions share one list of them.
        if following is None or following["conventions"] != document["conventions"]:
            console.text()
            for name, convention in document["conventions"].items():
                console.text(f"{name}{_unit(name)}: {convention}")
        console.text()
    for difference in differences:
        _show_difference(difference, console)


def _unit(name: str) -> str:
    """The unit of a metric, such as " (dB)"; other conventions have none."""
    metric = METRICS.get(name.partition(":")[0])
    return f" ({metric.unit})" if metric and metric.unit else ""


def _show_document(document: JsonRow, console: Console) -> None:
    title = document_title(document)
    console.text(f"{title}  ({document['task']}, {head_text(document)})", style="bold")
    marks = NoteMarks()
    names = metric_names(document)
    by_label = {name: name.partition(":")[2] for name in names if ":" in name}
    plain = {name: name for name in names if name not in by_label}
    for title, rows in _rows_by_table(document).items():
        _table(rows, plain, title=title, first_column="metric", marks=marks, console=console)
    show_files(document, console)
    if by_label:
        # A table of its own: each label has its own classifier, and not every system is scored.
        _table(
            document["rows"],
            by_label,
            title="prompt accuracy, by classifiers of real clips",
            first_column="label",
            marks=marks,
            console=console,
        )
    console.text("<: lower is better; >: higher is better")
    for line in [*legend(document, marks), *memorisation_lines(document)]:
        console.text(line)


def _rows_by_table(document: JsonRow) -> dict[str, list[JsonRow]]:
    """{title: rows}, a table per cutoff and group."""
    tables: dict[str, list[JsonRow]] = {}
    for row in document["rows"]:
        parts = []
        if "cutoff" in row:
            parts.append(f"cutoff {row['cutoff']:g} Hz")
        if "group" in row:
            parts.append(f"{row['group']} ({counted(row['n'], 'clip')})")
        tables.setdefault(", ".join(parts), []).append(row)
    return tables


def _table(
    rows: Sequence[JsonRow],
    shown: Mapping[str, str],
    *,
    title: str,
    first_column: str,
    marks: NoteMarks,
    console: Console,
) -> None:
    """A row per metric of `shown` ({name: how it is printed}), a column per system that has one."""
    rows = [row for row in rows if any(name in row["metrics"] for name in shown)]
    body = [
        [
            printed,
            SIGNS[base_metric(name).better],
            *(figure_of_row(name, row, marks) for row in rows),
        ]
        for name, printed in shown.items()
        if any(name in row["metrics"] for row in rows)
    ]
    console.table(title, [first_column, "", *(row["system"] for row in rows)], body)
    console.text()


def _show_difference(difference: JsonRow, console: Console) -> None:
    console.text("B - A", style="bold")
    console.text(f"A: {difference['a']}")
    console.text(f"B: {difference['b']}")
    for row in difference["rows"]:
        _show_difference_row(row, console)
    if difference["rows"]:
        console.text(
            "intervals: paired bootstrap over the clips; not corrected for the number of "
            "comparisons"
        )
    for note in difference["notes"]:
        console.text(note)
    console.text()


def _show_difference_row(row: JsonRow, console: Console) -> None:
    marks = NoteMarks()
    body = []
    for name, metric in row["metrics"].items():
        value = significant(metric["value"], signed=True)
        if metric.get("note"):
            value += f" {marks.mark(metric['note'])}"
        better = base_metric(name).better
        body.append([name, better, value, signed_interval(metric), verdict(name, metric)])
    title = f"{row['system']}, {counted(row['n'], 'clip')}"
    if "cutoff" in row:
        title += f", cutoff {row['cutoff']:g} Hz"
    console.table(title, ["metric", "better", "B - A", "95 % interval", ""], body)
    for line in marks.lines():
        console.text(line)
    console.text()
