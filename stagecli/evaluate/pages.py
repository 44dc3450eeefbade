"""Documents of scores as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stagecli.errors import significant
from stagecli.evaluate.figures import (
    base_metric,
    head_text,
    metric_names,
    signed_interval,
    verdict,
)
from stagecli.evaluate.score_tables import score_table
from stagecli.evaluate.titles import document_title
from stagecli.files import JsonRow

COLUMNS = (
    "run",
    "checkpoint",
    "task",
    "split",
    "system",
    "cutoff",
    "group",
    "file",
    "metric",
    "value",
    "low",
    "high",
    "n",
    "left_out",
    "biased",
    "note",
    "unit",
    "better",
)


def csv_text(documents: Sequence[JsonRow], differences: Sequence[JsonRow]) -> str:
    """One line per figure, those of single files after the means.

    A difference has "SYSTEM, B - A" as system and both titles as run.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n", restval="")
    writer.writeheader()
    for document in documents:
        head = {"run": document.get("generated", "")}
        for key in ("run", "checkpoint", "task", "split"):
            if key in document:
                head[key] = document[key]
        for row in [*document["rows"], *document.get("files", [])]:
            writer.writerows(_csv_rows(head, row))
    for difference in differences:
        head = {"run": f"{difference['b']} - {difference['a']}"}
        for row in difference["rows"]:
            writer.writerows(_csv_rows(head, {**row, "system": f"{row['system']}, B - A"}))
    return stream.getvalue()


def _csv_rows(head: JsonRow, row: JsonRow) -> list[dict[str, Any]]:
    """A CSV row per metric of a row."""
    lines = []
    for name, metric in row["metrics"].items():
        entry = base_metric(name)
        line = {
            **head,
            **row,
            **metric,
            "unit": entry.unit,
            "better": entry.better,
            "metric": name,
        }
        lines.append({key: "" if value is None else value for key, value in line.items()})
    return lines


@dataclass
class Footnotes:
    """Footnotes of a page by key; equal texts under one name share one."""

    texts: dict[str, str] = field(default_factory=dict)

    def reference(self, name: str, text: str) -> str:
        """`[^name]`, numbered if the name stands for another text already."""
        base = name.replace(":", "-")
        key = base
        number = 1
        while self.texts.setdefault(key, text) != text:
            number += 1
            key = f"{base}-{number}"
        return f"[^{key}]"

    def lines(self) -> list[str]:
        return [f"[^{key}]: {text}" for key, text in self.texts.items()]


def markdown(documents: Sequence[JsonRow], differences: Sequence[JsonRow]) -> str:
    """Tables to paste into a page; conventions are footnotes, shared where they are the same."""
    footnotes = Footnotes()
    lines: list[str] = []
    for document in documents:
        lines += _document_lines(document, footnotes)
    for difference in differences:
        lines += _difference_lines(difference)
    return "\n".join([*lines, *footnotes.lines()]) + "\n"


def _document_lines(document: JsonRow, footnotes: Footnotes) -> list[str]:
    names = metric_names(document)
    conventions = document["conventions"]
    titles = {name: f"{name} {footnotes.reference(name, conventions[name])}" for name in names}
    # Conventions that belong to no metric, such as that of the input, follow the title.
    others = "".join(
        f" {key}{footnotes.reference(key, text)}."
        for key, text in conventions.items()
        if key not in names
    )
    scores = score_table(document, titles)
    return [
        f"`{document_title(document)}` ({head_text(document)}).{others}",
        "",
        *_markdown_table(scores.heads, scores.body),
        "",
        *(f"{line}  " for line in scores.notes),
        "",
    ]


def _difference_lines(difference: JsonRow) -> list[str]:
    body = []
    for row in difference["rows"]:
        system = f"{row['cutoff']:g} Hz" if "cutoff" in row else row["system"]
        for name, metric in row["metrics"].items():
            if metric["value"] is not None:
                value = significant(metric["value"], signed=True)
                interval = signed_interval(metric)
                n = str(metric["n"])
                body.append([system, name, n, value, interval, verdict(name, metric)])
    return [
        f"B - A: A is `{difference['a']}`, B is `{difference['b']}`; paired bootstrap 95 % "
        "intervals.",
        "",
        *_markdown_table(["", "metric", "n", "B - A", "95 % interval", ""], body),
        "",
        *(f"{note}  " for note in difference["notes"]),
        "",
    ]


def _markdown_table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = [
        "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"
        for cells in [heads, *body]
    ]
    return [lines[0], "|" + "---|" * len(heads), *lines[1:]]
