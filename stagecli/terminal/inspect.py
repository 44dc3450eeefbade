"""What `inspect-regime` prints: one run in full, several side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stagecli.files import JsonRow, number
from stagecli.report.evaluation import evaluation_label, score_words
from stagecli.report.formats import (
    ascii_text,
    duration,
    signed_percent,
    significant,
    sparkline,
    step_of,
)
from stagecli.report.regime_text import change_text
from stagecli.report.sentences import best_checkpoint_text
from stagecli.terminal.console import Console
from stagecli.terminal.inspect_mechanisms import print_mechanisms, print_probe_columns
from stagecli.terminal.inspect_regime import (
    print_regime,
    print_regime_curves,
    print_regime_events,
    print_regime_levels,
    print_regime_words,
)
from stagecli.terminal.layout import print_curves, print_facts, sparkline_width

__all__ = ["inspect", "sections"]

Section = tuple[str, Callable[[], None]]

CURVES = {
    "train/loss": "train loss",
    "valid/loss": "valid loss",
    "train/grad_norm": "gradient norm",
    "optim/lr": "learning rate",
    "speed/samples_per_s": "samples/s",
}
LOG_CURVES = ("train/loss", "valid/loss")
BINS_TITLE = "Loss by noise level t (1 is noise)"


def inspect(summaries: Sequence[JsonRow], out: Console) -> None:
    """The terminal view of `inspect-regime`; summaries: from `summary.summarize_run`."""
    if out.as_json:
        out.result(summaries[0] if len(summaries) == 1 else list(summaries))
        return
    for _, draw in sections(summaries, out):
        draw()


def sections(summaries: Sequence[JsonRow], out: Console) -> list[Section]:
    """The sections of the view as (name, function that prints it), from top to bottom."""
    printers: list[tuple[str, Callable[[Sequence[JsonRow], Console], None]]] = [
        ("head", _print_head),
        ("regime", print_regime),
        ("regime words", print_regime_words),
        ("regime levels", print_regime_levels),
        ("regime curves", print_regime_curves),
        ("regime events", print_regime_events),
        ("probe columns", print_probe_columns),
        ("mechanisms", print_mechanisms),
        ("bins", _print_bins),
        ("curves", _print_curves),
        ("events", _print_events),
        ("reading", _print_reading),
    ]

    def bound(printer: Callable[[Sequence[JsonRow], Console], None]) -> Callable[[], None]:
        return lambda: printer(summaries, out)

    return [(name, bound(printer)) for name, printer in printers]


def _print_head(summaries: Sequence[JsonRow], out: Console) -> None:
    names = [summary["name"] for summary in summaries]
    facts = [_head_facts(summary) for summary in summaries]
    print_facts(out, "Runs" if len(names) > 1 else names[0], names, facts)


def _head_facts(summary: JsonRow) -> dict[str, str]:
    parameters = number(summary["parameters"])
    speed = summary["speed"]["samples_per_s"]
    trained = duration(summary["time"]["spent_s"])
    if len(summary["attempts"]) > 1:
        trained += f" in {len(summary['attempts'])} attempts"
    return {
        "task": str(summary["task"] or "-"),
        "status": summary["status"],
        "step": step_of(summary["step"], summary["steps"]),
        "parameters": "-" if parameters is None else f"{significant(parameters / 1e6, 3)} M",
        "trained for": trained,
        "speed": "-" if speed is None else f"{significant(speed)} samples/s",
        "checkpoints": str(len(summary["checkpoints"])),
        "best": best_checkpoint_text(summary["best_checkpoint"]),
        "directory": summary["path"],
    }


# -- loss by noise bin -----------------------------------------------------------------------------


def _print_bins(summaries: Sequence[JsonRow], out: Console) -> None:
    """Side by side where all runs have the same bins, else one table per run."""
    shown = [summary for summary in summaries if summary["bins"]]
    edges = [[_bin_range(entry) for entry in summary["bins"]] for summary in shown]
    if len(shown) > 1 and all(of_run == edges[0] for of_run in edges):
        _print_bins_side_by_side(shown, out)
        return
    for summary in shown:
        title = f"{BINS_TITLE}, {summary['name']}" if len(summaries) > 1 else BINS_TITLE
        _print_bins_of_run(title, summary["bins"], out)


def _bin_range(entry: JsonRow) -> str:
    return f"{entry['t_low']:.2f}-{entry['t_high']:.2f}"


def _print_bins_of_run(title: str, bins: Sequence[JsonRow], out: Console) -> None:
    width = sparkline_width(out, 1, 48)
    rows = [
        [
            _bin_range(entry),
            entry["first"],
            entry["last"],
            signed_percent(entry["change"]),
            "-" if entry["share"] is None else f"{100 * entry['share']:.0f} %",
            sparkline(entry["series"], width, ascii_only=out.ascii_only, log=True),
        ]
        for entry in bins
    ]
    out.table(title, ["t", "first", "last", "change", "share", "over time"], rows)
    out.text()


def _print_bins_side_by_side(summaries: Sequence[JsonRow], out: Console) -> None:
    """Loss, change and, where there is room, a sparkline per run."""
    width = sparkline_width(out, len(summaries), 11 + 18 * len(summaries))
    columns = ["t"]
    for summary in summaries:
        if width:
            columns += [summary["name"], "change", "over time"]
        else:
            columns += [summary["name"], f"{summary['name']} change"]
    rows = []
    for index, entry in enumerate(summaries[0]["bins"]):
        row: list[object] = [_bin_range(entry)]
        for summary in summaries:
            of_run = summary["bins"][index]
            row += [of_run["last"], signed_percent(of_run["change"])]
            if width:
                row.append(sparkline(of_run["series"], width, ascii_only=out.ascii_only, log=True))
        rows.append(row)
    out.table(BINS_TITLE, columns, rows)
    out.text()


# -- curves, events, sentences ---------------------------------------------------------------------


def _print_curves(summaries: Sequence[JsonRow], out: Console) -> None:
    names = [summary["name"] for summary in summaries]
    curves = [summary["series"] for summary in summaries]
    present = dict.fromkeys(key for of_run in curves for key in of_run)
    labels = {key: label for key, label in CURVES.items() if key in present}
    for key in present:
        if key.startswith("eval/"):
            labels[key] = f"eval {evaluation_label(key)}"
    if labels:
        words = score_words(labels)
        print_curves(
            out,
            title="Curves",
            names=names,
            curves=curves,
            labels=labels,
            log=LOG_CURVES,
            words=words,
        )


def _print_events(summaries: Sequence[JsonRow], out: Console) -> None:
    """All events but the regime's, which have a section with their evidence."""
    several = len(summaries) > 1
    rows = []
    for summary in summaries:
        for event in summary["events"]:
            mechanism = event.get("mechanism")
            if summary["regime"] and mechanism == "regime":
                continue
            cells = [event["step"], mechanism, change_text(event), event.get("reason") or ""]
            rows.append([summary["name"], *cells] if several else cells)
    if not rows:
        return
    columns = ["step", "mechanism", "change", "reason"]
    out.table("Events", ["run", *columns] if several else columns, rows)
    out.text()


def _print_reading(summaries: Sequence[JsonRow], out: Console) -> None:
    """The run in sentences, and what of it could not be read."""
    for summary in summaries:
        suffix = f", {summary['name']}" if len(summaries) > 1 else ""
        for title, sentences in (
            ("Reading", summary["reading"]),
            ("Not readable", summary["damage"]),
        ):
            if sentences:
                out.text(title + suffix, style="bold")
                for sentence in sentences:
                    out.text(f"  - {ascii_text(sentence, out.ascii_only)}")
