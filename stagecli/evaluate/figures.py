"""Figures of a document as text, with the notes that explain their signs; shared by all tables."""

from __future__ import annotations

from dataclasses import dataclass, field

from stagecli.errors import counted, significant
from stagecli.files import JsonRow
from stagecli.metrics.registry import METRICS, Metric
from stagecli.terminal.console import cell

BRACKETED = ("kad", "prompt_accuracy", "memorised_share")  # intervals that are not those of a mean
FEW_CLIPS = 10  # below, a bootstrap interval is too narrow
HALF_INTERVAL = "half of the bootstrap 95 % interval of the mean over clips"
WHOLE_INTERVAL = "95 % interval: of KAD by bootstrap over clips, of shares by Wilson's formula"
BIASED = "no more clips than dimensions; biased upwards: compare at equal numbers of clips only"
HEAD = ("data", "split", "clips", "sample_rate", "seed", "sampler", "steps", "cfg_scale", "judge")


@dataclass
class NoteMarks:
    """Letters for notes on single figures, explained under the table."""

    notes: list[str] = field(default_factory=list)

    def mark(self, note: str) -> str:
        """The mark of a note, such as "(a)"; equal notes share one."""
        if note not in self.notes:
            self.notes.append(note)
        return _letter_mark(self.notes.index(note))

    def lines(self) -> list[str]:
        """One line per note."""
        return [f"{_letter_mark(i)}: {note}" for i, note in enumerate(self.notes)]


def _letter_mark(i: int) -> str:
    """0 -> (a), 25 -> (z), 26 -> (aa)."""
    prefix = chr(ord("a") + i // 26 - 1) if i >= 26 else ""
    return f"({prefix}{chr(ord('a') + i % 26)})"


def base_metric(name: str) -> Metric:
    """The registry's entry; `prompt_accuracy:label` is one of prompt_accuracy."""
    return METRICS[name.partition(":")[0]]


def is_bracketed(name: str) -> bool:
    """Whether the interval of a metric is printed as [low, high]."""
    return name.partition(":")[0] in BRACKETED


def figure(name: str, metric: JsonRow | None, marks: NoteMarks) -> str:
    """`1.234 +-0.05` or `0.99 [0.96, 1.00]`, with * if biased and a letter for each note.

    "" for no metric.
    """
    if metric is None:
        return ""
    parts = [cell(metric["value"]) + ("*" if metric.get("biased") else "")]
    if metric.get("low") is not None and is_bracketed(name):
        digits = ".2g" if name == "kad" else ".2f"
        parts.append(f"[{metric['low']:{digits}}, {metric['high']:{digits}}]")
    elif metric.get("low") is not None:
        parts.append(f"+-{significant((metric['high'] - metric['low']) / 2, 2)}")
    elif metric.get("std") is not None:
        parts.append(f"(std {significant(metric['std'], 2)})")
    if metric.get("left_out"):
        parts.append(
            marks.mark(f"left out, without a finite value: {counted(metric['left_out'], 'clip')}")
        )
    if metric.get("note"):
        parts.append(marks.mark(metric["note"]))
    return " ".join(parts)


def figure_of_row(name: str, row: JsonRow, marks: NoteMarks) -> str:
    """`figure`, followed by its number of clips if not all clips of the row count."""
    metric = row["metrics"].get(name)
    text = figure(name, metric, marks)
    if metric is not None and metric.get("n", row["n"]) != row["n"]:
        text += f" of {metric['n']}"
    return text


def metric_names(document: JsonRow) -> list[str]:
    """Metrics of any row, in the order of the conventions."""
    names = {name for row in document["rows"] for name in row["metrics"]}
    return [name for name in document["conventions"] if name in names]


def head_text(document: JsonRow) -> str:
    """The settings in the head of a document, on one line."""
    return ", ".join(
        f"{key.replace('_', ' ')} {cell(document[key])}{' Hz' if key == 'sample_rate' else ''}"
        for key in HEAD
        if key in document
    )


def legend(document: JsonRow, marks: NoteMarks) -> list[str]:
    """Lines that explain the signs in a table of the document."""
    figures = [(name, m) for row in document["rows"] for name, m in row["metrics"].items()]
    with_interval = {is_bracketed(name) for name, m in figures if m.get("low") is not None}
    lines = []
    if False in with_interval:
        few = any(row["n"] < FEW_CLIPS for row in document["rows"])
        caution = f"; too narrow for fewer than {FEW_CLIPS} clips" if few else ""
        lines.append(f"+-: {HALF_INTERVAL}{caution}")
    if True in with_interval:
        lines.append(f"[ ]: {WHOLE_INTERVAL}")
    if any(m.get("biased") for _, m in figures):
        lines.append(f"*: {BIASED}")
    return [*lines, *marks.lines()]


def memorisation_lines(document: JsonRow) -> list[str]:
    """The memorisation check in words; [] if it was not made."""
    details = document.get("memorisation")
    if not details:
        return []
    nearest = details["pairs"][0]
    return [
        f"nearest of {counted(details['training_clips'], 'training clip')}: median distance "
        f"{significant(details['samples']['0.5'], 3)} for samples, "
        f"{significant(details['real']['0.5'], 3)} for real clips "
        f"not trained on; {counted(details['copies'], 'exact copy', 'exact copies')}",
        f"nearest pair, worth listening to: {nearest['sample']} and {nearest['training']} "
        f"(distance {significant(nearest['distance'], 3)}; "
        f"{100 * nearest['rank']:.0f} % of real clips are nearer)",
    ]


def signed_interval(metric: JsonRow) -> str:
    """The interval of a difference, `-` if it has none."""
    if metric.get("low") is None:
        return "-"
    low, high = (significant(metric[end], 3, signed=True) for end in ("low", "high"))
    return f"{low} to {high}"


def verdict(name: str, metric: JsonRow) -> str:
    """Which of A and B is better, if the interval of B - A excludes 0."""
    if metric["value"] is None or not metric.get("decided"):
        return "undecided"
    b_is_lower = metric["value"] < 0
    return "B better" if b_is_lower == (base_metric(name).better == "lower") else "A better"
