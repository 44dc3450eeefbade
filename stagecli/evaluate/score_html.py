"""The evaluations of runs as HTML, with the convention of every number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from stagecli.evaluate.figures import head_text, metric_names
from stagecli.evaluate.score_tables import score_table
from stagecli.evaluate.titles import document_title
from stagecli.files import JsonRow
from stagecli.metrics.registry import METRICS
from stagecli.report.page import table

__all__ = ["scores_html"]

NOT_SCORES = (KeyError, TypeError, ValueError, AttributeError)  # of a document that holds others


def scores_html(evaluations: Iterable[JsonRow]) -> str:
    """Documents of scores, newest last; empty without any.

    evaluations: {"file", "document"}, from `report.run_report`. What is no document of scores, or
    one of another version, is named.
    """
    html = ""
    for evaluation in evaluations:
        try:
            html += _document(evaluation["document"])
        except NOT_SCORES:
            file = escape(str(evaluation["file"]))
            html += f'<p class="note">{file} is not a document of scores of this version</p>'
    return html


def _document(document: JsonRow) -> str:
    titles = {name: _title(name) for name in metric_names(document)}
    scores = score_table(document, titles)
    name = document_title(document)
    conventions = "".join(
        f"<dt>{escape(str(key))}</dt><dd>{escape(str(text))}</dd>"
        for key, text in document["conventions"].items()
    )
    return (
        f'<h3>{escape(name)}</h3><p class="note">{escape(head_text(document))}</p>'
        f"{table(scores.heads, scores.body, f'scores of {name}')}{_lines(scores.notes)}"
        "<details><summary>How these numbers are computed</summary>"
        f"<dl>{conventions}</dl></details>"
    )


def _title(name: str) -> str:
    """`lsd, dB (lower is better)`; the name alone of a metric that this version does not have."""
    metric = METRICS.get(name.partition(":")[0])
    if metric is None:
        return name
    unit = f", {metric.unit}" if metric.unit else ""
    return f"{name}{unit} ({metric.better} is better)"


def _lines(lines: Sequence[str]) -> str:
    return f'<p class="note">{"<br>".join(map(escape, lines))}</p>' if lines else ""
