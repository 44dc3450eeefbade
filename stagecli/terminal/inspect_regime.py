"""`inspect-regime` about the regime: facts, curves, and events with their evidence."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from stagecli.files import JsonRow
from stagecli.report.formats import ascii_text
from stagecli.report.regime_text import (
    LEVEL_COLUMNS,
    legend,
    level_rows,
    regime_facts,
    regime_timeline,
)
from stagecli.terminal.console import Console
from stagecli.terminal.layout import print_curves, print_facts, print_words

FIXED_SPACE = "\N{NO-BREAK SPACE}"
EVENTS_AT_ENDS = 20  # events listed of the first and of the last ones


def print_regime(summaries: Sequence[JsonRow], out: Console) -> None:
    """Where r and Dn stand, and how to enable the regime where there is none."""
    regimes = [summary["regime"] for summary in summaries if summary["regime"]]
    if regimes:
        names = [summary["name"] for summary in summaries]
        facts = [regime_facts(summary["regime"], out.ascii_only) for summary in summaries]
        print_facts(out, "Regime", names, facts)
    notes = [summary for summary in summaries if summary["regime_note"]]
    for summary in notes:
        name = f"{summary['name']}: " if len(summaries) > 1 else ""
        out.text(f"{name}{summary['regime_note']}")
    if notes:
        out.text()


def print_regime_words(summaries: Sequence[JsonRow], out: Console) -> None:
    """What the words of the regime mean."""
    regimes = [summary["regime"] for summary in summaries if summary["regime"]]
    references = dict.fromkeys(regime["reference"] for regime in regimes)
    if references:
        out.text("Words", style="bold")
        print_words(out, legend(" or ".join(references)))


def print_regime_levels(summaries: Sequence[JsonRow], out: Console) -> None:
    """Dn, progress made and to come, and r of each noise level."""
    several = len(summaries) > 1
    rows: list[list[object]] = []
    for summary in summaries:
        name = [summary["name"]] if several else []
        rows += [[*name, *row] for row in level_rows(summary["regime"])]
    if rows:
        columns = ["run", *LEVEL_COLUMNS] if several else list(LEVEL_COLUMNS)
        out.table("Progress in Dn by noise level", columns, rows)
        out.text()


def print_regime_curves(summaries: Sequence[JsonRow], out: Console) -> None:
    """Dn, Dn by noise level, D and r over the steps of the probes."""
    curves = [summary["regime"]["series"] if summary["regime"] else {} for summary in summaries]
    keys = list(dict.fromkeys(key for of_run in curves for key in of_run))
    if not keys:
        return
    keys.sort(key=lambda key: (key == "r", key == "D", key))
    labels = {key: key.replace("_t", " at t ") for key in keys}
    regimes = [summary["regime"] for summary in summaries if summary["regime"]]
    first = min(regime["first_step"] for regime in regimes)
    last = max(regime["last_step"] for regime in regimes)
    print_curves(
        out,
        title=f"Discrepancy and r over steps {first:,} to {last:,}",
        names=[summary["name"] for summary in summaries],
        curves=curves,
        labels=labels,
        log=[key for key in keys if key != "r"],
    )


def print_regime_events(summaries: Sequence[JsonRow], out: Console) -> None:
    """The regime's events; of very many, the first and the last."""
    for summary in summaries:
        timeline = regime_timeline(summary["regime"]["events"]) if summary["regime"] else []
        if not timeline:
            continue
        suffix = f", {summary['name']}" if len(summaries) > 1 else ""
        out.text(f"Regime events{suffix}", style="bold")
        hidden = len(timeline) - 2 * EVENTS_AT_ENDS
        for index, entry in enumerate(timeline):
            if hidden > 0 and EVENTS_AT_ENDS <= index < EVENTS_AT_ENDS + hidden:
                if index == EVENTS_AT_ENDS:
                    out.text(f"  ... {hidden} more, all in events.jsonl and --json ...")
                continue
            _print_event(entry, out)
        out.text()


def _print_event(entry: JsonRow, out: Console) -> None:
    """Step and change, then the reason and the numbers behind it."""
    out.text(f"  step {entry['step']:,}  {entry['change']}")
    width = max(40, out.width - 6)
    # A number stays on one line with its name.
    numbers = entry["evidence"].replace(" ", FIXED_SPACE).replace(f",{FIXED_SPACE}", ", ")
    for text, style in ((entry["reason"], ""), (numbers, "dim")):
        for line in textwrap.wrap(text, width, break_on_hyphens=False):
            line = ascii_text(line.replace(FIXED_SPACE, " "), out.ascii_only)
            out.text(f"      {line}", style=style)
