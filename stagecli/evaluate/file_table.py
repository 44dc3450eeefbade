"""The table of single files: a row per file, the worst first, in the columns that the width has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from stagecli.errors import counted
from stagecli.evaluate.figures import base_metric, metric_names
from stagecli.files import JsonRow
from stagecli.terminal.console import Console

MOST_FILES = 24  # rows that a reader takes in
LONGEST_NAME = 40
SHORTEST_NAME = 16  # columns that names have at least, before metrics are left out
SIGNS = {"lower": "<", "higher": ">"}
DECIMALS = {"dB": 2}  # by unit; 3 for all others
GAP = 2  # columns between two columns of the table


def show_files(document: JsonRow, console: Console) -> None:
    """A table per cutoff, where the user named the audio; a line where they are a run's own."""
    files = document.get("files", [])
    if "data" not in document and "generated" not in document:
        if files:
            console.text("scores of single clips: --csv FILE or --json")
        return
    by_cutoff: dict[float, list[JsonRow]] = {}
    for row in files:
        by_cutoff.setdefault(row["cutoff"], []).append(row)
    for cutoff, rows in by_cutoff.items():
        _show_cutoff(document, cutoff, rows, console)


def _show_cutoff(
    document: JsonRow, cutoff: float, rows: Sequence[JsonRow], console: Console
) -> None:
    # The model's files, the worst first, and the baselines of each.
    scored = [row for row in rows if row["kind"] != "baseline"]
    baselines: dict[str, dict[str, JsonRow]] = {}
    for row in rows:
        if row["kind"] == "baseline":
            baselines.setdefault(row["system"], {})[_clip(row)] = row
    if len(scored) < 2:
        return
    names = metric_names(document)
    first = names[0]
    scored.sort(key=lambda row: _badness(row, first))

    # The columns: the first metric of every system, then the others of the model.
    shown = scored[:MOST_FILES]
    columns = {_heading(first): [_cell(row, first) for row in shown]}
    for system, by_clip in baselines.items():
        columns[system] = [_cell(by_clip.get(_clip(row)), first) for row in shown]
    for name in names[1:]:
        columns[_heading(name)] = [_cell(row, name) for row in shown]
    paths = [_path(document, row) for row in shown]
    room = console.width
    left_out = _drop_columns(columns, min(SHORTEST_NAME, max(map(len, paths))), room)
    width = room - _total(columns) - GAP
    printed = [_shortened(path, max(SHORTEST_NAME, min(LONGEST_NAME, width))) for path in paths]

    # The table, and what it does not show.
    system = scored[0]["system"]
    title = f"by file, cutoff {cutoff:g} Hz: {system}, the worst {first} first"
    console.table(title, ["file", *columns], list(zip(printed, *columns.values(), strict=True)))
    if baselines:
        console.text(f"{', '.join(baselines)}: {first} of the same files")
    if len(scored) > len(shown):
        console.text(
            f"{counted(len(scored) - len(shown), 'better file is', 'better files are')} not shown"
        )
    if left_out:
        console.text(f"the terminal is too narrow for {', '.join(left_out)}")
    if left_out or len(scored) > len(shown):
        console.text("--csv FILE and --json have every file and metric")
    console.text()


def _clip(row: JsonRow) -> str:
    """The clip of a row, whichever system it is about."""
    return str(row.get("reference", row["file"]))


def _path(document: JsonRow, row: JsonRow) -> str:
    """The file relative to the folder that is scored; of a run on files, that of the reference."""
    key = "reference" if "generated" not in document and "reference" in row else "file"
    path = Path(row[key])
    folder = Path(document.get("generated") or document.get("reference") or ".")
    return (path.relative_to(folder) if folder in path.parents else path).as_posix()


def _badness(row: JsonRow, name: str) -> float:
    """Sorts the worst value first; one that is none comes before all."""
    value = row["metrics"][name]["value"] if name in row["metrics"] else None
    if value is None:
        return -float("inf")
    return float(value) if base_metric(name).better == "higher" else -float(value)


def _heading(name: str) -> str:
    """Such as "si_sdr dB >"."""
    metric = base_metric(name)
    unit = f" {metric.unit}" if metric.unit == "dB" else ""
    return f"{name}{unit} {SIGNS[metric.better]}"


def _cell(row: JsonRow | None, name: str) -> str:
    metric = row["metrics"].get(name) if row else None
    if metric is None or metric["value"] is None:
        return "-"
    return f"{metric['value']:.{DECIMALS.get(base_metric(name).unit, 3)}f}"


def _width(heading: str, cells: Sequence[str]) -> int:
    return max(map(len, [heading, *cells])) + GAP


def _drop_columns(columns: dict[str, list[str]], names: int, room: int) -> list[str]:
    """Remove columns from the right until all fit beside `names` columns; returns their metrics."""
    dropped: list[str] = []
    while len(columns) > 1 and names + GAP + _total(columns) > room:
        heading, _ = columns.popitem()
        dropped.insert(0, heading.split()[0])
    return dropped


def _total(columns: Mapping[str, Sequence[str]]) -> int:
    return sum(_width(heading, cells) for heading, cells in columns.items())


def _shortened(path: str, width: int) -> str:
    """The path, without its middle if it is longer than `width`."""
    if len(path) <= width:
        return path
    tail = (width - 3) // 2
    return f"{path[: width - 3 - tail]}...{path[-tail:]}"
