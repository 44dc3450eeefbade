"""Rows of a CSV or TSV file, strictly: no quotation mark can swallow the rows that follow it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stagecli.data.finding import SUFFIXES
from stagecli.data.rows import caption_columns
from stagecli.data.text_files import EXCERPT
from stagecli.errors import Problem, StageError
from stagecli.files import JsonRow

LONGEST = 20  # lines that one quoted field may span
DELIMITER_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}


class CsvRow(NamedTuple):
    """One row by column, or its problem with the offending text; number: of its first line."""

    number: int
    columns: JsonRow | None
    problem: str | None = None
    excerpt: str | None = None


class Columns(NamedTuple):
    """The columns that a header must have; caption: None where captions are not needed."""

    path: str
    caption: str | None


def csv_rows(path: Path, text: str, wanted: Columns) -> Iterator[CsvRow]:
    """The rows of a CSV file with a header; a file ending in .tsv is separated by tabs.

    A quoted field may span lines, as long as they are few and none of them is a row of its own;
    otherwise its row is a problem, and reading goes on with the next line. Raises StageError where
    the header lacks a column, or names one twice.
    """
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    lines = list(io.StringIO(text, newline=""))
    header, position, problem = _record(lines, 0, delimiter, [])
    if problem:
        raise StageError("cannot read the manifest", problems=[Problem(f"{path}:1", problem)])
    first = _record(lines, position, delimiter, [])[0] if position < len(lines) else []
    _require_columns(path, dict(zip(header, first, strict=False)), header, wanted, delimiter)
    audio = header.index(wanted.path)
    while position < len(lines):
        number = position + 1
        fields, position, problem = _record(lines, position, delimiter, header, audio)
        excerpt = lines[number - 1].strip()[:EXCERPT]
        if problem:
            yield CsvRow(number, None, problem, excerpt)
        elif fields and len(fields) != len(header):
            problem = (
                f"has {len(fields)} fields, but the header {len(header)} "
                f"(separated by {DELIMITER_NAMES[delimiter]}); "
                "a field with a separator or a quotation mark in it must be quoted"
            )
            yield CsvRow(number, None, problem, excerpt)
        elif fields:
            yield CsvRow(number, dict(zip(header, fields, strict=True)))


def _record(
    lines: Sequence[str], start: int, delimiter: str, header: Sequence[str], audio: int = 0
) -> tuple[list[str], int, str | None]:
    """(fields, first line after the record, problem) of the record that starts at a line.

    audio: number of the column of paths.
    """

    def record_lines() -> Iterator[str]:
        yield lines[start]
        for line in lines[start + 1 : start + LONGEST]:
            if _is_row(line, delimiter, len(header), audio):
                return
            yield line

    if not lines:
        return [], 0, None
    reader = csv.reader(record_lines(), delimiter=delimiter, strict=True)
    try:
        fields = next(reader, [])
    except csv.Error as error:
        problem = f"is not CSV: {error}"
        if "unexpected end of data" in str(error):
            problem = (
                'a quotation mark (") opens a field here, and none closes it before the next row'
            )
        return [], start + 1, problem
    return fields, start + reader.line_num, None


def _is_row(line: str, delimiter: str, count: int, audio: int) -> bool:
    """Whether a line has as many fields as the header, and an audio file where its path belongs."""
    try:
        fields = next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return False
    return len(fields) == count and is_audio_name(fields[audio])


def audio_column(columns: Mapping[str, Any]) -> str | None:
    """The first column that names an audio file, to be suggested for `data.path_column`."""
    return next((name for name, value in columns.items() if is_audio_name(value)), None)


def is_audio_name(value: Any) -> bool:
    """Whether a cell names an audio file by its ending."""
    return isinstance(value, str) and Path(value).suffix.lower() in SUFFIXES


def _require_columns(
    path: Path, first: JsonRow, header: Sequence[str], wanted: Columns, delimiter: str
) -> None:
    """Raises StageError for a header without what is wanted; first: the row below it."""
    separated = f"separated by {DELIMITER_NAMES[delimiter]}"
    missing = [] if wanted.path in header else [f"`{wanted.path}`"]
    if wanted.caption is not None and not caption_columns(header, wanted.caption):
        missing.append(f"`{wanted.caption}`")
    repeated = sorted({f"`{name}`" for name in header if header.count(name) > 1})
    if not missing and not repeated:
        return
    columns = ", ".join(f"`{name}`" for name in header) or "none"
    plural = "s" if len(missing) > 1 else ""
    title = f"the manifest has no column{plural} {' and '.join(missing)}"
    if not missing:
        title = f"the manifest has two columns {repeated[0]}"
    names = [name for name in wanted if name is not None]
    hint = f"name the columns in the first line ({', '.join(names)}), or say what they are called: "
    hint += "--set data.path_column=NAME --set data.caption_column=NAME"
    audio = audio_column(first)
    if wanted.path not in header and audio:
        hint = f"`{audio}` names audio files: --set data.path_column={audio}"
    others = [mark for mark in DELIMITER_NAMES if mark != delimiter and mark in "".join(header)]
    if len(header) == 1 and others:
        hint = (
            f"it looks separated by {DELIMITER_NAMES[others[0]]}: separate it by commas, "
            "or by tabs in a file that ends in .tsv"
        )
    raise StageError(
        title,
        problems=[Problem(f"{path}:1", f"its columns, {separated}: {columns}")],
        hint=hint,
    )
