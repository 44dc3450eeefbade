"""`inspect-regime` about the mechanisms: groups of blocks, and figures over time."""

from __future__ import annotations

from collections.abc import Sequence

from stagecli.files import JsonRow
from stagecli.report import mechanisms as report_mechanisms
from stagecli.report.matrix_text import matrix_lines
from stagecli.stage import registry
from stagecli.terminal.console import Console
from stagecli.terminal.layout import print_curves, print_facts


def print_probe_columns(summaries: Sequence[JsonRow], out: Console) -> None:
    """Facts and matrix of what a mechanism added to the probes, of the runs that have any."""
    for mechanism, columns in registry.probe_columns().items():
        shown = [summary for summary in summaries if summary[mechanism]]
        if not shown:
            continue
        facts = [columns.facts(summary[mechanism]) for summary in shown]
        names = [summary["name"] for summary in shown]
        print_facts(out, columns.title, names, facts, notes=columns.words)
        for summary in shown:
            matrix = columns.matrix(summary[mechanism])
            for line in matrix_lines(matrix, out.width, out.ascii_only):
                out.text(line)
            out.text()


def print_mechanisms(summaries: Sequence[JsonRow], out: Console) -> None:
    """What each mechanism reports, over time."""
    curves = [summary["series"] for summary in summaries]
    keys = dict.fromkeys(
        key for of_run in curves for key in of_run if key.startswith(report_mechanisms.PREFIX)
    )
    if keys:
        labels = {key: report_mechanisms.label(key) for key in keys}
        names = [summary["name"] for summary in summaries]
        words = report_mechanisms.figure_words(keys)
        print_curves(
            out, title="Mechanisms", names=names, curves=curves, labels=labels, words=words
        )
