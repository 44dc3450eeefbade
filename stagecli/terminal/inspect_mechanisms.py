"""`inspect-regime` about the mechanisms: groups of blocks, and figures over time."""

from __future__ import annotations

from collections.abc import Sequence

from stagecli.files import JsonRow
from stagecli.report import mechanisms as report_mechanisms
from stagecli.report import structure as report_structure
from stagecli.terminal.console import Console
from stagecli.terminal.layout import print_curves, print_facts


def print_structure(summaries: Sequence[JsonRow], out: Console) -> None:
    """Groups of blocks and the similarity of their updates, of the runs that measured them."""
    shown = [summary for summary in summaries if summary["structure"]]
    if not shown:
        return
    facts = [report_structure.facts(summary["structure"]) for summary in shown]
    print_facts(out, "Structure", [summary["name"] for summary in shown], facts)
    for summary in shown:
        for line in report_structure.lines(summary["structure"], out.width, out.ascii_only):
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
        print_curves(out, title="Mechanisms", names=names, curves=curves, labels=labels)
