"""What `evaluate` prints: tables, CSV, Markdown. Draws through the console only; no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from stagecli.evaluate.summary import JsonRow, name_of
from stagecli.metrics.registry import METRICS
from stagecli.terminal.console import Console, cell

BRACKETS = ("kad", "prompt_accuracy", "memorised_share")  # intervals that are not those of a mean
FEW = 10  # clips below which a bootstrap interval is too narrow
SIGNS = {"lower": "<", "higher": ">"}
HALF = "half of the bootstrap 95 % interval of the mean over clips"
WHOLE = "95 % interval, of KAD by bootstrap over clips, of shares by Wilson's formula"
BIASED = "no more clips than dimensions; biased upwards: compare at equal numbers of clips only"
FACTS = ("split", "clips", "sample_rate", "seed", "sampler", "steps", "cfg_scale", "judge")
COLUMNS = (
    "run",
    "checkpoint",
    "task",
    "split",
    "system",
    "cutoff",
    "group",
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


class Marks:
    """Letters for notes on single figures, explained under the table."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def of(self, note: str) -> str:
        if note not in self.notes:
            self.notes.append(note)
        return f"({self._letter(self.notes.index(note))})"

    @staticmethod
    def _letter(place: int) -> str:
        return (chr(ord("a") + place // 26 - 1) if place >= 26 else "") + chr(ord("a") + place % 26)

    def lines(self) -> list[str]:
        return [f"({self._letter(i)}): {note}" for i, note in enumerate(self.notes)]


def registered(name: str) -> Any:
    """The registry's entry; `prompt_accuracy:label` is one of prompt_accuracy."""
    return METRICS[name.partition(":")[0]]


def figure(name: str, metric: JsonRow | None, marks: Marks) -> str:
    """`1.234 +-0.05`, `0.99 [0.96, 1]`, with * where biased and a letter where there is a note; "" for no metric."""
    if metric is None:
        return ""
    text = cell(metric["value"]) + ("*" if metric.get("biased") else "")
    if metric.get("low") is not None and name.partition(":")[0] in BRACKETS:
        text += " [{}, {}]".format(
            *(f"{metric[end]:{'.2g' if name == 'kad' else '.2f'}}" for end in ("low", "high"))
        )
    elif metric.get("low") is not None:
        text += f" +-{(metric['high'] - metric['low']) / 2:.2g}"
    elif metric.get("std") is not None:
        text += f" (std {metric['std']:.2g})"
    if metric.get("left_out"):
        text += (
            f" {marks.of(str(metric['left_out']) + ' clips have no finite value and are left out')}"
        )
    return text + (f" {marks.of(metric['note'])}" if metric.get("note") else "")


def metric_names(document: JsonRow) -> list[str]:
    """Metrics of any row, in the order of the conventions."""
    there = {name for row in document["rows"] for name in row["metrics"]}
    return [name for name in document["conventions"] if name in there]


def _keys(document: JsonRow, marks: Marks) -> list[str]:
    """What the signs in a table mean."""
    figures = [(name, m) for row in document["rows"] for name, m in row["metrics"].items()]
    with_interval = {
        name.partition(":")[0] in BRACKETS for name, m in figures if m.get("low") is not None
    }
    few = any(row["n"] < FEW for row in document["rows"])
    lines = []
    if False in with_interval:
        lines.append(f"+-: {HALF}" + (f"; too narrow for fewer than {FEW} clips" if few else ""))
    if True in with_interval:
        lines.append(f"[ ]: {WHOLE}")
    if any(m.get("biased") for _, m in figures):
        lines.append(f"*: {BIASED}")
    return [*lines, *marks.lines()]


def show(documents: Sequence[JsonRow], differences: Sequence[JsonRow], out: Console) -> None:
    """Tables with a row per metric and a column per system, differences, then the convention of every number."""
    for place, document in enumerate(documents):
        head = ", ".join(
            f"{key.replace('_', ' ')} {cell(document[key])}" for key in FACTS if key in document
        )
        out.text(f"{name_of(document)}  ({document['task']}, {head})", style="bold")
        marks = Marks()
        by_label = [name for name in metric_names(document) if ":" in name]
        for title, rows in _tables(document):
            names = [name for name in metric_names(document) if name not in by_label]
            _table(title, "metric", {name: name for name in names}, rows, marks, out)
        if by_label:
            # A table of their own: a classifier each, not all systems, and long names.
            title = "prompt accuracy, by classifiers of real clips"
            _table(
                title,
                "label",
                {name: name.partition(":")[2] for name in by_label},
                document["rows"],
                marks,
                out,
            )
        for line in ["<: lower is better; >: higher", *_keys(document, marks), *_nearest(document)]:
            out.text(line)
        following = documents[place + 1] if place + 1 < len(documents) else None
        if following is None or following["conventions"] != document["conventions"]:
            out.text()
            for name, convention in document["conventions"].items():
                out.text(f"{name}: {convention}")
        out.text()
    for difference in differences:
        _show_difference(difference, out)


def _table(
    title: str,
    head: str,
    shown: Mapping[str, str],
    rows: Sequence[JsonRow],
    marks: Marks,
    out: Console,
) -> None:
    """A row per metric (name: what it is called here), a column per system that has one of them."""
    rows = [row for row in rows if any(name in row["metrics"] for name in shown)]
    body = [
        [called, SIGNS[registered(name).better], *(_of_row(name, row, marks) for row in rows)]
        for name, called in shown.items()
        if any(name in row["metrics"] for row in rows)
    ]
    out.table(title, [head, "", *(row["system"] for row in rows)], body)
    out.text()


def _of_row(name: str, row: JsonRow, marks: Marks) -> str:
    """`figure`, with its own number of clips where that is not the row's: not every clip has every label."""
    metric = row["metrics"].get(name)
    some = metric is not None and metric.get("n", row["n"]) != row["n"]
    return figure(name, metric, marks) + (
        f" of {metric['n']}" if metric is not None and some else ""
    )


def _tables(document: JsonRow) -> list[tuple[str, list[JsonRow]]]:
    """(title, rows) of each table: one per cutoff and group."""
    found: dict[str, list[JsonRow]] = {}
    for row in document["rows"]:
        parts = [f"cutoff {row['cutoff']:g} Hz"] if "cutoff" in row else []
        parts += [f"{row['group']} ({row['n']} clips)"] if "group" in row else []
        found.setdefault(", ".join(parts), []).append(row)
    return list(found.items())


def _nearest(document: JsonRow) -> list[str]:
    """The memorisation check in words."""
    found = document.get("memorisation")
    if not found:
        return []
    first = found["pairs"][0]
    return [
        f"nearest of {found['training_clips']} training clips: distance {found['samples']['0.5']:.3g} in the median "
        f"for samples, {found['real']['0.5']:.3g} for real clips not trained on; {found['copies']} exact copies",
        f"the nearest pair, to listen to: {first['sample']} and {first['training']} (distance {first['distance']:.3g}; "
        f"{100 * first['rank']:.0f} % of real clips are nearer)",
    ]


def verdict(name: str, metric: JsonRow) -> str:
    """Which of two is better, where the interval leaves out 0."""
    if metric["value"] is None or not metric.get("decided"):
        return "undecided"
    return (
        "B better" if (metric["value"] < 0) == (registered(name).better == "lower") else "A better"
    )


def _show_difference(difference: JsonRow, out: Console) -> None:
    out.text("B - A", style="bold")
    out.text(f"A: {difference['a']}")
    out.text(f"B: {difference['b']}")
    for row in difference["rows"]:
        marks = Marks()
        body = []
        for name, metric in row["metrics"].items():
            note = f" {marks.of(metric['note'])}" if metric.get("note") else ""
            span = (
                f"{metric['low']:+.3g} to {metric['high']:+.3g}"
                if metric.get("low") is not None
                else "-"
            )
            value = "-" if metric["value"] is None else f"{metric['value']:+.4g}"
            body.append([name, registered(name).better, value + note, span, verdict(name, metric)])
        title = f"{row['system']}, {row['n']} clips" + (
            f", cutoff {row['cutoff']:g} Hz" if "cutoff" in row else ""
        )
        out.table(title, ["metric", "better", "B - A", "95 % interval", ""], body)
        for line in marks.lines():
            out.text(line)
        out.text()
    if difference["rows"]:
        out.text(
            "intervals: paired bootstrap over the clips; not corrected for the number of comparisons"
        )
    for note in difference["notes"]:
        out.text(note)
    out.text()


# -- for files and pages -----------------------------------------------------------------------------


def csv_text(documents: Sequence[JsonRow], differences: Sequence[JsonRow]) -> str:
    """One line per figure; differences have "B - A" as their system and the two names as their run."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n", restval="")
    writer.writeheader()

    def line(head: JsonRow, row: JsonRow) -> None:
        for name, metric in row["metrics"].items():
            facts = {
                "unit": registered(name).unit,
                "better": registered(name).better,
                "metric": name,
            }
            shared = {**head, **row, **metric, **facts}
            writer.writerow(
                {
                    key: "" if value is None else value
                    for key, value in shared.items()
                    if key != "metrics"
                }
            )

    for document in documents:
        head = {
            key: document[key] for key in ("run", "checkpoint", "task", "split") if key in document
        }
        for row in document["rows"]:
            line({"run": document.get("generated", "")} | head, row)
    for difference in differences:
        for row in difference["rows"]:
            line(
                {"run": f"{difference['b']} - {difference['a']}"},
                {**row, "system": f"{row['system']}, B - A"},
            )
    return stream.getvalue()


def markdown(documents: Sequence[JsonRow], differences: Sequence[JsonRow]) -> str:
    """Tables ready to paste, a row per system; conventions are footnotes, shared where they are the same."""
    lines: list[str] = []
    footnotes: dict[str, str] = {}

    def footnote(name: str, text: str) -> str:
        base = name.replace(":", "-")
        place = 1
        key = base
        while footnotes.setdefault(key, text) != text:
            place += 1
            key = f"{base}-{place}"
        return f"[^{key}]"

    for document in documents:
        names = metric_names(document)
        marks = Marks()
        heads = [f"{name} {footnote(name, document['conventions'][name])}" for name in names]
        facts = ", ".join(
            f"{key.replace('_', ' ')} {cell(document[key])}" for key in FACTS if key in document
        )
        said = "".join(
            f" {key}{footnote(key, text)}."
            for key, text in document["conventions"].items()
            if key not in names
        )
        lines += [f"`{name_of(document)}` ({facts}).{said}", ""]
        lines += _markdown_table(*_page_table(document, names, heads, marks))
        lines += ["", *(f"{line}  " for line in [*_keys(document, marks), *_nearest(document)]), ""]
    for difference in differences:
        lines += [
            f"B - A: A is `{difference['a']}`, B is `{difference['b']}`; paired bootstrap 95 % intervals.",
            "",
        ]
        body = []
        for row in difference["rows"]:
            where = f"{row['cutoff']:g} Hz" if "cutoff" in row else row["system"]
            for name, metric in row["metrics"].items():
                if metric["value"] is not None:
                    span = f"{metric['low']:+.3g} to {metric['high']:+.3g}"
                    body.append(
                        [
                            where,
                            name,
                            str(metric["n"]),
                            f"{metric['value']:+.4g}",
                            span,
                            verdict(name, metric),
                        ]
                    )
        lines += [*_markdown_table(["", "metric", "n", "B - A", "95 % interval", ""], body), ""]
        lines += [*(f"{note}  " for note in difference["notes"]), ""]
    lines += [f"[^{key}]: {text}" for key, text in footnotes.items()]
    return "\n".join(lines) + "\n"


def _page_table(
    document: JsonRow, names: Sequence[str], heads: Sequence[str], marks: Marks
) -> tuple[list[str], list[list[str]]]:
    """(heads, rows): a row per cutoff and system where there are cutoffs, else a row per metric: there are many."""
    rows = document["rows"]
    if not any("cutoff" in row for row in rows):
        body = [
            [head, *(_of_row(name, row, marks) for row in rows)]
            for name, head in zip(names, heads, strict=True)
        ]
        return ["metric", *(f"{row['system']} (n {row['n']})" for row in rows)], body
    groups = any("group" in row for row in rows)
    body = [
        [
            f"{row['cutoff']:g}",
            *([row.get("group", "all")] if groups else []),
            row["system"],
            str(row["n"]),
            *(_of_row(name, row, marks) for name in names),
        ]
        for row in rows
    ]
    return ["cutoff Hz", *(["clips of"] if groups else []), "system", "n", *heads], body


def _markdown_table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rows = [
        "| " + " | ".join(part.replace("|", "\\|") for part in row) + " |" for row in [heads, *body]
    ]
    return [rows[0], "|" + "---|" * len(heads), *rows[1:]]
