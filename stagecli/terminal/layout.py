"""Tables that several sections of `inspect-regime` share: facts, and curves as sparklines."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence

from stagecli.files import JsonRow
from stagecli.report.formats import significant, sparkline
from stagecli.terminal.console import Console

LONGEST_SPARKLINE = 40
SHORTEST_SPARKLINE = 6
# Columns beside the sparklines.
LABEL_COLUMNS = 16
VALUE_COLUMNS = 12
FOUR_COLUMNS = 40  # first, lowest, highest and last value


def print_facts(
    out: Console,
    title: str,
    names: Sequence[str],
    facts: Sequence[Mapping[str, str]],
    notes: Sequence[str] = (),
) -> None:
    """Facts of one run line by line, of several in columns; then what has to be explained."""
    labels = list(facts[0])
    if len(facts) > 1:
        rows = [[label, *(column[label] for column in facts)] for label in labels]
        out.table(title, ["", *names], rows)
    else:
        width = max(map(len, labels))
        out.text(title, style="bold")
        for label in labels:
            out.text(f"  {label:<{width}}  {facts[0][label]}")
    if notes:
        print_words(out, notes)
    else:
        out.text()


def print_words(out: Console, lines: Sequence[str]) -> None:
    """What the words of the section above mean, one wrapped line each; then an empty line."""
    for line in lines:
        for part in textwrap.wrap(line, max(40, out.width - 6), subsequent_indent="  "):
            out.text(f"  {part}", style="dim")
    out.text()


def sparkline_width(out: Console, count: int, taken: int) -> int:
    """Characters for each of `count` sparklines beside `taken` columns; 0 if too few to read."""
    room = (out.width - taken) // count
    return min(LONGEST_SPARKLINE, room) if room >= SHORTEST_SPARKLINE else 0


def print_curves(
    out: Console,
    *,
    title: str,
    names: Sequence[str],
    curves: Sequence[Mapping[str, JsonRow]],
    labels: Mapping[str, str],
    log: Collection[str] = (),
    words: Sequence[str] = (),
) -> None:
    """One line per curve of `labels`: of one run with its range, of several the last values.

    curves: per run, key -> `curves.curve_summary`; log: keys to plot as logarithms; words: what has
    to be explained.
    """
    # The columns, and the room that they leave for sparklines.
    several = len(names) > 1
    label_columns = max(LABEL_COLUMNS, *(len(label) + 2 for label in labels.values()))
    if several:
        taken = label_columns + VALUE_COLUMNS * len(names)
        width = sparkline_width(out, len(names), taken)
        columns = list(names)
    else:
        width = sparkline_width(out, 1, label_columns + FOUR_COLUMNS)
        columns = ["first", "lowest", "highest", "last", "over time"]

    # One row per curve, with a cell or five per run.
    rows = []
    for key, label in labels.items():
        row = [label]
        for run_curves in curves:
            curve = run_curves.get(key)
            if curve is None:
                row += ["-"] if several else ["-"] * 5
                continue
            line = sparkline(
                curve["value"],
                width,
                ascii_only=out.ascii_only,
                log=key in log,
                bounds=(0.0, 1.0) if key == "r" else None,
            )
            if several:
                row.append(f"{significant(curve['last']):<8} {line}".rstrip())
            else:
                ends = ("first", "lowest", "highest", "last")
                row += [*(significant(curve[end]) for end in ends), line]
        rows.append(row)
    out.table(title, ["", *columns], rows)
    print_words(out, words)
