"""A study's report as a Markdown and as an HTML page. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from itertools import pairwise

from stagecli.files import JsonRow
from stagecli.report.drawing import Drawing
from stagecli.report.page import figures, page, table
from stagecli.study.report_table import ReportTable

FOOTER = """<footer>Curves: bold lines are means over seeds, at the points that all seeds have
reached; thin ones are single seeds. Each arm is drawn at its cfg_scale of the tables. Densities:
each column is the density of t between two probes, darker where more is trained.</footer>"""


def markdown_page(document: JsonRow, tables: Sequence[ReportTable]) -> str:
    """Conclusions, what is missing, and all tables."""
    lines = [f"# Study {document['name']}", ""]
    lines += [f"- {_markdown_text(sentence)}" for sentence in document["conclusions"]]
    for title, notes in gap_lists(document):
        lines += ["", f"## {title}", "", *(f"- {_markdown_text(note)}" for note in notes)]
    for one in tables:
        lines += ["", f"## {one.title}", ""]
        lines += [_markdown_row(one.columns), "|" + "---|" * len(one.columns)]
        lines += [_markdown_row(row) for row in one.rows]
        if one.notes:
            lines += ["", *(f"{_markdown_text(note)}  " for note in one.notes)]
    return "\n".join(lines).rstrip() + "\n"


def gap_lists(document: JsonRow) -> list[tuple[str, list[str]]]:
    """Headings and lists of what the study has no numbers of; empty lists are left out."""
    lists = [("Missing", document["missing"]), ("Not measured", document["not_measured"])]
    return [(title, notes) for title, notes in lists if notes]


def _markdown_row(cells: Sequence[str]) -> str:
    texts = (_markdown_text(cell).replace("|", "\\|") for cell in cells)
    return "| " + " | ".join(texts) + " |"


def _markdown_text(text: str) -> str:
    """One line without HTML, with its code in backticks."""
    return " ".join(re.sub("<(?=[a-zA-Z/!?])", "&lt;", text).split())


def html_page(document: JsonRow, tables: Sequence[ReportTable], drawings: Sequence[Drawing]) -> str:
    """One self-contained page: conclusions, curves, tables."""
    title = f"Study {document['name']}"
    body = [f"<h1>{escape(title)}</h1>", "<h2>Conclusions</h2>", _items(document["conclusions"])]
    for heading, notes in gap_lists(document):
        body += [f"<h2>{heading}</h2>", _items(notes)]
    if drawings:
        body.append(f"<h2>Curves</h2>{figures(drawings)}")
    for one in tables:
        body += [f"<h2>{escape(one.title)}</h2>", table(one.columns, one.rows, one.title)]
        body += [f'<p class="note">{escape(note)}</p>' for note in one.notes]
    return page(title, [*body, FOOTER])


def _items(sentences: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{_code(sentence)}</li>" for sentence in sentences) + "</ul>"


def _code(sentence: str) -> str:
    """The sentence for HTML, with its backticks as code."""
    pieces = [escape(piece) for piece in sentence.split("`")]
    if len(pieces) % 2 == 0:  # a lone backtick is itself
        return escape(sentence)
    opened = pieces[0]
    for number, (_, piece) in enumerate(pairwise(pieces)):
        opened += ("<code>" if number % 2 == 0 else "</code>") + piece
    return opened
