"""The report of a study, finished or half done: terminal, JSON, Markdown and HTML. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stagecli.errors import EXIT_FAILED, StageError
from stagecli.files import JsonRow, write_atomic, write_json
from stagecli.report.formats import ascii_text
from stagecli.study.analysis import analyse
from stagecli.study.pages import gap_lists, html_page, markdown_page
from stagecli.study.panels import study_panels
from stagecli.study.report_table import ReportTable
from stagecli.study.results import read_study
from stagecli.study.scores import best_strengths
from stagecli.study.tables import report_tables
from stagecli.terminal.console import Console

__all__ = ["write_report"]


def write_report(study_dir: Path, console: Console) -> list[Path]:
    """Print the report of a study, half done or finished, and write report.json, report.md and
    report.html into its directory; returns their paths.

    With --json the document of report.json is printed instead. Raises StageError: no study, or
    files that cannot be written.
    """
    results = read_study(study_dir)
    strengths = best_strengths(results)
    document = analyse(results, strengths)
    tables = report_tables(results.plan, document)
    page = html_page(document, tables, study_panels(results, strengths))
    paths = [study_dir / f"report.{suffix}" for suffix in ("json", "md", "html")]
    try:
        write_json(paths[0], document)
        write_atomic(paths[1], markdown_page(document, tables))
        write_atomic(paths[2], page)
    except OSError as problem:
        raise StageError(
            f"cannot write the report into `{study_dir}`: {problem}",
            hint="free some space, or check the permissions of the directory",
            exit_code=EXIT_FAILED,
        ) from problem
    console.result(document, lambda: _print(document, tables, console))
    return paths


def _print(document: JsonRow, tables: Sequence[ReportTable], console: Console) -> None:
    """Conclusions, what is missing, and the brief tables; the files have the rest."""
    plain = console.ascii_only
    console.text(f"Study {document['name']}", style="bold")
    for sentence in document["conclusions"]:
        console.text(f"- {ascii_text(sentence, plain)}")
    for title, notes in gap_lists(document):
        console.text()
        console.text(title, style="bold")
        for note in notes:
            console.text(f"- {note}")
    for table in tables:
        if not table.brief:
            continue
        console.text()
        rows = [[ascii_text(cell, plain) for cell in row] for row in table.rows]
        console.table(ascii_text(table.title, plain), table.columns, rows)
        for note in table.notes:
            console.text(note, style="dim")
